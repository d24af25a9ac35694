"""Modules that the wheel ships import none that it leaves out."""

import ast
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def test_no_shipped_module_imports_one_that_the_wheel_leaves_out() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    left_out = {path for path in wheel["exclude"] if path.endswith(".py")}
    names = {path.removesuffix(".py").replace("/", ".") for path in left_out}
    shipped = [
        path
        for package in wheel["packages"]
        for path in (ROOT / package).rglob("*.py")
        if str(path.relative_to(ROOT)) not in left_out
    ]

    assert left_out
    assert {str(path.relative_to(ROOT)): imported(path) & names for path in shipped if imported(path) & names} == {}
