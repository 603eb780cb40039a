"""Valkey or Redis: what the gateway processes share."""

import asyncio
import statistics
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import urlsplit

from redis.asyncio import Redis, SSLConnection
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError

from gateway.cli.doctor.findings import Finding, fail, ok, warn
from gateway.cli.output import cut
from gateway.settings import LOOPBACK, Settings

ANSWER_S: Final = 5.0
PINGS: Final = 5
SLOW_MS: Final = 20.0
"""Every call of a session that another process has makes some round trips."""

OLDEST: Final = 7


async def look(read: Settings) -> list[Finding]:
    """Look at what REDIS_URL names."""
    if read.redis_url is None:
        return [ok("valkey", "REDIS_URL is not set: one process, its state in memory")]
    url = read.redis_url.get_secret_value()
    try:
        redis = _client(url, verify=read.redis_tls_verify)
    except ValueError:
        return [fail("valkey", "REDIS_URL is no URL of one", "redis://…, rediss://… or unix://…")]
    try:
        async with asyncio.timeout(2 * ANSWER_S):
            latency = [await _ping(redis) for _ in range(PINGS)][1:]
            info: dict[str, Any] = await redis.info()
    except AuthenticationError as error:
        fix = "correct user and password in REDIS_URL"
        return [fail("valkey", f"it does not let us in: {cut(str(error), 200)}", fix)]
    except (RedisError, OSError, TimeoutError) as error:
        fix = "see that it runs, that REDIS_URL names it, and rediss:// if it wants TLS"
        return [fail("valkey", f"no answer: {cut(str(error) or type(error).__name__, 200)}", fix)]
    finally:
        await redis.aclose()
    median_ms = statistics.median(latency) * 1000
    return [_speed(median_ms), _version(info), _policy(info), *_tls(url, read)]


def _client(url: str, *, verify: bool) -> Redis:
    kind = parse_url(url).get("connection_class")
    tls: dict[str, Any] = {}
    if kind is SSLConnection and not verify:
        tls = {"ssl_cert_reqs": "none", "ssl_check_hostname": False}
    client: Redis = Redis.from_url(
        url,
        protocol=2,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=ANSWER_S,
        socket_connect_timeout=ANSWER_S,
        **tls,
    )
    return client


async def _ping(redis: Redis) -> float:
    clock = asyncio.get_running_loop().time
    begun = clock()
    await redis.ping()
    return clock() - begun


def _speed(median_ms: float) -> Finding:
    said = f"answers in {median_ms:.1f} ms"
    if median_ms > SLOW_MS:
        fix = "run it in the region, and the network, of the gateway"
        return warn("valkey", said, fix)
    return ok("valkey", said)


def _version(info: dict[str, Any]) -> Finding:
    name = "Valkey" if "valkey_version" in info else "Redis"
    version = cut(str(info.get("valkey_version") or info.get("redis_version", "?")))
    major = version.partition(".")[0]
    said = f"{name} {version}"
    if not major.isdecimal() or int(major) < OLDEST:
        return fail("valkey version", said, f"upgrade it: {OLDEST} is the oldest that will do")
    return ok("valkey version", said)


def _policy(info: dict[str, Any]) -> Finding:
    policy = cut(str(info.get("maxmemory_policy", "not told")))
    if policy == "noeviction" or not info.get("maxmemory"):
        return ok("valkey memory", f"policy {policy}, used {info.get('used_memory_human', '?')}")
    fix = "set maxmemory-policy noeviction: otherwise it forgets who holds which session"
    return warn("valkey memory", f"policy {policy}", fix)


def _tls(url: str, read: Settings) -> Iterator[Finding]:
    parts = urlsplit(url)
    if parts.scheme == "rediss":
        checked = "checked" if read.redis_tls_verify else "not checked (REDIS_TLS_VERIFY)"
        yield ok("valkey TLS", f"on, its certificate is {checked}")
    elif parts.scheme == "redis" and parts.hostname not in LOOPBACK:
        fix = "use rediss://, unless the network between is yours alone"
        yield warn("valkey TLS", "off: others may read the password on its way", fix)
