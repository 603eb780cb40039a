"""Dynos of Heroku: its Platform API, the launcher on it, and what its apps have to offer."""
