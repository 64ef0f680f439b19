"""The disk room for images: whole files under safe names, and nothing that existed is ever lost."""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import io
import json
import os
import struct
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
import unicodedata
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from seedream_cli.errors import FileError, InputError, LinkError
from seedream_cli.results import Base64Slice
from seedream_cli.storage import filesystem, image_containers, image_file, output_path
from seedream_cli.storage.base64_image import write_base64, write_blob
from seedream_cli.storage.file_names import FIELDS, check_template, clean_name, render_name, slug
from seedream_cli.storage.image_file import open_part
from seedream_cli.storage.image_info import (
    SUFFIXES,
    ImageInfo,
    describe,
    explain_store_error,
    inspect,
    inspect_bytes,
    sniff,
)
from seedream_cli.storage.output_path import OutputPath, existing, plan_output


def encode(
    kind: str, *, frames: int = 1, mode: str = "RGB", size: tuple[int, int] = (31, 17), **options: object
) -> bytes:
    images = [Image.effect_noise(size, 90 + step).convert(mode) for step in range(frames)]
    out = io.BytesIO()
    more = {"save_all": True, "append_images": images[1:]} if frames > 1 else {}
    images[0].save(out, kind, **more, **options)
    return out.getvalue()


PNG, JPEG = encode("PNG"), encode("JPEG")
WHOLE = {
    "jpeg": JPEG,
    "jpeg progressive": encode("JPEG", progressive=True),
    "jpeg restarts": encode("JPEG", restart_marker_blocks=1),
    # The thumbnail's own end marker lies inside a segment.
    "jpeg thumbnail": JPEG[:2] + b"\xff\xe1" + struct.pack(">H", len(JPEG) + 8) + b"Exif\0\0" + JPEG + JPEG[2:],
    "png": PNG,
    "png palette": encode("PNG", mode="P"),
    "webp": encode("WEBP"),
    "webp lossless": encode("WEBP", lossless=True),
    "webp alpha": encode("WEBP", mode="RGBA", exif=b"Exif\0\0x"),
    "gif": encode("GIF"),
    "bmp": encode("BMP"),
    "bmp palette": encode("BMP", mode="P"),
    "tiff": encode("TIFF"),
    "tiff packed": encode("TIFF", compression="tiff_lzw"),
    "tiff big": encode("TIFF", big_tiff=True),
}
MOVING = {kind.lower(): encode(kind, frames=3) for kind in ("GIF", "WEBP", "PNG")}
if ".avif" in Image.registered_extensions():
    WHOLE["avif"], MOVING["avif"] = encode("AVIF"), encode("AVIF", frames=3)


def run(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, args)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


def save(
    folder: Path, stem: str, data: bytes, rule: output_path.IfExists = "rename", suffix: str = ""
) -> image_file.Published:
    with open_part(folder) as part:
        part.write(data)
        return part.publish(folder, stem, part.finish(), rule, suffix=suffix)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


# --- what bytes are -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_image_gives_its_facts_from_a_path_and_from_bytes(tmp_path: Path, name: str) -> None:
    """Format, pixels, bytes and sha256 of every format agree with the image; trailing zeros do no harm."""
    data, kind = WHOLE[name], name.partition(" ")[0]
    path = tmp_path / "image"
    path.write_bytes(data)
    assert inspect(path) == ImageInfo(kind, 31, 17, len(data), hashlib.sha256(data).hexdigest())
    assert inspect_bytes(data + b"\0" * 10).width == 31
    assert sniff(data[:64]) == kind
    assert describe(data).endswith(f"{kind.upper()} image")


@pytest.mark.parametrize("name", WHOLE)
def test_every_cut_of_an_image_is_found(name: str) -> None:
    """No proper beginning of a file passes for a whole image, and the error may be tried again."""
    data = WHOLE[name]
    for length in range(len(data)):
        with pytest.raises(LinkError) as caught:
            inspect_bytes(data[:length])
        assert caught.value.kind == "download"
        assert caught.value.retryable


def test_one_flipped_bit_of_a_png_is_found() -> None:
    """Every bit of a PNG is under a checksum or fixed by the format."""
    for at in range(len(PNG)):
        bad = bytearray(PNG)
        bad[at] ^= 1 << at % 8
        with pytest.raises(LinkError):
            inspect_bytes(bytes(bad))


@pytest.mark.parametrize("kind", MOVING)
def test_animated_images_are_told_apart(kind: str) -> None:
    """Several frames show as `animated`, so that a reference image can be refused before it is sent."""
    facts = inspect_bytes(MOVING[kind])
    assert (facts.format, facts.animated, facts.width, facts.height) == (kind, True, 31, 17)


def test_a_heic_is_known_by_its_brands() -> None:
    """HEIC, HEIF and AVIF share a container; major and compatible brands tell them apart, video is no image."""

    def box(major: bytes, *others: bytes) -> bytes:
        return struct.pack(">I", 16 + 4 * len(others)) + b"ftyp" + major + b"\0\0\0\0" + b"".join(others)

    assert sniff(box(b"heic", b"mif1")) == "heic"
    assert sniff(box(b"mif1", b"heic")) == "heic"
    assert sniff(box(b"mif1", b"avif")) == "avif"
    assert sniff(box(b"mif1")) == "heif"
    assert sniff(box(b"isom", b"mp42")) == ""


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no bytes at all"),
        (b"\xef\xbb\xbf \n<!DOCTYPE html><html>", "an HTML page"),
        (b'<?xml version="1.0"?><Error><Code>x</Code>', "an XML error"),
        (b'{"error":{}}', "JSON"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
        (b'<?xml version="1.0"?><svg>', "an SVG drawing"),
        (b"BM, said the letter", "unknown bytes"),
    ],
)
def test_bytes_that_are_no_image_are_named(data: bytes, words: str) -> None:
    """The message says what came instead of an image, and how much of it."""
    assert (sniff(data), describe(data)) == ("", words)
    with pytest.raises(LinkError, match=words):
        inspect_bytes(data)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize("size", [(60_000, 60_000), (20_001, 1), (15_000, 15_000), (0, 5)])
def test_a_header_that_claims_too_much_is_refused(size: tuple[int, int]) -> None:
    """A few bytes that would unpack to gigabytes never reach a decoder."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0))
    bomb = PNG[:8] + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with pytest.raises(LinkError, match="declares"):
        inspect_bytes(bomb)


@pytest.mark.parametrize(
    "data",
    [
        b"GIF89a\x01\0\x01\0\0\0\0" + b"\x21\x01" + b"\x01x" * 2_000_000,
        PNG[:33] + chunk(b"tEXt", b"") * 1_000_000,
        JPEG[:-2] + b"\xff\xda\0\x02" * 2_000_000,
        b"\xff\xd8\xff\xd9",
        PNG[:33] + chunk(b"IEND", b""),
        b"\xff\xd8\xff\xe0\0\0",
    ],
    ids=["gif blocks", "png chunks", "jpeg scans", "jpeg without scan", "png without data", "jpeg segment"],
)
def test_crafted_files_cost_little_and_are_refused(data: bytes) -> None:
    """Files of very many parts end at a bound of work, files without image data at the check."""
    started = time.process_time()
    with pytest.raises(LinkError):
        inspect_bytes(data)
    assert time.process_time() - started < 10


def tiff(*tags: tuple[int, int, int, int], more: bytes = b"") -> bytes:
    """A TIFF of one directory."""
    table = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + table + bytes(4) + more


BITMAP = [(256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 0), (279, 4, 1, 64)]


@pytest.mark.parametrize(
    "data",
    [
        tiff(*BITMAP, *((tag, 7, 4_000_000, 8) for tag in range(40_000, 40_900)), more=bytes(4_000_000)),
        tiff(*[(256, 4, 1, 19_999), (257, 4, 1, 19_999)], *BITMAP[2:], more=bytes(100)),
        tiff(*BITMAP[2:], more=bytes(100)),
        tiff(*BITMAP[:4], (273, 4, 1, 80), (279, 4, 1, 1 << 31), more=bytes(10)),
        b"II*\0\x08\0\0\0" + b"\xff\xff" + bytes(20),
        b"MM\0+\0\x08\0\0" + b"\xff" * 64,
        b"BM" + struct.pack("<IIIIiiHH", 0, 0, 26, 40, 19_999, 19_999, 1, 24) + bytes(100),
        b"BM" + struct.pack("<IIIIiiHH", 0, 0, 26, 40, -8, 8, 1, 24) + bytes(100),
    ],
    ids=["tags of all", "pixels", "no size", "strip", "directory", "big", "bmp pixels", "bmp size"],
)
def test_crafted_bmp_and_tiff_are_refused_in_little_memory(data: bytes) -> None:
    """Tags that each claim the whole file, and sizes that no file has, are no memory that is taken."""
    inspect_bytes(WHOLE["tiff"])
    tracemalloc.start()
    started = time.process_time()
    try:
        # The tags around an image that is there may also be left out.
        with pytest.raises(LinkError) if len(data) < 4_000_000 else contextlib.suppress(LinkError):
            inspect_bytes(data)
        assert time.process_time() - started < 10
        assert tracemalloc.get_traced_memory()[1] < 6 * len(data) + 4_000_000
    finally:
        tracemalloc.stop()


def test_pixels_of_bmp_and_tiff_are_decoded() -> None:
    """Compressed data that is none is found like missing data; a container of a known kind is not enough."""
    data = bytearray(WHOLE["tiff packed"])
    at = Image.open(io.BytesIO(data)).tag_v2[273][0]
    data[at : at + 40] = b"\xaa" * 40
    with pytest.raises(LinkError, match="TIFF cannot be decoded"):
        inspect_bytes(bytes(data))
    pages = encode("TIFF", frames=2, compression="tiff_lzw")
    assert inspect_bytes(pages).width == 31
    # Up to 16 zeros follow the last page.
    for length in range(len(pages) // 2, len(pages) - 16, 7):
        with pytest.raises(LinkError):
            inspect_bytes(pages[:length])


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (403, b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message>", "expired", "has expired"),
        (403, b'{"Code":"ExpiredToken","Message":"x"}', "expired", "has expired"),
        (
            403,
            b"<Error><Code>AuthenticationFailed</Code><D>Signature not valid in the specified time frame",
            "expired",
            "",
        ),
        (403, b'{"Code":"AccessDenied","Message":"Access Denied","EC":"0003-00000015"}', "download", "cut or altered"),
        (403, b"<Error><Code>SignatureDoesNotMatch</Code><StringToSign>SECRET", "download", "cut or altered"),
        (404, b"<Error><Code>NoSuchKey</Code>", "download", "any more"),
        (403, b"<Error><Code>AccessDenied</Code>", "download", "HTTP 403, AccessDenied"),
        (200, b"<html>log in", "download", "HTTP 200 with an HTML page"),
        (502, b"", "download", "HTTP 502 with no bytes at all"),
    ],
)
def test_an_object_stores_refusal_is_explained(status: int, body: bytes, kind: str, words: str) -> None:
    """An expired link is told apart from a cut one and from a page in between; nothing of a signature is repeated."""
    found, message = explain_store_error(body, status)
    assert found == kind
    assert words in message
    assert "SECRET" not in message


# --- names ----------------------------------------------------------------------------------------------------------

HOSTILE = [
    "../../etc/passwd", "C:\\x", "\\\\srv\\x", "..", ".", "", "...", "CON", "con.png", "Aux .jpg", "com¹.txt", "COM0",
    "CONIN$", "a:b", "a\0b", "\x1b[31m", "a\u202egnp.exe", "\ufeffx", "~root", "-rf", "-.-x", ".bashrc", "x. . ",
    "%2e%2e", "😀" * 100, "图" * 200, "e\u0301" * 200, "\udc80bad", "\u0301" * 90, "👨‍👩‍👧" * 30,
    "İ", "ﷺ" * 50, "a." * 90,
]  # fmt: skip
RESERVED = {"con", "prn", "aux", "nul", "conin$", "conout$", "clock$"} | {
    f"{d}{n}" for d in ("com", "lpt") for n in "0123456789¹²³"
}


def assert_portable(name: str) -> None:
    assert 0 < len(name.encode()) <= 151
    assert name == unicodedata.normalize("NFC", name)
    assert not set(name) & set('<>:"/\\|?*%')
    assert not {unicodedata.category(char) for char in name} & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert name[0] not in ".-~ "
    assert name[-1] not in ". "
    assert name.partition(".")[0].strip().casefold() not in RESERVED
    assert clean_name(name) == name


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.sampled_from(HOSTILE),
        st.text(max_size=300),
        st.lists(st.sampled_from([*"./\\-~ ", "con", "\u0301"])).map("".join),
    )
)
def test_any_text_becomes_a_portable_name(text: str) -> None:
    """Names hold on Linux, macOS and Windows, stay inside the folder and are not changed by a second cleaning."""
    assert_portable(clean_name(text))
    assert_portable(clean_name(slug(text)))
    assert len(slug(text).encode()) <= 60
    for part in render_name("{slug}/{id}-x", {"slug": text, "id": text}).split("/", 1):
        assert_portable(part)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("A red fox's den,  in SNOW!", "a-red-foxs-den-in-snow"),
        ("雪の中の狐、夜", "雪の中の狐-夜"),
        ("लोमड़ी बर्फ", "लोमड़ी-बर्फ"),
        ("e\u0301TÉ", "été"),
        ("🦊!?", "image"),
        ("one two " * 20, "one-two-" * 7 + "one"),
        ("ab " + "图" * 90, "ab-" + "图" * 19),
        ("ΑΒΓ/../x", "αβγ-x"),
    ],
)
def test_a_slug_keeps_every_scripts_letters(text: str, name: str) -> None:
    """Words are joined by dashes, lower-cased, cut at a word's border, or inside a word only where none ends."""
    assert slug(text) == name


def test_a_template_makes_folders_and_a_value_never_does() -> None:
    """ "/" in the template is a folder, in a value a sign like any other; braces double, numbers pad."""
    fields = {"row": "7", "slug": "fox", "Art Stil": "../a/b\\c", "a.b": "dot", "empty": ""}
    assert render_name("{Art Stil}/{row:03}-{slug}", fields) == "_a_b_c/007-fox"
    assert render_name("{{{a.b}}}-{slug:05}", fields) == "{dot}-fox"
    assert render_name("{empty}/{slug}", fields) == "image/fox"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{slgu}", "unknown field {slgu}"), ("{}", "unknown field {}"), ("{slug.__class__}", "unknown field"),
        ("{slug[0]}", "unknown field"), ("{slug!r}", "has a format"), ("{index:>30}", "has a format"),
        ("{index:099999}", "has a format"), ("{row:{index}}", "has a format"), ("{slug", "bad name template"),
        ("slug}", "bad name template"), ("/etc/{slug}", "stay inside"), ("../{slug}", "stay inside"),
        ("{slug}/", "stay inside"), ("", "stay inside"),
    ],
)  # fmt: skip
def test_a_bad_template_is_a_problem_before_anything_is_sent(template: str, words: str) -> None:
    """Unknown fields, formats, attribute access and ways out of the folder are all reported, none raises otherwise."""
    problems = check_template(template, FIELDS)
    assert any(words in problem.message for problem in problems)
    with pytest.raises(InputError):
        render_name(template, dict.fromkeys(FIELDS, "1"))


def test_an_unknown_field_shows_the_nearest_and_all_problems_come_at_once() -> None:
    """The hint leads to the right name; a suffix in the template is a warning that does not stop."""
    problems = check_template("{slgu}-{modle}", FIELDS)
    assert [problem.hint.split("?")[0] for problem in problems] == ["did you mean {slug}", "did you mean {model}"]
    assert [problem.severity for problem in check_template("{slug}.png", FIELDS)] == ["warning"]
    assert render_name("{slug}.png", {"slug": "a"}) == "a.png"


# --- targets --------------------------------------------------------------------------------------------------------


def test_output_is_read_as_a_user_means_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folder, file, standard output or here; a file refuses to replace by default, a folder renames."""
    monkeypatch.chdir(tmp_path)
    Path("dir.png").mkdir()
    Path("notes").write_text("x")
    for output, folder in ((None, "."), ("new", "new"), ("v1.5/", "v1.5"), ("dir.png", "dir.png")):
        target = plan_output(output, images=4)
        assert (target.folder, target.file, target.if_exists) == (Path(folder), None, "rename")
    target = plan_output("out/fox.JPEG", images=1)
    assert (target.file, target.if_exists) == (Path("out/fox.JPEG"), "error")
    assert target.place({}) == OutputPath(Path("out"), "fox", ".JPEG")
    assert [plan_output("fox.png", images=2).place({}, number=n, of=2).stem for n in (1, 2)] == ["fox-1", "fox-2"]
    assert plan_output("-", images=1).stdout
    for output in ("notes", "fox.svg", "v1.5", "", "a\0b", "-"):
        with pytest.raises(InputError):
            plan_output(output, images=2)
    with pytest.raises(InputError, match="unknown value"):
        plan_output(None, images=1, if_exists="never")  # type: ignore[arg-type]
    assert names(tmp_path) == ["dir.png", "notes"]


def test_several_images_of_one_name_are_numbered_unless_the_template_does_it(tmp_path: Path) -> None:
    """Each image of a request has its own place, from the user's template or the command's default."""
    fields = {"slug": "fox", "row": "3"}
    target = plan_output(str(tmp_path), images=2)
    assert target.place(fields) == OutputPath(tmp_path, "fox")
    assert target.place(fields, number=2, of=2, default="{row}-{slug}") == OutputPath(tmp_path, "3-fox-2")
    target = plan_output(str(tmp_path), images=2, template="{slug}/{index:02}")
    assert target.place(fields, number=2, of=2) == OutputPath(tmp_path / "fox", "02")


def test_prepare_makes_and_proves_folders_and_leaves_nothing_else(tmp_path: Path) -> None:
    """Before anything is paid the folders exist and were written to, those of the template too."""
    target = plan_output(f"{tmp_path}/a/b/", images=1, template="{model}/{slug}")
    target.prepare([target.place({"model": "4.5", "slug": "fox"})])
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["a", "a/b", "a/b/4.5"]
    plan_output("-", images=1).prepare()


def test_a_taken_name_is_found_before_anything_is_paid(tmp_path: Path) -> None:
    """With "error" every name that exists, a dangling link too, is reported together with the ways out."""
    (tmp_path / "fox-1.png").write_bytes(b"x")
    (tmp_path / "fox-3.png").symlink_to("nowhere")
    target = plan_output(f"{tmp_path}/fox.png", images=3)
    with pytest.raises(InputError) as caught:
        target.prepare()
    assert [Path(p.message.split()[0]).name for p in caught.value.problems] == ["fox-1.png", "fox-3.png"]
    assert "--if-exists" in caught.value.problems[0].hint
    plan_output(f"{tmp_path}/fox.png", images=3, if_exists="overwrite").prepare()
    with pytest.raises(InputError):
        plan_output(str(tmp_path), images=1, if_exists="error").prepare([OutputPath(tmp_path, "fox-1")])
    assert existing(OutputPath(tmp_path, "fox-3")) == tmp_path / "fox-3.png"
    assert existing(OutputPath(tmp_path, "fox-2")) is None


def test_a_folder_that_cannot_be_written_stops_before_paying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in the way, a system folder that takes no files, a full disk: exit 74, nothing billed, nothing left."""
    (tmp_path / "file").write_text("x")
    for output in (
        f"{tmp_path}/file/sub/",
        f"{tmp_path}/file/fox.png",
        "/proc/self/seedream/",
        f"{tmp_path}/{'x' * 300}/",
    ):
        with pytest.raises(FileError) as caught:
            plan_output(output, images=1).prepare()
        assert (caught.value.exit_code, caught.value.billed) == (74, "no")
    with pytest.raises(FileError, match="file is not a folder"):
        plan_output(f"{tmp_path}/file/sub/", images=1).prepare()
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(FileError, match="are free"):
        plan_output(f"{tmp_path}", images=1).prepare()
    assert names(tmp_path) == ["file"]


def test_a_link_inside_the_output_folder_does_not_lead_out_of_it(tmp_path: Path) -> None:
    """A template's folder that is a link to elsewhere is refused before paying, and nothing is made behind it."""
    out, victim = tmp_path / "out", tmp_path / "victim"
    out.mkdir()
    victim.mkdir()
    (out / "sub").symlink_to(victim)
    with pytest.raises(FileError, match="leads out"):
        plan_output(str(out), images=1).prepare([OutputPath(out / "sub" / "deep", "fox")])
    assert names(victim) == []


# --- parts ----------------------------------------------------------------------------------------------------------


def test_nothing_existing_is_ever_replaced(tmp_path: Path) -> None:
    """Names count up past files and dangling links alike, and the old content stays."""
    (tmp_path / "fox.png").write_bytes(b"old")
    (tmp_path / "fox-2.png").symlink_to("nowhere")
    published = save(tmp_path, "fox", PNG)
    assert published == image_file.Published(tmp_path / "fox-3.png", tmp_path / "fox.png")
    assert published.path.read_bytes() == PNG
    assert names(tmp_path) == ["fox-2.png", "fox-3.png", "fox.png"]
    assert (tmp_path / "fox.png").read_bytes() == b"old"
    assert not (tmp_path / "nowhere").exists()


def test_skip_error_and_overwrite_do_as_they_say(tmp_path: Path) -> None:
    """Skip drops no image that came, error raises as billed, overwrite replaces the name but never follows a link."""
    old = tmp_path / "fox.png"
    old.write_bytes(b"old")
    assert save(tmp_path, "fox", PNG, "skip") == image_file.Published(tmp_path / "fox-2.png", old)
    with pytest.raises(FileError, match=r"fox\.png exists already") as caught:
        save(tmp_path, "fox", PNG, "error")
    assert (caught.value.exit_code, caught.value.billed) == (8, "yes")
    assert old.read_bytes() == b"old"
    old.rename(tmp_path / "victim")
    old.symlink_to("victim")
    save(tmp_path, "fox", PNG, "overwrite")
    assert (old.is_symlink(), old.read_bytes()) == (False, PNG)
    assert (tmp_path / "victim").read_bytes() == b"old"
    assert names(tmp_path) == ["fox-2.png", "fox.png", "victim"]


def test_the_bytes_decide_the_suffix(tmp_path: Path) -> None:
    """A suffix that lies is corrected and reported; a name the user did not give is never replaced nor a failure."""
    assert save(tmp_path, "a", JPEG, suffix=".JPEG") == image_file.Published(tmp_path / "a.JPEG")
    assert save(tmp_path, "fox", JPEG, "error", ".png") == image_file.Published(
        tmp_path / "fox.jpg", retyped_from=tmp_path / "fox.png"
    )
    for rule in ("error", "overwrite", "skip"):
        published = save(tmp_path, "fox", JPEG, rule, ".png")
        assert published.renamed_from == tmp_path / "fox.jpg"
    assert names(tmp_path) == ["a.JPEG", "fox-2.jpg", "fox-3.jpg", "fox-4.jpg", "fox.jpg"]


@pytest.mark.parametrize("way", ["renameat2", "reserve"])
def test_file_systems_without_links_keep_every_image_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Where links are refused, an exclusive rename gives the name, or failing that a name reserved beforehand."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    if way == "reserve":
        monkeypatch.setattr(filesystem, "_rename_noreplace", lambda part, final: errno.EINVAL)
    for _ in range(3):
        save(tmp_path, "fox", PNG)
    assert names(tmp_path) == ["fox-2.png", "fox-3.png", "fox.png"]
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {PNG}


def test_two_processes_publishing_one_name_keep_all_images(tmp_path: Path) -> None:
    """Four processes save 25 different images each under one name: a hundred files, all different."""
    code = """
        import io, sys
        from pathlib import Path
        from seedream_cli.storage.image_file import open_part
        data, folder = bytes.fromhex(sys.argv[1]), Path(sys.argv[2])
        for number in range(25):
            with open_part(folder) as part:
                part.write(data + f"{sys.argv[3]} {number}".encode())
                part.publish(folder, "fox", part.finish(), "rename")
        """
    command = [sys.executable, "-c", textwrap.dedent(code), PNG.hex(), str(tmp_path)]
    running = [subprocess.Popen([*command, str(name)]) for name in range(4)]
    assert [process.wait(60) for process in running] == [0] * 4
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 100
    assert len(names(tmp_path)) == 100
    assert all(name.startswith("fox") for name in names(tmp_path))


@pytest.mark.skipif(os.name != "posix", reason="modes")
def test_a_part_is_private_until_it_is_finished(tmp_path: Path) -> None:
    """The part is 0600; the finished file has the mode that any new file of the user would have."""
    before = os.umask(0o027)
    try:
        with open_part(tmp_path) as part:
            part.write(PNG)
            assert part.path.stat().st_mode & 0o777 == 0o600
            published = part.publish(tmp_path, "fox", part.finish(), "rename")
    finally:
        os.umask(before)
    assert published.path.stat().st_mode & 0o777 == 0o640


def test_a_part_that_is_not_published_leaves_nothing(tmp_path: Path) -> None:
    """A cut download gives no file; the same part may be filled again from empty."""
    with open_part(tmp_path / "new") as part:
        part.write(JPEG[:-2])
        with pytest.raises(LinkError, match="before its end marker"):
            part.finish()
        part.reset()
        part.write(memoryview(PNG))
        assert part.finish() == inspect_bytes(PNG)
        assert part.size == len(PNG)
    assert names(tmp_path / "new") == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
def test_a_full_disk_after_payment_says_so(tmp_path: Path) -> None:
    """A write that the disk refuses is a billed file error that names `recover`, and no part stays behind."""
    done = run(
        """
        import resource, signal, sys
        from pathlib import Path
        from seedream_cli.errors import FileError
        from seedream_cli.storage.image_file import open_part
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            with open_part(Path(sys.argv[1])) as part:
                part.write(b"x" * 1500)
        except FileError as error:
            print(error.exit_code, error.billed, "recover" in error.hint, "too large" in error.message)
        """,
        tmp_path,
    )
    assert done.stdout == "8 yes True True\n", done.stderr
    assert names(tmp_path) == []


def test_leaving_while_a_thread_publishes_keeps_the_image(tmp_path: Path) -> None:
    """A task cancelled while its thread publishes waits for it: the image is there, and no error is made up."""
    published: list[image_file.Published] = []
    for number in range(20):
        with open_part(tmp_path) as part:
            part.write(PNG)
            facts = part.finish()
            inside = threading.Event()

            def publish(
                part: image_file.ImagePart = part, facts: ImageInfo = facts, inside: threading.Event = inside
            ) -> None:
                with part._turn:
                    inside.set()
                    published.append(part.publish(tmp_path, "fox", facts, "rename"))

            thread = threading.Thread(target=publish)
            thread.start()
            inside.wait(5)
        thread.join()
        assert len(published) == number + 1
    assert len(names(tmp_path)) == 20


@pytest.mark.skipif(sys.platform == "win32", reason="needs flock")
def test_sweep_removes_only_our_unlocked_parts(tmp_path: Path) -> None:
    """A living process's part, a link and the user's own files stay; a dead process's part goes at once."""
    dead, link, own = (tmp_path / f".seedream-{name}.part" for name in ("a" * 12, "c" * 12, "notes"))
    for path in (dead, own):
        path.write_bytes(b"x")
    link.symlink_to(own)
    with open_part(tmp_path) as part:
        assert filesystem.sweep_parts(tmp_path) == 1
        assert names(tmp_path) == sorted(path.name for path in (link, own, part.path))
    assert filesystem.sweep_parts(tmp_path / "missing") == 0


# --- base64 ---------------------------------------------------------------------------------------------------------


def decode_text(tmp_path: Path, text: str) -> bytes:
    with open_part(tmp_path) as part:
        write_base64(text, part)
        return part.path.read_bytes()


def decode(tmp_path: Path, text: str) -> bytes:
    path = tmp_path / "reply"
    path.write_text(f"xx{text}yy", encoding="ascii")
    with open_part(tmp_path) as part:
        write_blob(Base64Slice(path, 2, len(text)), part)
        return part.path.read_bytes()


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=400), st.integers(min_value=64, max_value=300), st.sampled_from(["\\n", "\\r\\n", ""]))
@example(b"\xff\xfb\xef" * 60, 64, "\\n")
def test_base64_is_decoded_however_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, window: int, ends: str
) -> None:
    """Escaped slashes, pluses and equals signs, line breaks, missing padding and a data URI, at every window."""
    plain = base64.b64encode(data).decode()
    lines = ends.join(plain[at : at + 76] for at in range(0, len(plain), 76))
    folder = tmp_path_factory.mktemp("blob")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_file, "_WINDOW", window)
        assert decode(folder, lines) == data
        assert decode(folder, plain.rstrip("=")) == data
        assert (
            decode_text(folder, json.loads(f'"{lines}"'))
            == decode_text(folder, "data:image/png;base64," + plain)
            == data
        )
        assert decode(folder, "data:image\\/png;base64," + lines.replace("/", "\\/")) == data
        assert decode(folder, lines.replace("/", "\\u002F").replace("+", "\\u002b").replace("=", "\\u003d")) == data


@pytest.mark.parametrize(
    "text",
    ["QUI=QUJD", "Q", "QUJD!", "QUJDé".encode("ascii", "xmlcharrefreplace").decode(), "QU\\\\JD", "=QUJ"],
)
def test_bad_base64_is_a_link_error(tmp_path: Path, text: str) -> None:
    """The url-safe alphabet, padding in the middle, a lone letter and foreign signs are refused, not guessed at."""
    with pytest.raises(LinkError, match="base64"):
        decode(tmp_path, text)
    with pytest.raises(LinkError, match="base64"):
        decode_text(tmp_path, text)


def test_a_kept_reply_that_is_gone_or_short_is_a_link_error(tmp_path: Path) -> None:
    """A Blob that its file does not hold is reported, never saved as a shorter image."""
    path = tmp_path / "reply"
    with open_part(tmp_path) as part:
        with pytest.raises(LinkError, match="cannot read"):
            write_blob(Base64Slice(path, 0, 8), part)
        path.write_bytes(b"QUJD")
        with pytest.raises(LinkError, match="stops before"):
            write_blob(Base64Slice(path, 0, 8), part)


def test_every_suffix_is_a_known_image() -> None:
    """Suffixes come from a closed list, and each is read back as its own format by `--output`."""
    assert set(SUFFIXES) == set(image_containers._CHECKS)
    assert all(plan_output(f"x{suffix}", images=1).file for suffix in SUFFIXES.values())
