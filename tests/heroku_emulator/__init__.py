"""An emulator of Heroku's Platform API, as far as it is used here; dynos are local processes.

    apps = {"runner": AppSpec(processes={"mcp-python": "python -m server"})}
    async with Emulator(apps) as heroku:
        ...  # heroku.url, heroku.api_key, heroku.faults, heroku.ledger

`python -m tests.heroku_emulator --help` runs it by itself. It is not for machines that others can
reach: who may create a dyno runs commands.
"""

from tests.heroku_emulator.emulator import Emulator
from tests.heroku_emulator.model import AppSpec, Dyno, ProcessSpec
from tests.heroku_emulator.options import Options

__all__ = ["AppSpec", "Dyno", "Emulator", "Options", "ProcessSpec"]
