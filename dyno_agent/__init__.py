"""The agent: dials back from a dyno and relays one stdio MCP server over the link.

It stands alone (standard library and websockets), because it boots in a machine that
belongs to somebody else's application.
"""

__version__ = "0.1.0"
