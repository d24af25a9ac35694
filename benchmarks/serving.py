"""Measure the overhead of serving: requests against the runs inside them, and 64 clients in parallel.

Run as `python -m benchmarks.serving [SECONDS]`; prints Markdown. The network is narrow, so that the figures are the
server's and not the network's; server and clients share the machine.
"""

import contextlib
import http.client
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import tritonclient.grpc
import tritonclient.http
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.utils import InferenceServerException

import fcn_deploy as fd
from benchmarks.report.table import markdown_lines
from fcn_deploy.images import Pixels
from fcn_deploy.segmentation import Segmenter
from fcn_deploy.serving.protocol import JSON_LENGTH_HEADER

# Labels arrive in one window; otherwise gRPC's first 64 KB are acknowledged before the rest is sent.
CHANNEL = [
    ("grpc.http2.lookahead_bytes", 4_000_000),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
]
_US_PER_MS = 1e3

# Sends one request; returns the time of its run, ms.
Ask = Callable[[], float]


@contextlib.contextmanager
def plain_asker(server: dict[str, Any], pixels: Pixels) -> Iterator[Ask]:
    """Send requests with the standard library's HTTP client, which has little overhead."""
    connection = http.client.HTTPConnection(server["http"].removeprefix("http://"))

    def ask() -> float:
        size = {"binary_data_size": pixels.nbytes}
        given = {"name": "pixels", "shape": pixels.shape, "datatype": "UINT8", "parameters": size}
        head = json.dumps({"inputs": [given], "parameters": {"binary_data_output": True}}).encode()
        headers = {JSON_LENGTH_HEADER: str(len(head))}
        connection.request("POST", f"/v2/models/{server['name']}/infer", head + pixels.tobytes(), headers)
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != HTTPStatus.OK:
            raise RuntimeError(f"{answer.status}: {content[:200]!r}")
        end = int(answer.headers[JSON_LENGTH_HEADER])
        _check(np.frombuffer(content, np.uint8, offset=end).reshape(pixels.shape[:-1]), pixels)
        return float(json.loads(content[:end])["parameters"]["run_us"]) / _US_PER_MS

    with contextlib.closing(connection):
        yield ask


def http_asker(server: dict[str, Any], pixels: Pixels) -> Ask:
    """Send requests over HTTP with tritonclient, tensors as bytes."""
    client = tritonclient.http.InferenceServerClient(server["http"].removeprefix("http://"))
    ask = _triton_request(tritonclient.http, client, server["name"], pixels)
    return lambda: float(ask()["parameters"]["run_us"]) / _US_PER_MS


def grpc_asker(server: dict[str, Any], pixels: Pixels) -> Ask:
    """Send requests over gRPC with tritonclient, tensors as bytes."""
    client = tritonclient.grpc.InferenceServerClient(server["grpc"], channel_args=CHANNEL)
    ask = _triton_request(tritonclient.grpc, client, server["name"], pixels)
    return lambda: float(ask().parameters["run_us"].int64_param) / _US_PER_MS


def _triton_request(protocol: Any, client: Any, name: str, pixels: Pixels) -> Callable[[], Any]:
    """Return a function that sends one request, checks the labels and returns the response."""

    def ask() -> Any:
        given = protocol.InferInput("pixels", list(pixels.shape), "UINT8")
        given.set_data_from_numpy(pixels)
        result = client.infer(name, [given])
        _check(result.as_numpy("labels"), pixels)
        return result.get_response()

    return ask


def _check(labels: Any, pixels: Pixels) -> None:
    if labels.shape != pixels.shape[:-1]:
        raise RuntimeError(f"labels of shape {labels.shape} for pixels of shape {pixels.shape}")


SIZE = 500
ROUNDS = 300
WARM_UP = 20
CLIENTS = 64
# How often the server's memory is read.
READINGS = 8
_REFUSED = ("503", "StatusCode.UNAVAILABLE")
_RETRY_AFTER_S = 1.0
_MS_PER_S = 1e3
_BYTES_PER_MB = 1e6


@dataclass
class Latencies:
    """One client's requests of one kind, in ms."""

    total: list[float] = field(default_factory=list)  # from the call to the labels
    run: list[float] = field(default_factory=list)  # of that, the model's run

    def cells(self) -> tuple[str, ...]:
        """Return the cells of a table row, in the order of `HEADINGS` after the first."""
        total, run = np.array(self.total), np.array(self.run)
        over = np.percentile(total - run, (50, 90, 99))
        return tuple(f"{ms:.2f}" for ms in (*np.percentile(total, (50, 99)), float(np.median(run)), *over))


HEADINGS = ("one client", "median", "p99", "run, median", "overhead, median", "p90", "p99")


@dataclass
class Load:
    """The answers that many clients got."""

    outcomes: Counter[str] = field(default_factory=Counter)  # answers by kind
    memory_bytes: tuple[float, ...] = ()  # of the server: before, at equal distances, at the end
    seconds: float = 0.0  # how long it took

    def lines(self) -> list[str]:
        """For readers."""
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in self.outcomes.most_common())
        sizes = [size / _BYTES_PER_MB for size in self.memory_bytes]
        growth = sizes[-1] / sizes[len(sizes) // 2] - 1
        return [
            f"{CLIENTS} clients, half HTTP and half gRPC, for {self.seconds:.0f} s: {outcomes}",
            f"server's memory, MB: {', '.join(f'{size:.0f}' for size in sizes)}; in the second half {growth:+.1%}",
        ]


@contextlib.contextmanager
def serving(bundle: Path) -> Iterator[dict[str, Any]]:
    """Run a server in its own process; yield its description from `fcn-deploy serve --json`."""
    command = [sys.executable, "-m", "fcn_deploy", "serve", str(bundle), "--json", "--http-port=0", "--grpc-port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:  # noqa: S603 - this very package
        text = ""
        while not text.endswith("\n}\n"):
            line = process.stdout.readline() if process.stdout else ""
            if not line:
                raise RuntimeError("the server did not start")
            text += line
        try:
            yield json.loads(text)
        finally:
            process.terminate()


def alone(segmenter: Segmenter, pixels: Pixels) -> Ask:
    """Run the runtime alone, in this process."""
    feed = segmenter.feed(list(pixels))

    def ask() -> float:
        start = time.perf_counter()
        segmenter.run(feed)
        return (time.perf_counter() - start) * _MS_PER_S

    return ask


def take_turns(askers: dict[str, Ask], rounds: int) -> dict[str, Latencies]:
    """Send one request of each kind per round, in random order, so that disturbances affect all kinds alike."""
    found = {name: Latencies() for name in askers}
    order, shuffled = list(askers), random.Random(0)  # noqa: S311 - nothing is to be kept secret
    for number in range(WARM_UP + rounds):
        shuffled.shuffle(order)
        for name in order:
            start = time.perf_counter()
            run = askers[name]()
            if number >= WARM_UP:
                found[name].total.append((time.perf_counter() - start) * _MS_PER_S)
                found[name].run.append(run)
    return found


def under_load(server: dict[str, Any], pixels: Pixels, seconds: float) -> Load:
    """Run many clients; each sends its next request after an answer, or a second after a refusal."""
    load, end = Load(), time.monotonic() + seconds
    lock = threading.Lock()

    def client(make: Callable[[dict[str, Any], Pixels], Ask]) -> None:
        ask = make(server, pixels)
        while time.monotonic() < end:
            outcome = _outcome(ask)
            with lock:
                load.outcomes[outcome] += 1
            if outcome == "refused":
                time.sleep(_RETRY_AFTER_S)

    makers = (http_asker, grpc_asker)
    threads = [threading.Thread(target=client, args=(makers[n % 2],)) for n in range(CLIENTS)]
    start, sizes = time.monotonic(), [_memory_bytes(server)]
    for thread in threads:
        thread.start()
    for _ in range(READINGS):
        time.sleep(seconds / READINGS)
        sizes.append(_memory_bytes(server))
    for thread in threads:
        thread.join()
    load.seconds = time.monotonic() - start
    load.memory_bytes = *sizes, _memory_bytes(server)
    return load


def _outcome(ask: Ask) -> str:
    try:
        ask()
    except InferenceServerException as error:
        return "refused" if error.status() in _REFUSED else f"failed: {error}"
    except Exception as error:  # every error counts as an answer
        return f"failed: {type(error).__name__}: {error}"
    return "answered"


def _memory_bytes(server: dict[str, Any]) -> float:
    with urlopen(f"{server['http']}/metrics") as answer:  # noqa: S310 - the server of this very benchmark
        families = text_string_to_metric_families(answer.read().decode())
    found = [s.value for family in families for s in family.samples if s.name == "process_resident_memory_bytes"]
    return float(found[0])


def main(arguments: Sequence[str]) -> None:
    """Measure a narrow FCN-8s from pixels to labels."""
    seconds = float(arguments[0]) if arguments else 60.0
    pixels = np.random.default_rng(0).integers(0, 256, (1, SIZE, SIZE, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        options = fd.ExportOptions(
            fd.Variant.FCN8S, Path(folder) / "narrow", channel_divisor=16, onnx=fd.OnnxOptions(SIZE, SIZE),
            head=fd.Head.LABELS, image_input=fd.ImageInput.UINT8, verify=False,
        )  # fmt: skip
        bundle = fd.export(options).path
        with Segmenter(bundle) as segmenter, serving(bundle) as server, plain_asker(server, pixels) as plain:
            askers = {"alone": alone(segmenter, pixels), "HTTP, standard library": plain}
            askers["HTTP, tritonclient"] = http_asker(server, pixels)
            askers["gRPC, tritonclient"] = grpc_asker(server, pixels)
            found = take_turns(askers, ROUNDS)
            lines = markdown_lines(HEADINGS, ((f"{name}, ms", *row.cells()) for name, row in found.items()))
            print("\n".join(lines), end="\n\n")
            print("  \n".join(under_load(server, pixels, seconds).lines()))


if __name__ == "__main__":
    main(sys.argv[1:])
