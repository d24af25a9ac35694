"""Hold connections to `serve`, which has to answer and to stay small: `python -m tests.fuzz.attacks [SECONDS]`."""

import contextlib
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from fcn_deploy.storage import parse_json
from tests.fuzz.targets import make_sound

CONNECTIONS = 600
_HOLDERS = 4
MAX_HEALTH_S = 1.0
MAX_GROWTH_BYTES = 50_000_000
_HEALTH = b"GET /v2/health/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
_GET = b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n"
_POST = b"POST /segment HTTP/1.1\r\nHost: localhost\r\n"
_CHUNKED = _POST + b"Transfer-Encoding: chunked\r\n\r\n"


@dataclass(frozen=True)
class Attack:
    """What some connections send at first, and then again and again."""

    name: str
    first: bytes
    then: bytes = b""
    connections: int = CONNECTIONS  # opened again when the server closes them
    pause_s: float = 0.5  # between two parts on one connection


def flood(name: str, first: bytes, then: bytes) -> Attack:
    """Return an attack of few connections that send as fast as they can."""
    return Attack(name, first, then, connections=12, pause_s=0.0)


ATTACKS = (
    Attack("idle", b""),
    Attack("an answer, then line breaks", _GET + b"\r\n", b"\r\n"),
    Attack("an answer, then a GET's unfinished body", _GET + b"\r\n" + _GET + b"Content-Length: 10\r\n\r\n1"),
    Attack("a head that trickles", b"GET / HTTP/1.1\r\n", b"X: y\r\n"),
    Attack("a body that trickles", _POST + b"Content-Length: 100000\r\n\r\n", b"x" * 10),
    Attack("chunks that trickle", _CHUNKED, b"1\r\nx\r\n"),
    flood("endless trailers", _CHUNKED + b"0\r\n", b"Trailer: " + b"x" * 1000 + b"\r\n"),
    flood("one endless trailer", _CHUNKED + b"0\r\nTrailer: ", b"x" * 65_536),
    flood("one endless header", _GET + b"X: ", b"x" * 65_536),
    flood("tiny chunks", _CHUNKED, b"1\r\nx\r\n" * 1000),
    flood("bodies that are refused", _POST + b"Content-Length: 99999999999\r\n\r\n", b"x" * 65_536),
)


def main(seconds: float) -> int:
    """Run every attack for some seconds; returns 1 when a bound was exceeded."""
    with tempfile.TemporaryDirectory() as folder:
        sound = make_sound(Path(folder))
        line = [
            sys.executable,
            "-m",
            "fcn_deploy",
            "serve",
            str(sound.bundle),
            "--http-port",
            "0",
            "--grpc-port",
            "0",
            "--json",
        ]
        with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            try:
                assert process.stdout is not None
                shown = b""
                while not shown.endswith(b"\n}\n"):
                    shown += process.stdout.readline()
                port = int(parse_json(shown)["http"].rpartition(":")[2])
                return max(run(attack, process.pid, port, seconds) for attack in ATTACKS)
            finally:
                process.terminate()


def run(attack: Attack, pid: int, port: int, seconds: float) -> int:
    """Run one attack, print what it did, and return 1 if a bound was exceeded."""
    over, server = threading.Event(), psutil.Process(pid)
    health = max(_health_s(port) for _ in range(5))
    before = server.memory_info().rss
    holders = [threading.Thread(target=_hold, args=(port, attack, over)) for _ in range(_HOLDERS)]
    for holder in holders:
        holder.start()
    slowest, largest, end = health, before, time.monotonic() + seconds
    while time.monotonic() < end:
        slowest, largest = max(slowest, _health_s(port)), max(largest, server.memory_info().rss)
        time.sleep(0.05)
    over.set()
    for holder in holders:
        holder.join()
    grown = largest - before
    kept = slowest <= MAX_HEALTH_S and grown <= MAX_GROWTH_BYTES
    figures = f"health within {slowest:.2f} s, memory +{grown / 1e6:.0f} MB"
    print(f"{attack.name}: {figures}{'' if kept else ': TOO MUCH'}", flush=True)
    return 0 if kept else 1


def _health_s(port: int) -> float:
    """Return the seconds until the server says that it is ready; infinite where it does not."""
    start = time.monotonic()
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 10) as client:
        client.sendall(_HEALTH)
        if b" 200 " in client.recv(1000):
            return time.monotonic() - start
    return float("inf")


def _hold(port: int, attack: Attack, over: threading.Event) -> None:
    """Keep a share of the connections open, and open those again that the server closes."""
    held: list[socket.socket] = []
    while not over.is_set():
        while len(held) < attack.connections // _HOLDERS and not over.is_set():
            with contextlib.suppress(OSError):
                held.append(_connected(port, attack.first))
        held = [client for client in held if _sent(client, attack.then)]
        over.wait(attack.pause_s)
    for client in held:
        client.close()


def _connected(port: int, first: bytes) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), 5)
    client.sendall(first)
    client.setblocking(False)
    return client


def _sent(client: socket.socket, data: bytes) -> bool:
    """Send what the socket takes; return whether the server still holds the connection."""
    calls: tuple[Callable[[], object], ...] = (lambda: client.send(data) if data else None, lambda: client.recv(65_536))
    for call in calls:
        try:
            if call() == b"":
                client.close()
                return False
        except BlockingIOError:
            continue
        except OSError:
            client.close()
            return False
    return True


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 60.0))
