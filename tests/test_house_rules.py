"""Rules of the house that no linter knows.

Each test names the rule in its failure message and lists every breach as path:line.
"""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("gateway", "dyno_agent", "clients", "mcp_servers")
ENVIRONMENT_READERS = {
    "gateway/__main__.py",  # hands the whole of it to the servers file and the local launcher
    "gateway/settings.py",
    "dyno_agent/config.py",
    "dyno_agent/__main__.py",  # hands what is left of it to the child
    "mcp_servers/stdio.py",
    "clients/streamable_http.py",
    "clients/session.py",
}
MAX_FUNCTION = 60  # code lines; h11's longest is 58
MAX_MODULE = 400  # code lines; the field's median is 110, its 90th percentile 300 to 490


def modules() -> list[Path]:
    return [p for package in PACKAGES for p in sorted((ROOT / package).rglob("*.py"))]


def breaches(found: Iterator[tuple[Path, int, str]]) -> list[str]:
    return [f"{p.relative_to(ROOT)}:{line} {what}" for p, line, what in found]


def walk() -> Iterator[tuple[Path, ast.AST]]:
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            yield path, node


def is_docstring(part: ast.AST) -> bool:
    return (
        isinstance(part, ast.Expr)
        and isinstance(part.value, ast.Constant)
        and isinstance(part.value.value, str)
    )


def code_lines(node: ast.AST) -> int:
    """Lines that hold a statement or part of one; docstrings, comments and blanks are free."""
    lines: set[int] = set()
    for part in ast.walk(node):
        if isinstance(part, ast.stmt) and not is_docstring(part):
            whole = not hasattr(part, "body")  # a compound statement counts by its parts
            end = (part.end_lineno or part.lineno) if whole else part.lineno
            lines.update(range(part.lineno, end + 1))
    return len(lines)


def long_functions() -> Iterator[tuple[Path, int, str]]:
    for path, node in walk():
        if (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and (n := code_lines(node)) > MAX_FUNCTION
        ):
            yield path, node.lineno, f"{node.name} has {n} code lines"


def long_modules() -> Iterator[tuple[Path, int, str]]:
    for path, node in walk():
        if isinstance(node, ast.Module) and (n := code_lines(node)) > MAX_MODULE:
            yield path, 1, f"{n} code lines"


def unbounded_queues() -> Iterator[tuple[Path, int, str]]:
    for path, node in walk():
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).split("[")[0]
            if name.endswith("Queue") and not (node.args or node.keywords):
                yield path, node.lineno, f"{name} without a bound"


def swallowed_cancellations() -> Iterator[tuple[Path, int, str]]:
    for path, node in walk():
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "BaseException"
            if ("CancelledError" in caught or "BaseException" in caught) and not any(
                isinstance(part, ast.Raise) for part in ast.walk(node)
            ):
                yield path, node.lineno, f"except {caught} without raise"


def environment_reads() -> Iterator[tuple[Path, int, str]]:
    for path, node in walk():
        if (
            isinstance(node, ast.Attribute)
            and (name := ast.unparse(node)) in {"os.environ", "os.getenv"}
            and str(path.relative_to(ROOT)) not in ENVIRONMENT_READERS
        ):
            yield path, node.lineno, f"{name} outside settings"


def undocumented_modules() -> Iterator[tuple[Path, int, str]]:
    for path, node in walk():
        if isinstance(node, ast.Module) and not ast.get_docstring(node):
            yield path, 1, "no sentence that says what this room is for"


@pytest.mark.parametrize(
    "rule",
    [
        long_functions,
        long_modules,
        unbounded_queues,
        swallowed_cancellations,
        environment_reads,
        undocumented_modules,
    ],
    ids=lambda rule: rule.__name__,
)
def test_house_rule_holds(rule: Callable[[], Iterator[tuple[Path, int, str]]]) -> None:
    assert breaches(rule()) == []
