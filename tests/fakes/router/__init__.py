"""An emulator of Heroku's HTTP router: what stands between clients and the web dynos.

`rules` are its limits, codes, headers and log line, pure; `peer` is one HTTP/1.1 connection;
`exchange` is one request; `router` accepts, chooses a dyno, and keeps connections to it.

It leaves out TLS, HTTP/2, session affinity, the quarantine of dynos that refuse, and the queue for
dynos that boot: a dyno that does not listen is refused at once (H21).
"""

from tests.fakes.router.router import Router
from tests.fakes.router.rules import CAUSED_BY_CLIENTS, Limits, Record

__all__ = ["CAUSED_BY_CLIENTS", "Limits", "Record", "Router"]
