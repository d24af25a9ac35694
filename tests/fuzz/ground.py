"""Where a case takes place: the user's own files, which nothing may touch, and commands run in this process."""

import contextlib
import hashlib
import io
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fcn_deploy.cli.app import main

# As the README lists them; 70 stands for a bug.
EXIT_CODES = frozenset({0, 2, 3, 4, 5, 6, 7})


def user_files(model: bytes) -> dict[str, bytes]:
    """Return the user's files by name, among them a copy of a bundle's model, which its manifest could name."""
    return {
        "notes.txt": b"years of work",
        "thesis/chapter.txt": b"more of it",
        "out/scene.json": b'{"shapes": []}',
        "case/kept.txt": b"mine",
        "copy.onnx": model,
    }


# What commands are told to write into `out`.
OUTPUTS = frozenset({"package", "labels", "fast.onnx", "evaluation", "latency.md", "latency.html"})
_UNFINISHED = re.compile(r"\.partial|\.old-")


class BrokenRuleError(AssertionError):
    """A command did what no command may do."""


@dataclass(frozen=True)
class Ground:
    """A folder with the user's files in it; commands run in `case`, and write into `out`."""

    root: Path
    files: Mapping[str, bytes]  # the user's, by name

    @property
    def case(self) -> Path:
        """The folder of hostile files, and the current directory of every command."""
        return self.root / "case"

    @property
    def out(self) -> Path:
        """The folder that commands write into."""
        return self.root / "out"

    @property
    def temporary(self) -> Path:
        """The folder of temporary files, tracebacks among them."""
        return self.root.parent / "temporary"

    def reset(self) -> None:
        """Empty the folder, and put the user's files there."""
        for path in (*self.root.iterdir(), *self.temporary.iterdir()):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        for name, content in self.files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Check after the block that the user's files are as they were, and that nothing is half-written."""
        outside = _content(self.root.parent)
        yield
        for name, content in self.files.items():
            path = self.root / name
            if not path.is_file() or path.read_bytes() != content:
                raise BrokenRuleError(f"{name} of the user's was changed")
        known = {"case", "out", *(name.partition("/")[0] for name in self.files)}
        if (
            strange := sorted({path.name for path in self.root.iterdir()} - known)
            or _content(self.root.parent) != outside
        ):
            raise BrokenRuleError(f"something was written outside: {strange}")
        if strange := sorted({path.name for path in self.out.iterdir()} - OUTPUTS - {"scene.json"}):
            raise BrokenRuleError(f"something was written outside, beside the output: {strange}")
        if left := [path for path in self.root.rglob("*") if _UNFINISHED.search(path.name)]:
            raise BrokenRuleError(f"something half-written was left: {left[0].relative_to(self.root)}")

    def command(self, *arguments: object) -> int:
        """Run `fcn-deploy` in this process; raises BrokenRuleError for a traceback or an undocumented exit code."""
        output, errors = io.StringIO(), io.StringIO()
        before, handler, given = Path.cwd(), signal.getsignal(signal.SIGTERM), sys.argv
        temporary, tempfile.tempdir = tempfile.tempdir, str(self.temporary)
        try:
            os.chdir(self.case)
            sys.argv = ["fcn-deploy", *map(str, arguments)]
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
                main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        finally:
            os.chdir(before)
            sys.argv, tempfile.tempdir = given, temporary
            signal.signal(signal.SIGTERM, handler)
        shown = output.getvalue() + errors.getvalue()
        if code not in EXIT_CODES or "Traceback" in shown:
            saved = "".join(path.read_text(encoding="utf-8") for path in self.temporary.glob("fcn-deploy-*.txt"))
            raise BrokenRuleError(f"exit code {code}: {shown[-2000:]}{saved[-3000:]}")
        if "\x1b" in shown:
            raise BrokenRuleError(f"an escape sequence reached the terminal: {shown[-500:]!r}")
        return code


def _content(folder: Path) -> str:
    """Return a hash of the names beside the ground, whose content nothing may change."""
    return hashlib.sha256("\n".join(sorted(path.name for path in folder.iterdir())).encode()).hexdigest()
