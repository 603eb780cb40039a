"""`make demo`: the seeds' own request through the whole path, and the story of its session.

Starts a gateway as a user would, calls it with the example client, stops the gateway and with it
the session, and checks each promise on the way. Exits non-zero when one is broken. The figures are
measured in this run.
"""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
START_S, STOP_S, CALL_S = 30, 30, 300
STORY = ["requested", "launching", "dialled_in", "ready", "call", "closing", "closed"]
OURSELVES = "(gateway)"  # whose sessions are that the gateway learns from what a server offers

REQUEST = {
    "name": "code_exec_python",
    "arguments": {
        "code": "import numpy as np; print(np.random.rand(50).tolist())",
        "packages": ["numpy"],
    },
}


class Broken(Exception):
    """A promise of the project does not hold."""


def say(text: str) -> None:
    """Print a line of the demo."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(port: int, key: str) -> dict[str, str]:
    """Return the environment of gateway and client: this one, with our settings only."""
    ours = {"PORT": str(port), "API_KEY": key, "LOG_FORMAT": "json", "LAUNCHER": "local"}
    ours |= {"MCP_SERVER_URL": f"http://127.0.0.1:{port}"}
    ours |= {"GATEWAY_SERVERS": str(ROOT / "servers.json")}
    foreign = {
        "GATEWAY_URL",
        "GATEWAY_SECRET",
        "HEROKU_API_KEY",
        "REDIS_URL",
        "BIND_HOST",
        "LOG_LEVEL",
    }
    return {name: value for name, value in os.environ.items() if name not in foreign} | ours


def wait_until_healthy(url: str, gateway: subprocess.Popen[bytes]) -> None:
    """Return once /health answers.

    Raises:
        Broken: the gateway exited, or did not come up in time.
    """
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if gateway.poll() is not None:
            raise Broken(f"the gateway exited with {gateway.returncode} at start")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:  # noqa: S310
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.05)
    raise Broken(f"the gateway was not healthy after {START_S} s")


def call(env: dict[str, str]) -> dict[str, Any]:
    """Make the seeds' request with the example client and return the tool's result."""
    argv = [sys.executable, "-m", "clients.streamable_http", "mcp", "call_tool", "--args"]
    done = subprocess.run(  # noqa: S603 - our own client
        [*argv, json.dumps(REQUEST)],
        env=env,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        timeout=CALL_S,
        check=False,
    )
    if done.returncode != 0:
        raise Broken(f"the client exited with {done.returncode}")
    result: dict[str, Any] = json.loads(json.loads(done.stdout)["content"][0]["text"])
    return result


def check_result(result: dict[str, Any]) -> None:
    """Raise Broken unless the result is fifty random numbers."""
    if result["returncode"] != 0:
        raise Broken(f"the code failed: {result['stderr']}")
    numbers = json.loads(result["stdout"])
    if len(numbers) != 50 or not all(0 <= number < 1 for number in numbers):
        raise Broken("the code did not print fifty numbers between 0 and 1")


def read_story(log: Path) -> list[dict[str, Any]]:
    """Return the log lines of the client's session.

    Raises:
        Broken: there is none, or several.
    """
    records = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    opened = [record for record in records if record["event"] == "requested"]
    sessions = [record["session"] for record in opened if record["principal"] != OURSELVES]
    if len(sessions) != 1:
        raise Broken(f"the client's one call took {len(sessions)} sessions")
    return [record for record in records if record.get("session") == sessions[0]]


def check_story(story: list[dict[str, Any]], log: Path, key: str) -> None:
    """Raise Broken unless the story is complete, in order, and keeps its secrets."""
    first_seen = list(dict.fromkeys(record["event"] for record in story))
    milestones = [name for name in first_seen if name in STORY]
    if milestones != STORY:
        raise Broken(f"the story is {milestones}, expected {STORY}")
    text = log.read_text()
    if key in text or "np.random" in text:
        raise Broken("a secret or a payload stands in the log")


def tell(story: list[dict[str, Any]]) -> None:
    """Print the story, one line an event."""
    for record in story:
        facts = {k: v for k, v in record.items() if k not in ("event", "timestamp", "level")}
        session = facts.pop("session")
        clock = record["timestamp"][11:23]
        said = " ".join(f"{name}={value}" for name, value in facts.items())
        say(f"  {clock} {session} {record['event']:<10} {said}"[:200])


def stop(gateway: subprocess.Popen[bytes]) -> None:
    """Stop the gateway as the platform does; Broken unless it leaves well inside 30 s."""
    gateway.send_signal(signal.SIGTERM)
    try:
        if gateway.wait(STOP_S) != 0:
            raise Broken(f"the gateway exited with {gateway.returncode} after SIGTERM")
    except subprocess.TimeoutExpired:
        raise Broken("the gateway did not leave after SIGTERM") from None


def run(scratch: Path) -> str:
    """Run the demo and return its last line."""
    port, key = free_port(), secrets.token_urlsafe(32)
    env, log = environment(port, key), scratch / "gateway.log"
    say(f"starting a gateway on {env['MCP_SERVER_URL']}")
    with log.open("wb") as sink:
        gateway = subprocess.Popen(
            [sys.executable, "-m", "gateway", "serve"], env=env, cwd=ROOT, stderr=sink
        )
    try:
        wait_until_healthy(env["MCP_SERVER_URL"], gateway)
        say(f"calling {REQUEST['name']}: {REQUEST['arguments']}")
        result = call(env)
        check_result(result)
        say(f"result: {json.dumps(result)[:400]}…")
        stop(gateway)
        story = read_story(log)
        say("\nthe session's story:")
        tell(story)
        check_story(story, log, key)
    except Broken:
        sys.stderr.write(log.read_text()[-4000:])
        raise
    finally:
        gateway.kill()
        gateway.wait()
    seconds = next(record["seconds"] for record in story if record["event"] == "closed")
    calls = [r for r in story if r["event"] == "call" and r.get("tool") == REQUEST["name"]]
    return f"demo: ok session_seconds={seconds} call_ms={calls[0]['ms']}"


def main() -> int:
    """Run, and turn a broken promise into an exit status."""
    with tempfile.TemporaryDirectory(prefix="demo-") as scratch:
        try:
            last = run(Path(scratch))
        except Broken as broken:
            sys.stderr.write(f"demo: broken: {broken}\n")
            return 1
    say(f"\n{last}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
