"""What the gateway processes of one deployment share, and how they reach one another."""
