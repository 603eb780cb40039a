"""Command-line MCP clients: one for Streamable HTTP, one for a stdio server started on the spot.

They are what a person types to see whether a server answers, and what a script pipes into `jq`.
They know the protocol and nothing of the gateway: any MCP server will do.
"""
