"""Run as `python -m benchmarks.gpu OUT [--minutes M]`, also from a bare checkout: see `make bench-gpu`.

Writes `doctor.txt`, `gpu-tests.txt`, `latency.json`, `latency.md`, `latency.html` and `figures.md` into OUT.
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.engine.run import BenchOptions
from benchmarks.gpu import figures
from benchmarks.gpu.matrix import Matrix, MatrixOptions, doctor
from benchmarks.gpu.plan import PLAN, plan_for
from benchmarks.report.page import write_markdown, write_page
from benchmarks.report.results import BenchReport, RowStatus, write_report
from benchmarks.stats.timing import Protocol
from fcn_deploy.choices import Provider
from fcn_deploy.errors import FcnDeployError, MeasurementError, ParityError
from fcn_deploy.progress import Advance
from fcn_deploy.storage import staged_file

_MINUTES = 8.0
# A row that has not answered for this long has failed: torch.compile's first run takes a minute or two.
_ANSWER_S = 180.0


def main(arguments: Sequence[str]) -> int:
    """Measure, print the figures, and return the exit code."""
    given = _parser().parse_args(arguments)
    command = ("python", "-m", "benchmarks.gpu", *arguments)
    try:
        protocol = Protocol(given.duration, warmup_s=min(0.3, given.duration))
        options = MatrixOptions(
            given.output,
            BenchOptions(given.provider, protocol=protocol, command=command, answer_s=_ANSWER_S),
            plan_for(given.minutes)[: given.bundles],
            given.minutes * 60,
            given.size,
            given.channel_divisor,
            checks=not given.no_checks,
        )
        given.output.mkdir(parents=True, exist_ok=True)
        if options.checks:
            with _say_step("doctor"):
                doctor(given.output)
        matrix = Matrix(options, write, _say_step)
        try:
            matrix.measure()
        finally:
            if matrix.report.rows:
                write_page([matrix.report], given.output / "latency.html")
    except FcnDeployError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(figures.markdown(matrix.report))
    return exit_code(matrix.report)


def write(matrix: Matrix) -> None:
    """Write all results so far, without the page, which takes seconds; each file in one move."""
    output, report = matrix.options.output, matrix.report
    if not report.rows:
        return
    write_report(report, output / "latency.json")
    write_markdown([report], output / "latency.md")
    with staged_file(output / "figures.md") as staging:
        staging.write_text(figures.markdown(report), encoding="utf-8")


def exit_code(report: BenchReport) -> int:
    """Return 0 when every row was measured or skipped, 5 when one has wrong outputs, 6 when one failed."""
    statuses = {row.status for row in report.rows}
    if RowStatus.WRONG in statuses:
        return ParityError.exit_code
    fine = RowStatus.MEASURED in statuses and statuses <= {RowStatus.MEASURED, RowStatus.SKIPPED}
    return 0 if fine else MeasurementError.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("output", type=Path, help="output folder")
    parser.add_argument("--minutes", type=float, default=_MINUTES, help="skip bundles that would not end in this time")
    parser.add_argument("--duration", type=float, default=1.0, help="seconds of samples per row")
    parser.add_argument("--provider", type=Provider, choices=list(Provider), default=Provider.CUDA)
    parser.add_argument("--bundles", type=int, default=len(PLAN), help="measure only this many bundles of the plan")
    parser.add_argument("--size", type=int, default=500, help="height and width of the input")
    parser.add_argument("--channel-divisor", type=int, default=1, help="more than 1 for narrow, fast networks")
    parser.add_argument("--no-checks", action="store_true", help="skip doctor and the tests marked `gpu`")
    return parser


@contextlib.contextmanager
def _say_step(step: str, _parts: int = 1, /) -> Iterator[Advance]:
    begun = time.monotonic()
    try:
        yield lambda: None
    finally:
        print(f"{time.monotonic() - begun:6.1f} s  {step}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
