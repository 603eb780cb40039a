"""When dynos are kept parked for a server: a number, or windows of the week. Pure."""

from datetime import datetime
from zoneinfo import ZoneInfo

import msgspec

MOST_WARM = 100
"""Parked dynos of one server; a typing error must not launch a thousand."""

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_MINUTES_OF_DAY = 24 * 60


class Window(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the week, and how many dynos are parked in it.

    Attributes:
        count: parked dynos.
        days: days on which it begins, such as `mon,wed-fri`.
        start: `HH:MM`, key `from`.
        end: `HH:MM`, key `to`; one before `from` is on the day after, `24:00` is midnight.
        zone: whose clock, such as `Europe/Berlin`.

    Raises:
        ValueError: a value cannot be understood; the message names its key.
    """

    count: int
    days: str = "mon-sun"
    start: str = msgspec.field(name="from", default="00:00")
    end: str = msgspec.field(name="to", default="24:00")
    zone: str = "UTC"

    def __post_init__(self) -> None:
        _check_count(self.count, "count")
        _days(self.days)
        if _minutes(self.start, "from") == _minutes(self.end, "to"):
            raise ValueError("`from` and `to` are the same; a whole day is 00:00 to 24:00")
        if _minutes(self.start, "from") == _MINUTES_OF_DAY:
            raise ValueError("`from`: a day begins at 00:00")
        _zone(self.zone)

    def holds(self, now: float) -> bool:
        """Return whether a moment, in wall-clock seconds, lies in the window."""
        local = datetime.fromtimestamp(now, _zone(self.zone))
        days, today = _days(self.days), local.weekday()
        start, end = _minutes(self.start, "from"), _minutes(self.end, "to")
        minute = local.hour * 60 + local.minute
        if start < end:
            return today in days and start <= minute < end
        return (today in days and minute >= start) or ((today - 1) % 7 in days and minute < end)


Warmth = int | tuple[Window, ...]
"""What a server wants: always the same, or by window; outside all windows none."""


def count_at(warmth: Warmth, now: float) -> int:
    """Return how many parked dynos are wanted now; of several windows the largest says."""
    if isinstance(warmth, int):
        return warmth
    return max((window.count for window in warmth if window.holds(now)), default=0)


def _check_count(count: int, key: str) -> None:
    if not 0 <= count <= MOST_WARM:
        raise ValueError(f"{key}: from 0 to {MOST_WARM} parked dynos")


def _days(text: str) -> frozenset[int]:
    """Return the weekdays, Monday 0, of a text such as `mon,wed-fri` or `sat-mon`."""
    found: set[int] = set()
    for part in text.lower().split(","):
        first, dash, last = part.strip().partition("-")
        try:
            start, end = _DAYS.index(first), _DAYS.index(last if dash else first)
        except ValueError:
            raise ValueError(f"days: {text!r} is not like mon,wed-fri") from None
        found.update((start + n) % 7 for n in range((end - start) % 7 + 1))
    return frozenset(found)


def _minutes(text: str, key: str) -> int:
    """Return the minute of the day of `HH:MM`, 24:00 included."""
    hours, _, minutes = text.partition(":")
    if not (len(text) == 5 and text.isascii() and hours.isdigit() and minutes.isdigit()):
        raise ValueError(f"{key}: {text!r} is not like 08:00")
    of_day = int(hours) * 60 + int(minutes)
    if int(minutes) >= 60 or of_day > _MINUTES_OF_DAY:
        raise ValueError(f"{key}: {text!r} is no time of a day")
    return of_day


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f"zone: {name!r} is not like Europe/Berlin") from error
