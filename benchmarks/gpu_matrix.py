"""Every variant and batch on one GPU, into one folder, in whatever time there is.

Run as `python -m benchmarks.gpu_matrix OUT [--minutes M]`, also from a bare checkout (`make bench-gpu`): exports each
bundle anew, measures it, and rewrites `OUT/latency.json`, `.md` and `.html` after each, so that a run that is cut short
keeps what it had. The most important bundles come first; one is not begun when the last took longer than what is left.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.options import BenchOptions
from benchmarks.report import require_page, write_markdown, write_page
from benchmarks.results import BenchReport, Status, write_report
from benchmarks.run import bench
from benchmarks.timing import Protocol
from exporters.export_options import ExportOptions
from exporters.onnx import OnnxOptions
from exporters.pipeline import export
from exporters.reduce import PrecisionOptions, default_opset
from fcn_deploy.errors import FcnDeployError, MeasurementError, ParityError, UsageError
from fcn_deploy.geometry import Variant
from fcn_deploy.model_info import Precision
from fcn_deploy.runtime.ort import require_provider
from fcn_deploy.runtime.provider import Provider

FP32, FP16, BF16 = Precision.FP32, Precision.FP16, Precision.BF16
PLAN = (
    (Variant.FCN8S, 1, FP32), (Variant.FCN8S, 1, FP16), (Variant.FCN32S, 1, FP32), (Variant.FCN16S, 1, FP32),
    (Variant.FCN8S, 1, BF16), (Variant.FCN32S, 1, FP16), (Variant.FCN16S, 1, FP16),
    (Variant.FCN8S, 16, FP32), (Variant.FCN8S, 4, FP32), (Variant.FCN8S, 2, FP32), (Variant.FCN8S, 8, FP32),
)  # fmt: skip
_MINUTES = 8.0


@dataclass(frozen=True)
class MatrixOptions:
    """What is measured, and how long it may take.

    Attributes:
        output: folder of the three files.
        bench: how each bundle is measured.
        plan: variants, batches and precisions, the most important first.
        seconds: after which no further bundle is begun.
        size: height and width of the input in pixels.
        channel_divisor: more than 1 for a quick stand-in.
    """

    output: Path
    bench: BenchOptions
    plan: Sequence[tuple[Variant, int, Precision]] = PLAN
    seconds: float = _MINUTES * 60
    size: int = 500
    channel_divisor: int = 1


def measure_matrix(options: MatrixOptions) -> BenchReport | None:
    """Measure the plan bundle by bundle; None when there was no time for any.

    Raises:
        ProviderError: the provider would not run.
    """
    require_provider(options.bench.provider)
    start, longest = time.monotonic(), 0.0
    merged: BenchReport | None = None
    for variant, batch, precision in options.plan:
        begun = time.monotonic()
        # Longer batches take longer, how much is not known before: what is left has to cover twice the longest.
        expected = longest * (2 if batch > 1 else 1)
        if begun - start + expected > options.seconds:
            continue
        _say(f"{begun - start:6.1f} s  FCN-{variant}, batch {batch}, {precision}")
        found = _measure_one(options, variant, batch, precision)
        if found is not None:
            merged = _joined(merged, found)
            _write(merged, options.output)
            if found.interrupted:
                break
        longest = max(longest, time.monotonic() - begun)
    return merged


def _measure_one(options: MatrixOptions, variant: Variant, batch: int, precision: Precision) -> BenchReport | None:
    """One bundle; None, said on stderr, when it cannot be exported or prepared."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            wanted = ExportOptions(
                variant,
                Path(folder) / "bundle",
                channel_divisor=options.channel_divisor,
                onnx=OnnxOptions(options.size, options.size, batch, default_opset(precision)),
                precision=PrecisionOptions(precision),
                verify=False,
            )
            return bench([export(wanted).path], options.bench)
        except FcnDeployError as error:
            _say(f"FCN-{variant}, batch {batch}: {error}")
            return None


def _joined(first: BenchReport | None, second: BenchReport) -> BenchReport:
    if first is None:
        return second
    ceilings = second.ceilings.at_best(first.ceilings) if second.ceilings else first.ceilings
    return replace(
        first,
        rows=(*first.rows, *second.rows),
        ceilings=ceilings,
        interrupted=second.interrupted,
        environment={
            **first.environment,
            "gpus_during": [*first.environment["gpus_during"], *second.environment["gpus_during"]],
        },
    )


def _write(report: BenchReport, output: Path) -> None:
    write_report(report, output / "latency.json")
    write_markdown([report], output / "latency.md")
    try:
        require_page()
    except UsageError as error:
        _say(str(error))
        return
    write_page([report], output / "latency.html")


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


def main(arguments: Sequence[str]) -> int:
    """Parse, measure, print the table; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_matrix", description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--minutes", type=float, default=_MINUTES)
    parser.add_argument("--duration", type=float, default=2.0, help="seconds of samples per row")
    parser.add_argument("--provider", type=Provider, choices=list(Provider), default=Provider.CUDA)
    parser.add_argument("--size", type=int, default=500)
    parser.add_argument("--channel-divisor", type=int, default=1)
    given = parser.parse_args(arguments)
    command = ("python", "-m", "benchmarks.gpu_matrix", *arguments)
    try:
        how = BenchOptions(given.provider, protocol=Protocol(given.duration), command=command)
        report = measure_matrix(
            MatrixOptions(given.output, how, PLAN, given.minutes * 60, given.size, given.channel_divisor)
        )
    except FcnDeployError as error:
        _say(f"error: {error}")
        return error.exit_code
    if report is None:
        _say("no bundle was measured")
        return 1
    sys.stdout.write((given.output / "latency.md").read_text(encoding="utf-8"))
    return exit_code(report)


def exit_code(report: BenchReport) -> int:
    """0 when every row was measured or could not run here, 5 when one computes something else, 6 when one failed."""
    statuses = {row.status for row in report.rows}
    if Status.WRONG in statuses:
        return ParityError.exit_code
    failed = statuses & {Status.FAILED, Status.OUT_OF_MEMORY, Status.PENDING} or Status.MEASURED not in statuses
    return MeasurementError.exit_code if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
