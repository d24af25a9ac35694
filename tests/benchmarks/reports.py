"""Made-up reports for the tests of what is done with them."""

from dataclasses import replace

from benchmarks.report.results import BenchReport, Ceilings, Row, RowKey, RowStatus, WorkEstimate
from benchmarks.stats.timing import Measurement

ENVIRONMENT = {
    "date": "2026-01-02T03:04:05+00:00", "command": ["fcn-deploy", "bench", "fcn8s"], "commit": "abc",
    "cpu": "Test CPU", "cores": 2, "system": "Linux", "python": "3.11", "memory_bytes": 1, "scaling_governor": None,
    "busy_cores_before": 0.0, "clock_overhead_ns": 50.0, "gpus": [], "versions": {"torch": "2.13"},
}  # fmt: skip
PROTOCOL = {"duration_s": 10.0, "warmup_s": 1.0, "rounds": 10}
MILLISECOND = 1_000_000


def row(case: str, *milliseconds: float, batch: int = 1, provider: str = "cpu") -> Row:
    """A measured row whose rounds have one sample each; no samples leave it pending."""
    rounds = tuple((round(ms * MILLISECOND),) for ms in milliseconds)
    return Row(
        key=RowKey("FCN-8s", (batch, 3, 500, 500), case, provider),
        runtime="ONNX Runtime 1.31",
        graph="plain",
        precision="fp32",
        options="2 threads",
        end_to_end=False,
        work=WorkEstimate(175 * 10**9, 6 * 10**8, 350 * 10**9),
        status=RowStatus.MEASURED if rounds else RowStatus.PENDING,
        parity=({"input_name": "photo", "relative_error": 5e-7, "flips": 0},),
        measurement=Measurement(10**10, rounds) if rounds else None,
    )


def half(case: str, *milliseconds: float, batch: int = 1, to_labels: bool = False) -> Row:
    """A row of FCN-8s in fp16 on a GPU."""
    made = row(case, *milliseconds, batch=batch, provider="cuda")
    network = "FCN-8s fp16 pixels to labels" if to_labels else "FCN-8s fp16"
    return replace(made, key=replace(made.key, network=network), precision="fp16")


def report(*rows: Row, **changes: object) -> BenchReport:
    ceilings = Ceilings(2e10, {"fp32": 9e10})
    made = BenchReport(ENVIRONMENT, PROTOCOL, rows, ceilings)
    return replace(made, **changes)  # type: ignore[arg-type]
