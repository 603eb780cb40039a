// The server that the official conformance suite wants to meet, on an SDK that knows nothing of
// 2026-07-28: every tool, prompt and resource of tests/fixtures/conformance_server.py that a server
// with a handshake can have. It speaks stdio, and has never heard of gateways.
//
// Where 2026-07-28 returns its questions and is called again (`test_input_required_result_...`),
// this server asks its client in the middle of the call, as such servers always did.

import { Server } from "@modelcontextprotocol/sdk/server/index.js";
import { StdioServerTransport } from "@modelcontextprotocol/sdk/server/stdio.js";
import {
  CallToolRequestSchema,
  CompleteRequestSchema,
  ErrorCode,
  GetPromptRequestSchema,
  ListPromptsRequestSchema,
  ListResourcesRequestSchema,
  ListResourceTemplatesRequestSchema,
  ListToolsRequestSchema,
  McpError,
  ReadResourceRequestSchema,
  SetLevelRequestSchema,
  SubscribeRequestSchema,
  UnsubscribeRequestSchema,
} from "@modelcontextprotocol/sdk/types.js";

const PAUSE = 50; // ms between two notifications; the suite asks for it
const RECONNECT = 500; // ms that `test_reconnection` takes
const NOT_FOUND = -32002; // a resource, before 2026-07-28

const PNG =
  "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg==";
const WAV = "UklGRiYAAABXQVZFZm10IBAAAAABAAEAQB8AAAB9AAACABAAZGF0YQIAAAA=";

const server = new Server(
  { name: "conformance-legacy", version: "1.0.0" },
  {
    capabilities: {
      completions: {},
      logging: {},
      prompts: { listChanged: true },
      resources: { subscribe: true },
      tools: { listChanged: true },
    },
  },
);

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const text = (words) => ({ type: "text", text: words });
const image = { type: "image", data: PNG, mimeType: "image/png" };
const audio = { type: "audio", data: WAV, mimeType: "audio/wav" };
const embedded = (uri, mimeType, words) => ({
  type: "resource",
  resource: { uri, mimeType, text: words },
});
const said = (content) => ({ role: "user", content });

const log = (line) => server.sendLoggingMessage({ level: "info", data: line });

// What asks the client

const string = { type: "string" };
const form = (properties) => ({
  type: "object",
  properties,
  required: Object.keys(properties),
});

async function elicit(message, properties) {
  const { action, content } = await server.elicitInput({
    message,
    requestedSchema: form(properties),
  });
  return { action, content: content ?? {} };
}

async function inWords(message, properties) {
  const { action, content } = await elicit(message, properties);
  return `action=${action}, content=${JSON.stringify(content)}`;
}

async function sample(prompt, maxTokens) {
  const { content } = await server.createMessage({ messages: [said(text(prompt))], maxTokens });
  return content.text ?? "nothing";
}

async function roots() {
  const listed = await server.listRoots();
  return listed.roots.map((root) => root.uri).join(", ");
}

async function confirmation() {
  const { content } = await elicit("Please confirm", { ok: { type: "boolean" } });
  return content.ok ? "state-ok" : "not confirmed";
}

const titled = (...choices) => choices.map(([value, title]) => ({ const: value, title }));
const OPTIONS = ["option1", "option2", "option3"];
const FIRST_TO_THIRD = titled(["value1", "First"], ["value2", "Second"], ["value3", "Third"]);

const DEFAULTS = {
  name: { type: "string", default: "John Doe" },
  age: { type: "integer", default: 30 },
  score: { type: "number", default: 95.5 },
  status: { type: "string", enum: ["active", "inactive", "pending"], default: "active" },
  verified: { type: "boolean", default: true },
};

const ENUMS = {
  untitledSingle: { type: "string", enum: OPTIONS },
  titledSingle: { type: "string", oneOf: FIRST_TO_THIRD },
  legacyEnum: {
    type: "string",
    enum: ["opt1", "opt2", "opt3"],
    enumNames: ["Option One", "Option Two", "Option Three"],
  },
  untitledMulti: { type: "array", items: { type: "string", enum: OPTIONS } },
  titledMulti: { type: "array", items: { anyOf: FIRST_TO_THIRD } },
};

// Tools: name -> [run, properties or a whole schema]; `run` returns content, or words

const SCHEMA_2020_12 = {
  $schema: "https://json-schema.org/draft/2020-12/schema",
  type: "object",
  $defs: {
    address: { $anchor: "addressDef", type: "object", properties: { street: string, city: string } },
  },
  properties: {
    name: string,
    address: { $ref: "#/$defs/address" },
    contactMethod: { type: "string", enum: ["phone", "email"] },
    phone: string,
    email: string,
  },
  allOf: [{ anyOf: [{ required: ["phone"] }, { required: ["email"] }] }],
  if: { properties: { contactMethod: { const: "phone" } }, required: ["contactMethod"] },
  then: { required: ["phone"] },
  else: { required: ["email"] },
  additionalProperties: false,
};

async function progress(_, { _meta, sendNotification }) {
  for (const done of [0, 50, 100]) {
    if (done > 0) await pause(PAUSE);
    if (_meta?.progressToken === undefined) continue;
    const params = { progressToken: _meta.progressToken, progress: done, total: 100 };
    await sendNotification({ method: "notifications/progress", params });
  }
  return "progressed";
}

async function logging() {
  await log("Tool execution started");
  await pause(PAUSE);
  await log("Tool processing data");
  await pause(PAUSE);
  await log("Tool execution completed");
  return "logged";
}

async function reconnection() {
  await log("before");
  await pause(RECONNECT);
  await log("after");
  return "nobody had to come back";
}

// One after the other: of questions asked at once nothing over stdio says whose call they are for
// (docs/eras.md), and the suite leaves this call alone after the first.
async function threeQuestions() {
  const name = await elicit("What is your name?", { name: string });
  const greeting = await sample("Generate a greeting", 50);
  const listed = await roots();
  return `${greeting} ${name.content.name} of ${listed}`;
}

async function twoRounds() {
  const name = await elicit("Step 1: What is your name?", { name: string });
  const colour = await elicit("Step 2: What is your colour?", { color: string });
  return `${name.content.name} likes ${colour.content.color}.`;
}

// Whatever the client said at the handshake that it can do; it may refuse for this call.
async function whatTheClientCan() {
  const can = server.getClientCapabilities() ?? {};
  const ask = async (question) => {
    try {
      return await question();
    } catch {
      return "refused";
    }
  };
  const answers = [];
  if (can.sampling) answers.push(await ask(() => sample("Say hello", 50)));
  if (can.elicitation) {
    answers.push(await ask(() => inWords("What is your name?", { name: string })));
  }
  return answers.join(", ") || "nothing to ask";
}

const TOOLS = {
  json_schema_2020_12_tool: [() => "done", SCHEMA_2020_12],
  test_simple_text: [() => "This is a simple text response for testing."],
  test_image_content: [() => [image]],
  test_audio_content: [() => [audio]],
  test_embedded_resource: [
    () => [
      embedded("test://embedded-resource", "text/plain", "This is an embedded resource content."),
    ],
  ],
  test_multiple_content_types: [
    () => [
      text("Multiple content types test:"),
      image,
      embedded(
        "test://mixed-content-resource",
        "application/json",
        JSON.stringify({ test: "data", value: 123 }),
      ),
    ],
  ],
  test_tool_with_logging: [logging],
  test_logging_tool: [() => log("logged").then(() => "logged")],
  test_tool_with_progress: [progress],
  test_error_handling: [
    () => {
      throw new Error("This tool intentionally returns an error for testing");
    },
  ],
  test_reconnection: [reconnection],
  test_custom_header: [
    ({ region }) => region ?? "none",
    { region: { type: "string", "x-mcp-header": "Region" } },
  ],
  test_trigger_tool_change: [() => server.sendToolListChanged().then(() => "changed")],
  test_trigger_prompt_change: [() => server.sendPromptListChanged().then(() => "changed")],
  test_sampling: [
    async ({ prompt }) => `LLM response: ${await sample(prompt, 100)}`,
    { prompt: string },
  ],
  test_elicitation: [
    async ({ message }) =>
      `User response: ${await inWords(message, { username: string, email: string })}`,
    { message: string },
  ],
  test_elicitation_sep1034_defaults: [() => inWords("Who are you?", DEFAULTS)],
  test_elicitation_sep1330_enums: [() => inWords("What do you choose?", ENUMS)],
  test_streaming_elicitation: [() => inWords("Which colour?", { colour: string })],
  test_input_required_result_elicitation: [
    async () => `Hello, ${(await elicit("What is your name?", { name: string })).content.name}!`,
  ],
  test_input_required_result_sampling: [() => sample("What is the capital of France?", 100)],
  test_input_required_result_list_roots: [roots],
  test_input_required_result_request_state: [confirmation],
  test_input_required_result_tampered_state: [confirmation],
  test_input_required_result_multiple_inputs: [threeQuestions],
  test_input_required_result_multi_round: [twoRounds],
  test_input_required_result_capabilities: [whatTheClientCan],
  test_missing_capability: [() => sample("Can you?", 10)],
};

const schemaOf = (shape = {}) => (shape.$schema ? shape : { type: "object", properties: shape });

server.setRequestHandler(ListToolsRequestSchema, async () => {
  const tools = Object.entries(TOOLS).map(([name, [, shape]]) => ({
    name,
    description: `The suite's ${name}`,
    inputSchema: schemaOf(shape),
  }));
  return { tools };
});

server.setRequestHandler(CallToolRequestSchema, async ({ params }, extra) => {
  if (!Object.hasOwn(TOOLS, params.name)) {
    throw new McpError(ErrorCode.InvalidParams, `no tool ${params.name}`);
  }
  const [run] = TOOLS[params.name];
  try {
    const result = await run(params.arguments ?? {}, extra);
    return { content: Array.isArray(result) ? result : [text(result)] };
  } catch (error) {
    return { content: [text(error.message)], isError: true };
  }
});

// Resources

const RESOURCES = {
  "test://static-text": [
    "text/plain",
    { text: "This is the content of the static text resource." },
  ],
  "test://static-binary": ["image/png", { blob: PNG }],
  "test://watched-resource": ["text/plain", { text: "This never changes." }],
};
const TEMPLATE = "test://template/{id}/data";

server.setRequestHandler(ListResourcesRequestSchema, () => ({
  resources: Object.entries(RESOURCES).map(([uri, [mimeType]]) => ({
    uri,
    name: uri.slice("test://".length),
    description: `The suite's ${uri}`,
    mimeType,
  })),
}));

server.setRequestHandler(ListResourceTemplatesRequestSchema, () => ({
  resourceTemplates: [
    { uriTemplate: TEMPLATE, name: "template", mimeType: "application/json" },
  ],
}));

server.setRequestHandler(ReadResourceRequestSchema, ({ params: { uri } }) => {
  if (Object.hasOwn(RESOURCES, uri)) {
    const [mimeType, content] = RESOURCES[uri];
    return { contents: [{ uri, mimeType, ...content }] };
  }
  const id = /^test:\/\/template\/([^/]+)\/data$/.exec(uri)?.[1];
  if (id === undefined) throw new McpError(NOT_FOUND, "Resource not found", { uri });
  const document = { id, templateTest: true, data: `Data for ID: ${id}` };
  return { contents: [{ uri, mimeType: "application/json", text: JSON.stringify(document) }] };
});

// Nothing here ever changes, so that a subscription needs no memory.
server.setRequestHandler(SubscribeRequestSchema, () => ({}));
server.setRequestHandler(UnsubscribeRequestSchema, () => ({}));
server.setRequestHandler(SetLevelRequestSchema, () => ({}));

// Prompts: name -> [messages, names of arguments]

const PROMPTS = {
  test_simple_prompt: [() => [text("This is a simple prompt for testing.")]],
  test_prompt_with_arguments: [
    ({ arg1, arg2 }) => [text(`Prompt with arguments: arg1='${arg1}', arg2='${arg2}'`)],
    ["arg1", "arg2"],
  ],
  test_prompt_with_embedded_resource: [
    ({ resourceUri }) => [
      embedded(resourceUri, "text/plain", "Embedded resource content for testing."),
      text("Please process the embedded resource above."),
    ],
    ["resourceUri"],
  ],
  test_prompt_with_image: [() => [image, text("Please analyze the image above.")]],
  test_input_required_result_prompt: [
    async () => {
      const { content } = await elicit("What context should the prompt use?", { context: string });
      return [text(`Mind this context: ${content.context}`)];
    },
  ],
};

server.setRequestHandler(ListPromptsRequestSchema, () => ({
  prompts: Object.entries(PROMPTS).map(([name, [, names = []]]) => ({
    name,
    description: `The suite's ${name}`,
    arguments: names.map((argument) => ({
      name: argument,
      description: `The suite's ${argument}`,
      required: true,
    })),
  })),
}));

server.setRequestHandler(GetPromptRequestSchema, async ({ params }) => {
  if (!Object.hasOwn(PROMPTS, params.name)) {
    throw new McpError(ErrorCode.InvalidParams, `no prompt ${params.name}`);
  }
  const [messages] = PROMPTS[params.name];
  return { messages: (await messages(params.arguments ?? {})).map(said) };
});

server.setRequestHandler(CompleteRequestSchema, ({ params }) => {
  const values = ["paris", "park", "party"].filter((word) => word.startsWith(params.argument.value));
  return { completion: { values, total: values.length, hasMore: false } };
});

await server.connect(new StdioServerTransport());
