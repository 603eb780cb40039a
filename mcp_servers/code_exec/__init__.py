"""A stdio MCP server with one tool, `code_exec_<language>`: run code, return what it said.

`settings` reads the limits, `languages` has one module a language (how code is run, how packages
are installed), `requirements` is what a call asks for, `installer` owns the session's packages,
`session` puts them together into one call, `server` is the only module that knows MCP.
docs/code-exec.md is the manual.
"""
