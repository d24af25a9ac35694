"""`export --module`: networks of others through export, verification, precisions, heads and prediction."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

import fcn_deploy as fd
from benchmarks import zoo
from fcn_deploy.models.logits import load_module
from fcn_deploy.models.modules import load_source
from fcn_deploy.models.weights import random_network
from fcn_deploy.runtime.ort import OrtRunner
from tests.conftest import Call, Once, Run, narrow_options
from tests.messages import missing, states

ZOO = Path(zoo.__file__)
# Narrow versions of every network of the zoo, with the size of their images and what else they need.
# With other seeds, one class may win everywhere.
SEEDS = {"PaddedFCN8s": 5, "UNet": 4, "UNetBilinear": 3, "ResNetFCN": 1, "DeepLab": 4, "LRASPP": 0}
NETWORKS = {
    "PaddedFCN8s": ('{"width": 4}', (96, 104), {}),
    "UNet": ('{"width": 4}', (64, 48), {}),
    "UNetBilinear": ('{"width": 4, "bilinear": true}', (64, 48), {}),
    "ResNetFCN": ('{"width": 4, "blocks": [1, 1, 1, 1]}', (64, 48), {}),
    "DeepLab": ('{"width": 4, "blocks": [1, 1, 1, 1], "rates": [2, 4, 6]}', (64, 48), {}),
    "LRASPP": ('{"width": 8}', (64, 48), {"upsample": fd.UpsampleMode.BILINEAR}),
}


def options(name: str, output: Path, **changes: object) -> fd.ExportOptions:
    arguments, size, others = NETWORKS[name]
    module = fd.ModuleOptions(f"{ZOO}:{name.removesuffix('Bilinear')}", arguments, **others)  # type: ignore[arg-type]
    given = fd.ExportOptions(
        None,
        output,
        module,
        weights=fd.WeightsOptions(rng_seed=SEEDS[name]),
        onnx=fd.OnnxOptions(*size),
        preprocessing=fd.PRESETS[fd.Preset.IMAGENET],
    )
    return replace(given, **changes)  # type: ignore[arg-type]


def exported(once: Once, name: str) -> Path:
    return once(f"zoo-{name}", lambda folder: fd.export(options(name, folder / "bundle"))) / "bundle"


def runner_of(path: Path) -> OrtRunner:
    return OrtRunner(path / "model.onnx")


UNIT = fd.PRESETS[fd.Preset.UNIT]


def blocks(height: int, width: int) -> np.ndarray:
    """Large coloured blocks: of noise, some networks see nothing but its mean."""
    few = np.random.default_rng(4).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(few).resize((width, height), Image.Resampling.NEAREST))


def logits_of(network: nn.Module, pixels: np.ndarray, how: fd.Preprocessing) -> np.ndarray:
    planes = pixels.transpose(0, 3, 1, 2).astype(np.float64)
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (how.mean, how.std))
    with torch.inference_mode():
        found = network(torch.from_numpy((planes * how.scale - mean) / std))
    return np.asarray(found.numpy())


def test_our_own_network_is_the_same_to_the_bit(tmp_path: Path) -> None:
    network = random_network(fd.NetworkSpec(fd.Variant.FCN8S, channel_divisor=16), 3)
    torch.save(network.state_dict(), tmp_path / "fcn8s.pth")
    weights = fd.WeightsOptions(tmp_path / "fcn8s.pth")
    # The channel divisor is recognised; published weights have the other geometry.
    ours = replace(narrow_options(tmp_path / "ours"), weights=weights, geometry=fd.Geometry.FLOOR)
    module = fd.ModuleOptions("fcn_deploy.models.fcn:fcn8s", '{"channel_divisor": 16}')
    caffe = fd.PRESETS[fd.Preset.CAFFE]
    theirs = fd.ExportOptions(None, tmp_path / "theirs", module, weights=weights, onnx=ours.onnx, preprocessing=caffe)
    image = np.random.default_rng(0).normal(0, 60, (1, 3, 96, 96)).astype(np.float32)
    found = []
    for one in (ours, theirs):
        with runner_of(fd.export(one).path) as runner:
            found.append(runner.run({"image": image})["logits"])

    graphs = [fd.open_bundle(one.output).model.graph for one in (ours, theirs)]
    assert found[0].tobytes() == found[1].tobytes()
    assert [(n.name, n.op_type) for n in graphs[0]] == [(n.name, n.op_type) for n in graphs[1]]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_verified_and_labels_as_in_float64(once: Once, name: str) -> None:
    path = exported(once, name)
    info, (_, _, height, width) = fd.open_bundle(path).info, fd.open_bundle(path).input_shape
    assert isinstance(info.network, fd.ModuleSpec)
    chosen = options(name, path)
    assert chosen.module is not None
    network = load_module(chosen.module, chosen.weights, chosen.onnx.shape, (-2.0, 2.0))[0].double()
    pixels = blocks(height, width)
    expected = logits_of(network, pixels[None], info.preprocessing)

    with fd.Segmenter(path) as segmenter:
        labels = segmenter.segment(pixels)
    with runner_of(path) as runner:
        logits = runner.run({"image": info.preprocessing.apply(pixels[None])})["logits"]
    result = fd.verify(path, fd.VerifyOptions(module=chosen.module.source, layers=True))

    assert expected.shape == logits.shape == (1, info.network.num_classes, height, width)
    assert np.abs(logits - expected).max() / np.ptp(expected) < 1e-5
    assert (labels == expected.argmax(axis=1)[0]).mean() > 0.999
    assert len(np.unique(labels)) > 1
    assert result.parity.passed
    assert result.layers is not None
    assert result.layers.first_wrong is None
    assert len(result.layers.layers) >= 3


@pytest.mark.parametrize(("name", "precision"), [
    *((name, fd.Precision.FP16) for name in NETWORKS), ("ResNetFCN", fd.Precision.BF16), ("LRASPP", fd.Precision.BF16),
])  # fmt: skip
def test_half_precision(tmp_path: Path, name: str, precision: fd.Precision) -> None:
    onnx = replace(options(name, tmp_path).onnx, opset=fd.default_opset(precision))
    chosen = options(name, tmp_path / "bundle", precision=fd.PrecisionOptions(precision), onnx=onnx)

    result = fd.export(chosen)

    assert isinstance(result.reduction, fd.HalfReport)
    assert result.parity is not None
    assert result.parity.passed
    assert result.reduction.nodes > result.reduction.float_nodes


@pytest.mark.parametrize("name", NETWORKS)
def test_eight_bits(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(3)
    for i in range(3):
        smooth = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((80, 60))
        smooth.save(tmp_path / f"{i}.png")
    precision = fd.PrecisionOptions(fd.Precision.INT8, (tmp_path,))

    result = fd.export(options(name, tmp_path / "bundle", precision=precision))

    assert isinstance(result.reduction, fd.Quantization)
    assert result.parity is not None
    assert result.parity.passed
    module = options(name, tmp_path).module
    assert module is not None
    network = load_source(module).build(0)
    scores = {"PaddedFCN8s": 3, "LRASPP": 3}.get(name, 1)
    convolutions = sum(isinstance(layer, nn.Conv2d) for layer in network.modules())
    assert len(result.reduction.layers) == convolutions - scores
    assert not any(layer.in_float for layer in result.reduction.layers)


@pytest.mark.parametrize("name", NETWORKS)
def test_pixels_to_labels(tmp_path: Path, once: Once, name: str) -> None:
    plain = exported(once, name)
    chosen = options(name, tmp_path / "bundle", head=fd.Head.LABELS, image_input=fd.ImageInput.UINT8)
    pixels = blocks(50, 70)

    result = fd.export(chosen)
    with fd.Segmenter(plain) as one, fd.Segmenter(result.path) as other:
        expected, found = one.segment(pixels), other.segment(pixels)

    assert result.parity is not None
    assert result.parity.passed
    assert (expected == found).mean() > 0.999


def test_every_rewrite_is_tried_and_says_why_not(once: Once) -> None:
    made = {name: fd.open_bundle(exported(once, name)).manifest for name in NETWORKS}

    for name, manifest in made.items():
        assert manifest is not None
        reports = {one["name"]: one for one in manifest["rewriting"]["passes"]}
        assert {"live-window", "fold-crop", "upsample", "fast-convolution"} <= set(reports), name
        for report in reports.values():
            assert report["undone"] is None, (name, report)
            assert all(site["reason"] for site in report["sites"])
    padded = made["PaddedFCN8s"]
    assert padded is not None
    assert padded["rewriting"]["after"]["multiply_adds"] < 0.9 * padded["rewriting"]["before"]["multiply_adds"]


def test_what_cannot_be_traced_leaves_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    net = tmp_path / "net.py"
    net.write_text(
        "import torch\nclass Net(torch.nn.Conv2d):\n    def __init__(self):\n        super().__init__(3, 2, 1)\n"
        "    def forward(self, x):\n        y = super().forward(x)\n        return y if x.mean() > 0 else -y\n"
    )
    chosen = fd.ExportOptions(
        None, tmp_path / "bundle", fd.ModuleOptions(f"{net}:Net"), onnx=fd.OnnxOptions(16, 16), preprocessing=UNIT
    )

    with pytest.raises(
        fd.ModuleError, check=states("net.py:Net data-dependent net.py line 7", remedy="values")
    ) as caught:
        fd.export(chosen)

    assert len(str(caught.value)) < 500
    assert capfd.readouterr() == ("", "")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == ["net.py"]


@pytest.mark.parametrize(("given", "facts"), [
    ({"variant": fd.Variant.FCN8S}, "both variant module"),
    ({"variant": None, "module": None}, "neither variant module"),
    ({"geometry": fd.Geometry.CAFFE}, "--geometry"),
    ({"num_classes": 5}, "--num-classes"),
])  # fmt: skip
def test_options_that_contradict_a_module(tmp_path: Path, given: dict[str, object], facts: str) -> None:
    whole = {"variant": None, "output": tmp_path, "module": fd.ModuleOptions("net.py:Net")} | given

    with pytest.raises(fd.UsageError, check=states(facts)):
        fd.ExportOptions(**whole)  # type: ignore[arg-type]


def test_a_new_user_with_the_tutorials_class(tmp_path: Path, call_cli: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """One command for a class in net.py; verify, evaluate and bench take it again; a change is noticed."""
    (tmp_path / "net.py").write_text(ZOO.read_text(encoding="utf-8"))
    arguments = '{"width": 4, "padding": 40}'
    code, stdout, stderr = call_cli(
        "export",
        "--module",
        "net.py:PaddedFCN8s",
        "--module-args",
        arguments,
        "--size",
        "64",
        "--preprocessing",
        "caffe",
    )

    assert code == 0, stderr
    assert missing("net.py:PaddedFCN8s 5 classes paddedfcn8s passed", stdout + stderr) == []
    assert call_cli("verify", "paddedfcn8s", "--module", "net.py:PaddedFCN8s")[0] == 0
    code, _, stderr = call_cli("verify", "paddedfcn8s")
    assert (code, missing("--module net.py:PaddedFCN8s", stderr)) == (3, [])
    with (tmp_path / "net.py").open("a") as file:
        file.write("\n# changed\n")
    code, _, stderr = call_cli("verify", "paddedfcn8s", "--module", "net.py:PaddedFCN8s")
    assert (code, missing("net.py SHA-256 --module-changed", stderr)) == (3, [])
    code, stdout, _ = call_cli("verify", "paddedfcn8s", "--module", "net.py:PaddedFCN8s", "--module-changed")
    assert (code, missing("net.py changed SHA-256", stdout)) == (0, [])
    assert not (tmp_path / "net").exists()


@pytest.mark.parametrize("name", ["UNet", "ResNetFCN", "LRASPP"])
def test_the_first_wrong_layer_is_named(tmp_path: Path, once: Once, name: str) -> None:
    """The bias of one convolution in the middle is off by a hundredth of what it does."""
    model = onnx.load(exported(once, name) / "model.onnx")
    convolutions = [node for node in model.graph.node if node.op_type == "Conv" and len(node.input) > 2]
    damaged = convolutions[len(convolutions) // 2]
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == damaged.input[2])
    values = onnx.numpy_helper.to_array(bias).copy()
    values += np.float32(0.05)
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    onnx.save(model, tmp_path / "damaged.onnx")
    module = options(name, tmp_path).module
    assert module is not None

    result = fd.verify(tmp_path / "damaged.onnx", fd.VerifyOptions(module=module.source, layers=True))

    assert not result.parity.passed
    assert result.layers is not None
    assert result.layers.first_wrong is not None
    # Up to the activation that ends the layer, which has a module of its own.
    layer = damaged.name.rpartition("/")[0]
    assert result.layers.first_wrong.name.startswith(layer)


SMALL = """
import torch
from torch import nn
from torch.nn import functional as F

class Certain(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 1, 1), nn.Sigmoid())

class Loud(nn.Conv2d):
    def __init__(self):
        super().__init__(3, 2, 1)

    def forward(self, image):
        print("forward")
        return super().forward(image)

class PadChannels(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, image):
        return self.conv(F.pad(image, (0, 0, 0, 0, 0, 1)))

class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.wrapped, self.conv = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()), nn.Conv2d(4, 2, 1)

    def forward(self, image):
        return {"out": self.conv(self.wrapped(image))}

class car(nn.Conv2d):
    def __init__(self):
        super().__init__(3, 2, 1)

class Normal(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8), nn.ReLU(), nn.ZeroPad2d(1), nn.Conv2d(8, 2, 1))
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.py"
    path.write_text(SMALL)
    return path


def small_options(small: Path, name: str, **changes: object) -> fd.ExportOptions:
    module = fd.ModuleOptions(f"{small}:{name}")
    given = fd.ExportOptions(
        None, small.with_name("bundle"), module, onnx=fd.OnnxOptions(16, 16), preprocessing=fd.PRESETS[fd.Preset.CAFFE]
    )
    return replace(given, **changes)  # type: ignore[arg-type]


def test_a_probability_is_not_taken_for_a_logit(small: Path) -> None:
    with pytest.raises(fd.ModuleError, check=states("Certain Sigmoid", remedy="--threshold")):
        fd.export(small_options(small, "Certain"))
    assert not small.with_name("bundle").exists()


def test_pre_processing_of_a_module_has_to_be_stated(small: Path) -> None:
    with pytest.raises(fd.UsageError, check=states("small.py:Loud", remedy="--preprocessing caffe imagenet unit")):
        small_options(small, "Loud", preprocessing=None)


def test_a_pad_that_adds_channels_is_no_place_for_the_order_of_channels(small: Path) -> None:
    result = fd.export(small_options(small, "PadChannels", image_input=fd.ImageInput.UINT8))

    assert result.parity is not None
    assert result.parity.passed


def test_an_attribute_of_our_wrappers_name_is_the_users(small: Path) -> None:
    path = fd.export(small_options(small, "Wrapped")).path

    found = fd.verify(path, fd.VerifyOptions(module=f"{small}:Wrapped", layers=True)).layers

    assert found is not None
    assert {layer.name for layer in found.layers} >= {"wrapped/1", "conv"}


def test_json_stays_one_document_although_the_network_prints(small: Path, run_cli: Run) -> None:
    made = run_cli(
        "export", "--module", "small.py:Loud", "--preprocessing", "unit", "--size", 16, "--output", "loud", "--json"
    )
    checked = run_cli("verify", "loud", "--module", "small.py:Loud", "--json", "--layers")

    assert json.loads(made.stdout)["path"] == "loud"
    assert json.loads(checked.stdout)["parity"]["passed"]


def test_names_are_no_emoji(small: Path, call_cli: Call) -> None:
    _, stdout, _ = call_cli(
        "export", "--module", f"{small}:car", "--preprocessing", "unit", "--size", "16", "--no-verify", "--output",
        str(small.with_name("auto")),
    )  # fmt: skip

    assert "small.py:car (2 classes)" in stdout


@pytest.mark.parametrize("given", [
    ("--module-args", "not json"), ("--output-key", "x"), ("--upsample", "bilinear"), ("--align-corners",),
])  # fmt: skip
def test_options_of_modules_are_not_ignored_with_a_variant(call_cli: Call, given: tuple[str, ...]) -> None:
    code, _, stderr = call_cli("export", "--variant", "8s", *given)

    assert (code, missing(f"{given[0]} --module", stderr)) == (2, [])


def test_flat_inputs_are_not_judged_where_pytorch_itself_is_off(small: Path, run_cli: Run) -> None:
    """Instance normalisation divides a flat map, which has nothing but rounding errors, by their size."""
    path = fd.export(small_options(small, "Normal")).path

    parity = fd.verify(path, fd.VerifyOptions(module=f"{small}:Normal", exact=True)).parity
    shown = run_cli("verify", path, "--module", f"{small}:Normal")

    off = {e.input_name for e in parity.exact if max(e.reference, e.candidate) > 1e-5}
    beyond = {c.input_name for c in parity.comparisons if parity.tier.failures(c)}
    assert beyond
    assert beyond == set(parity.undecided)
    assert beyond <= off <= {"mean colour", "zeros"}
    assert parity.passed
    assert "extremes" in {c.input_name for c in parity.judged}
    assert (shown.returncode, missing("not judged: float32", shown.stdout)) == (0, [])


def test_a_wrong_artifact_still_fails_where_flat_inputs_are_not_judged(small: Path, tmp_path: Path) -> None:
    model = onnx.load(fd.export(small_options(small, "Normal")).path / "model.onnx")
    bias = next(tensor for tensor in model.graph.initializer if tensor.dims == [2])
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(0.1), bias.name))
    onnx.save(model, tmp_path / "damaged.onnx")

    parity = fd.verify(tmp_path / "damaged.onnx", fd.VerifyOptions(module=f"{small}:Normal")).parity

    assert not parity.passed
    assert parity.worst.input_name not in parity.undecided


def test_the_example_of_the_documentation_works_as_printed(tmp_path: Path, call_cli: Call) -> None:
    page = (Path(__file__).parents[2] / "docs" / "networks.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "net.py").write_text(example)
    # The first command is for a network of the reader's own.
    commands = [shlex.split(line) for line in re.findall(r"^\$ fcn-deploy (.*)$", page, flags=re.MULTILINE)][1:]

    done = [call_cli(*command) for command in commands]

    assert len(example.splitlines()) <= 20
    assert [code for code, _, _ in done] == [0, 0], done[-1]
    assert 'net.py:Net {"num_classes": 4} (4 classes)' in done[0][1]
    assert "no layer exceeds 1e-05" in done[1][1]
