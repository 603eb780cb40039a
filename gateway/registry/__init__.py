"""What servers there are: the operator's definitions."""
