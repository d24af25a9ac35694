"""Take the networks of `benchmarks.zoo` through export, verification, half precision and 8 bits at full width.

Run as `python -m benchmarks.networks [NAME...]`; prints a Markdown table and, below it, why rewrites were not applied.
The graphs before and after the rewrites run on the CPU, in turn, on a photo.
"""

import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import fcn_deploy as fd
from benchmarks import zoo
from benchmarks.rewrite_gain import times_as_fast
from fcn_deploy.images import SAMPLE_PHOTO
from fcn_deploy.onnx_file import read_model
from fcn_deploy.parity.inputs import photo_input
from fcn_deploy.runtime.run_graph import open_graph

HEADINGS = (
    "network", "input", "max error / range", "multiply-adds", "times as fast (quartiles)", "fp16", "bf16", "int8",
    "rewrites",
)  # fmt: skip


@dataclass(frozen=True)
class NetworkCase:
    """A network of the table."""

    name: str  # in the table
    source: str  # a class of the zoo, or PACKAGE.MODULE:NAME
    size: tuple[int, int]  # height and width of its images
    arguments: str = "{}"  # JSON
    preset: fd.Preset = fd.Preset.IMAGENET  # its pre-processing
    upsample: fd.UpsampleMode = fd.UpsampleMode.NONE  # how its logits are brought to the size of the image
    output_key: str | None = None  # key of its logits


NETWORKS = (
    NetworkCase("FCN-8s as a module", "fcn_deploy.models.fcn:fcn8s", (500, 500), preset=fd.Preset.CAFFE),
    NetworkCase("FCN-8s, pad 60, 5 classes", "PaddedFCN8s", (320, 320), preset=fd.Preset.CAFFE),
    NetworkCase("U-Net, transposed convolutions", "UNet", (320, 320)),
    NetworkCase("U-Net, bilinear", "UNet", (320, 320), '{"bilinear": true}'),
    NetworkCase("ResNet-50 FCN, dilated", "ResNetFCN", (320, 320)),
    NetworkCase("DeepLabv3, ResNet-50", "DeepLab", (320, 320)),
    NetworkCase("LR-ASPP, depthwise", "LRASPP", (320, 320), upsample=fd.UpsampleMode.BILINEAR),
    NetworkCase("MONAI's U-Net", "monai_unet", (320, 320)),
    NetworkCase(
        "SegFormer-B0 of transformers", "segformer", (320, 320), upsample=fd.UpsampleMode.BILINEAR, output_key="logits"
    ),
)


def measure(entry: NetworkCase, folder: Path) -> tuple[tuple[str, ...], list[str]]:
    """Export one network in every precision and time it; returns the cells of `HEADINGS` and remarks on rewrites."""
    options = _options(entry, folder / "ours")
    result = fd.export(options)
    plain = fd.export(replace(options, output=folder / "plain", optimize=fd.Optimize.NONE, verify=False)).path
    rewriting = result.rewriting
    if rewriting is None or result.parity is None:
        raise RuntimeError("the defaults rewrite and verify")
    before, after = rewriting.before.multiply_adds, rewriting.after.multiply_adds
    applied = [one.name for one in rewriting.passes if one.applied]
    cells = (
        entry.name,
        "x".join(map(str, entry.size)),
        f"{result.parity.worst.severity:.1e}",
        f"{before / 1e9:.1f} → {after / 1e9:.1f} G",
        _ratio(plain, result.path, options.onnx.shape, options.input_preprocessing),
        _tried(partial(_half, options, folder, fd.Precision.FP16)),
        _tried(partial(_half, options, folder, fd.Precision.BF16)),
        _tried(partial(_int8, options, folder)),
        ", ".join(applied) or "none pays",
    )
    reasons = {
        one.name: one.undone or "; ".join(sorted({site.reason for site in one.sites})) for one in rewriting.passes
    }
    remarks = [f"{entry.name}, {name}: {reasons[name] or 'nothing to do'}" for name in reasons if name not in applied]
    return cells, remarks


def _options(entry: NetworkCase, output: Path) -> fd.ExportOptions:
    source = entry.source if ":" in entry.source else f"{zoo.__name__}:{entry.source}"
    module = fd.ModuleOptions(source, entry.arguments, entry.output_key, entry.upsample)
    return fd.ExportOptions(
        None, output, module, onnx=fd.OnnxOptions(*entry.size), preprocessing=fd.PRESETS[entry.preset], force=True
    )


def _ratio(plain: Path, ours: Path, shape: tuple[int, int, int, int], how: fd.Preprocessing) -> str:
    """Return how many times as fast our graph is on a photo."""
    with ExitStack() as stack:
        bindings = []
        for path in (plain, ours):
            bound = stack.enter_context(open_graph(read_model(path / "model.onnx"))).bind()
            bound.upload({"image": photo_input(SAMPLE_PHOTO, shape, how).image})
            bound.run()
            bindings.append(bound)
        return times_as_fast(*bindings)


def _tried(call: Callable[[], str]) -> str:
    try:
        return call()
    except fd.FcnDeployError as error:
        return f"refused: {error.problem.splitlines()[-1].strip()}"


def _half(options: fd.ExportOptions, folder: Path, precision: fd.Precision) -> str:
    onnx = replace(options.onnx, opset=fd.default_opset(precision))
    chosen = replace(options, output=folder / precision, precision=fd.PrecisionOptions(precision), onnx=onnx)
    parity = fd.export(chosen).parity
    return f"{parity.worst.severity:.1e}" if parity is not None else ""


def _int8(options: fd.ExportOptions, folder: Path) -> str:
    precision = fd.PrecisionOptions(fd.Precision.INT8, (SAMPLE_PHOTO, fd.SAMPLE_SCENE))
    result = fd.export(replace(options, output=folder / "int8", precision=precision))
    found = result.reduction
    if result.parity is None or not isinstance(found, fd.Quantization):
        raise RuntimeError("an int8 export is verified")
    in_8_bits = sum(not layer.in_float for layer in found.layers)
    return f"{result.parity.worst.severity:.1e}, {in_8_bits} layers"


def main(arguments: Sequence[str]) -> None:
    """Measure the networks whose source has one of the names, or all."""
    chosen = [entry for entry in NETWORKS if not arguments or entry.source in arguments]
    print(f"| {' | '.join(HEADINGS)} |\n|{'---|' * len(HEADINGS)}")
    remarks = []
    for entry in chosen:
        try:
            with tempfile.TemporaryDirectory() as folder:
                cells, found = measure(entry, Path(folder))
        except fd.FcnDeployError as error:
            remarks.append(f"{entry.name}: {error.problem.splitlines()[0]}")
            continue
        print(f"| {' | '.join(cells)} |", flush=True)
        remarks += found
    print("\n" + "\n".join(f"* {remark}" for remark in remarks))


if __name__ == "__main__":
    main(sys.argv[1:])
