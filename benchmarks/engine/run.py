"""Runs a benchmark: checks what is asked for, then measures every row of every bundle."""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.engine import environment
from benchmarks.engine.cases import Precision, choose
from benchmarks.engine.environment import visible_gpus
from benchmarks.engine.schedule import BenchOptions, OnProgress, Schedule, distinct, network_name, own_process
from benchmarks.report.results import BenchReport
from fcn_deploy.artifact import is_engine
from fcn_deploy.artifact.bundle import Bundle, check_checkpoint, open_bundle
from fcn_deploy.choices import Provider
from fcn_deploy.errors import CheckpointError, UsageError
from fcn_deploy.runtime.ort import require_provider
from fcn_deploy.storage import file_sha256


def bench(paths: Sequence[Path], options: BenchOptions, on_progress: OnProgress = lambda _: None) -> BenchReport:
    """Measure every row of every bundle. A row that fails is marked and the rest go on.

    An interruption (KeyboardInterrupt) ends the run; what was measured until then is returned.

    Raises:
        UsageError: an unknown row, a batch no bundle has, two bundles alike, more threads than cores.
        BundleError: a bundle is missing, damaged, or was not written by this toolkit.
        CheckpointError: a bundle was exported from another checkpoint than the one given.
        ProviderError: the provider would not run.
    """
    # Before anything of ours touches a GPU: whoever is on it now is somebody else.
    gpus = visible_gpus()
    require_provider(options.provider)
    _check_no_engines(paths)
    cases = choose(options.rows, options.provider)
    cores = _chosen_cores(options.threads)
    bundles = [(path, open_bundle(path)) for path in paths]
    chosen = [bundle for _, bundle in bundles if not options.batches or bundle.input_shape[0] in options.batches]
    _check_batches(bundles, options.batches)
    _check_distinct(chosen)
    _check_checkpoint(chosen, options.checkpoint)
    found = environment.describe(cores, options.command) | {"gpus": gpus}
    ticks = environment.cpu_times()
    precisions = {case.precision for case in cases} | _arithmetics(chosen, options.provider)
    run = Schedule(options, cores, len(chosen), on_progress)
    interrupted = False
    with tempfile.TemporaryDirectory() as folder, own_process(Path(folder) / "ceilings.log") as gauge:
        try:
            run.measure_ceilings(gauge, precisions)
            for bundle in chosen:
                run.measure_bundle(bundle, cases if options.rows else distinct(bundle, cases))
            # A second time, because what disturbs the first would make rows look better than the device.
            run.measure_ceilings(gauge, precisions)
        except KeyboardInterrupt:
            interrupted = True
    found |= {"gpus_during": run.gpus.summary(), "stolen_share": environment.stolen_share(ticks)}
    return BenchReport(found, asdict(options.protocol), run.all_rows(), run.ceilings, interrupted)


def _arithmetics(bundles: Sequence[Bundle], provider: Provider) -> set[Precision]:
    """What bundles compute in, where it has a ceiling: on a CPU half precision is rounded float32."""
    halves = {Precision(bundle.info.precision) for bundle in bundles} & {Precision.FP16, Precision.BF16}
    return halves if provider is not Provider.CPU else set()


def _check_no_engines(paths: Sequence[Path]) -> None:
    engines = [str(path) for path in paths if is_engine(path)]
    if engines:
        raise UsageError(
            f"{', '.join(engines)}: bench measures an engine beside the bundle that it was built of",
            remedy="Pass the bundle with --provider cuda: the rows engine, engine-graph and engine-e2e run its plan.",
        )


def _chosen_cores(threads: int | None) -> tuple[int, ...]:
    cores = environment.available_cores()
    if threads is not None and not 1 <= threads <= len(cores):
        raise UsageError(f"{threads} threads: this machine has {len(cores)} cores", remedy="Pass another --threads.")
    return cores[:threads]


def _check_distinct(bundles: Sequence[Bundle]) -> None:
    names = [f"{network_name(bundle.info)} {'x'.join(map(str, bundle.input_shape))}" for bundle in bundles]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(
            f"two bundles of {', '.join(twice)}: their rows could not be told apart",
            remedy="Measure them one by one with --json, then `fcn-deploy compare` the two files.",
        )


def _check_checkpoint(bundles: Sequence[Bundle], path: Path | None) -> None:
    """Before anything is measured, because the last bundle's would be found missing after minutes only."""
    for bundle in bundles:
        check_checkpoint(bundle.info.provenance, path)
    if path is not None:
        if not path.is_file():
            raise CheckpointError(f"checkpoint {path} is not a file", remedy="Check the path.")
        sha256 = file_sha256(path)
        for bundle in bundles:
            check_checkpoint(bundle.info.provenance, path, sha256)


def _check_batches(bundles: Sequence[tuple[Path, Bundle]], wanted: Sequence[int]) -> None:
    there = {bundle.input_shape[0] for _, bundle in bundles}
    missing = sorted(set(wanted) - there)
    if missing:
        path, bundle = bundles[0]
        variant = bundle.info.network.variant
        raise UsageError(
            f"no bundle takes batches of {', '.join(map(str, missing))}: {path} takes {bundle.input_shape[0]}, "
            "and a bundle's batch is fixed",
            remedy=f"Export one: fcn-deploy export --variant {variant} --batch {missing[0]} --output "
            f"{path.name}-b{missing[0]} (with the options {path.name} was exported with), and pass it too.",
        )
