"""Heroku's documented endpoints, open: what servers there are, and agents that use their tools.

`servers` is `GET /v1/mcp/servers`, `agents` is `POST /v1/agents/heroku`. docs/heroku-api.md says
what of them is Heroku's and what is ours.
"""
