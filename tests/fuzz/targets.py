"""The ways in, each with a sound file to begin with and the commands that read it."""

import io
import json
import shutil
import socket
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save as save_safetensors

import fcn_deploy as fd
from benchmarks.report.results import write_report
from fcn_deploy.artifact.bundle import _self_hash
from fcn_deploy.artifact.engine import Device, Engine, LayerTypes, open_engine, sidecar_path
from fcn_deploy.choices import FlavourName
from fcn_deploy.model_info import TensorSpec
from fcn_deploy.models.weights import load_network, random_network
from fcn_deploy.storage import file_sha256
from tests.benchmarks.reports import report, row
from tests.datasets import photo_of, save_labels, save_photo, truth_of
from tests.fuzz.ground import BrokenRuleError, Ground
from tests.fuzz.mutations import PATHS, Draw, json_bytes, mutated_bytes, mutated_json, mutated_onnx

SIZE, DIVISOR, CLASSES = 32, 64, 3
_SPEC = fd.NetworkSpec(fd.Variant.FCN32S, num_classes=CLASSES, channel_divisor=DIVISOR)
_CLIENT_TIMEOUT_S = 0.3
_ANSWER_S = 5.0


@dataclass(frozen=True)
class Sound:
    """Sound files that cases change; made once."""

    folder: Path

    @property
    def bundle(self) -> Path:
        """A narrow FCN-32s for 32x32 with two classes of noise."""
        return self.folder / "bundle"

    @property
    def model(self) -> bytes:
        """Its ONNX file."""
        return (self.bundle / "model.onnx").read_bytes()


def make_sound(folder: Path) -> Sound:
    """Write the sound files."""
    options = fd.ExportOptions(
        fd.Variant.FCN32S, folder / "bundle", num_classes=CLASSES, channel_divisor=DIVISOR,
        onnx=fd.OnnxOptions(SIZE, SIZE), verify=False,
    )  # fmt: skip
    fd.export(options)
    state = dict(random_network(_SPEC, 0).state_dict())
    torch.save(state, folder / "weights.pth")
    (folder / "weights.safetensors").write_bytes(save_safetensors(state, {"class_names": "a b c"}))
    samples = (2000.0, 2004.0, 1998.0, 2001.0, 2003.0)
    write_report(report(row("ort-plain", *samples), row("ort", *samples)), folder / "latency.json")
    save_photo(photo_of(0, SIZE, SIZE), folder / "data" / "images" / "000.png")
    save_labels(truth_of(0, SIZE, SIZE, CLASSES), folder / "data" / "labels" / "000.png")
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 4), dtype=np.uint8)
    for name, mode in (
        ("a.png", "RGBA"),
        ("b.png", "P"),
        ("c.jpg", "RGB"),
        ("d.bmp", "L"),
        ("e.gif", "P"),
        ("f.tif", "RGB"),
    ):
        Image.fromarray(pixels).convert(mode).save(folder / name)
    _write_engine(folder / "x.plan")
    return Sound(folder)


def _write_engine(path: Path) -> None:
    path.write_bytes(b"a plan")
    info = fd.ModelInfo(fd.NetworkSpec(fd.Variant.FCN32S), fd.Provenance(rng_seed=0))
    image, logits = (
        TensorSpec("image", (1, 3, SIZE, SIZE), "float32"),
        TensorSpec("logits", (1, 21, SIZE, SIZE), "float32"),
    )
    digest = "1a87b2f8bd22a7ecbd3b0dd2b79ba6ae65bcfc1a6df3ea4bb0c1ce0ce8d8ff32"
    engine = Engine(
        path, info.to_metadata(), (1, 3, SIZE, SIZE), (image,), (logits,), digest, file_sha256(path), 6,
        FlavourName.RTX, "1.0", (), Device("GPU", "8.9", "13.0"), digest, None, LayerTypes("engine", {"fp32": 3}), 1.0,
    )  # fmt: skip
    sidecar_path(path).write_text(engine.sidecar(), encoding="utf-8")


Case = Callable[[Sound, Ground, Draw], None]


def manifest(sound: Sound, ground: Ground, draw: Draw) -> None:
    """A bundle's manifest, with the right hash of itself in most cases."""
    # So deep that a path out of it that leads to a file of the user's also leads out of what a command writes.
    bundle = ground.case / "a" / "b" / "c" / "bundle"
    shutil.copytree(sound.bundle, bundle)
    path = bundle / "manifest.json"
    if not draw.number(0, 4):
        path.write_bytes(mutated_bytes(path.read_bytes(), draw))
    else:
        facts = json.loads(path.read_bytes())
        if draw.number(0, 2):
            facts = mutated_json(facts, draw)
        else:
            facts["files"][draw.pick(PATHS)] = facts["files"]["model.onnx"]
        with suppress(ValueError, TypeError, AttributeError):
            facts["manifest_sha256"] = _self_hash(facts)
        path.write_bytes(json_bytes(facts))
    ground.command("inspect", bundle)
    if draw.number(0, 1):
        ground.command(
            "package", bundle, "--target", "triton", "--backend", "python", "--output", ground.out / "package"
        )
    else:
        ground.command("predict", bundle, sound.folder / "a.png", "--output", ground.out / "labels")


def onnx_file(sound: Sound, ground: Ground, draw: Draw) -> None:
    """An ONNX file, changed as bytes or as a graph."""
    path = ground.case / "model.onnx"
    path.write_bytes((mutated_onnx if draw.number(0, 2) else mutated_bytes)(sound.model, draw))
    ground.command("inspect", "model.onnx")
    match draw.number(0, 5):
        case 0:
            ground.command("optimize", "model.onnx", ground.out / "fast.onnx")
        case 1:
            ground.command("verify", "model.onnx", "--samples", "0")
        case _:
            ground.command("predict", "model.onnx", sound.folder / "a.png", "--output", ground.out / "labels")


def checkpoint(sound: Sound, ground: Ground, draw: Draw) -> None:
    """A checkpoint: bytes, records of its archive, or the header of a safetensors file."""
    kind = draw.number(0, 2)
    path = ground.case / ("weights.safetensors" if kind == 2 else "weights.pth")
    data = (sound.folder / path.name).read_bytes()
    path.write_bytes((mutated_bytes, _mutated_archive, _mutated_header)[kind](data, draw))
    try:
        read = fd.read_checkpoint(path)
        load_network(
            fd.NetworkSpec(fd.Variant.FCN32S, num_classes=CLASSES, channel_divisor=DIVISOR),
            read,
            fd.WeightsOptions(path),
        )
    except fd.FcnDeployError as error:
        _check_message(error)


def _mutated_archive(data: bytes, draw: Draw) -> bytes:
    """Change one record, with the right checksum."""
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(written, "w") as target:
        chosen = draw.pick(source.namelist())
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, mutated_bytes(content, draw) if name == chosen else content)
    return written.getvalue()


def _mutated_header(data: bytes, draw: Draw) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = json_bytes(mutated_json(json.loads(data[8 : 8 + length]), draw))
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def sidecar(sound: Sound, ground: Ground, draw: Draw) -> None:
    """The facts beside a TensorRT engine."""
    plan = ground.case / "x.plan"
    plan.write_bytes((sound.folder / "x.plan").read_bytes())
    facts = json.loads(sidecar_path(sound.folder / "x.plan").read_bytes())
    sidecar_path(plan).write_bytes(_mutated_document(facts, draw))
    try:
        engine = open_engine(plan)
        assert engine.info.class_names
        engine.sidecar()
    except fd.FcnDeployError as error:
        _check_message(error)
    ground.command("predict", "x.plan", sound.folder / "a.png", "--output", ground.out / "labels")


def _mutated_document(document: Any, draw: Draw) -> bytes:
    if not draw.number(0, 4):
        return mutated_bytes(json_bytes(document), draw)
    return json_bytes(mutated_json(document, draw))


def _check_message(error: fd.FcnDeployError) -> None:
    if not error.problem or not error.remedy or len(error.problem) > 20_000:
        raise BrokenRuleError(f"an error without problem or remedy, or of {len(error.problem)} characters")


def journal(sound: Sound, ground: Ground, draw: Draw) -> None:
    """The journal of an interrupted evaluation."""
    evaluation = ground.out / "evaluation"
    command = ("evaluate", sound.bundle, sound.folder / "data", "--output", evaluation, "--no-page")
    saved = sound.folder / "journal.jsonl"
    if not saved.exists():
        ground.command(*command)
        saved.write_bytes((evaluation / "journal.jsonl").read_bytes())
    evaluation.mkdir(exist_ok=True)
    lines = saved.read_bytes().splitlines()
    chosen = draw.number(0, len(lines) - 1)
    lines[chosen] = _mutated_document(json.loads(lines[chosen]), draw)
    (evaluation / "journal.jsonl").write_bytes(b"\n".join(lines) + b"\n" * draw.number(0, 1))
    ground.command(*command)


def bench_report(sound: Sound, ground: Ground, draw: Draw) -> None:
    """A file that `bench --json` wrote."""
    path = ground.case / "latency.json"
    path.write_bytes(_mutated_document(json.loads((sound.folder / "latency.json").read_bytes()), draw))
    ground.command(
        "report", "latency.json", "--markdown", ground.out / "latency.md", "--report", ground.out / "latency.html"
    )
    ground.command("compare", "latency.json", sound.folder / "latency.json")


def photo(sound: Sound, ground: Ground, draw: Draw) -> None:
    """A picture, beside others that have to be labelled all the same."""
    source = sound.folder / draw.pick(("a.png", "b.png", "c.jpg", "d.bmp", "e.gif", "f.tif"))
    path = ground.case / source.name
    path.write_bytes(mutated_bytes(source.read_bytes(), draw))
    (ground.case / "sound.png").write_bytes((sound.folder / "a.png").read_bytes())
    ground.command("predict", sound.bundle, path.name, "sound.png", "--output", ground.out / "labels")
    if not (ground.out / "labels" / "sound.labels.png").is_file():
        raise BrokenRuleError("a damaged photo kept another one from being labelled")


def dataset(sound: Sound, ground: Ground, draw: Draw) -> None:
    """A label map, as bytes or as pixels, or the list of a split."""
    data = ground.case / "data"
    shutil.copytree(sound.folder / "data", data)
    labels = next((data / "labels").glob("*.png"))
    what = draw.number(0, 2)
    if what == 0:
        labels.write_bytes(mutated_bytes(labels.read_bytes(), draw))
    elif what == 1:
        _change_pixels(labels, draw)
    else:
        (data / "images").rename(data / "JPEGImages")
        (data / "labels").rename(data / "SegmentationClass")
        splits = data / "ImageSets" / "Segmentation"
        splits.mkdir(parents=True)
        (splits / "val.txt").write_bytes(mutated_bytes(f"{labels.stem}\n/etc/passwd\n../x\n".encode(), draw))
    ground.command("evaluate", sound.bundle, data, "--output", ground.out / "evaluation")


def _change_pixels(labels: Path, draw: Draw) -> None:
    with Image.open(labels) as image:
        pixels, mode = np.array(image), draw.pick(("P", "L", "1", "RGB", "I;16", "LA"))
    for _ in range(draw.number(1, 3)):
        pixels[draw.number(0, SIZE - 1), draw.number(0, SIZE - 1)] = draw.number(0, 255)
    changed = Image.fromarray(pixels[: draw.pick((SIZE, SIZE, SIZE, 1))])
    changed.convert(mode).save(labels)


@contextmanager
def serving(sound: Sound) -> Iterator[Case]:
    """Yield the case of raw requests to a server that runs as long as the block."""
    options = fd.ServeOptions(http_port=0, grpc_port=0, name="net", client_timeout_s=_CLIENT_TIMEOUT_S)
    with fd.Server(sound.bundle, options) as server:
        port = int(server.listening.http_url.rpartition(":")[2])

        def request(_sound: Sound, _ground: Ground, draw: Draw) -> None:
            """A request: lines, headers and bodies, changed as bytes."""
            sent = mutated_bytes(draw.pick(_requests()), draw)
            with socket.create_connection(("127.0.0.1", port), _ANSWER_S) as client, suppress(ConnectionError):
                client.sendall(sent)
                if draw.number(0, 3):
                    client.shutdown(socket.SHUT_WR)
                while client.recv(65_536):
                    pass
            if b" 200 " not in _asked(port, b"GET /v2/health/ready HTTP/1.0\r\n\r\n"):
                raise BrokenRuleError("the server no longer answers")

        yield request


def _asked(port: int, sent: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), _ANSWER_S) as client:
        client.sendall(sent)
        return client.recv(65_536)


def _requests() -> tuple[bytes, ...]:
    tensor = {"name": "pixels", "shape": [1, SIZE, SIZE, 3], "datatype": "UINT8"}
    binary = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": 3 * SIZE * SIZE}}]}).encode()
    numbers = json.dumps({"inputs": [tensor | {"data": [7] * (3 * SIZE * SIZE)}]}).encode()
    host, infer = b"Host: localhost\r\n", b"POST /v2/models/net/infer HTTP/1.1\r\n"
    return (
        b"GET /v2 HTTP/1.1\r\n" + host + b"\r\n" + b"GET /metrics HTTP/1.1\r\n" + host + b"\r\n",
        infer + host + b"Content-Length: %d\r\n\r\n" % len(numbers) + numbers,
        infer + host + b"Inference-Header-Content-Length: %d\r\n" % len(binary)
        + b"Content-Length: %d\r\n\r\n" % (len(binary) + 3 * SIZE * SIZE) + binary + bytes(3 * SIZE * SIZE),
        b"POST /segment HTTP/1.1\r\n" + host + b"Transfer-Encoding: chunked\r\n\r\n"
        + b"5\r\nhello\r\n0\r\nTrailer: x\r\n\r\n",
        b"PUT / HTTP/1.1\r\n" + host + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\nhello",
    )  # fmt: skip


FILES: dict[str, Case] = {
    case.__name__: case for case in (manifest, onnx_file, checkpoint, sidecar, journal, bench_report, photo, dataset)
}
REQUESTS = "request"
TARGETS = (*FILES, REQUESTS)


@contextmanager
def opened(target: str, sound: Sound) -> Iterator[Case]:
    """Yield the case of a target."""
    if target != REQUESTS:
        yield FILES[target]
        return
    with serving(sound) as case:
        yield case
