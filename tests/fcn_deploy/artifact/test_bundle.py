import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from fcn_deploy import BundleError, Geometry, Variant, open_bundle
from fcn_deploy.artifact.bundle import MANIFEST_FILE, MODEL_FILE, write_manifest
from fcn_deploy.model_info import NetworkSpec
from tests.messages import states

NOT_UTF_8 = os.fsdecode(b"\xff")


def test_opens_with_its_facts(shared_bundle: Path) -> None:
    bundle = open_bundle(shared_bundle)

    assert bundle.info.network == NetworkSpec(Variant.FCN8S, Geometry.FLOOR, 21, 16)
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
    with pytest.raises(BundleError, match=r"foreign\.onnx: .*N x 3 x H x W"):
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
    (edited(lambda m: m["parity"].update(passed=True, worst_input="none")), "manifest.json edited"),
    (edited(lambda m: m.update(opset=19)), "manifest.json edited"),
    (edited(lambda m: m.pop("manifest_sha256")), "manifest.json edited"),
    (edited(lambda m: m.update(schema_version=2)), "manifest.json schema version 2 1"),
    (edited(lambda m: m.pop("schema_version")), "manifest.json damaged `schema_version`"),
    (lambda b: (b / MANIFEST_FILE).write_text("{"), "manifest.json damaged Expecting column 2"),
    (lambda b: (b / MANIFEST_FILE).write_text("[1]"), "manifest.json damaged `object` `array`"),
    (lambda b: (b / MANIFEST_FILE).write_text('{"schema_version": NaN}'), "manifest.json damaged NaN finite"),
    (lambda b: (b / MANIFEST_FILE).write_text("[" * 100_000), "manifest.json damaged nested deeply"),
    (lambda b: (b / MANIFEST_FILE).unlink(), "bundle not manifest.json such"),
    (lambda b: (b / MODEL_FILE).unlink(), "model.onnx no file manifest.json"),
    (lambda b: (b / MODEL_FILE).write_bytes((b / MODEL_FILE).read_bytes()[:1000]), "model.onnx 1000 bytes"),
    (flipped, "model.onnx SHA-256 manifest.json"),
    (lambda b: (b / MANIFEST_FILE).write_text('{"schema_version": 1, "x": 1e999}'), "manifest.json damaged"),
    (lambda b: (b / MANIFEST_FILE).write_bytes(b'{"schema_version": 1, "x": "\xff"}'), "manifest.json damaged"),
])  # fmt: skip
def test_every_damage_is_found(bundle: Path, damage: Callable[[Path], object], facts: str) -> None:
    damage(bundle)

    with pytest.raises(BundleError, check=states(facts)) as caught:
        open_bundle(bundle)

    assert caught.value.exit_code == 3


@pytest.mark.parametrize(("change", "message"), [
    (lambda m: m.update(files=[]), r"is damaged: Expected `object`, got `array` - at `\$.files`"),
    (lambda m: m["files"].clear(), r"is damaged: \$.files has no model.onnx"),
    (lambda m: m["files"][MODEL_FILE].update(bytes="9"), r"Expected `int`, got `str` - at `\$.files\[...\].bytes`"),
    (lambda m: m["files"][MODEL_FILE].update(bytes=-1), r"Expected `int` >= 0 - at `\$.files\[...\].bytes`"),
    (lambda m: m["files"][MODEL_FILE].pop("sha256"), r"missing required field `sha256` - at `\$.files\[...\]`"),
    (lambda m: m["files"][MODEL_FILE].update(sha256="A" * 64), r"matching regex .* - at `\$.files\[...\].sha256`"),
    (lambda m: m.update(model={"fcn_deploy.variant": 8}), r"Expected `str`, got `int` - at `\$.model\[...\]`"),
    (lambda m: m.update(parity=[]), r"Expected `object \| null`, got `array` - at `\$.parity`"),
    (lambda m: m.pop("optimize"), "missing required field `optimize`"),
    *[
        (lambda m, name=name: m["files"].update({name: m["files"][MODEL_FILE]}), "lists the file .*a bundle has only")
        for name in ("../secret", "/etc/passwd", "calibration/..", "calibration/../../x", "calibration/a/b",
                     "notes.txt", "calibration/", "calibration/a\\..\\b", "calibration/a\0",
                     "model.onnx\n", "calibration/a\n")
    ],
])  # fmt: skip
def test_a_manifest_is_checked_against_its_schema(
    bundle: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    """The hash of a manifest keeps nobody from writing it: these have the right one."""
    manifest = json.loads((bundle / MANIFEST_FILE).read_text())
    change(manifest)
    del manifest["manifest_sha256"]
    manifest["manifest_sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (bundle / MANIFEST_FILE).write_text(json.dumps(manifest))

    with pytest.raises(BundleError, match=message):
        open_bundle(bundle)


def test_a_name_that_leads_out_is_not_copied(bundle: Path, tmp_path: Path) -> None:
    """Checked where it is used, too."""
    opened = open_bundle(bundle)
    assert opened.manifest is not None
    files = {**opened.manifest["files"], "../../escaped": opened.manifest["files"][MODEL_FILE]}
    (tmp_path / "escaped").write_text("mine")

    with pytest.raises(BundleError, check=states("manifest.json '../../escaped'")):
        replace(opened, manifest={**opened.manifest, "files": files}).copy_to(tmp_path / "copy" / "deep", "artifact")
    assert not (tmp_path / "copy").exists()
    assert (tmp_path / "escaped").read_text() == "mine"


def test_a_model_swapped_together_with_its_hash_is_found(bundle: Path) -> None:
    """Even a manifest written anew has to describe the model that lies beside it."""
    manifest = json.loads((bundle / MANIFEST_FILE).read_text())
    model = onnx.load(bundle / MODEL_FILE)
    next(p for p in model.metadata_props if p.key == "fcn_deploy.geometry").value = "caffe"
    onnx.save(model, bundle / MODEL_FILE)
    added = ("schema_version", "files", "manifest_sha256")
    write_manifest(bundle, {k: v for k, v in manifest.items() if k not in added})

    with pytest.raises(BundleError, check=states("bundle manifest model.onnx describe different models")):
        open_bundle(bundle)


def test_neither_file_nor_directory(tmp_path: Path) -> None:
    none = tmp_path / "none"

    with pytest.raises(BundleError, check=states(f"{none} neither bundle ONNX", remedy="fcn-deploy export")):
        open_bundle(none)


def test_a_command_with_bytes_that_are_no_utf_8_is_kept(bundle: Path) -> None:
    manifest = json.loads((bundle / MANIFEST_FILE).read_text())
    facts = {key: manifest[key] for key in ("model", "optimize", "parity")}
    write_manifest(bundle, facts | {"command": f"export --output b-{NOT_UTF_8}"})

    opened = open_bundle(bundle)

    assert opened.manifest is not None
    assert opened.manifest["command"] == f"export --output b-{NOT_UTF_8}"


@pytest.mark.parametrize("depth", [900, 940, 950, 960, 970, 980, 990, 1000, 10_000])
def test_deep_nesting_is_a_damage(bundle: Path, depth: int) -> None:
    (bundle / MANIFEST_FILE).write_text('{"schema_version": 1, "deep": ' + "[" * depth + "]" * depth + "}")

    with pytest.raises(BundleError, match=r"manifest\.json"):
        open_bundle(bundle)


@pytest.mark.parametrize("change", [
    lambda m: m.update(optimize=NOT_UTF_8),
    lambda m: m["files"].update({NOT_UTF_8: m["files"][MODEL_FILE]}),
    lambda m: m["files"][MODEL_FILE].update({NOT_UTF_8: 1}),
    lambda m: m["files"][MODEL_FILE].update(sha256=NOT_UTF_8),
    lambda m: m["model"].update(variant=NOT_UTF_8),
    lambda m: m.update({NOT_UTF_8: 1}),
])  # fmt: skip
def test_no_field_with_bytes_that_are_no_utf_8_ends_in_a_traceback(
    bundle: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    edited(change)(bundle)

    with pytest.raises(BundleError):
        open_bundle(bundle)
