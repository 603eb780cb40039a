// The unmodified TypeScript SDK client in a call during which its gateway may go away.
//
//   MCP_URL=... MCP_KEY=... node outage.mjs '{"who": {"name": ...}, "slow": {"name": ...}}'
//
// Prints one JSON object a line: {"step": n} for each progress notification of the slow call, as it
// comes, and at the end {"before": ..., "result": ..., "after": ...}: what `who` said before and
// after it, and the slow call's result. Any failure ends it with a non-zero status.

import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

const STEP_BOUND = 90_000; // ms for one request, the outage included

const plan = JSON.parse(process.argv[2]);
const say = (document) => process.stdout.write(`${JSON.stringify(document)}\n`);
const text = (result) => result.content.map((content) => content.text).join("\n");

const client = new Client({ name: "outage", version: "1.0.0" });
client.onerror = (error) => process.stderr.write(`${error}\n`);

const call = async (tool, options = {}) =>
  text(await client.callTool(tool, undefined, { timeout: STEP_BOUND, ...options }));

const headers = { Authorization: `Bearer ${process.env.MCP_KEY}` };
const url = new URL(process.env.MCP_URL);
const transport = new StreamableHTTPClientTransport(url, { requestInit: { headers } });
await client.connect(transport, { timeout: STEP_BOUND });

const before = await call(plan.who);
const onprogress = ({ progress }) => say({ step: progress });
const result = await call(plan.slow, { onprogress });
const after = await call(plan.who);
say({ before, result, after });

await transport.terminateSession();
await client.close();
