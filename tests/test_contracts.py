"""The house budget of CONTRIBUTING.md: sizes, names, imports of runtimes. Each test lists all offenders."""

import ast
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TypeVar

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(p for package in ("fcn_deploy", "exporters", "benchmarks") for p in (ROOT / package).rglob("*.py"))
MODULES = [path for path in SOURCES if path.name != "__init__.py"]
Function = ast.FunctionDef | ast.AsyncFunctionDef
Node = TypeVar("Node", bound=ast.AST)

# Modules that play the same part in their packages share its name. Modules of `cli` are named after their commands.
PARTS = {
    "__main__": "what `python -m PACKAGE` runs",
    "options": "the options of the package's verb",
    "run": "the package's verb",
    "page": "what the package shows in a browser",
    "metrics": "scores of a segmentation, and of a server",
    "base": "the interface that the modules beside it implement",
    "model": "the name that Triton's Python backend prescribes, and a served model",
}
# Words that readers of this field do not know by these meanings.
UNUSED_WORDS = {
    "ahead", "aside", "contender", "ends", "foreign", "gate", "handing", "motions", "sides", "steps", "subject",
    "tally", "untold",
}  # fmt: skip


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def nodes(kind: type[Node]) -> Iterator[tuple[str, Node]]:
    """Every node of one kind in the three packages, nested ones too, with the path of its file."""
    for path in SOURCES:
        yield from ((str(path.relative_to(ROOT)), node) for node in ast.walk(tree(path)) if isinstance(node, kind))


def functions() -> Iterator[tuple[str, Function]]:
    yield from nodes(ast.FunctionDef)
    yield from nodes(ast.AsyncFunctionDef)


def body_lines(function: Function) -> int:
    """Lines of the body without its docstring."""
    first = function.body[1 if ast.get_docstring(function) and len(function.body) > 1 else 0]
    return (function.end_lineno or first.lineno) - first.lineno + 1


def repeated(names: Iterable[tuple[str, str]]) -> list[str]:
    """From pairs of a path and a name: the names that several places have, each with these places."""
    places = defaultdict(list)
    for path, name in names:
        places[name].append(path)
    return [f"{name}: {', '.join(found)}" for name, found in places.items() if len(found) > 1]


def require_none(offenders: Iterable[str]) -> None:
    found = list(offenders)
    assert not found, "\n".join(["", *found])


def test_no_file_is_too_long() -> None:
    lengths = {str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines()) for p in SOURCES}

    require_none(f"{path}: {length} lines" for path, length in lengths.items() if length > 500)


def test_modules_are_few() -> None:
    assert len(MODULES) <= 142


def test_no_function_is_too_long() -> None:
    require_none(f"{path}: {f.name}, {n} lines" for path, f in functions() if (n := body_lines(f)) > 40)


def test_functions_are_short_on_the_whole() -> None:
    lengths = sorted(body_lines(function) for _, function in functions())

    assert statistics.median(lengths) <= 8
    assert lengths[int(0.9 * len(lengths))] <= 25


def test_parameters_are_few_outside_the_command_line() -> None:
    def count(found: Function) -> int:
        return len(found.args.posonlyargs) + len(found.args.args) + len(found.args.kwonlyargs)

    require_none(f"{path}: {f.name}" for path, f in functions() if "/cli/" not in path and count(f) > 7)


def test_no_two_classes_share_a_name() -> None:
    require_none(repeated((path, node.name) for path, node in nodes(ast.ClassDef)))


def test_modules_share_a_name_only_where_they_play_the_same_part() -> None:
    counted = [p for p in MODULES if p.parent.name != "cli" and p.stem not in PARTS]

    require_none(repeated((str(p.relative_to(ROOT)), p.stem) for p in counted))


def words(name: str) -> set[str]:
    """Of a name in snake case or camel case, in lower case."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


def test_names_are_of_words_that_the_field_knows() -> None:
    names = [(str(p.relative_to(ROOT)), p.stem) for p in SOURCES]
    names += [(path, node.name) for path, node in nodes(ast.ClassDef)]
    names += [(path, node.name) for path, node in functions()]

    require_none(f"{path}: {name}" for path, name in names if words(name) & UNUSED_WORDS)


def imports() -> Iterator[tuple[str, str]]:
    """Every import of a module from another package or library: the path of its file, and the top-level name."""
    for path, node in nodes(ast.Import):
        yield from ((path, alias.name.split(".")[0]) for alias in node.names)
    for path, found in nodes(ast.ImportFrom):
        yield path, (found.module or "").split(".")[0]


@pytest.mark.parametrize(("name", "homes"), [
    ("onnxruntime", {"fcn_deploy/runtime/ort.py", "benchmarks/export_cost.py"}),  # the peer does without us
    ("tensorrt", {"fcn_deploy/runtime/tensorrt_flavour.py"}),
    ("tensorrt_rtx", {"fcn_deploy/runtime/tensorrt_flavour.py"}),
    ("onnxsim", {"exporters/simplifier.py", "benchmarks/export_cost.py"}),
])  # fmt: skip
def test_runtimes_are_imported_in_one_place(name: str, homes: set[str]) -> None:
    assert {path for path, imported in imports() if imported == name} == homes


def test_only_the_command_line_prints() -> None:
    require_none(path for path, name in imports() if name in {"typer", "rich"} and "/cli/" not in path)
