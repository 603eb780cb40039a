// The unmodified TypeScript SDK client, in either era, in one conversation with one of the
// conformance servers; prints what it saw as one JSON object (test_eras.py: Seen).
//
//   MCP_URL=... MCP_KEY=... node eras.mjs '{"mode": "auto", "person": {...}, "model": {...}}'
//
// `mode` is the SDK's own; `person` and `model` say which tool asks them: {"name": ..., "arguments": ...}.

import { Client, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";

const STEP_BOUND = 30_000; // ms for one request

const plan = JSON.parse(process.argv[2]);

const client = new Client(
  { name: "eras", version: "1.0.0" },
  {
    capabilities: { elicitation: {}, sampling: {} },
    versionNegotiation: { mode: plan.mode },
  },
);

client.setRequestHandler("elicitation/create", ({ params }) => {
  const fields = Object.keys(params.requestedSchema.properties);
  return { action: "accept", content: Object.fromEntries(fields.map((name) => [name, "Ada"])) };
});

client.setRequestHandler("sampling/createMessage", () => ({
  role: "assistant",
  model: "geographer",
  content: { type: "text", text: "Paris" },
}));

const call = (tool, options = {}) => client.callTool(tool, { timeout: STEP_BOUND, ...options });

function text(result) {
  if (result.isError) throw new Error(JSON.stringify(result.content));
  return result.content.map((content) => content.text).join("\n");
}

const headers = { Authorization: `Bearer ${process.env.MCP_KEY}` };
const transport = new StreamableHTTPClientTransport(new URL(process.env.MCP_URL), {
  requestInit: { headers },
});
await client.connect(transport, { timeout: STEP_BOUND });

const { tools } = await client.listTools();
const { prompts } = await client.listPrompts();
const { resources } = await client.listResources();
const plain = text(await call({ name: "test_simple_text", arguments: {} })); // the boot is over
const progress = [];
await call(
  { name: "test_tool_with_progress", arguments: {} },
  { onprogress: (step) => progress.push(step.progress) },
);
const person = text(await call(plan.person));
const model = text(await call(plan.model));
const { contents } = await client.readResource({ uri: "test://static-text" });

const seen = {
  revision: client.getNegotiatedProtocolVersion(),
  lists: [
    tools.map((tool) => tool.name),
    prompts.map((prompt) => prompt.name),
    resources.map((resource) => resource.uri),
  ],
  text: plain,
  progress,
  person,
  model,
  resource: contents[0].text,
};
process.stdout.write(`${JSON.stringify(seen)}\n`);
await transport.terminateSession?.();
await client.close();
