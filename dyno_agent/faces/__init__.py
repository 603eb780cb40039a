"""The era that a child shows to the gateway: its own, or the other one in translation."""
