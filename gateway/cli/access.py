"""Where the gateway is and what opens it: from options, the environment, or the `.env` file.

The environment itself is read by typer, as defaults of options. Knows nothing of HTTP.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from gateway.cli.failing import Misused, Unconfigured

DEFAULT_URL: Final = "http://127.0.0.1:8000"
ENV_FILE: Final = Path(".env")
"""What `gateway quickstart` leaves behind: read if it is there."""

LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class Access:
    """A gateway and a key to it.

    Attributes:
        url: base URL, without a slash at the end.
        key: goes into the header `Authorization`.
    """

    url: str
    key: str = field(repr=False)

    @property
    def here(self) -> bool:
        """Whether it is on this machine: nothing on the way then, and no proxy either."""
        return is_here(self.url)

    @property
    def in_clear(self) -> bool:
        """Whether everybody on the way can read the key."""
        return not self.here and urlsplit(self.url).scheme == "http"


def is_here(url: str) -> bool:
    """Whether a URL is on this machine."""
    return urlsplit(url).hostname in LOOPBACK


def of_operators(url: str | None, key: str | None, env_file: Path | None) -> Access:
    """Return the way in for operators.

    Raises:
        Misused: no such URL or file.
        Unconfigured: no ADMIN_KEY anywhere, or one that no header can carry.
    """
    return _access("ADMIN_KEY", url, key, env_file)


def of_clients(url: str | None, key: str | None, env_file: Path | None) -> Access:
    """Return the way in for MCP clients, with the first of several keys.

    Raises:
        Misused: no such URL or file.
        Unconfigured: no API_KEY anywhere, or one that no header can carry.
    """
    return _access("API_KEY", url, key, env_file)


def _access(name: str, url: str | None, key: str | None, env_file: Path | None) -> Access:
    given = (key or "").strip()
    kept: Mapping[str, str] = {}
    # A key of the environment never goes where a file that merely lies in this folder says.
    if env_file is not None or not given:
        kept = read(env_file)
    found = given or kept.get(name, "").strip()
    if not found:
        raise Unconfigured(
            f"{name} is not set: `export {name}=…` as the gateway has it, or name the file that "
            "holds it with --env-file"
        )
    if name == "API_KEY" and ":" in found:
        found = found.partition(",")[0].partition(":")[2].strip()
    if not (found.isascii() and found.isprintable()) or not found or " " in found:
        raise Unconfigured(f"{name} holds characters that no key has: set it again, without quotes")
    return Access(base(url or _told(kept) or DEFAULT_URL), found)


def _told(kept: Mapping[str, str]) -> str:
    """Return where the gateway of an `.env` file listens; empty if it does not say so."""
    if kept.get("GATEWAY_URL"):
        return kept["GATEWAY_URL"]
    return f"http://127.0.0.1:{kept['PORT']}" if kept.get("PORT") else ""


def base(url: str) -> str:
    """Return a base URL in the form that paths are added to.

    Raises:
        Misused: not http(s), no host, or more than a place.
    """
    try:
        parts = urlsplit(url.strip())
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    else:
        usable = usable and not (parts.query or parts.fragment or parts.username)
    if not usable or not url.strip().isprintable():
        raise Misused(f"{url!a} is no URL of a gateway: --url takes one such as {DEFAULT_URL}")
    return url.strip().rstrip("/")


def read(env_file: Path | None) -> Mapping[str, str]:
    """Return what an `.env` file sets, by upper-case name, as the gateway itself reads it.

    Args:
        env_file: None for the usual one, if it is there.

    Raises:
        Misused: the file that was named cannot be read.
    """
    path = env_file or ENV_FILE
    if env_file is None and not path.is_file():
        return {}
    from pydantic_settings import BaseSettings, DotEnvSettingsSource  # noqa: PLC0415 - 0.2 s

    try:
        path.read_bytes()  # the source takes a file that is not there for an empty one
        values = DotEnvSettingsSource(BaseSettings, path).env_vars
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise Misused(f"--env-file {path}: {why}") from None
    return {name.upper(): value for name, value in values.items() if value is not None}
