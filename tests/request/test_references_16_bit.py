"""References with 16 bits a colour: no bit of them is lost on the way."""

from __future__ import annotations

import base64
import io
import random
import struct
import zlib

import pytest
from PIL import Image

from tests.support.command import CANARY, Command
from tests.support.provider_server import Upstream

GREY, RGB, GREY_ALPHA, RGBA = 0, 2, 4, 6
CHANNELS = {GREY: 1, RGB: 3, GREY_ALPHA: 2, RGBA: 4}


def deep_png(kind: int, *, orientation: int, size: tuple[int, int] = (300, 200)) -> bytes:
    """A PNG of 16 bits, with a maker's name and how to turn it in its notes."""
    width, height = size
    pixels = random.Random(kind)
    rows = b"".join(b"\0" + pixels.randbytes(width * CHANNELS[kind] * 2) for _ in range(height))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "Phone of somebody"

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    notes = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + notes
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("kind", [GREY, RGB, GREY_ALPHA, RGBA])
def test_reference_of_16_bits_is_sent_with_all_of_them(seedream: Command, kind: int, orientation: int) -> None:
    """Grey is turned; of what cannot be without loss only the note how to turn it goes along, and that is said."""
    raw = deep_png(kind, orientation=orientation)
    (seedream.folder / "x.png").write_bytes(raw)
    with Upstream() as upstream:
        to = ["-p", "ark", "-m", "4.5", "--base-url", upstream.url]
        done = seedream("edit", "night", "x.png", *to, env={"ARK_API_KEY": CANARY})
        assert done.code == 0, done.err
        [body] = upstream.bodies
        image = body["image"] if isinstance(body["image"], str) else body["image"][0]
        sent = base64.b64decode(image.partition(",")[2])
    assert sent[24:26] == bytes([16, kind])
    assert b"Phone" not in sent
    data = raw[raw.index(b"IDAT") :]
    is_turned = kind == GREY and orientation == 6
    if is_turned:
        with Image.open(io.BytesIO(raw)) as before, Image.open(io.BytesIO(sent)) as after:
            assert before.transpose(Image.Transpose.ROTATE_270).tobytes() == after.tobytes()
    else:
        assert data in sent
        with Image.open(io.BytesIO(sent)) as shown:
            assert shown.getexif().get(0x0112, 1) == orientation
    assert ("16 bits a colour" in done.err) is (orientation == 6 and kind != GREY)
