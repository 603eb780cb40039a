"""The model behind `/v1/agents/heroku`, and what is left of a deployment without this gateway."""

from collections.abc import Mapping
from typing import Final

import aiohttp

from gateway.cli.access import is_here
from gateway.cli.doctor.findings import Finding, fail, ok, warn
from gateway.cli.output import cut
from gateway.settings import Settings

ANSWER_S: Final = 10.0

LEFT: Final = ("STDIO_MODE_ONLY", "REMOTE_SERVER_TRANSPORT_MODULE", "WEB_CONCURRENCY")
"""Config vars of Heroku's templates that mean nothing to this gateway."""


async def look(read: Settings) -> Finding:
    """Ask whether the model can be reached, and takes the key."""
    if read.inference_base is None:
        return ok("INFERENCE_URL", "is not set: /v1/agents/heroku is closed")
    status = await _status(read.inference_base, read)
    if isinstance(status, str):
        fix = "see INFERENCE_URL, and whether that server runs"
        return fail("INFERENCE_URL", f"no answer from {read.inference_base}: {status}", fix)
    if status in (401, 403):
        fix = "give INFERENCE_KEY a key that is good there"
        return fail("INFERENCE_URL", f"the key is refused, with status {status}", fix)
    if status >= 500:
        fix = "its own logs say more; runs of agents fail until it works"
        return warn("INFERENCE_URL", f"status {status} from {read.inference_base}", fix)
    model = read.inference_model_id or "any that a request names"
    return ok("INFERENCE_URL", f"{read.inference_base} answers; model {model}")


async def _status(base: str, read: Settings) -> int | str:
    """Ask for the list of models, which not every server has: any answer will do."""
    key = "" if read.inference_key is None else read.inference_key.get_secret_value()
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = aiohttp.ClientTimeout(total=ANSWER_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=not is_here(base)) as http,
            http.get(f"{base}/models", headers=headers, allow_redirects=False) as response,
        ):
            return response.status
    except TimeoutError:
        return f"nothing within {ANSWER_S:.0f} s"
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return cut(str(error) or type(error).__name__, 200)


def left(environment: Mapping[str, str]) -> list[Finding]:
    """Name variables that did something where this gateway was not there."""
    return [
        warn(name, "means nothing to this gateway", "unset it; docs/from-heroku.md says why")
        for name in LEFT
        if environment.get(name)
    ]
