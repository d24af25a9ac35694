import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from fcn_deploy import BundleError, Geometry, Variant, open_bundle
from fcn_deploy.artifact.bundle import MANIFEST_FILE, MODEL_FILE, write_manifest
from tests.messages import states


def test_opens_with_its_facts(shared_bundle: Path) -> None:
    bundle = open_bundle(shared_bundle)

    assert bundle.info.network.variant is Variant.FCN8S
    assert bundle.info.network.geometry is Geometry.FLOOR
    assert bundle.info.provenance.untrained
    assert bundle.input_shape == (1, 3, 96, 96)
    assert bundle.manifest is not None
    assert bundle.manifest["parity"]["passed"] is True
    assert bundle.manifest["model"] == dict(bundle.model.metadata_props)


def test_a_bare_onnx_file_opens_with_what_metadata_it_has(shared_bundle: Path) -> None:
    bundle = open_bundle(shared_bundle / MODEL_FILE)

    assert bundle.manifest is None
    assert bundle.info == open_bundle(shared_bundle).info


def test_a_foreign_onnx_file_has_no_facts(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 18]> g (float[N] x) => (float[N] y) { y = Relu (x) }'
    )
    onnx.save(model, tmp_path / "foreign.onnx")
    bundle = open_bundle(tmp_path / "foreign.onnx")

    with pytest.raises(BundleError, match=r"foreign\.onnx"):
        _ = bundle.info
    with pytest.raises(BundleError, match="N x 3 x H x W"):
        _ = bundle.input_shape


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def damage(bundle: Path) -> None:
        manifest = json.loads((bundle / MANIFEST_FILE).read_text())
        change(manifest)
        (bundle / MANIFEST_FILE).write_text(json.dumps(manifest))

    return damage


def flipped(bundle: Path) -> None:
    data = bytearray((bundle / MODEL_FILE).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / MODEL_FILE).write_bytes(data)


@pytest.mark.parametrize(("damage", "facts"), [
    (edited(lambda m: m["parity"].update(passed=True, worst_input="none")), "manifest.json"),
    (edited(lambda m: m.update(opset=19)), "manifest.json"),
    (edited(lambda m: m.pop("manifest_sha256")), "manifest.json"),
    (edited(lambda m: m.update(schema_version=2)), "manifest.json 2 1"),
    (edited(lambda m: m.pop("schema_version")), "manifest.json"),
    (lambda b: (b / MANIFEST_FILE).write_text("{"), "manifest.json"),
    (lambda b: (b / MANIFEST_FILE).write_text("[1]"), "manifest.json"),
    (lambda b: (b / MANIFEST_FILE).write_text('{"schema_version": NaN}'), "NaN"),
    (lambda b: (b / MANIFEST_FILE).write_text("[" * 100_000), "manifest.json"),
    (lambda b: (b / MANIFEST_FILE).unlink(), "manifest.json"),
    (lambda b: (b / MODEL_FILE).unlink(), "model.onnx"),
    (lambda b: (b / MODEL_FILE).write_bytes((b / MODEL_FILE).read_bytes()[:-1]), "model.onnx bytes"),
    (flipped, "model.onnx SHA-256"),
])  # fmt: skip
def test_every_damage_is_found(bundle: Path, damage: Callable[[Path], object], facts: str) -> None:
    damage(bundle)

    with pytest.raises(BundleError, check=states(facts)) as caught:
        open_bundle(bundle)

    assert caught.value.exit_code == 3


def test_a_model_swapped_together_with_its_hash_is_found(bundle: Path) -> None:
    """Even a manifest written anew has to describe the model that lies beside it."""
    manifest = json.loads((bundle / MANIFEST_FILE).read_text())
    model = onnx.load(bundle / MODEL_FILE)
    next(p for p in model.metadata_props if p.key == "fcn_deploy.geometry").value = "caffe"
    onnx.save(model, bundle / MODEL_FILE)
    added = ("schema_version", "files", "manifest_sha256")
    write_manifest(bundle, {k: v for k, v in manifest.items() if k not in added})

    with pytest.raises(BundleError, match=r"manifest.* model\.onnx"):
        open_bundle(bundle)


def test_neither_file_nor_directory(tmp_path: Path) -> None:
    with pytest.raises(BundleError) as caught:
        open_bundle(tmp_path / "none")

    assert str(tmp_path / "none") in caught.value.problem
    assert "fcn-deploy export" in caught.value.remedy
