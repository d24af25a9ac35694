import contextlib
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fcn_deploy import CheckpointError, Geometry, NetworkSpec, UsageError, Variant, WeightsOptions, read_checkpoint
from fcn_deploy.models.fcn import FCN
from fcn_deploy.models.weights import load_network, random_network
from tests.messages import missing, states

State = dict[str, Tensor]
CONVOLUTIONS = [f"conv{b}_{i}" for b, n in enumerate((2, 2, 3, 3, 3), 1) for i in range(1, n + 1)]


def state_of(variant: Variant, geometry: Geometry = Geometry.FLOOR, classes: int = 21) -> State:
    return dict(random_network(NetworkSpec(variant, geometry, classes, channel_divisor=64), 3).state_dict())


def renamed(state: State, names: dict[str, str]) -> State:
    return {
        f"{names.get(k.rpartition('.')[0], k.rpartition('.')[0])}.{k.rpartition('.')[2]}": v for k, v in state.items()
    }


def flat(state: State) -> State:
    names = {ours: f"conv{i}" for i, ours in enumerate([*CONVOLUTIONS, "fc6", "fc7"], start=1)}
    return renamed(state, names | {"upscore": "upscore32", "upscore_pool4": "upscore2x2"})


def ptsemseg(state: State) -> State:
    names = {c: f"conv_block{c[4]}.{(int(c[6]) - 1) * 2}" for c in CONVOLUTIONS}
    return renamed(
        state,
        names | {"fc6": "classifier.0", "fc7": "classifier.3", "score_fr": "classifier.6", "upscore_pool4": "upscore4"},
    )


def torchvision(state: State) -> State:
    indices = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    vgg = {f"features.{i}": c for i, c in zip(indices, CONVOLUTIONS, strict=True)}
    out = {f"{name}.{kind}": state[f"{c}.{kind}"] for name, c in vgg.items() for kind in ("weight", "bias")}
    for name, layer in (("classifier.0", "fc6"), ("classifier.3", "fc7")):
        out[f"{name}.weight"] = state[f"{layer}.weight"].flatten(1)
        out[f"{name}.bias"] = state[f"{layer}.bias"]
    return out | {"classifier.6.weight": torch.ones(1000, 64), "classifier.6.bias": torch.ones(1000)}


def save(folder: Path, state: object, name: str = "weights.pth") -> Path:
    path = folder / name
    torch.save(state, path)
    return path


def load(path: Path, variant: Variant, geometry: Geometry | None = None, classes: int = 21, **options: bool) -> FCN:
    checkpoint = read_checkpoint(path)
    spec = NetworkSpec(variant, geometry or checkpoint.family.geometry, classes, channel_divisor=64)
    return load_network(spec, checkpoint, WeightsOptions(path, **options))[0]


def assert_equal(actual: FCN, expected: State) -> None:
    found = actual.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("variant", Variant)
@pytest.mark.parametrize(("convert", "family", "geometry"), [
    (flat, "flat", Geometry.FLOOR),
    (dict, "Caffe", Geometry.CAFFE),
    (ptsemseg, "ptsemseg", Geometry.CAFFE),
])  # fmt: skip
def test_every_family_loads_bit_for_bit(
    tmp_path: Path, variant: Variant, convert: Callable[[State], State], family: str, geometry: Geometry
) -> None:
    state = state_of(variant, geometry)
    path = save(tmp_path, convert(state))

    checkpoint = read_checkpoint(path)

    assert (checkpoint.family.name, checkpoint.family.geometry, checkpoint.dropped) == (family, geometry, ())
    assert_equal(load(path, variant), state)


@pytest.mark.parametrize("wrap", [
    lambda s: {"model_state_dict": s, "epoch": 3},
    lambda s: {"state_dict": s},
    lambda s: {"model": s, "optimizer": {"lr": 0.1}},
    lambda s: {f"module.{k}": v for k, v in s.items()},
])  # fmt: skip
def test_containers_and_data_parallel_prefix(tmp_path: Path, wrap: Callable[[State], object]) -> None:
    state = state_of(Variant.FCN8S)

    assert_equal(load(save(tmp_path, wrap(state)), Variant.FCN8S, Geometry.FLOOR), state)


def test_only_an_exact_leading_module_is_stripped(tmp_path: Path) -> None:
    state = {f"modulemodule.{k}": v for k, v in state_of(Variant.FCN8S).items()}

    with pytest.raises(CheckpointError, check=states("layer names modulemodule.conv1_1.weight")):
        read_checkpoint(save(tmp_path, state))


def test_safetensors_and_files_older_than_pytorch_1_6(tmp_path: Path) -> None:
    state = state_of(Variant.FCN16S)
    save_file(state, tmp_path / "weights.safetensors")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)

    for name in ("weights.safetensors", "old.pth"):
        assert_equal(load(tmp_path / name, Variant.FCN16S, Geometry.FLOOR), state)


def test_half_precision_is_widened_without_loss(tmp_path: Path) -> None:
    state = {k: v.half() for k, v in state_of(Variant.FCN32S).items()}

    assert_equal(load(save(tmp_path, state), Variant.FCN32S), {k: v.float() for k, v in state.items()})


def test_torchvision_is_a_starting_point_and_says_so(tmp_path: Path) -> None:
    state = state_of(Variant.FCN16S)
    path = save(tmp_path, torchvision(state))
    spec = NetworkSpec(Variant.FCN16S, channel_divisor=64)

    network, provenance = load_network(spec, read_checkpoint(path), WeightsOptions(path, rng_seed=7))

    found = network.state_dict()
    trunk = [name for name in state if not name.startswith(("score", "upscore"))]
    heads = [name for name in state if name.startswith(("score", "upscore"))]
    assert all(torch.equal(found[name], state[name]) for name in trunk)
    assert all(torch.equal(found[n], random_network(spec, 7).state_dict()[n]) for n in heads)
    assert provenance.initialised == tuple(heads)
    assert provenance.dropped == ("classifier.6.weight", "classifier.6.bias")
    assert provenance.untrained
    assert str(provenance).startswith("untrained heads (random, seed 7) on checkpoint ")


def test_at_once_scales_the_skips_weights_and_not_their_biases(tmp_path: Path) -> None:
    state = state_of(Variant.FCN8S, Geometry.CAFFE)

    found = load(save(tmp_path, state), Variant.FCN8S, at_once=True).state_dict()

    scales = {"score_pool4.weight": 0.01, "score_pool3.weight": 0.0001}
    assert all(torch.equal(found[name], state[name] * scales.get(name, 1)) for name in state)


@pytest.mark.parametrize("variant", [Variant.FCN32S, Variant.FCN16S])
def test_at_once_is_for_8s_alone(tmp_path: Path, variant: Variant) -> None:
    path = save(tmp_path, state_of(variant, Geometry.CAFFE))

    with pytest.raises(UsageError, match=f"--at-once .*FCN-{variant}"):
        load(path, variant, at_once=True)


def test_every_wrong_tensor_is_named_in_one_error(tmp_path: Path) -> None:
    state = state_of(Variant.FCN8S)
    del state["fc6.bias"]
    state["conv9_9.weight"] = torch.ones(2, 3)
    state["conv1_1.weight"] = torch.ones(1, 3, 5, 5)

    with pytest.raises(CheckpointError) as caught:
        load(save(tmp_path, state), Variant.FCN8S, Geometry.FLOOR)

    lines = caught.value.problem.splitlines()[1:]
    for line, facts in zip(lines, (
        "fc6.bias 64", "conv9_9.weight 2x3", "conv1_1.weight 1x3x5x5 1x3x3x3",
    ), strict=True):  # fmt: skip
        assert missing(facts, line) == []
    assert caught.value.exit_code == 3


def test_wrong_class_count_names_the_right_option(tmp_path: Path) -> None:
    path = save(tmp_path, state_of(Variant.FCN32S, Geometry.CAFFE, classes=2))

    with pytest.raises(CheckpointError) as caught:
        load(path, Variant.FCN32S)

    assert "--num-classes 2" in caught.value.remedy
    assert missing("score_fr.bias 2 21", caught.value.problem) == []


@pytest.mark.parametrize(("made", "asked"), [("8s", "32s"), ("32s", "16s"), ("16s", "8s")])
def test_wrong_variant_names_the_right_one(tmp_path: Path, made: str, asked: str) -> None:
    path = save(tmp_path, state_of(Variant(made), Geometry.CAFFE))

    with pytest.raises(CheckpointError) as caught:
        load(path, Variant(asked))

    assert f"--variant {made}" in caught.value.remedy


def test_caffe_16s_does_not_lose_its_bias_in_floor_geometry(tmp_path: Path) -> None:
    path = save(tmp_path, state_of(Variant.FCN16S, Geometry.CAFFE))

    with pytest.raises(CheckpointError) as caught:
        load(path, Variant.FCN16S, Geometry.FLOOR)

    assert missing("score_pool4.bias 21", caught.value.problem) == []
    assert "--geometry caffe" in caught.value.remedy


def test_floor_16s_gets_no_made_up_bias_in_caffe_geometry(tmp_path: Path) -> None:
    path = save(tmp_path, state_of(Variant.FCN16S, Geometry.FLOOR))

    with pytest.raises(CheckpointError) as caught:
        load(path, Variant.FCN16S)

    assert missing("score_pool4.bias 21", caught.value.problem) == []
    assert "--geometry floor" in caught.value.remedy


class Code:
    """A harmless pickle that would create a file if it were run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "evil.pth"
    torch.save(state_of(Variant.FCN8S) | {"x": Code(tmp_path / "ran")}, path, _use_new_zipfile_serialization=zipped)

    with pytest.raises(CheckpointError, check=states("evil.pth code objects posix.mkdir")):
        read_checkpoint(path)

    assert not (tmp_path / "ran").exists()


def test_bare_pickled_code_is_refused_and_not_run(tmp_path: Path) -> None:
    path = tmp_path / "evil.pt"
    path.write_bytes(pickle.dumps(Code(tmp_path / "ran")))

    with pytest.raises(CheckpointError, check=states("evil.pt damaged PyTorch")):
        read_checkpoint(path)

    assert not (tmp_path / "ran").exists()


def test_a_pickled_module_is_refused_with_the_way_to_save_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(save(tmp_path, torch.nn.Linear(2, 2)))

    assert "torch.nn.modules.linear.Linear" in caught.value.problem
    assert "torch.save(model.state_dict(), 'weights.pth')" in caught.value.remedy


def test_truncated_at_any_length_is_one_error_family(tmp_path: Path) -> None:
    whole = save(tmp_path, state_of(Variant.FCN32S)).read_bytes()
    path = tmp_path / "cut.pth"

    for share in (0, 0.001, 0.1, 0.5, 0.9, 0.999):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(CheckpointError, check=states("cut.pth truncated bytes")):
            read_checkpoint(path)


@pytest.mark.parametrize(
    "content", [b"", b"hello world", b"\x80\x02}q\x00.", b"PK\x03\x04", bytes(i * 37 % 251 for i in range(64))]
)
def test_files_that_are_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    for name in ("x.pth", "x.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError):
            read_checkpoint(tmp_path / name)


def test_missing_file_and_directory(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()

    for name in ("none.pth", "folder"):
        with pytest.raises(CheckpointError, check=states(f"{name} not file")):
            read_checkpoint(tmp_path / name)


@pytest.mark.parametrize(("content", "kind"), [([1, 2], "list"), ({"epoch": 3}, "dict"), (torch.ones(2), "Tensor")])
def test_not_a_state_dict(tmp_path: Path, content: object, kind: str) -> None:
    with pytest.raises(CheckpointError, check=states(f"{kind} state dict")):
        read_checkpoint(save(tmp_path, content))


def test_a_layer_named_twice_is_not_dropped(tmp_path: Path) -> None:
    state = flat(state_of(Variant.FCN32S))
    state["fc7.weight"] = state["conv15.weight"] + 1

    with pytest.raises(CheckpointError, check=states("layer twice fc7.weight")):
        read_checkpoint(save(tmp_path, state))


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32])
def test_types_that_would_lose_digits_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    state = state_of(Variant.FCN32S)
    state["fc6.bias"] = state["fc6.bias"].to(dtype)

    with pytest.raises(CheckpointError, check=states(f"fc6.bias {dtype}")):
        read_checkpoint(save(tmp_path, state))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    state = state_of(Variant.FCN32S)
    state["conv4_2.weight"][0, 0, 0, 0] = value

    with pytest.raises(CheckpointError, check=states("conv4_2.weight finite")):
        read_checkpoint(save(tmp_path, state))


def test_a_tensor_with_and_without_prefix_is_not_dropped(tmp_path: Path) -> None:
    state = state_of(Variant.FCN32S)
    state["module.conv1_1.weight"] = state["conv1_1.weight"] * 0

    with pytest.raises(CheckpointError, check=states("both conv1_1.weight module.conv1_1.weight")):
        read_checkpoint(save(tmp_path, state))


def test_numpy_numbers_beside_the_weights_are_data(tmp_path: Path) -> None:
    """wkentaro/pytorch-fcn keeps its best mean IU there."""
    state = state_of(Variant.FCN8S)
    path = save(tmp_path, {"model_state_dict": state, "best_mean_iu": np.float64(0.655), "epoch": np.int64(3)})

    assert_equal(load(path, Variant.FCN8S, Geometry.FLOOR), state)


@pytest.mark.parametrize("odd", [torch.eye(3).to_sparse(), torch.empty(3, device="meta")])
def test_tensors_that_are_not_plain_are_refused(tmp_path: Path, odd: Tensor) -> None:
    state = state_of(Variant.FCN32S) | {"fc6.bias": odd}

    with pytest.raises(CheckpointError, check=states("fc6.bias plain tensor")):
        read_checkpoint(save(tmp_path, state))


def test_damaged_bytes_are_one_error_family(tmp_path: Path) -> None:
    whole = save(tmp_path, {"conv1_1.weight": torch.ones(8), "fc7.weight": torch.ones(4)}).read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(200):
        data = bytearray(whole)
        for position in rng.integers(0, len(data), 8):
            data[position] = rng.integers(0, 256)
        (tmp_path / "odd.pth").write_bytes(data)
        with contextlib.suppress(CheckpointError):
            read_checkpoint(tmp_path / "odd.pth")


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seeds_out_of_bounds(seed: int) -> None:
    with pytest.raises(UsageError, match=f"seed {seed} .*0"):
        WeightsOptions(rng_seed=seed)


def test_a_narrow_file_names_its_divisor(tmp_path: Path) -> None:
    path = save(tmp_path, state_of(Variant.FCN32S))

    with pytest.raises(CheckpointError) as caught:
        load_network(NetworkSpec(Variant.FCN32S, Geometry.CAFFE), read_checkpoint(path), WeightsOptions(path))

    assert "--channel-divisor 64" in caught.value.remedy


def test_a_tensor_larger_than_its_file_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    """A stride of 0 lets a file of a kilobyte claim any size."""
    state = state_of(Variant.FCN32S) | {"fc6.weight": torch.ones(1).expand(64, 8, 50_000, 50_000)}
    path = save(tmp_path, state)

    with pytest.raises(CheckpointError, check=states(f"weights.pth fc6.weight {4 * 64 * 8 * 50_000**2} 4 bytes")):
        read_checkpoint(path)


def test_a_flipped_bit_is_found_by_the_checksum(tmp_path: Path) -> None:
    state = state_of(Variant.FCN32S)
    path = save(tmp_path, state)
    data = bytearray(path.read_bytes())
    at = data.index(state["conv2_1.weight"].numpy().tobytes())
    data[at] ^= 1
    path.write_bytes(data)

    with pytest.raises(CheckpointError, check=states("weights.pth CRC-32")):
        read_checkpoint(path)


def test_a_file_saved_without_checksums_is_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = save(tmp_path, state_of(Variant.FCN32S))
    finally:
        torch.serialization.set_crc32_options(True)

    assert read_checkpoint(path).num_classes == 21


def test_a_record_that_was_cut_short(tmp_path: Path) -> None:
    """The archive is whole and its checksums agree, but one tensor has fewer bytes than it claims."""
    path, cut = save(tmp_path, state_of(Variant.FCN32S)), tmp_path / "cut.pth"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(cut, "w", zipfile.ZIP_STORED) as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, content[:-8] if name.endswith("/data/3") else content)

    with pytest.raises(CheckpointError, check=states("cut.pth")):
        read_checkpoint(cut)
