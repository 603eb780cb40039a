"""A stdio MCP server with two tools, `html_to_markdown` and `pdf_to_markdown`: fetch and convert.

`settings` reads the limits, `addresses` says which addresses may be reached, `fetching` gets a
document and reaches no others, `convert` is the program that converts one, in a process of its own,
`reader` puts them together into one call, `server` is the only module that knows MCP.
docs/bundled-servers.md is the manual.
"""
