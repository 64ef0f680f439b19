"""What leaves of a reference image: its pixels, upright, and nothing that tells where or by whom it was made."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageOps, ImageStat, PngImagePlugin

from seedream_cli.errors import InputError, LinkError
from seedream_cli.network.request_body import encode_reference
from seedream_cli.request import reference_metadata
from seedream_cli.request.image_request import ImageRef
from seedream_cli.request.reference_metadata import prepare_reference
from seedream_cli.request.references import read_reference
from seedream_cli.storage.image_metadata import read_orientation, strip_metadata
from tests.support.batches import run, sent, write
from tests.support.command import CANARY, Command, Done
from tests.support.provider_server import Upstream

SECRET = b"GPS-CANARY"
ENV = {"ARK_API_KEY": CANARY}
EDIT = ("-p", "ark", "-m", "4.5")


def drawing(mode: str = "RGB", size: tuple[int, int] = (96, 64)) -> Image.Image:
    """An image whose every corner is its own."""
    image = Image.linear_gradient("L").resize(size)
    other = image.transpose(Image.Transpose.ROTATE_90).resize(size)
    full = Image.merge("RGB", (image, other, Image.new("L", size, 90)))
    full.paste((250, 20, 20), (0, 0, size[0] // 3, size[1] // 3))
    return full.convert(mode)


def exif(orientation: int = 1) -> bytes:
    """A block as telephones write it, with a place in it."""
    block = Image.Exif()
    block[0x0112] = orientation
    block[0x010F] = SECRET.decode()
    block.get_ifd(0x8825).update({1: "N", 2: (48.0, 8.0, 3.0)})
    return block.tobytes()


def xmp(orientation: int | None = None) -> bytes:
    """An XMP packet."""
    turn = f' tiff:Orientation="{orientation}"' if orientation else ""
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description{turn}>{SECRET.decode()}</rdf:Description>'.encode()


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """An image as a file's bytes."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def segment(marker: int, body: bytes) -> bytes:
    """A segment of a JPEG."""
    return b"\xff" + bytes((marker,)) + struct.pack(">H", len(body) + 2) + body


def chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def full_jpeg(image: Image.Image, orientation: int = 1, **options: Any) -> bytes:
    """A JPEG with everything in it that cameras, editors and telephones write."""
    raw = saved(image, "JPEG", exif=exif(orientation), icc_profile=PROFILE, comment=SECRET, **options)
    more = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp()) + segment(0xED, b"Photoshop 3.0\0" + SECRET)
    more += segment(0xE2, b"MPF\0" + SECRET) + segment(0xEB, b"JP\0\1" + SECRET) + segment(0xE0, b"JFXX\0\x10" + SECRET)
    # A film behind the image, with an end of its own.
    return raw[:2] + more + raw[2:] + b"\0\0\0\x18ftypmp42" + SECRET + b"\xff\xd9"


def full_png(image: Image.Image, orientation: int = 1) -> bytes:
    """A PNG with notes of every kind, colours and a time."""
    notes = PngImagePlugin.PngInfo()
    notes.add_text("parameters", SECRET.decode())
    notes.add_text("zipped", SECRET.decode() * 9, zip=True)
    notes.add_itxt("XML:com.adobe.xmp", xmp().decode())
    raw = saved(image, "PNG", pnginfo=notes, exif=exif(orientation), icc_profile=PROFILE)
    own = chunk(b"gAMA", struct.pack(">I", 45455)) + chunk(b"tIME", b"\x07\xea\1\1\1\1\1") + chunk(b"caBX", SECRET)
    return raw[:33] + own + raw[33:] + SECRET


PROFILE = b"\0\0\x02\x0c" + b"prof" * 128 + b"\0" * 8


def prepared(tmp_path: Path, raw: bytes, name: str = "a.jpg") -> tuple[ImageRef, bytes, str]:
    """A file as it is sent, the bytes that leave, and what is said of it."""
    (tmp_path / name).write_bytes(raw)
    ref = read_reference(str(tmp_path / name))
    assert isinstance(ref, ImageRef), ref
    made = prepare_reference(ref)
    leaving = base64.b64decode(b"".join(encode_reference(made.ref)))
    assert len(leaving) == made.ref.sent_size
    return made.ref, leaving, made.warning


def pixels(raw: bytes) -> Image.Image:
    """The decoded image, as it stands in the file."""
    with Image.open(io.BytesIO(raw)) as opened:
        opened.load()
        return opened.copy()


def distance(one: Image.Image, other: Image.Image) -> float:
    """How far two images are from each other, at most 255."""
    assert one.size == other.size
    return max(ImageStat.Stat(ImageChops.difference(one.convert("RGB"), other.convert("RGB"))).mean)


# --- cut without touching a pixel -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 4}], ids=str)
def test_jpeg_notes_are_cut_and_its_data_stays(tmp_path: Path, mode: str, options: dict[str, Any]) -> None:
    """The scans are the file's own bytes; profile, JFIF and Adobe's segment stay, without which colours change."""
    image = drawing(mode)
    raw, plain = full_jpeg(image, **options), saved(image, "JPEG", icc_profile=PROFILE, **options)
    ref, leaving, stayed = prepared(tmp_path, raw)
    assert SECRET not in leaving
    assert leaving == plain
    assert not stayed
    assert ref.sha256 != (ref.sent and ref.sent.sha256)


def test_png_notes_are_cut_and_colours_stay(tmp_path: Path) -> None:
    """Also of one with 16 bits a sample, of one with a palette that can be seen through, and of one that moves."""
    palette = drawing().quantize(8)
    for number, image in enumerate((drawing("RGBA"), drawing("L").convert("I;16"), palette)):
        _, leaving, _ = prepared(tmp_path, full_png(image), f"{number}.png")
        assert SECRET not in leaving
        assert b"tIME" not in leaving
        assert b"gAMA" in leaving
        assert b"iCCP" in leaving
        assert pixels(leaving).tobytes() == image.tobytes()
    moving = saved(drawing(), "PNG", save_all=True, append_images=[drawing().rotate(180)], exif=exif())
    ref, leaving, _ = prepared(tmp_path, moving, "moving.png")
    assert ref.animated
    assert SECRET not in leaving
    assert getattr(Image.open(io.BytesIO(leaving)), "n_frames", 1) == 2


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 80}], ids=str)
def test_webp_notes_are_cut_and_its_header_is_right(tmp_path: Path, options: dict[str, Any]) -> None:
    """The list of contents in front names no note any more, and the length is that of the file."""
    raw = saved(drawing("RGBA"), "WEBP", exif=exif(), xmp=xmp(), icc_profile=PROFILE, **options) + SECRET
    _, leaving, _ = prepared(tmp_path, raw, "a.webp")
    assert SECRET not in leaving
    assert int.from_bytes(leaving[4:8], "little") + 8 == len(leaving)
    assert not leaving[20] & 0x0C
    assert pixels(leaving).tobytes() == pixels(raw).tobytes()
    assert pixels(leaving).info.get("icc_profile") == PROFILE


def test_gif_comments_are_cut_and_frames_stay(tmp_path: Path) -> None:
    """The extension that makes it loop is no note."""
    frames = [drawing().rotate(turn) for turn in (0, 90)]
    raw = saved(frames[0], "GIF", save_all=True, append_images=frames[1:], loop=0, comment=SECRET) + SECRET
    _, leaving, _ = prepared(tmp_path, raw, "a.gif")
    assert SECRET not in leaving
    assert b"NETSCAPE2.0" in leaving
    assert getattr(Image.open(io.BytesIO(leaving)), "n_frames", 1) == 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_an_image_without_notes_leaves_as_it_is(tmp_path: Path, kind: str) -> None:
    """Byte for byte, and nothing is said."""
    raw = saved(drawing(), kind)
    ref, leaving, stayed = prepared(tmp_path, raw, f"a.{kind.lower()}")
    assert (leaving, ref.sent, stayed) == (raw, None, "")


# --- turned -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_jpeg_is_turned_upright(tmp_path: Path, orientation: int, mode: str) -> None:
    """Whichever way the camera was held, mirrored too; hardly a pixel is another, and it grows little."""
    raw = full_jpeg(drawing(mode), orientation, quality=85)
    ref, leaving, stayed = prepared(tmp_path, raw)
    with Image.open(io.BytesIO(saved(drawing(mode), "JPEG", exif=exif(orientation), quality=85))) as opened:
        upright = ImageOps.exif_transpose(opened)
    shown = pixels(leaving)
    assert (ref.width, ref.height) == shown.size == ((64, 96) if orientation > 4 else (96, 64))
    assert distance(shown, upright) < 2
    assert not shown.getexif()
    assert SECRET not in leaving
    assert shown.mode == mode
    assert shown.info["icc_profile"] == PROFILE
    assert len(leaving) < 1.5 * len(raw)
    assert not stayed


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
def test_others_are_turned_without_loss(tmp_path: Path, kind: str, orientation: int) -> None:
    """In their own format; a TIFF, whose notes cannot be cut, is made anew for them alone."""
    image = drawing("RGBA" if kind == "PNG" else "RGB")
    more = {"lossless": True} if kind == "WEBP" else {}
    raw = full_png(image, orientation) if kind == "PNG" else saved(image, kind, exif=exif(orientation), **more)
    ref, leaving, stayed = prepared(tmp_path, raw, "a")
    with Image.open(io.BytesIO(raw)) as opened:
        upright = ImageOps.exif_transpose(opened)
    assert pixels(leaving).tobytes() == upright.convert(image.mode).tobytes()
    assert ref.mime == f"image/{kind.lower()}"
    assert SECRET not in leaving
    assert (b"gAMA" in leaving) == (kind == "PNG")
    assert not stayed


def test_orientation_in_xmp_alone_counts(tmp_path: Path) -> None:
    """As it does for those who show images; EXIF's own word comes first."""
    plain = saved(drawing(), "JPEG", quality=90)
    raw = plain[:2] + segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp(6)) + plain[2:]
    assert pixels(prepared(tmp_path, raw)[1]).size == (64, 96)
    raw = plain[:2] + segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp(6)) + full_jpeg(drawing(), 1)[2:]
    assert pixels(prepared(tmp_path, raw)[1]).size == (96, 64)


@pytest.mark.parametrize(
    "block", [b"", b"II", b"MM\0*\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff" + b"\x12\x01" * 9, exif(9)]
)
def test_damaged_exif_turns_nothing_and_goes(tmp_path: Path, block: bytes) -> None:
    """A length that lies, an orientation that is none."""
    plain = saved(drawing(), "JPEG")
    raw = plain[:2] + segment(0xE1, b"Exif\0\0" + block.removeprefix(b"Exif\0\0") + SECRET) + plain[2:]
    assert prepared(tmp_path, raw)[1] == plain


def test_what_cannot_be_turned_keeps_the_note_how_to(tmp_path: Path) -> None:
    """And loses all others: an image of several frames, or one that cannot be decoded here."""
    frames = [drawing().rotate(turn) for turn in (0, 90)]
    moving = saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], exif=exif(6))
    _, leaving, stayed = prepared(tmp_path, moving, "a.webp")
    assert "several frames" in stayed
    broken = full_jpeg(drawing(), 6)
    at = broken.index(b"\xff\xc0")
    broken = broken[: at + 4] + b"\x0c" + broken[at + 5 :]  # twelve bits a sample
    _, other, stayed = prepared(tmp_path, broken)
    assert "cannot be decoded" in stayed
    for raw in (leaving, other):
        assert SECRET not in raw
        assert b"II*\0" in raw
        at = raw.index(b"II*\0")
        assert read_orientation(raw[at:]) == 6
    assert getattr(Image.open(io.BytesIO(leaving)), "n_frames", 1) == 2


def test_every_cut_of_a_file_is_answered(tmp_path: Path) -> None:
    """No file, however it ends, is cut by a walk without end or ends in a traceback."""
    for kind, raw in (
        ("jpeg", full_jpeg(drawing(), 6)),
        ("png", full_png(drawing())),
        ("gif", saved(drawing(), "GIF")),
    ):
        for end in range(16, len(raw), 37):
            try:
                strip_metadata(io.BytesIO(raw[:end]), kind)
            except LinkError:
                continue


# --- on the wire ------------------------------------------------------------------------------------------------------


def edit(seedream: Command, upstream: Upstream, *args: str, **more: Any) -> Done:
    """An edit at a recording server."""
    return seedream("edit", "make it night", *args, *EDIT, "--base-url", upstream.url, env=ENV, **more)


def images(upstream: Upstream) -> list[bytes]:
    """The references of every request, decoded."""
    found = []
    for body in upstream.bodies:
        value = body["image"]
        for uri in [value] if isinstance(value, str) else value:
            found.append(base64.b64decode(uri.partition(",")[2]))
    return found


def test_edit_sends_images_upright_and_bare(seedream: Command) -> None:
    """From a file, from standard input and out of a data URI; it is said once, and JSON tells both sums."""
    raw = full_jpeg(drawing(size=(300, 200)), 6)
    (seedream.folder / "phone.jpg").write_bytes(raw)
    (seedream.folder / "plain.jpg").write_bytes(full_jpeg(drawing(size=(300, 210))))
    uri = f"data:image/jpeg;base64,{base64.b64encode(full_jpeg(drawing(size=(300, 220)), 3)).decode()}"
    with Upstream() as upstream:
        done = edit(seedream, upstream, "phone.jpg", "plain.jpg", uri, "-", "--json", stdin=raw)
        assert done.code == 0, done.err
        leaving = images(upstream)
    assert [pixels(one).size for one in leaving] == [(200, 300), (300, 210), (300, 220), (200, 300)]
    assert not any(SECRET in one for one in leaving)
    assert done.err.count("--keep-metadata") == 1
    shown = done.json["request"]["image"]
    assert shown[0]["bytes"] == len(raw)
    assert [one["sent_bytes"] for one in shown] == [len(one) for one in leaving]


def test_keep_metadata_sends_them_as_they_are(seedream: Command) -> None:
    """As an option, a variable, a column and in a prompt's file; nothing is said."""
    raw = full_jpeg(drawing(size=(300, 200)), 6)
    (seedream.folder / "phone.jpg").write_bytes(raw)
    (seedream.folder / "p.txt").write_text('+++\nkeep-metadata = true\nimage = "phone.jpg"\n+++\nmake it night')
    write(seedream, "prompt,image,keep-metadata\na,phone.jpg,yes\nb,phone.jpg,\n")
    with Upstream() as upstream:
        more = (*EDIT, "--base-url", upstream.url)
        assert "--keep" not in edit(seedream, upstream, "phone.jpg", "--keep-metadata").err
        seedream("edit", "x", "phone.jpg", *more, env={**ENV, "SEEDREAM_KEEP_METADATA": "1"})
        seedream("generate", "-f", "p.txt", *more, env=ENV)
        assert images(upstream) == [raw] * 3
        assert run(seedream, upstream, "-m", "4.5").code == 0
        told = {
            body["prompt"]: image == raw for body, image in zip(upstream.bodies[3:], images(upstream)[3:], strict=True)
        }
        assert told == {"a": True, "b": False}


def test_done_rows_are_not_paid_again_for_their_metadata(seedream: Command) -> None:
    """A row is known by its files as they lie on the disk, so a folder of an earlier version stays done."""
    raw = full_jpeg(drawing(size=(300, 200)), 6)
    (seedream.folder / "phone.jpg").write_bytes(raw)
    write(seedream, "prompt,image\na,phone.jpg\nb,phone.jpg\n")
    with Upstream() as upstream:
        assert run(seedream, upstream, "-m", "4.5", "--keep-metadata").code == 0
        done = run(seedream, upstream, "-m", "4.5")
        assert done.code == 0
        assert sent(upstream) == {"a": 1, "b": 1}
        (seedream.folder / "phone.jpg").write_bytes(full_jpeg(drawing(size=(300, 200)), 8))
        assert run(seedream, upstream, "-m", "4.5").code == 0
        assert sent(upstream) == {"a": 2, "b": 2}


def test_fingerprint_is_that_of_the_file(tmp_path: Path) -> None:
    """Whatever is left out of it on the way; else every done row would be new."""
    (tmp_path / "a.jpg").write_bytes(full_jpeg(drawing(), 6))
    ref = read_reference(str(tmp_path / "a.jpg"))
    assert isinstance(ref, ImageRef)
    made = prepare_reference(ref).ref
    assert made.sent is not None
    assert made.sha256 == ref.sha256
    assert made.size == ref.size


def test_one_file_of_many_rows_is_prepared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Turning is what takes time."""
    count = []
    monkeypatch.setattr(reference_metadata, "_KNOWN", {})
    monkeypatch.setattr(
        reference_metadata, "_rotate", lambda *args, rotate=reference_metadata._rotate: count.append(1) or rotate(*args)
    )
    for _ in range(5):
        prepared(tmp_path, full_jpeg(drawing(size=(90, 70)), 5))
    assert len(count) == 1
    # Without room for copies it is made again when it is sent, and is the same.
    monkeypatch.setattr(reference_metadata, "_KNOWN", {})
    monkeypatch.setattr(reference_metadata, "_COPIES_MOST", 0)
    assert pixels(prepared(tmp_path, full_jpeg(drawing(size=(90, 70)), 5))[1]).size == (70, 90)


def test_a_file_that_changed_is_never_sent_whole(tmp_path: Path) -> None:
    """Of the same length or not, in what leaves or in what does not."""
    raw = full_jpeg(drawing(size=(400, 300)))
    path = tmp_path / "a.jpg"
    path.write_bytes(raw)
    ref = read_reference(str(path))
    assert isinstance(ref, ImageRef)
    made = prepare_reference(ref).ref
    whole = sum(map(len, encode_reference(made)))
    for other in (raw[:-1] + b"x", raw[:-400] + bytes(400), raw + b"x", raw[:-1], raw.replace(SECRET, SECRET[::-1], 1)):
        path.write_bytes(other)
        pieces, got = encode_reference(made), list[int]()
        with pytest.raises(InputError, match="changed"):
            got.extend(map(len, pieces))
        assert sum(got) < whole


def test_what_cannot_be_cut_is_told(seedream: Command) -> None:
    """An image of a format that is not rewritten here goes as it is, with a warning; with --keep-metadata without."""
    ftyp = b"\0\0\0\x18ftypheic\0\0\0\0heicmif1"
    ispe = b"\0\0\0\x14ispe\0\0\0\0" + struct.pack(">II", 400, 300)
    ipco = struct.pack(">I4s", 8 + len(ispe), b"ipco") + ispe
    iprp = struct.pack(">I4s", 8 + len(ipco), b"iprp") + ipco
    meta = struct.pack(">I4sI", 12 + len(iprp), b"meta", 0) + iprp
    raw = ftyp + meta + struct.pack(">I4s", 8 + len(SECRET), b"mdat") + SECRET
    (seedream.folder / "a.heic").write_bytes(raw)
    with Upstream() as upstream:
        done = edit(seedream, upstream, "a.heic", "--json")
        assert done.code == 0, done.err
        assert images(upstream) == [raw]
        assert "reference_metadata" in {warning["code"] for warning in done.json["warnings"]}
        kept = edit(seedream, upstream, "a.heic", "--json", "--keep-metadata").json["warnings"]
        assert [warning["code"] for warning in kept] == ["size_differs"]


def test_curl_shows_the_bytes_that_would_leave(seedream: Command) -> None:
    """Not the file, which holds more."""
    raw = full_jpeg(drawing(size=(300, 200)), 6)
    (seedream.folder / "phone.jpg").write_bytes(raw)
    done = seedream("edit", "x", "phone.jpg", *EDIT, "--curl")
    assert "phone.jpg" not in done.out
    start = done.out.index("base64,") + 7
    assert pixels(base64.b64decode(done.out[start : done.out.index('"', start)])).size == (200, 300)


def test_limits_hold_for_what_leaves(seedream: Command) -> None:
    """A file that is too large only by the film behind it is taken."""
    raw = full_jpeg(drawing(size=(300, 200))) + bytes(31_000_000)
    (seedream.folder / "film.jpg").write_bytes(raw)
    assert seedream("edit", "x", "film.jpg", *EDIT, "--dry-run").code == 0
    done = seedream("edit", "x", "film.jpg", *EDIT, "--dry-run", "--keep-metadata")
    assert (done.code, "30 MB taken" in done.err) == (2, True)
    assert json.loads(seedream("edit", "x", "film.jpg", *EDIT, "--dry-run", "--json").out)["request"]["image"][
        "bytes"
    ] == len(raw)
