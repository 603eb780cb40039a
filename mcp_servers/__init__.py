"""MCP servers that ship with the gateway, each a package of its own that `python -m` starts.

They are ordinary stdio servers: they import nothing of the gateway or its agent, know nothing of
one-off dynos, and run as well behind any other MCP client. An app copies this package or serves it
as is.

What they share lies beside them: `limits` reads settings, `processes` runs commands in bounded time
and space, `execution` says how one ended, `tools` shapes progress and results, `stdio` serves.
docs/bundled-servers.md is the manual.
"""
