"""Looks at all that a gateway needs, and says of each thing that is wrong how to put it right.

No check needs another to have gone well, and none needs a gateway that runs.
"""

import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from gateway.cli import access, output
from gateway.cli.doctor import configuration, engine, far, here, model, platform
from gateway.cli.doctor.findings import Finding, Level
from gateway.cli.failing import Misused

STYLES: Final = {Level.OK: "", Level.WARN: "yellow", Level.FAIL: "bold red"}

WIDE: Final = 400
"""Characters of what is said of one thing."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Where the doctor looks.

    Attributes:
        environment: of this process.
        env_file: settings below it; None for `.env`, if it is there.
        now: the clock, seconds since 1970.
    """

    environment: Mapping[str, str] = field(repr=False)
    env_file: Path | None = None
    now: Callable[[], float] = time.time  # noqa: TID251 - compared with others' clocks


async def examine(surroundings: Surroundings, *, as_json: bool) -> bool:
    """Look at everything, print what was found, and return whether nothing fails.

    Raises:
        Misused: the file that was named is not there.
    """
    found: list[Finding] = []
    async for findings in _checks(surroundings):
        found += findings
        if not as_json:
            for finding in findings:
                _show(finding)
    count = Counter(finding.level for finding in found)
    if as_json:
        output.document(
            {
                "checks": [asdict(finding) for finding in found],
                "failed": count[Level.FAIL],
                "warned": count[Level.WARN],
            }
        )
    else:
        output.note(
            f"\n{count[Level.OK]} ok, {count[Level.WARN]} warnings, {count[Level.FAIL]} failures"
        )
    return not count[Level.FAIL]


async def _checks(surroundings: Surroundings) -> AsyncIterator[Sequence[Finding]]:
    env_file = surroundings.env_file
    if env_file is not None and not env_file.is_file():
        raise Misused(f"--env-file {env_file}: no such file")
    if env_file is None and access.ENV_FILE.is_file():
        env_file = access.ENV_FILE
    yield [here.python()]
    settings, findings = configuration.settings(env_file)
    yield findings
    yield [here.open_files(settings)]
    registry, findings = configuration.servers(settings, surroundings.environment)
    yield findings
    yield here.commands(settings, registry, surroundings.environment)
    yield [await here.port(settings)]
    finding, gateways = await far.public_url(settings)
    yield [finding]
    yield await engine.look(settings)
    yield [await model.look(settings), *model.left(surroundings.environment)]
    heroku = platform.Doctor(settings)
    yield await heroku.look()
    date, whose = (heroku.date, "the platform") if heroku.date else (gateways, "the gateway")
    yield [far.clock(date, whose, surroundings.now())]


def _show(finding: Finding) -> None:
    said = output.cut(f"{finding.check}: {finding.said}", WIDE)
    output.line("", f"{finding.level:<5} {said}", STYLES[finding.level])
    if finding.fix:
        output.line("      fix: ", output.cut(finding.fix, WIDE))
