"""Requests and notes that gateway processes carry to one another."""
