"""The gateway as others see it, and the clock."""

import json
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final

import aiohttp

from gateway.cli.access import is_here
from gateway.cli.doctor.findings import Finding, fail, ok, warn
from gateway.cli.output import cut
from gateway.settings import Settings

ANSWER_S: Final = 10.0
ANSWER_BYTES: Final = 64 * 1024

SKEW_S: Final = 30.0
"""A clock that is further off makes tokens look expired, and costs wrong."""


@dataclass(frozen=True, slots=True)
class Health:
    """What a gateway says of itself.

    Attributes:
        about: in words.
        status: `ok`, `draining` or `store_away`.
        date: its clock, as HTTP has it; empty if it does not say.
    """

    about: str
    status: str
    date: str


async def health(url: str) -> Health | str:
    """Ask who is there; return why nobody knows if it is no gateway."""
    timeout = aiohttp.ClientTimeout(total=ANSWER_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=not is_here(url)) as http,
            http.get(f"{url}/health", allow_redirects=False) as response,
        ):
            raw = await response.content.read(ANSWER_BYTES)
            status, date = response.status, response.headers.get("Date", "")
    except TimeoutError:
        return f"no answer within {ANSWER_S:.0f} s"
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return cut(str(error) or type(error).__name__, 200)
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or "gateway" not in document or "status" not in document:
        return f"/health was answered with status {status}, by something else"
    said = cut(str(document["status"]))
    words = f"{said}, version {cut(str(document.get('version', '?')))}, process "
    return Health(words + cut(str(document["gateway"])), said, date)


async def public_url(read: Settings) -> tuple[Finding, str]:
    """Look whether the gateway is reached by its public URL; return its clock too, if it is.

    Before the first deployment nobody answers there, so on this machine that is only told.
    """
    if read.gateway_url is None:
        return ok("GATEWAY_URL", f"is not set: agents dial {read.base_url}, from here only"), ""
    url = read.base_url
    found = await health(url)
    if isinstance(found, str):
        if is_here(url):
            return warn("GATEWAY_URL", f"no gateway at {url}: {found}", "start it there"), ""
        fix = "start or deploy it; then see DNS, certificate and proxy between here and there"
        return fail("GATEWAY_URL", f"no gateway at {url}: {found}", fix), ""
    if found.status != "ok":
        fix = "docs/operate.md: `draining` passes, `store_away` means that Valkey is out of reach"
        return warn("GATEWAY_URL", f"{url} is {found.about}", fix), found.date
    return ok("GATEWAY_URL", f"{url} is {found.about}"), found.date


def clock(date: str, whose: str, now: float) -> Finding:
    """Compare this machine's clock with another's.

    Args:
        date: as HTTP has it.
        whose: it is.
        now: what the clock here says, seconds since 1970.
    """
    try:
        apart = now - parsedate_to_datetime(date).timestamp()
    except ValueError:
        return ok("clock", "nobody answered that it could be compared with")
    if abs(apart) > SKEW_S:
        ahead = "ahead of" if apart > 0 else "behind"
        said = f"{abs(apart):.0f} s {ahead} that of {whose}"
        return fail("clock", said, "synchronise it: `timedatectl set-ntp true`, or your host's way")
    return ok("clock", f"within {SKEW_S:.0f} s of that of {whose}")
