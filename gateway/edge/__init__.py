"""Where MCP clients arrive."""
