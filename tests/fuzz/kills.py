"""Kill commands at random moments: `python -m tests.fuzz.kills [COUNT]`.

Nothing may be half-written, and the next run completes.
"""

import hashlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import fcn_deploy as fd
from fcn_deploy.images import read_image
from fcn_deploy.storage import parse_json
from tests.datasets import make_folders
from tests.fuzz.targets import SIZE, make_sound


@dataclass(frozen=True)
class Command:
    """A command that is killed."""

    name: str
    arguments: tuple[str, ...]  # of `fcn-deploy`
    output: Path
    check: Callable[[Path], None]  # raises if what is there is half-written


def commands(folder: Path) -> tuple[Command, ...]:
    """Return the three commands, with the files they need."""
    sound = make_sound(folder)
    make_folders(folder / "many", 30, (SIZE, SIZE))
    out = {name: folder / f"out-{name}" for name in ("export", "predict", "evaluate")}
    export = ("export", "--variant", "32s", "--size", str(SIZE), "--channel-divisor", "8", "--force")
    photos, bundle = str(folder / "many" / "images"), str(sound.bundle)
    predict = ("predict", bundle, photos, "--output", str(out["predict"]))
    evaluate = ("evaluate", bundle, str(folder / "data"), "--output", str(out["evaluate"]))
    return (
        Command("export", (*export, "--output", str(out["export"])), out["export"], _check_bundle),
        Command("predict", predict, out["predict"], _check_pictures),
        Command("evaluate", evaluate, out["evaluate"], _check_evaluation),
    )


def _check_bundle(output: Path) -> None:
    if output.exists():
        fd.open_bundle(output)


def _check_pictures(output: Path) -> None:
    for path in output.glob("[!.]*.png"):
        read_image(path)


def _check_evaluation(output: Path) -> None:
    result, page = output / "evaluation.json", output / "index.html"
    if result.exists():
        parse_json(result.read_bytes())
    if page.exists() and not page.read_text(encoding="utf-8").rstrip().endswith("</html>"):
        raise ValueError("half a page")


def main(count: int) -> None:
    """Kill each command `count` times, and run it to its end after every tenth kill."""
    rng = random.Random(0)  # noqa: S311 - moments, no secret
    with tempfile.TemporaryDirectory() as folder:
        for command in commands(Path(folder)):
            whole_s, whole = _run(command)
            killed = 0
            while killed < count:
                killed += _killed(command, rng.uniform(0, whole_s))
                command.check(command.output)
                if killed % 10 == 0:
                    _, again = _run(command)
                    if command.name != "evaluate" and again != whole:
                        raise AssertionError(f"{command.name} after a kill wrote something else")
            hidden = [path.name for path in command.output.parent.rglob(".*") if path.is_file()]
            if hidden:
                raise AssertionError(f"{command.name} left {hidden}")
            print(
                f"{command.name}: {killed} kills within {whole_s:.1f} s, nothing half-written, next runs complete",
                flush=True,
            )


def _process(command: Command) -> "subprocess.Popen[bytes]":
    line = [sys.executable, "-m", "fcn_deploy", *command.arguments]
    return subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def _run(command: Command) -> tuple[float, dict[str, str]]:
    """Run to the end; return the seconds and the hashes of what there is."""
    start = time.monotonic()
    process = _process(command)
    _, errors = process.communicate(timeout=120)
    if process.returncode != 0:
        raise AssertionError(f"{command.name} ended with {process.returncode}: {errors.decode()[-500:]}")
    files = sorted(path for path in command.output.rglob("*") if path.is_file() and path.suffix in (".png", ".onnx"))
    return time.monotonic() - start, {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _killed(command: Command, seconds: float) -> bool:
    """Kill a run after some seconds; return whether it was still running."""
    process = _process(command)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
