"""The operators' command line. `program` says what there is to type; the other modules do it.

Nothing here is imported before the command is known: `--help` and typing mistakes are answered at
once. A gateway is asked over HTTP alone, so that it may run anywhere.
"""
