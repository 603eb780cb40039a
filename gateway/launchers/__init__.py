"""Where dynos come from."""
