"""The rendezvous gateway: MCP clients on one side, agents in one-off dynos on the other."""
