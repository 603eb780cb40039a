"""A stdio MCP server with one tool, `code_exec_python`: run Python code, return what it said.

`settings` reads the limits, `requirements` says which package strings are let through, `runner`
owns processes, `installer` owns the session's virtual environment, `session` puts them together
into one call, `server` is the only module that knows MCP. docs/code-exec.md is the manual.
"""
