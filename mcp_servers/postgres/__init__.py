"""A stdio MCP server with two tools, `postgres_get_schema` and `postgres_run_query`.

`settings` reads the limits, `attachments` finds a database among the environment's variables,
`statements` says what is run at all, `values` makes JSON of what PostgreSQL says, `collecting`
keeps results within their limits, `database` asks the server, `schema` is what it asks for a
schema, `server` is the only module that knows MCP. docs/bundled-servers.md is the manual.
"""
