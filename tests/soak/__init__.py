"""The soak: hundreds of sessions beside forced drops, then thousands of lives, and nothing left."""
