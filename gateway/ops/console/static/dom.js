// Elements. All that others wrote becomes text nodes, and nothing ever becomes markup.

const SVG = "http://www.w3.org/2000/svg";

const UNSEEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu;

const SHORT = { "\n": "\\n", "\r": "\\r", "\t": "\\t" };

// Spell out what would be invisible, or would turn the text around. The server has done so with
// whatever others wrote, in the same spelling; this is for what reaches us in another way.
export function inert(value) {
  return String(value).replace(UNSEEN, (character) => {
    const code = character.codePointAt(0);
    const hex = code.toString(16);
    if (code < 0x100) return SHORT[character] ?? `\\x${hex.padStart(2, "0")}`;
    return code < 0x10000 ? `\\u${hex.padStart(4, "0")}` : `\\U${hex.padStart(8, "0")}`;
  });
}

function fill(node, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : document.createTextNode(inert(child)));
  }
  return node;
}

function dress(node, { on = {}, data = {}, ...attributes }) {
  for (const [name, value] of Object.entries(attributes)) attribute(node, name, value);
  for (const [name, value] of Object.entries(data)) node.dataset[name] = inert(value);
  for (const [name, listener] of Object.entries(on)) node.addEventListener(name, listener);
  return node;
}

// Names of attributes are ours; only values come from outside.
export function attribute(node, name, value) {
  const wanted = value === true ? "" : value;
  if (wanted === null || wanted === undefined || wanted === false) node.removeAttribute(name);
  else if (node.getAttribute(name) !== inert(wanted)) node.setAttribute(name, inert(wanted));
}

export function el(name, attributes = {}, ...children) {
  return fill(dress(document.createElement(name), attributes), children);
}

export function svg(name, attributes = {}, ...children) {
  return fill(dress(document.createElementNS(SVG, name), attributes), children);
}

// Change a text only if it is another one, so that selections and readers are left in peace.
export function say(node, value) {
  const text = inert(value);
  if (node.textContent !== text) node.textContent = text;
  return node;
}

export function replace(node, ...children) {
  node.replaceChildren();
  return fill(node, children);
}

// Text from outside, isolated from the direction of what stands around it.
export function said(value, attributes = {}) {
  return el("bdi", attributes, value);
}

// Text with the places marked where it has the needle, which is in lower case.
export function marked(value, needle) {
  const text = inert(value);
  if (!needle) return [text];
  const parts = [];
  const low = text.toLowerCase();
  if (low.length !== text.length) return [text]; // a letter that is longer in lower case
  let from = 0;
  for (let at = low.indexOf(needle); at >= 0; at = low.indexOf(needle, from)) {
    parts.push(text.slice(from, at), el("mark", {}, text.slice(at, at + needle.length)));
    from = at + needle.length;
  }
  parts.push(text.slice(from));
  return parts.filter((part) => part !== "");
}

// Bring the children of a node in line with keyed rows, moving as few as can be.
export function arrange(parent, nodes) {
  const focused = parent.contains(document.activeElement) ? document.activeElement : null;
  const wanted = new Set(nodes);
  for (const child of [...parent.children]) if (!wanted.has(child)) child.remove();
  nodes.forEach((node, place) => {
    if (parent.children[place] !== node) parent.insertBefore(node, parent.children[place] ?? null);
  });
  if (focused?.isConnected && document.activeElement !== focused) {
    focused.focus({ preventScroll: true });
  }
}

export function option(value, label, chosen) {
  return el("option", { value, selected: value === chosen }, label);
}
