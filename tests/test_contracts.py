"""The house budget of CONTRIBUTING.md, kept by tests: sizes of functions and files, and where names may occur."""

import ast
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(p for package in ("fcn_deploy", "exporters", "benchmarks") for p in (ROOT / package).rglob("*.py"))
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(path: Path) -> list[Function]:
    return [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, Function)]


def body_lines(function: Function) -> int:
    """Lines of the body without its docstring."""
    first = function.body[1 if ast.get_docstring(function) and len(function.body) > 1 else 0]
    return (function.end_lineno or first.lineno) - first.lineno + 1


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_and_no_function_is_too_long(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 500
    assert {f.name: n for f in functions(path) if (n := body_lines(f)) > 40} == {}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_parameters_are_few_outside_the_command_line(path: Path) -> None:
    if "cli" in path.parts:
        return
    assert {f.name for f in functions(path) if len(f.args.args) + len(f.args.kwonlyargs) > 7} == set()


def test_functions_are_short_on_the_whole() -> None:
    lengths = sorted(body_lines(f) for path in SOURCES for f in functions(path))

    assert statistics.median(lengths) <= 8
    assert lengths[int(0.9 * len(lengths))] <= 25


@pytest.mark.parametrize(("name", "homes"), [
    ("onnxruntime", {"fcn_deploy/runtime/ort.py", "benchmarks/export_cost.py"}),  # the peer does without us
    ("tensorrt", {"fcn_deploy/runtime/tensorrt_flavour.py"}),
    ("tensorrt_rtx", {"fcn_deploy/runtime/tensorrt_flavour.py"}),
    ("onnxsim", {"exporters/simplify.py", "benchmarks/export_cost.py"}),
])  # fmt: skip
def test_runtimes_are_imported_in_one_place(name: str, homes: set[str]) -> None:
    found = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(module.split(".")[0] == name for module in modules):
                found.add(str(path.relative_to(ROOT)))

    assert found == homes


@pytest.mark.parametrize("name", ["typer", "rich"])
def test_only_the_command_line_prints(name: str) -> None:
    for path in SOURCES:
        if "cli" not in path.parts:
            assert f"import {name}" not in path.read_text()
            assert f"from {name}" not in path.read_text()
