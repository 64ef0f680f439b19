"""A server on loopback that speaks in raw bytes: it records exactly what came and answers exactly what a test scripts.

    with RawServer(answer(b"{}", status=429), answer(b'{"data":[]}')) as server:
        ...                                   # the first request gets the first script, the last one serves all others
        server.requests[0].target             # the bytes between method and version, as they came

A script is a sequence of pieces (bytes are sent, numbers are seconds of silence) and an end: the connection closed
("fin"), reset ("rst"), held until the client goes ("hold"), or kept for the next request ("keep"). A function of the
request may take the place of the scripts. With `tls` the server speaks TLS; `Tunnel` is a proxy that records.
"""

from __future__ import annotations

import contextlib
import itertools
import select
import shutil
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

End = Literal["fin", "rst", "hold", "keep"]
Framing = Literal["length", "chunked", "close"]


@dataclass(frozen=True)
class Received:
    """One request, byte for byte."""

    raw: bytes

    @property
    def head(self) -> bytes:
        """Everything before the empty line."""
        return self.raw.partition(b"\r\n\r\n")[0]

    @property
    def body(self) -> bytes:
        """Everything after the empty line."""
        return self.raw.partition(b"\r\n\r\n")[2]

    @property
    def method(self) -> str:
        """The first word of the request."""
        return self.head.partition(b" ")[0].decode("latin-1")

    @property
    def target(self) -> bytes:
        """What stands between method and version; it may hold spaces if the client is broken."""
        line = self.head.partition(b"\r\n")[0]
        return line[line.index(b" ") + 1 : line.rindex(b" ")]

    @property
    def headers(self) -> list[tuple[str, str]]:
        """Names in lower case, in order, with repetitions."""
        lines = (line.partition(b":") for line in self.head.split(b"\r\n")[1:])
        return [(name.strip().lower().decode("latin-1"), value.strip().decode("latin-1")) for name, _, value in lines]

    def header(self, name: str) -> str | None:
        """The first value of a header."""
        return next((value for key, value in self.headers if key == name.lower()), None)


@dataclass(frozen=True)
class Script:
    """What one request is answered with. `reads` may stop the reading of a request after its head."""

    pieces: Sequence[bytes | float] = ()
    end: End = "fin"
    reads: Literal["all", "head"] = "all"


def answer(
    body: bytes = b"",
    *,
    status: int = 200,
    headers: Sequence[tuple[str, str]] = (),
    framing: Framing = "length",
    cut: int | None = None,
    borders: Sequence[int] = (),
    drip_s: float = 0.0,
    delay_s: float = 0.0,
    end: End = "fin",
) -> Script:
    """A reply. `cut` sends only so many bytes of the body and no end of it; `borders` splits it at these places.

    `delay_s` passes before the head; `drip_s` before each part of the body (a byte each if there are no `borders`).
    """
    lines = [f"HTTP/1.1 {status} Scripted", *(f"{name}: {value}" for name, value in headers)]
    if framing == "length":
        lines.append(f"Content-Length: {len(body)}")
    elif framing == "chunked":
        lines.append("Transfer-Encoding: chunked")
    if end != "keep":
        lines.append("Connection: close")
    sent = body if cut is None else body[:cut]
    places = range(1, len(sent)) if drip_s and not borders else [at for at in borders if 0 < at < len(sent)]
    edges = [0, *places, len(sent)]
    parts = [sent[start:stop] for start, stop in itertools.pairwise(edges) if stop > start]
    pieces: list[bytes | float] = [delay_s, "\r\n".join([*lines, "", ""]).encode("latin-1")]
    for part in parts:
        pieces += [drip_s, b"%x\r\n%s\r\n" % (len(part), part) if framing == "chunked" else part]
    if framing == "chunked" and cut is None:
        pieces.append(b"0\r\n\r\n")
    return Script(pieces, end)


RESET = Script((), "rst")
"""The request is read whole and the connection reset."""
SILENCE = Script((), "hold")
"""The request is read whole and never answered."""

Handler = Callable[[Received], Script]


class RawServer:
    """The server; a context manager. `requests` holds what came, `connections` how many were opened."""

    def __init__(self, *scripts: Script | Handler, tls: ssl.SSLContext | None = None) -> None:
        handler = next((script for script in scripts if callable(script)), None)
        played = [script for script in scripts if isinstance(script, Script)] or [answer(b"ok")]
        self.scripts: Sequence[Script] | Handler = handler or played
        self.tls = tls
        self.requests: list[Received] = []
        self.errors: list[OSError] = []
        self.connections = 0
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> RawServer:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        # A connection of our own wakes the thread that waits for one.
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        with self._lock:
            for connection in self._open:
                # A thread that waits for a client's next word wakes up; the thread itself closes the socket.
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(timeout=5)
        self._listener.close()

    @property
    def url(self) -> str:
        """The address, without a slash at its end."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def count(self, method: str) -> int:
        """How many requests of a method came."""
        with self._lock:
            return sum(request.method == method for request in self.requests)

    def _start(self, run: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=run, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            if self._stopped.is_set():
                connection.close()
                return
            self.connections += 1
            self._start(self._serve, connection)

    def _serve(self, plain: socket.socket) -> None:
        connection = plain
        try:
            with self._lock:
                self._open.add(plain)
            plain.settimeout(20)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.tls:
                connection = self.tls.wrap_socket(plain, server_side=True)
                with self._lock:
                    self._open = self._open - {plain} | {connection}
            while self._converse(connection):
                pass
        except OSError as exc:  # a client that goes is what many tests are about
            self.errors.append(exc)
        finally:
            with self._lock:
                self._open -= {plain, connection}
            connection.close()
            plain.close()

    def _converse(self, connection: socket.socket) -> bool:
        """One request and its script; whether the connection stays."""
        head = self._receive_head(connection)
        if not head:
            return False
        raw = head if self._stops_at_head() else head + self._receive_body(connection, head)
        with self._lock:
            self.requests.append(Received(raw))
            number = len(self.requests)
        return self.respond(connection, Received(raw), number)

    def respond(self, connection: socket.socket, request: Received, number: int) -> bool:
        """Play the script for a request; whether the connection stays."""
        script = self.scripts(request) if callable(self.scripts) else self.scripts[min(number, len(self.scripts)) - 1]
        for piece in script.pieces:
            if isinstance(piece, bytes):
                connection.sendall(piece)
            elif piece and self._stopped.wait(piece):
                return False
        if script.end == "hold":
            self._wait_for_leaving(connection)
        if script.end == "rst":
            reset(connection)
        return script.end == "keep"

    def _stops_at_head(self) -> bool:
        if callable(self.scripts):
            return False
        return self.scripts[min(len(self.requests) + 1, len(self.scripts)) - 1].reads == "head"

    def _receive_head(self, connection: socket.socket) -> bytes:
        data = bytearray()
        while not data.endswith(b"\r\n\r\n"):
            # Byte by byte, so that nothing of the body is taken with the head.
            piece = connection.recv(1)
            if not piece:
                return bytes(data)
            data += piece
        return bytes(data)

    def _receive_body(self, connection: socket.socket, head: bytes) -> bytes:
        length = int(Received(head).header("content-length") or 0)
        body = bytearray()
        while len(body) < length:
            piece = connection.recv(min(1 << 20, length - len(body)))
            if not piece:
                break
            body += piece
        return bytes(body)

    def _wait_for_leaving(self, connection: socket.socket) -> None:
        while not self._stopped.is_set():
            ready, _, _ = select.select([connection], [], [], 0.05)
            if ready and not connection.recv(4096):
                return


class Tunnel(RawServer):
    """A proxy that records: a CONNECT becomes a tunnel to the address it names, anything else plays the scripts."""

    def respond(self, connection: socket.socket, request: Received, number: int) -> bool:
        if request.method != "CONNECT":
            return super().respond(connection, request, number)
        host, _, port = request.target.decode().rpartition(":")
        with socket.create_connection((host, int(port)), timeout=5) as far:
            connection.sendall(b"HTTP/1.1 200 Tunnel\r\n\r\n")
            for data, to in self._both_ways(connection, far):
                to.sendall(data)
        return False

    def _both_ways(self, near: socket.socket, far: socket.socket) -> Iterator[tuple[bytes, socket.socket]]:
        while not self._stopped.is_set():
            for source in select.select([near, far], [], [], 0.05)[0]:
                data = source.recv(1 << 16)
                if not data:
                    return
                yield data, far if source is near else near


def reset(connection: socket.socket) -> None:
    """Make the next close send a RST, as a crashed process or an impatient middlebox does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


@dataclass(frozen=True)
class Certificate:
    """A certificate for 127.0.0.1 and localhost that is its own authority."""

    path: Path
    key: Path

    def server_context(self) -> ssl.SSLContext:
        """What a `RawServer` takes as `tls`."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.path, self.key)
        return context


def make_certificate(folder: Path) -> Certificate | None:
    """Make one with the openssl command; None where there is none."""
    tool = shutil.which("openssl")
    if not tool:
        return None
    made = Certificate(folder / "certificate.pem", folder / "key.pem")
    names = "subjectAltName=IP:127.0.0.1,DNS:localhost"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    files = ["-keyout", str(made.key), "-out", str(made.path)]
    command = [tool, "req", "-x509", *curve, "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext", names, *files]
    subprocess.run(command, check=True, capture_output=True, timeout=20)
    return made
