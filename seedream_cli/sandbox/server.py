"""The sandbox as a local HTTP/1.1 server with keep-alive, for other programs' tests. Prints nothing."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from ..errors import ConfigError
from .service import WELL_KNOWN_SECRET, Cut, Delay, SandboxReply, SandboxRequest, Service

LONGEST_BODY = 512 * 1024 * 1024
"""Bytes; more than fourteen references of 30 MB in base64."""


class Server:
    """A sandbox server, started or not. `url` is its base URL."""

    def __init__(self, service: Service, host: str, port: int) -> None:
        self.service = service
        self._listener = _listen(service, host, port)
        self._thread: threading.Thread | None = None
        self._started = False
        self.port = int(self._listener.server_address[1])
        self.url = f"http://{_reachable(host)}:{self.port}"

    @property
    def billed(self) -> dict[str, int]:
        """How many requests a real service would have billed, by prompt."""
        return self.service.billed

    def start(self) -> Server:
        """Serve in a thread until `stop`."""
        self._started = True
        self._thread = threading.Thread(target=self.run, name="sandbox", daemon=True)
        self._thread.start()
        return self

    def run(self) -> None:
        """Serve in this thread until another one calls `stop`."""
        self._started = True
        self._listener.serve_forever(poll_interval=0.05)

    def stop(self) -> None:
        """Close the port and every connection, and wait for the threads; responses are cut off."""
        if self._started:
            # Would block for ever if `serve_forever` was never called.
            self._listener.shutdown()
        if self._thread is not None:
            self._thread.join()
        self._listener.close_connections()
        self._listener.server_close()

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def make_server(
    *, host: str = "127.0.0.1", port: int = 0, latency_s: float = 0.0, secret: bytes = WELL_KNOWN_SECRET
) -> Server:
    """A server bound to its port (0: any free one), not started. Raises `ConfigError` where it cannot bind."""
    return Server(Service(secret=secret, latency_s=latency_s, links_at=""), host, port)


def serve(
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    latency_s: float = 0.0,
    ready: Callable[[Server], None] | None = None,
) -> None:
    """Serve in this thread until `stop` or an exception such as KeyboardInterrupt. Calls `ready` first."""
    server = make_server(host=host, port=port, latency_s=latency_s)
    try:
        if ready is not None:
            ready(server)
        server.run()
    finally:
        server.stop()


def _listen(service: Service, host: str, port: int) -> _Listener:
    try:
        return _Listener(service, host, port)
    except (OSError, OverflowError) as error:
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        reason = "the port is in use" if taken else str(getattr(error, "strerror", None) or error)
        message = f"the sandbox cannot listen on {host}:{port}: {reason}"
        raise ConfigError(message, hint="choose another port, or 0 for any free one") from error


def _reachable(host: str) -> str:
    """The host by which this machine reaches a server bound to `host`."""
    if host in {"", "0.0.0.0"}:  # noqa: S104 (compared, not bound)
        return "127.0.0.1"
    if host == "::":
        return "[::1]"
    return f"[{host}]" if ":" in host else host


class _Listener(ThreadingHTTPServer):
    """The listening socket and its connections, which are closed on stop, idle ones too."""

    daemon_threads = False
    request_queue_size = 128

    def __init__(self, service: Service, host: str, port: int) -> None:
        self.service = service
        self.stopping = threading.Event()
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Bind without the base class's reverse DNS look-up, which can take seconds."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Register the connection and start its thread."""
        with self._lock:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close one connection."""
        with self._lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def close_connections(self) -> None:
        """End every thread that waits for a client or in a delay."""
        self.stopping.set()
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 (the base class calls it)
        """Ignore clients that disconnect; log anything else, which is a bug."""
        if not isinstance(sys.exc_info()[1], OSError):
            logging.getLogger(__name__).exception("the sandbox failed to answer %s", client_address)


class _Handler(BaseHTTPRequestHandler):
    """One connection. Reads the target from the raw request line, since the base class normalises it."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    timeout = 75
    server: _Listener
    raw_requestline: bytes

    def handle_any(self) -> None:
        """Read one request and write its response."""
        body = self._read_body()
        if body is None:
            return
        target = self.raw_requestline.split()[1]
        request = SandboxRequest(self.command, target, tuple(self.headers.items()), body)
        self._write(self.server.service.handle(request))

    do_GET = do_POST = do_HEAD = do_PUT = do_DELETE = do_OPTIONS = do_PATCH = handle_any  # noqa: N815 (the base class's names)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
        """Log nothing to the caller's terminal."""

    def version_string(self) -> str:
        """The `Server` header."""
        return "seedream-sandbox"

    def handle_expect_100(self) -> bool:
        """Send 100 Continue at once, flushed."""
        go_on = super().handle_expect_100()
        self.wfile.flush()
        return go_on

    # --- request ------------------------------------------------------------------------------------------------------

    def _read_body(self) -> bytes | None:
        """The request's body; None where it was refused and the connection is closed."""
        if "chunked" in self.headers.get("transfer-encoding", "").lower():
            return self._read_chunks()
        length = self.headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit():
            self._refuse_body(400)
            return None
        if int(length) > LONGEST_BODY:
            self._refuse_body(413)
            return None
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            self.close_connection = True
            return None
        return body

    def _read_chunks(self) -> bytes | None:
        body = bytearray()
        while True:
            size_text = self.rfile.readline(1024).partition(b";")[0].strip()
            try:
                size = int(size_text, 16)
            except ValueError:
                self._refuse_body(400)
                return None
            if size == 0:
                break
            if size < 0 or len(body) + size > LONGEST_BODY:
                self._refuse_body(413)
                return None
            body += self.rfile.read(size)
            self.rfile.readline(8)
        while self.rfile.readline(65_537).strip():
            # Trailers are ignored.
            pass
        return bytes(body)

    def _refuse_body(self, status: int) -> None:
        """Refuse a body and close the connection: its rest would be read as the next request."""
        self.close_connection = True
        self.send_response(status)
        self.send_header("content-length", "0")
        self.send_header("connection", "close")
        self.end_headers()
        self.wfile.flush()

    # --- response -----------------------------------------------------------------------------------------------------

    def _write(self, reply: SandboxReply) -> None:
        """Write a response. The head is sent with the first bytes, after any delay; a cut closes the connection."""
        sized = any(name == "content-length" for name, _ in reply.headers)
        chunked = not sized and self.request_version >= "HTTP/1.1"
        headed = False
        for piece in reply.chunks:
            if isinstance(piece, Cut) or (isinstance(piece, Delay) and self.server.stopping.wait(piece.seconds)):
                self.close_connection = True
                return
            if isinstance(piece, Delay):
                continue
            if not headed:
                self._write_head(reply, chunked=chunked)
                headed = True
            self._write_piece(piece, chunked=chunked, at_once=not sized)
        if not headed:
            self._write_head(reply, chunked=chunked)
        if chunked and self.command != "HEAD":
            self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()

    def _write_piece(self, piece: bytes, *, chunked: bool, at_once: bool) -> None:
        if self.command != "HEAD":
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
        if at_once:
            self.wfile.flush()

    def _write_head(self, reply: SandboxReply, *, chunked: bool) -> None:
        self.send_response(reply.status)
        for name, value in reply.headers:
            self.send_header(name, value)
        if chunked:
            self.send_header("transfer-encoding", "chunked")
        if self.close_connection:
            self.send_header("connection", "close")
        self.end_headers()
