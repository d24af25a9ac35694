"""`fcn-deploy serve` as a user meets it: a process of its own, its words, its signals, its exit code."""

import contextlib
import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.conftest import Call
from tests.fcn_deploy.serving.clients import binary_request, noise, wait_until

PORTS = ("--http-port", "0", "--grpc-port", "0")


@contextlib.contextmanager
def serving(bundle: Path, *options: str) -> Iterator[tuple["subprocess.Popen[str]", dict[str, Any]]]:
    """A server's process, and where it listens."""
    command = [sys.executable, "-m", "fcn_deploy", "serve", str(bundle), "--name", "net", *PORTS, "--json", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            lines: list[str] = []
            while not lines or lines[-1] != "}\n":
                lines.append(process.stdout.readline())
                assert lines[-1], process.stderr and process.stderr.read()
            yield process, json.loads("".join(lines))
        finally:
            process.kill()


def connected(document: dict[str, Any]) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urlsplit(document["http"]).netloc, timeout=30)


def got(connection: http.client.HTTPConnection, path: str) -> tuple[int, bytes]:
    connection.request("GET", path)
    response = connection.getresponse()
    return response.status, response.read()


def test_sigterm_under_load_answers_everything_that_was_accepted(shared_bundle: Path) -> None:
    body, fields = binary_request(noise())
    answered: list[int] = []
    enough = threading.Semaphore(0)

    def ask(document: dict[str, Any]) -> None:
        connection = connected(document)
        with contextlib.suppress(OSError, http.client.HTTPException):  # it stopped listening
            while True:
                connection.request("POST", "/v2/models/net/infer", body, fields)
                response = connection.getresponse()
                whole = response.read()
                answered.extend([len(whole)] if response.status == 200 else [])
                enough.release()
        connection.close()

    with serving(shared_bundle) as (process, document):
        clients = [threading.Thread(target=ask, args=(document,)) for _ in range(8)]
        for client in clients:
            client.start()
        for _ in range(100):
            assert enough.acquire(timeout=20)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=20)
        for client in clients:
            client.join()

    assert process.returncode == 0
    assert errors == f"stopped; {len(answered)} requests answered, 0 cut off\n"
    assert len(answered) >= 100
    assert min(answered) > 96 * 96


@pytest.mark.parametrize(("drain", "signals"), [("0.1", 1), ("30", 2)], ids=["drain is over", "second signal"])
def test_cutting_off_is_said_by_the_exit_code(shared_bundle: Path, drain: str, signals: int) -> None:
    with serving(shared_bundle, "--drain", drain) as (process, document):
        connection = connected(document)
        connection.request("POST", "/v2/models/net/infer", headers={"Content-Length": "10"})
        metrics = connected(document)
        wait_until(lambda: b"fcn_deploy_in_flight 1.0" in got(metrics, "/metrics")[1])
        process.send_signal(signal.SIGTERM)
        if signals == 2:
            wait_until(lambda: got(metrics, "/v2/health/ready")[0] != 200)
            process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        connection.close()
        metrics.close()

    assert process.returncode == 128 + signal.SIGTERM
    assert errors.startswith("stopped; 0 requests answered, 1 cut off\n")
    assert "Traceback" not in errors


def test_a_port_in_use_is_named(call_cli: Call, shared_bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for option, ports in (("--http-port", ("--grpc-port", 0)), ("--grpc-port", ("--http-port", 0))):
            code, output, errors = call_cli("serve", shared_bundle, option, port, *ports)

            assert code == 2
            assert output == ""
            assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in errors
            assert f"Pass another {option}, or 0 for any that is free." in errors


@pytest.mark.parametrize(("options", "code", "message"), [
    (("--http-port", "70000"), 2, "HTTP port 70000 is out of bounds: 0 to 65535"),
    (("--grpc-port", "-1"), 2, "gRPC port -1 is out of bounds: 0 to 65535"),
    (("--http-port", "9", "--grpc-port", "9"), 2, "HTTP and gRPC cannot share port 9"),
    (("--queue-size", "0"), 2, "queue size 0 is out of bounds: 1 to 1000"),
    (("--max-photo-mb", "0"), 2, "photo size in MB 0 is out of bounds: 1 to 1024"),
    (("--client-timeout", "0"), 2, "client timeout in seconds 0.0 is out of bounds: 0.1 to 3600"),
    (("--client-timeout", "nan"), 2, "client timeout in seconds nan is out of bounds"),
    (("--drain", "-1"), 2, "drain time in seconds -1.0 is out of bounds: 0 to 3600"),
    (("--name", "a/b"), 2, "model name 'a/b' has characters that are not allowed in a URL path"),
    (("--host", "no.such.host.invalid", *PORTS), 2, "cannot listen on no.such.host.invalid:0"),
    (("--host", "192.0.2.1", *PORTS), 2, "cannot listen on 192.0.2.1:0: Cannot assign requested address"),
    (("--provider", "cuda", *PORTS), 4, "provider cuda"),
])  # fmt: skip
def test_options_out_of_bounds(
    call_cli: Call, shared_bundle: Path, options: tuple[str, ...], code: int, message: str
) -> None:
    found, output, errors = call_cli("serve", shared_bundle, *options)

    assert found == code, errors
    assert message in errors
    assert output == ""


def test_a_missing_extra_is_named_before_any_work(call_cli: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)

    code, _, errors = call_cli("serve", "nothing")

    assert code == 2
    assert "serving needs h11 and grpc and tritonclient and prometheus_client, which are not installed" in errors
    assert "pip install 'fcn-deploy[serve]'" in errors


def test_a_bundle_that_is_none(call_cli: Call) -> None:
    code, _, errors = call_cli("serve", "nothing", *PORTS)

    assert code == 3
    assert "nothing is neither a bundle nor an ONNX file" in errors
