"""structlog set-up, and the sink that turns events into log lines.

One event per line; text from outside is made inert, so that it can forge no line and steer no
terminal.
"""

import dataclasses
import logging
import sys
from collections.abc import Callable, MutableMapping
from typing import Any

import structlog

from gateway.events import Event, Sink

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_KEY_ORDER = ["timestamp", "level", "event", "session"]


def inert(text: str) -> str:
    r"""Return text with control, format and bidirectional characters spelled out, as `\x1b`."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def _make_inert(
    _logger: Any, _method: str, entry: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    for key, value in entry.items():
        if isinstance(value, str):
            entry[key] = inert(value)
    return entry


def _trace_as_value(
    _logger: Any, _method: str, entry: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Keep a traceback on its event's line: the pretty renderer would give it lines of its own."""
    if "exception" in entry:
        entry["trace"] = entry.pop("exception")
    return entry


def configure(level: str, log_format: str) -> None:
    """Set structlog up for this process; lines go to stderr.

    Args:
        level: least level that is shown.
        log_format: auto, pretty, logfmt or json.
    """
    if log_format == "auto":
        log_format = "pretty" if sys.stderr.isatty() else "logfmt"
    renderers: dict[str, Callable[[], Any]] = {
        "pretty": structlog.dev.ConsoleRenderer,
        "json": structlog.processors.JSONRenderer,
        "logfmt": lambda: structlog.processors.LogfmtRenderer(
            key_order=_KEY_ORDER, drop_missing=True
        ),
    }
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _trace_as_value,
            _make_inert,
            renderers[log_format](),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, format="level=%(levelname)s event=%(message)s")


def log_sink() -> Sink:
    """Return the sink that writes each event as one line of its session's story."""
    logger = structlog.get_logger()

    def sink(event: Event) -> None:
        facts = {
            field.name: value
            for field in dataclasses.fields(event)
            if (value := getattr(event, field.name)) not in (None, "")
        }
        getattr(logger, event.level)(event.name, **facts)

    return sink
