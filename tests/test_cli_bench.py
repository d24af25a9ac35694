"""`bench`, `compare` and `report` as a user meets them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fcn_deploy as fd
from benchmarks.report.results import write_report
from fcn_deploy.runtime.ort import provider_problem
from tests.benchmarks.reports import report, row
from tests.conftest import Call, Run
from tests.messages import missing
from tests.processes import started

QUICK = ("--rows", "ort", "--duration", "0.1")
QUIET = (2000.0, 2004.0, 1998.0, 2001.0, 2003.0)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Two reports; in the second one row is 10 % slower."""
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    write_report(report(row("ort-plain", *QUIET), row("ort", *QUIET)), before)
    write_report(report(row("ort-plain", *QUIET), row("ort", *(1.1 * ms for ms in QUIET))), after)
    return before, after


def test_bench_shows_and_writes_everything(run_cli: Run, shared_bundle: Path, tmp_path: Path) -> None:
    done = run_cli(
        "bench", shared_bundle, "--rows", "ort,ort-e2e", "--duration", "0.2",
        "--json", "out/latency.json", "--markdown", "out/latency.md", "--report", "out/latency.html",
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert missing("FCN-8s 1x3x96x96 cpu", done.stdout) == []
    assert "CPUExecutionProvider (ort, ort-e2e)" in done.stdout
    assert "ONNX Runtime" in done.stdout
    assert "round 10 of 10" in done.stderr
    for name in ("latency.json", "latency.md", "latency.html"):
        assert f"wrote out/{name}" in done.stdout
        assert (tmp_path / "out" / name).stat().st_size > 1000
    found = fd.read_report(tmp_path / "out" / "latency.json")
    assert [r.key.case for r in found.rows] == ["ort", "ort-e2e"]
    assert found.environment["command"][:2] == ["fcn-deploy", "bench"]


@pytest.mark.parametrize(("strict", "code"), [((), 0), (("--strict",), 6)])
def test_unstable_rows_are_an_error_only_where_that_was_asked_for(
    call_cli: Call, monkeypatch: pytest.MonkeyPatch, shared_bundle: Path, strict: tuple[str, ...], code: int
) -> None:
    found = report(row("ort-plain", *QUIET), row("ort", 100, 100, 150))
    monkeypatch.setattr(fd, "bench", lambda *_: found)

    ended, output, errors = call_cli("bench", shared_bundle, *strict)

    assert ended == code
    assert missing("Doubts 1 of 2 unstable ort --duration", output) == []
    assert missing("1 of 2 unstable ort", errors) == ([] if strict else ["1", "of", "2", "unstable", "ort"])


@pytest.mark.skipif(provider_problem(fd.Provider.CUDA) is None, reason="CUDA works here")
def test_no_gpu_is_said_within_ten_seconds(run_cli: Run, shared_bundle: Path) -> None:
    start = time.monotonic()

    done = run_cli("bench", shared_bundle, "--provider", "cuda")

    assert time.monotonic() - start < 10
    assert done.returncode == 4
    assert done.stderr.startswith("error: provider cuda")
    assert "pip install" in done.stderr
    assert done.stdout == ""


def test_an_interrupted_bench_reports_what_it_has(shared_bundle: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fcn_deploy", "bench", str(shared_bundle), "--rows", "ort", "--duration", "4"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started([*command, "--json", "kept.json"], cwd=tmp_path, **pipes) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "round 2" in line:
                break
        os.kill(process.pid, signal.SIGINT)
        output, errors = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "interrupted" in output
    assert "wrote kept.json" in output
    assert "Traceback" not in errors
    kept = fd.read_report(tmp_path / "kept.json")
    assert kept.interrupted
    assert kept.rows[0].measurement is not None


def test_nothing_is_replaced_when_nothing_was_measured(
    call_cli: Call, shared_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept.json"
    kept.write_text("an older report")
    monkeypatch.setattr("benchmarks.engine.run.Schedule.measure_ceilings", interrupt)

    code, output, _ = call_cli("bench", shared_bundle, *QUICK, "--json", kept)

    assert code == 130
    assert "wrote" not in output
    assert kept.read_text() == "an older report"


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_place_that_cannot_be_written_is_found_before_anything_is_measured(
    call_cli: Call, shared_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")

    for name in ("file/latency.json", "."):
        code, output, errors = call_cli("bench", shared_bundle, *QUICK, "--json", name)
        assert code == 3
        assert name in errors
        assert output == ""


@pytest.mark.usefixtures("shared_preparations")
def test_wrong_outputs_are_exit_code_5(call_cli: Call, bundle: Path) -> None:
    import onnx
    from onnx import numpy_helper

    model = onnx.load(bundle / "model.onnx")
    for tensor in model.graph.initializer:
        if tensor.name == "score_fr.bias":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + 1, tensor.name))
    onnx.save(model, bundle / "model.onnx")

    code, output, errors = call_cli("bench", bundle / "model.onnx", *QUICK)

    assert code == 5
    assert "wrong" in output
    assert "max error / range" in errors


@pytest.mark.parametrize(("arguments", "facts"), [
    (("--rows", "nonsense"), "nonsense cpu pytorch ort"),
    (("--batch", "4"), "batch 4 1 fixed"),
    (("--batch", "four"), "'four' list batches 1,2,4"),
    (("--batch", "0"), "--batch '0' list batches"),
    (("--duration", "0"), "0.0 0.01 3600"),
    (("--threads", "0"), "0 threads"),
    (("--provider", "tpu"), "--provider 'tpu' 'cpu' 'cuda'"),
])  # fmt: skip
def test_bad_options(call_cli: Call, shared_bundle: Path, arguments: tuple[str, ...], facts: str) -> None:
    code, output, errors = call_cli("bench", shared_bundle, *arguments)

    assert code == 2
    assert missing(facts, errors) == []
    assert output == ""


def test_a_missing_bundle(call_cli: Call) -> None:
    code, _, errors = call_cli("bench", "nowhere", *QUICK)

    assert code == 3
    assert missing("nowhere neither bundle ONNX", errors) == []


def test_compare_says_slower_with_its_own_exit_code(call_cli: Call, files: tuple[Path, Path]) -> None:
    code, output, errors = call_cli("compare", *files)

    assert code == 7
    assert "no difference" in output
    assert "slower" in output
    assert missing("FCN-8s 500x500 ort cpu 1.10", errors) == []


def test_compare_says_faster(call_cli: Call, files: tuple[Path, Path]) -> None:
    code, output, _ = call_cli("compare", *reversed(files))

    assert code == 0
    assert "faster" in output


def test_compare_of_a_file_with_itself(call_cli: Call, files: tuple[Path, Path]) -> None:
    code, output, errors = call_cli("compare", files[0], files[0])

    assert (code, errors) == (0, "")
    assert output.count("no difference") == 2


def test_compare_as_json(call_cli: Call, files: tuple[Path, Path]) -> None:
    document = json.loads(call_cli("compare", *files, "--json")[1])

    assert [r["verdict"] for r in document["rows"]] == ["no difference", "slower"]
    assert document["rows"][1]["ratio"] == pytest.approx(1.1)


def test_report_shows_one_again(call_cli: Call, files: tuple[Path, Path], tmp_path: Path) -> None:
    code, output, _ = call_cli("report", files[0], "--markdown", "again.md", "--report", "again.html")

    assert code == 0
    assert missing("FCN-8s 1x3x500x500 cpu 2", output) == []
    assert "Test CPU" in output
    assert (tmp_path / "again.md").read_text().startswith("# Benchmark: Test CPU, 2 cores")
    assert "<svg" in (tmp_path / "again.html").read_text()


def test_report_puts_several_side_by_side(call_cli: Call, files: tuple[Path, Path]) -> None:
    _, output, _ = call_cli("report", *files)

    side_by_side = output[output.index("side by side") :]
    assert "2.00 s" in side_by_side
    assert "2.20 s" in side_by_side


def test_a_report_of_another_schema_version(call_cli: Call, files: tuple[Path, Path]) -> None:
    files[0].write_text(files[0].read_text().replace('"schema_version": 2', '"schema_version": 7'))

    code, _, errors = call_cli("report", files[0])

    assert code == 3
    assert missing("schema version 7 2", errors) == []


def test_compare_with_a_missing_file(call_cli: Call, files: tuple[Path, Path]) -> None:
    code, _, errors = call_cli("compare", files[0], "none.json")

    assert code == 3
    assert missing("none.json No such", errors) == []
