"""The proof of the link: real processes, broken connections, killed gateways, frames counted.

`python -m tests.proof.link` runs it. `server` is the child at the far end, `client` the client at
the near one; neither trusts anything between them. `outfit` owns the processes.
"""
