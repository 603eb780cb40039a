"""structlog set-up, and the sink that turns events into log lines.

One event per line, in logfmt where a platform collects it; text from outside is made inert, so that
it can forge no line and steer no terminal. Heroku's Logplex cuts lines at 10,000 bytes: ours are
shorter, by cutting long values and not the line.
"""

import dataclasses
import logging
import sys
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Final

import structlog

from gateway.events import Event, Sink
from gateway.ops.inertness import inert
from gateway.ops.levels import NUMBERS, Levels

LINE_BYTES: Final = 9_900
"""Most bytes of a line, in UTF-8: Logplex cuts at 10,000, and a drain adds nothing to that."""

VALUE_STEPS: Final = (4_000, 1_500, 400, 60)
"""Characters that long values of a line are cut to: the first length with which the line fits."""

MEASURES: Final[Mapping[str, tuple[str, str]]] = {
    "call": ("ms", "ms"),
    "ready": ("boot_s", "s"),
    "resumed": ("parted_s", "s"),
    "closed": ("dyno_s", "s"),
}
"""Fields, with their units, that drains which make metrics from lines find as `measure#…`."""

_KEY_ORDER: Final = ["timestamp", "level", "event", "session"]

_Entry = MutableMapping[str, Any]
_Renderer = Callable[[Any, str, _Entry], str | bytes]


def shortened(text: str, most: int) -> str:
    """Return text of at most so many characters and a mark, cut in the middle.

    What a traceback or a tool's stderr ends with says as much as what it begins with.
    """
    left = len(text) - most
    if left <= 0:
        return text
    half = most // 2
    return f"{text[:half]}… ({left} more) …{text[len(text) - (most - half) :]}"


def _make_inert(_logger: Any, _method: str, entry: _Entry) -> _Entry:
    for key, value in entry.items():
        if isinstance(value, str):
            entry[key] = inert(value)
        elif isinstance(value, bytes | bytearray | memoryview):  # a payload is nobody's to log
            entry[key] = f"({len(value)} bytes)"
    return entry


def _trace_as_value(_logger: Any, _method: str, entry: _Entry) -> _Entry:
    """Keep a traceback on its event's line: the pretty renderer would give it lines of its own."""
    if "exception" in entry:
        entry["trace"] = entry.pop("exception")
    return entry


def _measured(_logger: Any, _method: str, entry: _Entry) -> _Entry:
    """Tell figures once more as Heroku's add-ons find them, `measure#rendezvous.call=12.5ms`."""
    key, unit = MEASURES.get(entry["event"], ("", ""))
    if key in entry:
        entry[f"measure#rendezvous.{entry['event']}"] = f"{entry[key]}{unit}"
    return entry


class _Fitting:
    """Renders an entry to a line that Logplex does not cut.

    Args:
        render: makes a line of an entry.
    """

    def __init__(self, render: _Renderer) -> None:
        self._render = render

    def __call__(self, logger: Any, method: str, entry: _Entry) -> str | bytes:
        """Return the line; the last resort has only what says which event it was."""
        line = self._render(logger, method, dict(entry))
        for most in VALUE_STEPS:
            if _fits(line):
                return line
            short = {key: _cut(value, most) for key, value in entry.items()}
            line = self._render(logger, method, short)
        if _fits(line):
            return line
        least = {key: _cut(entry[key], VALUE_STEPS[-1]) for key in _KEY_ORDER if key in entry}
        return self._render(logger, method, {**least, "shortened": "yes"})


def _fits(line: str | bytes) -> bool:
    if len(line) > LINE_BYTES:
        return False
    return isinstance(line, bytes) or line.isascii() or len(line.encode()) <= LINE_BYTES


def _cut(value: Any, most: int) -> Any:
    if isinstance(value, bool | int | float) or value is None:
        return value
    return shortened(value if isinstance(value, str) else inert(repr(value)), most)


class FromLibraries(logging.Handler):
    """Takes what libraries log, and writes it as lines like ours: `event=library`."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; called by the standard library, from any thread."""
        levels = [name for name, number in NUMBERS.items() if number <= record.levelno]
        facts: dict[str, Any] = {"source": record.name, "text": _said(record)}
        if record.exc_info:
            facts["exc_info"] = record.exc_info
        getattr(structlog.get_logger(), levels[-1] if levels else "debug")("library", **facts)


def _said(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError, KeyError):  # its arguments do not fit its text
        return str(record.msg)


def configure(level: str, log_format: str) -> None:
    """Set structlog up for this process; lines go to stderr.

    Args:
        level: least level that is shown, but for servers that have another, see `Levels`.
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
            *([_measured] if log_format == "logfmt" else []),
            _Fitting(renderers[log_format]()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(NUMBERS[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, handlers=[FromLibraries()])


@dataclasses.dataclass(frozen=True, slots=True)
class _Shape:
    """What the log makes of one kind of event.

    Attributes:
        number: of its level.
        fields: that are shown: what `repr` leaves out, the log does too.
        of: the field that leads to its server; empty if none does.
    """

    number: int
    fields: tuple[str, ...]
    of: str

    @classmethod
    def learn(cls, kind: type[Event]) -> "_Shape":
        fields = dataclasses.fields(kind)
        names = tuple(field.name for field in fields if field.repr and field.type is not bytes)
        of = next((name for name in ("server", "session") if name in names), "")
        return cls(NUMBERS[kind.level], names, of)


def log_sink(levels: Levels | None = None, server_of: Callable[[str], str] | None = None) -> Sink:
    """Return the sink that writes each event as one line of its session's story.

    To be made after `configure`.

    Args:
        levels: of servers; without them all lines have the level of `configure`.
        server_of: tells the server of a session, empty if it is not known.
    """
    # Which events become lines is decided here: the process's own filter knows no servers.
    unfiltered = structlog.make_filtering_bound_logger(NUMBERS["debug"])
    logger = structlog.wrap_logger(None, wrapper_class=unfiltered)
    general: int = structlog.get_logger().get_effective_level()
    shapes: dict[type[Event], _Shape] = {}

    def wanted(event: Event, shape: _Shape) -> bool:
        if levels is None:
            return shape.number >= general
        if shape.number < levels.floor:
            return False
        server: str = getattr(event, shape.of) if shape.of else ""
        if shape.of == "session":
            server = server_of(server) if server_of is not None else ""
        return shape.number >= levels.least(server)

    def sink(event: Event) -> None:
        kind = type(event)
        shape = shapes.get(kind)
        if shape is None:
            shape = shapes[kind] = _Shape.learn(kind)
        if not wanted(event, shape):
            return
        facts = {
            name: value
            for name in shape.fields
            if (value := getattr(event, name)) not in (None, "")
        }
        getattr(logger, event.level)(event.name, **facts)

    return sink
