"""Batches timed against other clients in one run: `python -m tests.bench.bench_batch --help`. A command, never a test.

A server on loopback answers each POST after a latency with one link, and each link with the same image. Every client
does the same work (POST, GET, a file a row) in turn, A B C A B C …, and what is compared are medians and ratios:

    ideal/wall   rows x latency / concurrency, divided by the wall time of the whole process
    CPU s/1000   user and system time of the client's process for 1,000 images
    peak MiB     its largest resident set

The other clients check, flush and write down nothing; `seedream` does all that.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import io
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


# --- the server -----------------------------------------------------------------------------------------------------


class Server(asyncio.Protocol):
    """HTTP/1.1 as lean as Python can be: it must not be what is measured."""

    def __init__(self, latency_s: float, image: bytes, port: list[int], paid: list[int]) -> None:
        self.latency_s = latency_s
        self.port = port
        self.paid = paid
        self.held = b""
        self.got = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(image) + image

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer every whole request."""
        self.held += data
        while (end := self.held.find(b"\r\n\r\n")) >= 0:
            head = self.held[:end].lower()
            length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
            if len(self.held) < end + 4 + length:
                return
            self.held = self.held[end + 4 + length :]
            self.answer(head)

    def answer(self, head: bytes) -> None:
        """An image at once, or a link after a while."""
        if head.startswith(b"get /paid"):
            self.say(str(self.paid[0]).encode())
        elif head.startswith(b"get "):
            self.transport.write(self.got)
        else:
            self.paid[0] += 1
            link = (
                f"http://127.0.0.1:{self.port[0]}/store/{self.paid[0]}.jpeg?X-Tos-Expires=86400&X-Tos-Signature=ab%2Bc"
            )
            reply = {"model": "m", "created": 1, "data": [{"url": link, "size": "2048x2048"}]}
            body = json.dumps(reply | {"usage": {"generated_images": 1, "total_tokens": 16384}}).encode()
            asyncio.get_running_loop().call_later(self.latency_s, self.say, body)

    def say(self, body: bytes) -> None:
        """A JSON reply."""
        if not self.transport.is_closing():
            head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
            self.transport.write(head + body)


def make_image(size: int) -> bytes:
    """A real JPEG of about `size` bytes."""
    from PIL import Image

    side = 64
    while True:
        file = io.BytesIO()
        pixels = random.Random(side).randbytes(side * side * 3)
        Image.frombytes("RGB", (side, side), pixels).save(file, "JPEG", quality=90)
        if len(file.getvalue()) >= size:
            return file.getvalue()
        side = max(side + 1, int(side * (size / len(file.getvalue())) ** 0.5))


async def serve(latency_s: float, size: int) -> None:
    """Serve until killed; the port is printed."""
    image, port, paid = make_image(size), [0], [0]
    loop = asyncio.get_running_loop()
    made = lambda: Server(latency_s, image, port, paid)  # noqa: E731
    server = await loop.create_server(made, "127.0.0.1", 0, backlog=1024)
    port[0] = server.sockets[0].getsockname()[1]
    print(port[0], flush=True)
    await server.serve_forever()


@contextlib.contextmanager
def running_server(latency_s: float, size: int) -> Iterator[str]:
    """A server in a process of its own; its address."""
    command = [
        sys.executable,
        "-m",
        "tests.bench.bench_batch",
        "--serve",
        "--latency",
        str(latency_s),
        "--size",
        str(size),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.communicate()


# --- the clients ----------------------------------------------------------------------------------------------------

HTTPX = """
import asyncio, json, sys, httpx
url, rows, concurrency, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
async def main():
    queue = iter(range(rows))
    async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=None)) as client:
        async def work():
            for row in queue:
                body = {"model": "m", "prompt": f"fox {row}"}
                reply = await client.post(url + "/api/v3/images/generations", json=body)
                image = await client.get(reply.json()["data"][0]["url"])
                with open(f"{folder}/{row}.jpg", "wb") as file: file.write(image.content)
        await asyncio.gather(*(work() for _ in range(concurrency)))
asyncio.run(main())
"""
AIOHTTP = """
import asyncio, json, sys, aiohttp, yarl
url, rows, concurrency, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
async def main():
    queue = iter(range(rows))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
        async def work():
            for row in queue:
                body = {"model": "m", "prompt": f"fox {row}"}
                async with client.post(url + "/api/v3/images/generations", json=body) as r:
                    link = (await r.json())["data"][0]["url"]
                async with client.get(yarl.URL(link, encoded=True)) as r:
                    image = await r.read()
                with open(f"{folder}/{row}.jpg", "wb") as file: file.write(image)
        await asyncio.gather(*(work() for _ in range(concurrency)))
asyncio.run(main())
"""
CURL = r"""
url=$1 rows=$2 concurrency=$3; export folder=$4 url
seq "$rows" | xargs -P "$concurrency" -I{} sh -c '
  link=$(curl -s -H "Content-Type: application/json" -d "{\"model\":\"m\",\"prompt\":\"fox {}\"}" \
    "$url/api/v3/images/generations" | sed "s/.*\"url\": \"\([^\"]*\)\".*/\1/")
  curl -s -o "$folder/{}.jpg" "$link"'
"""


@dataclass(frozen=True)
class Run:
    """How one run of a client went."""

    wall_s: float
    cpu_s: float
    peak_mib: float
    files: int


def command_of(client: str, url: str, rows: int, concurrency: int, folder: Path) -> list[str]:
    """The command line of a client; its table is written where it needs one."""
    if client in {"httpx", "aiohttp"}:
        code = HTTPX if client == "httpx" else AIOHTTP
        return [sys.executable, "-c", code, url, str(rows), str(concurrency), str(folder)]
    if client == "curl":
        return ["sh", "-c", CURL, "sh", url, str(rows), str(concurrency), str(folder)]
    table = folder.parent / "shots.csv"
    table.write_text("prompt\n" + "".join(f"fox {row}\n" for row in range(rows)))
    command = [sys.executable, "-m", "seedream_cli", "batch", str(table), "-p", "ark", "--base-url", url, "-y", "-q"]
    return [*command, "-o", f"{folder}/", "--concurrency", str(concurrency), "--ipm", "1000000"]


def run(client: str, url: str, rows: int, concurrency: int, where: Path) -> Run:
    """One run of a client, in a home of its own."""
    with tempfile.TemporaryDirectory(dir=where) as home:
        folder = Path(home) / "images"
        folder.mkdir()
        env = {"PATH": os.environ["PATH"], "HOME": home, "LANG": "C.UTF-8", "ARK_API_KEY": "no-key"}
        command = command_of(client, url, rows, concurrency, folder)
        started, before = time.monotonic(), os.times()
        with subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        wall, after = time.monotonic() - started, os.times()
        if process.returncode:
            raise SystemExit(f"{client} ended with {process.returncode}")
        cpu = (after.children_user + after.children_system) - (before.children_user + before.children_system)
        # What a shell started is in its own account, which `wait4` adds up.
        cpu = max(cpu, usage.ru_utime + usage.ru_stime)
        return Run(wall, cpu, usage.ru_maxrss / 1024, len(list(folder.rglob("*.jpg"))))


def is_there(client: str) -> bool:
    """Whether a client can be run on this machine."""
    if client == "curl":
        return shutil.which("curl") is not None
    return client == "seedream" or importlib.util.find_spec(client) is not None


def compare(clients: Sequence[str], rows: int, concurrency: int, latency_s: float, size: int, runs: int) -> None:
    """All clients in turn, and a line for each."""
    where = Path(os.environ.get("BENCH_DIR") or tempfile.gettempdir())
    ideal = rows * latency_s / concurrency
    found: dict[str, list[Run]] = {client: [] for client in clients if is_there(client)}
    with running_server(latency_s, size) as url:
        for _ in range(runs):
            for client, made in found.items():
                made.append(run(client, url, rows, concurrency, where))
    print(f"{rows} rows, {latency_s * 1000:.0f} ms, concurrency {concurrency}, {size} bytes; ideal {ideal:.2f} s")
    print("client       wall s    min    max  ideal/wall  CPU s/1000  peak MiB  files")
    for client, made in found.items():
        walls = [one.wall_s for one in made]
        wall = statistics.median(walls)
        cpu = statistics.median(one.cpu_s for one in made) / rows * 1000
        peak = statistics.median(one.peak_mib for one in made)
        files = min(one.files for one in made)
        print(
            f"{client:10} {wall:8.2f} {min(walls):6.2f} {max(walls):6.2f} {ideal / wall:11.0%}"
            f" {cpu:11.2f} {peak:9.1f} {files:6}"
        )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Time batches of several clients against one server.")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, nargs="*", default=[8, 32, 128])
    parser.add_argument("--latency", type=float, default=0.05, help="seconds that the server takes for an image")
    parser.add_argument("--size", type=int, default=200_000, help="bytes of an image")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--clients", nargs="*", default=["seedream", "curl", "aiohttp", "httpx"])
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.latency, options.size))
        return
    for concurrency in options.concurrency:
        compare(options.clients, options.rows, concurrency, options.latency, options.size, options.runs)


if __name__ == "__main__":
    main()
