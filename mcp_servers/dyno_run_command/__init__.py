"""A stdio MCP server with one tool, `dyno_run_command`: run a command where the server runs.

`settings` reads the limits and which commands there are, `parameters` makes variables of what a
caller fills in, `server` runs the command and is the only module that knows MCP.
docs/bundled-servers.md is the manual.
"""
