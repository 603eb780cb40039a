// The unmodified TypeScript SDK client in one conversation; prints one JSON object of what it saw.
//
//   MCP_URL=... MCP_KEY=... node acceptance.mjs '{"call": {...}, "progress": {...}, ...}'
//
// The argument says what to call, so that the same conversation fits any server: each of call,
// progress, elicitation, sampling and cancel is {"name": ..., "arguments": ...}. A step that fails
// becomes {"error": ...} in the result and the steps after it still run; the tests judge. There is
// a "connection" only if connecting failed.

import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";
import {
  CreateMessageRequestSchema,
  ElicitRequestSchema,
  LoggingMessageNotificationSchema,
} from "@modelcontextprotocol/sdk/types.js";

const STEP_BOUND = 30_000; // ms for one request; the SDK's own default is 60 s
const CANCEL_REASON = "the person pressed stop";

const plan = JSON.parse(process.argv[2]);
const seen = { elicited: [], sampled: [], logged: [], errors: [] };

const client = new Client(
  { name: "acceptance", version: "1.0.0" },
  { capabilities: { elicitation: {}, sampling: {} } },
);

client.setRequestHandler(ElicitRequestSchema, (request) => {
  seen.elicited.push(request.params.message);
  return { action: "accept", content: plan.answer };
});

client.setRequestHandler(CreateMessageRequestSchema, (request) => {
  const prompt = request.params.messages[0].content.text;
  seen.sampled.push(prompt);
  const content = { type: "text", text: prompt.toUpperCase() };
  return { role: "assistant", model: "shouting", content };
});

client.setNotificationHandler(LoggingMessageNotificationSchema, (notification) => {
  seen.logged.push(notification.params.data);
});

client.onerror = (error) => seen.errors.push(String(error));

const call = (tool, options = {}) =>
  client.callTool(tool, undefined, { timeout: STEP_BOUND, ...options });

const text = (result) => result.content.map((content) => content.text).join("\n");

const steps = {
  server: async () => client.getServerVersion().name,

  tools: async () => (await client.listTools(undefined, { timeout: STEP_BOUND })).tools.map((tool) => tool.name),

  call: async () => text(await call(plan.call)),

  progress: async () => {
    const steps = [];
    const onprogress = ({ progress }) => steps.push(progress);
    const result = text(await call(plan.progress, { onprogress, resetTimeoutOnProgress: true }));
    return { steps, result };
  },

  elicitation: async () => text(await call(plan.elicitation)),

  sampling: async () => text(await call(plan.sampling)),

  // Abort once the server has shown that it is at work: at the first progress notification.
  cancel: async () => {
    const stop = new AbortController();
    const onprogress = () => stop.abort(CANCEL_REASON);
    try {
      await call(plan.cancel, { onprogress, signal: stop.signal });
    } catch (error) {
      return { rejected: true, because: String(error.message ?? error) };
    }
    return { rejected: false };
  },

  after_cancel: async () => text(await call(plan.call)),
};

const results = {};

async function step(name, body) {
  try {
    results[name] = await body();
  } catch (error) {
    results[name] = { error: String(error?.stack ?? error) };
  }
}

async function main() {
  const headers = { Authorization: `Bearer ${process.env.MCP_KEY}` };
  const url = new URL(process.env.MCP_URL);
  const transport = new StreamableHTTPClientTransport(url, { requestInit: { headers } });
  await client.connect(transport, { timeout: STEP_BOUND });
  results.session = transport.sessionId;
  results.revision = transport.protocolVersion;
  for (const [name, body] of Object.entries(steps)) {
    await step(name, body);
  }
  seen.errors_before_close = [...seen.errors];
  await step("terminate", async () => {
    await transport.terminateSession();
    return { session: transport.sessionId ?? null };
  });
  await client.close();
}

await step("connection", main);
process.stdout.write(`${JSON.stringify({ ...results, seen })}\n`);
