"""MCP servers that ship with the gateway, each a package of its own that `python -m` starts.

They are ordinary stdio servers: they import nothing of the gateway or its agent, know nothing of
one-off dynos, and run as well behind any other MCP client. An app copies one or serves it as is.
"""
