"""`seedream edit` and its references, from end to end: what is read, checked, shown and sent, byte for byte."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from seedream_cli.request.image_request import ImageRef
from seedream_cli.request.reference_fit import Fit, fit_reference
from seedream_cli.request.references import read_reference
from tests.cli.test_generate import KEYS, LITE
from tests.support.command import CANARY, Command, Done, Inside
from tests.support.provider_server import Upstream, make_image, noise
from tests.support.raw_server import RawServer, answer

ODD_URL = "https://x.invalid/a%2Fb+c/é 图.png?X-Sig=a+b%2f~==&u=1#f".replace(" ", "%20")


def uri(raw: bytes, kind: str = "jpeg") -> str:
    """The data URI that an image must be sent as."""
    return f"data:image/{kind};base64,{base64.b64encode(raw).decode()}"


def put(seedream: Command, name: str, raw: bytes) -> bytes:
    """A file in the command's folder."""
    (seedream.folder / name).write_bytes(raw)
    return raw


def edit(seedream: Command, upstream: Upstream, *args: str, provider: str = "ark", **more: Any) -> Done:
    """One run of `edit` against an upstream."""
    env = {KEYS[provider]: CANARY, **more.pop("env", {})}
    return seedream("edit", *args, "-p", provider, "--base-url", upstream.url, env=env, hurried=True, **more)


def dry(seedream: Command, *args: str, **more: Any) -> Done:
    """One run of `edit` that sends nothing."""
    return seedream("edit", *args, "-p", "ark", "--dry-run", **more)


# --- what is sent ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", sorted(KEYS))
def test_references_reach_each_provider_in_its_own_form(seedream: Command, provider: str) -> None:
    """One reference as text or array, several as an array in the order of the command line; nothing else is added."""
    night, cat = put(seedream, "night.jpg", make_image(seed=1)), put(seedream, "cat", make_image("PNG", seed=2))
    with Upstream() as upstream:
        upstream._reply = upstream.acedata if provider == "acedata" else upstream.images
        assert edit(seedream, upstream, "x", "night.jpg", provider=provider).code == 0
        done = edit(seedream, upstream, "x", "cat", ODD_URL, "-i", "night.jpg", "--sync", provider=provider)
        assert done.code == 0, done.err
        bodies = [body for body in upstream.bodies if "model" in body]
    shared = {"model": LITE[provider], "prompt": "x", "size": "2K", "response_format": "url", "watermark": False}
    one: Any = [uri(night)] if provider in {"acedata", "cometapi"} else uri(night)
    task = {"async": True} if provider == "acedata" else {}
    assert bodies == [shared | {"image": one} | task, shared | {"image": [uri(cat, "png"), ODD_URL, uri(night)]}]


def test_every_kind_of_reference_is_sent_byte_for_byte(seedream: Command) -> None:
    """Files by their bytes and not their names, a data URI of any case, standard input, a pipe and a URL."""
    kinds = ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"]
    files = {f"{kind}.txt": put(seedream, f"{kind}.txt", make_image(kind)) for kind in kinds}
    files["cmyk"] = put(seedream, "cmyk", make_image(mode="CMYK"))
    files["deep"] = put(seedream, "deep", make_image("PNG", mode="I;16"))
    given, piped, typed = make_image(seed=3), make_image(seed=4), make_image("PNG", seed=5)
    reader, writer = os.pipe()
    os.write(writer, piped)
    os.close(writer)
    argument = "DATA:Image/PNG;Base64," + base64.b64encode(typed).decode()
    with Upstream() as upstream:
        args = [*files, "-", f"/dev/fd/{reader}", argument, ODD_URL]
        done = edit(seedream, upstream, "x", *args, stdin=given, pass_fds=[reader])
        os.close(reader)
        assert done.code == 0, done.err
        sent = upstream.bodies[0]["image"]
    named = [uri(raw, {"cmyk": "jpeg", "deep": "png"}.get(name, name[:-4].lower())) for name, raw in files.items()]
    assert sent == [*named, uri(given), uri(piped), uri(typed, "png"), ODD_URL]


def test_broken_references_are_told_one_by_one_and_nothing_is_sent(seedream: Command) -> None:
    """Every reference that cannot be used is named with its reason, all in one go, exit 2."""
    put(seedream, "text.png", b"not an image\n")
    put(seedream, "empty.jpg", b"")
    put(seedream, "cut.jpg", make_image()[:-40])
    put(seedream, "page.webp", b"<!DOCTYPE html><html>")
    put(seedream, "long.png", make_image("PNG", (20000, 100)))
    put(seedream, "tiny.png", make_image("PNG", (10, 10)))
    damaged = bytearray(make_image("PNG", (300, 300)))
    damaged[-30] ^= 1
    put(seedream, "damaged.png", bytes(damaged))
    (seedream.folder / "folder").mkdir()
    args = ["text.png", "empty.jpg", "cut.jpg", "page.webp", "long.png", "tiny.png", "damaged.png", "folder"]
    args += ["missing.png", "~nobody-at-all/x.png", "word " * 80, "ftp://x.invalid/a.png", "data:image/png,abc"]
    args += ["data:image/png;base64,@@@@", "https://me:secret@x.invalid/a.png", "", "-", "-"]
    with Upstream() as upstream:
        done = edit(seedream, upstream, "x", *args, "--json")
        assert (done.code, upstream.server.requests) == (2, [])
    problems = done.json["error"]["problems"]
    assert {problem["field"] for problem in problems} == {"image"}
    told = "\n".join(problem["message"] for problem in problems)
    for words in (
        "text.png cannot be used", "empty.jpg cannot be used", "cut.jpg cannot be used: the JPEG stops", "HTML",
        "long.png is too long (20000x100)", "tiny.png is too small (10x10)", "damaged.png cannot be used",
        "folder is a folder", "missing.png: no such file", "nobody-at-all", "name of a file", "ftp://",
        "data URI is not", "no valid base64", "user name or password", "standard input can be read only once",
    ):  # fmt: skip
        assert words in told, (words, told)
    assert "secret" not in done.out + done.err
    assert "the prompt comes first" in done.err, "a prompt in the place of an image is guessed"


def heic() -> bytes:
    """The boxes of a HEIC image, with nothing in them."""

    def box(kind: bytes, body: bytes) -> bytes:
        return (len(body) + 8).to_bytes(4, "big") + kind + body

    size = box(b"ispe", bytes(4) + (640).to_bytes(4, "big") + (480).to_bytes(4, "big"))
    meta = box(b"meta", bytes(4) + box(b"iprp", box(b"ipco", size)))
    return box(b"ftyp", b"heic" + bytes(4) + b"mif1heic") + meta + box(b"mdat", b"pixels")


def test_heic_goes_where_it_is_taken(seedream: Command) -> None:
    """Ark takes it as it is; CometAPI does not list it, and it cannot be converted here, which is said."""
    raw = put(seedream, "a.heic", heic())
    with Upstream() as upstream:
        assert edit(seedream, upstream, "x", "a.heic").code == 0
        assert upstream.bodies[0]["image"] == uri(raw, "heic")
        done = edit(seedream, upstream, "x", "a.heic", provider="cometapi")
        assert (done.code, "a.heic is heic; jpeg, png" in done.err) == (2, True)
        done = edit(seedream, upstream, "x", "a.heic", "--fit-images", provider="cometapi")
        assert (done.code, "a.heic cannot be decoded" in done.err, len(upstream.posts)) == (2, True, 1)


def test_an_animated_image_is_sent_with_a_warning(inside: Inside) -> None:
    """An animated GIF and PNG go as they are; the user hears that models look at one frame."""
    frames = [Image.new("RGB", (64, 48), color) for color in ("red", "green")]
    for name, kind in (("moving.gif", "GIF"), ("moving.png", "PNG")):
        file = io.BytesIO()
        frames[0].save(file, kind, save_all=True, append_images=frames[1:])
        put(inside, name, file.getvalue())
    done = dry(inside, "x", "moving.gif", "moving.png")
    assert (done.code, done.err.count("is animated")) == (0, 2)


@pytest.mark.parametrize(
    ("model", "count", "more", "words"),
    [
        ("5.0-lite", 14, [], ""),
        ("5.0-lite", 15, [], "15 reference images are too many"),
        ("5.0-pro", 10, [], ""),
        ("5.0-pro", 11, [], "11 reference images are too many"),
        ("4.0", 10, ["--sequence", "5"], ""),
        ("4.0", 10, ["--sequence", "6"], "10 references and 6 images are more than 15 together"),
        ("3.0-t2i", 1, ["--size", "1024x1024"], "no reference images"),
        ("seededit", 2, [], "2 reference images are too many"),
    ],
)
def test_references_are_counted_by_the_models_row(
    inside: Inside, model: str, count: int, more: list[str], words: str
) -> None:
    """As many as the model takes, and with a sequence at most 15 with the results; `--force` sends what is too much."""
    put(inside, "a.jpg", make_image())
    done = dry(inside, "x", *["a.jpg"] * count, "-m", model, *more)
    assert done.code == (2 if words else 0), done.err
    assert words in done.err
    if words:
        assert dry(inside, "x", *["a.jpg"] * count, "-m", model, *more, "--force").code == 0


def test_a_large_reference_is_warned_of_and_too_large_a_one_refused(seedream: Command) -> None:
    """11 MB goes, with a warning where pages disagree, or is refused; 31 MB is not; `--fit-images` mends it."""
    raw = put(seedream, "eleven.png", noise((1920, 1920)))
    put(seedream, "thirty.png", noise((3300, 3200)))
    with Upstream() as upstream:
        done = edit(seedream, upstream, "x", "eleven.png", "--json", provider="byteplus")
        assert done.code == 0
        assert upstream.bodies[0]["image"] == uri(raw, "png")
        assert [warning["code"] for warning in done.json["warnings"]] == ["reference_large", "size_differs"]
        said = edit(seedream, upstream, "x", "eleven.png").err.splitlines()
        assert [line for line in said if "warning" in line] == ["warning: 2K was asked for, and 64x48 came"]
        done = edit(seedream, upstream, "x", "thirty.png")
        assert done.code == 2
        assert "31.7 MB, over the 30 MB taken" in done.err
        assert "--fit-images" in done.err
        assert edit(seedream, upstream, "x", "eleven.png", provider="acedata").code == 2
        done = edit(seedream, upstream, "x", "thirty.png", "eleven.png", "--fit-images", provider="byteplus")
        assert done.code == 0, done.err
        sent = upstream.bodies[2]["image"]
    assert all(len(base64.b64decode(text.partition(",")[2])) <= 10_000_000 for text in sent)
    assert done.err.count("is sent smaller") == 2
    assert "3300x3200 png, 31.7 MB became" in done.err
    assert (seedream.folder / "eleven.png").read_bytes() == raw, "the user's file is not touched"


def test_fitting_turns_an_image_as_its_exif_says(seedream: Command) -> None:
    """A rotated photograph of too many pixels is shrunk upright; with --keep-metadata one that fits is untouched."""
    large = Image.new("RGB", (7200, 5400), "white")
    large.paste((200, 0, 0), (0, 0, 7200, 2700))
    exif = Image.Exif()
    exif[274] = 6
    file = io.BytesIO()
    large.save(file, "JPEG", exif=exif)
    put(seedream, "large.jpg", file.getvalue())
    small = put(seedream, "small.jpg", make_image(exif=exif))
    with Upstream() as upstream:
        done = edit(seedream, upstream, "x", "large.jpg", "small.jpg", "--fit-images", "--keep-metadata")
        assert done.code == 0, done.err
        shrunk, untouched = upstream.bodies[0]["image"]
    assert "is sent smaller: 7200x5400 jpeg" in done.err
    assert untouched == uri(small)
    with Image.open(io.BytesIO(base64.b64decode(shrunk.partition(",")[2]))) as got:
        assert got.height > got.width
        assert 30_000_000 < got.width * got.height <= 36_000_000
        assert 274 not in got.getexif()
        left, right = got.getpixel((50, got.height // 2)), got.getpixel((got.width - 50, got.height // 2))
    assert (left, right) == ((255, 255, 255), (200, 0, 0)), "what was on top is at the right"


def _rgb(value: Any) -> tuple[int, ...]:
    return tuple(value[:3])


@pytest.mark.parametrize(
    ("raw", "mode", "kind", "pixel"),
    [
        (make_image("TIFF", mode="CMYK"), "RGB", "jpeg", (0, 90, 160)),
        (make_image("GIF"), "RGB", "jpeg", (0, 90, 160)),
        (make_image("WEBP", mode="RGBA", lossless=True), "RGB", "jpeg", (0, 90, 160)),
        (make_image("BMP", mode="1"), "RGB", "jpeg", None),
        (make_image("TIFF", mode="LA"), "RGB", "jpeg", None),
    ],
)
def test_converting_keeps_what_is_seen(tmp_path: Path, raw: bytes, mode: str, kind: str, pixel: Any) -> None:
    """An image of a kind that is not taken becomes a JPEG of the same colours."""
    got = _converted(tmp_path, raw)
    assert (got.mode, (got.format or "").lower()) == (mode, kind)
    if pixel:
        assert all(abs(a - b) < 6 for a, b in zip(_rgb(got.getpixel((5, 5))), pixel, strict=True))


def _converted(tmp_path: Path, raw: bytes) -> Image.Image:
    path = tmp_path / "image"
    path.write_bytes(raw)
    ref = read_reference(str(path))
    assert isinstance(ref, ImageRef)
    made, done = fit_reference(ref, Fit(10_000_000, 36_000_000, ("heic",)))
    assert "is sent smaller" in done
    image = Image.open(io.BytesIO(made.content))
    image.load()
    return image


def test_converting_keeps_depth_transparency_and_colour_profile(tmp_path: Path) -> None:
    """16 bits are scaled and not cut off, a transparent pixel stays one, and a profile goes with its pixels."""
    file = io.BytesIO()
    Image.new("I;16", (64, 48), 30000).save(file, "PNG")
    assert abs(_rgb(_converted(tmp_path, file.getvalue()).getpixel((5, 5)))[0] - 117) < 3
    file = io.BytesIO()
    Image.new("RGBA", (64, 48), (10, 20, 30, 40)).save(file, "WEBP", lossless=True)
    got = _converted(tmp_path, file.getvalue())
    assert (got.format, got.getpixel((5, 5))) == ("PNG", (10, 20, 30, 40))
    got = _converted(tmp_path, make_image("TIFF", icc_profile=b"profile of no meaning"))
    assert got.info["icc_profile"] == b"profile of no meaning"


def test_references_are_shown_by_name_hash_and_size_and_never_in_base64(seedream: Command) -> None:
    """Not in a dry run, the JSON, the explanation, the curl command, nor the wire log, which masks a link's query."""
    import hashlib

    raw = put(seedream, "a.png", noise())
    needle = base64.b64encode(raw).decode()[3000:3060]
    with Upstream() as upstream:
        ways: list[list[str]] = [["--dry-run"], ["--dry-run", "--json"], ["--explain"], ["--curl"], ["-vv", "--json"]]
        ended = [edit(seedream, upstream, "x", "a.png", *way) for way in ways]
        for done in ended:
            assert done.code == 0, done.err
            assert needle not in done.out + done.err
        shown = {"file": "a.png", "sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
        assert json.loads(ended[0].out)["image"] == shown
        assert ended[1].json["request"]["image"] == shown
        assert ended[4].json["request"]["image"] == shown
        assert "X-Tos-Signature=ab" not in ended[4].err
        shell = {**os.environ, "ARK_API_KEY": CANARY}
        subprocess.run(
            ["sh", "-c", ended[3].out], env=shell, check=True, capture_output=True, cwd=seedream.folder, timeout=30
        )
        assert upstream.bodies[1] == upstream.bodies[0], "the curl command sends the same image"
        done = edit(seedream, upstream, "x", "-", "--dry-run", stdin=raw)
        assert json.loads(done.out)["image"] == {**shown, "file": "standard input"}


class Sink(RawServer):
    """A server that counts the bytes of a request and keeps none of them."""

    received = 0

    def _receive_body(self, connection: socket.socket, head: bytes) -> bytes:
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        left, room = length, memoryview(bytearray(1 << 20))
        while left:
            left -= connection.recv_into(room, min(left, len(room)))
        self.received = length
        return b""


MEASURE = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def test_fourteen_large_references_need_little_memory(seedream: Command) -> None:
    """140 MB of references, 187 MB in base64, are encoded while they are sent: the process stays below 150 MB."""
    raw = noise((1820, 1820))
    put(seedream, "0.png", raw)
    names = [f"{number}.png" for number in range(14)]
    for name in names[1:]:
        (seedream.folder / name).hardlink_to(seedream.folder / "0.png")
    with Upstream() as upstream, Sink(answer(json.dumps({"data": [{"url": upstream.link()}]}).encode())) as sink:
        args = ["edit", "x", *names, "-p", "ark", "--base-url", sink.url]
        # Measured by a small process: a child starts with the peak of the one that it was forked from.
        command = [sys.executable, "-c", MEASURE, sys.executable, "-m", "seedream_cli", *args]
        env = {**seedream.env, "ARK_API_KEY": CANARY}
        done = subprocess.run(command, env=env, cwd=seedream.folder, capture_output=True, check=True, timeout=60)
    assert sink.received > 14 * len(raw) * 4 / 3
    peak = int(done.stdout.split()[-1]) * (1 if sys.platform == "darwin" else 1024)
    assert peak < 150_000_000 < 2.5 * sink.received, f"{peak / 1e6:.0f} MB"


# --- edit -----------------------------------------------------------------------------------------------------------


def test_each_sends_one_request_an_image(seedream: Command) -> None:
    """`--each` takes the images one by one, from arguments or `-i`, and names the results after them."""
    one, two, style = (
        put(seedream, f"{name}.jpg", make_image(seed=n)) for n, name in enumerate(("one", "two", "style"))
    )
    with Upstream() as upstream:
        done = edit(seedream, upstream, "make it night", "one.jpg", "two.jpg", "-i", "style.jpg", "--each", "--json")
        assert done.code == 0, done.err
        sent = sorted(upstream.bodies, key=lambda body: body["image"][0] != uri(one))
        assert [body["image"] for body in sent] == [[uri(one), uri(style)], [uri(two), uri(style)]]
        names = sorted(Path(image["path"]).name for image in done.json["images"])
        assert names == ["one-make-it-night.jpg", "two-make-it-night.jpg"]
        assert len(done.json["requests"]) == 2
        done = edit(seedream, upstream, "x", "-i", "one.jpg", "-i", "two.jpg", "--each", "-n", "2", "-q", "-o", "out/")
        assert (done.code, len(upstream.posts), len(done.paths)) == (0, 6, 4), done.err
        put(seedream, "shot.txt", b'+++\nimage = ["one.jpg", "two.jpg"]\neach = true\n+++\nnight\n')
        done = edit(seedream, upstream, "-f", "shot.txt", "-o", "file/")
        assert (done.code, len(upstream.posts), len(done.paths)) == (0, 8, 2), done.err
        done = edit(seedream, upstream, "-f", "shot.txt", "two.jpg", "--no-download")
        assert (done.code, len(upstream.posts)) == (0, 9), "images that are named go one by one, with those of -i"
        done = edit(seedream, upstream, "night", "one.jpg", "missing.jpg", "--each")
        assert (done.code, len(upstream.posts)) == (2, 9), "all are checked before the first is sent"
        done = edit(seedream, upstream, "x", "one.jpg", "two.jpg", "-i", "-", "--each", stdin=style)
        assert (done.code, len(upstream.posts)) == (0, 11), "standard input serves both"
        assert [body["image"][1] for body in upstream.bodies[9:]] == [uri(style)] * 2


def test_an_edit_without_an_image_is_refused(inside: Inside) -> None:
    """`edit` with a prompt alone is exit 2 and points at `generate`."""
    done = dry(inside, "make it night")
    assert done.code == 2
    assert "no image to edit" in done.err
    assert "seedream generate" in done.err


LAYERS = [
    {"size": "912x1168", "output_format": "jpeg", "z_index": 0},
    {
        "size": "861×1137",
        "output_format": "png",
        "z_index": 1,
        "name": "人物",
        "description": "a [bold] person",
        "bounding_box": {"absolute": [27, 0, 888, 1137], "normalized": [30, 0, 974, 973]},
    },
]


def test_layers_are_saved_with_their_places(seedream: Command) -> None:
    """The base and each layer become files; the JSON tells depth, name and boxes; no prompt is needed."""
    raw = put(seedream, "poster.png", make_image("PNG", (640, 640)))
    with Upstream() as upstream:
        upstream._reply = lambda body, number: {
            "data": [{**item, "url": upstream.link(index)} for index, item in enumerate(LAYERS)]
        }
        done = edit(seedream, upstream, "--layers", "poster.png", "-m", "5.0-pro", "--json", "-o", "out/")
        assert done.code == 0, done.err
        [body] = upstream.bodies
    assert body == {
        "model": "doubao-seedream-5-0-pro-260628", "image": uri(raw, "png"), "size": "auto", "response_format": "url",
        "watermark": False, "layer_decomposition": True,
    }  # fmt: skip
    base, person = done.json["images"]
    assert len(list((seedream.folder / "out").iterdir())) == 2
    assert Path(base["path"]).name.startswith("poster-")
    assert base["layer"]["z_index"] == 0
    assert (person["layer"]["z_index"], person["layer"]["name"]) == (1, "人物")
    assert person["layer"]["bounding_box"]["absolute"] == [27, 0, 888, 1137]
    assert person["layer"]["bounding_box"]["normalized"] == [30, 0, 974, 973]
    done = seedream("edit", "poster.png", "--layers", "-m", "pro", "-p", "sandbox", "--json", "-o", "sandbox/")
    assert done.code == 0, done.err
    assert [image["layer"]["z_index"] for image in done.json["images"]] == [0, 1, 2]


def test_layers_at_acedata_send_the_image_alone(seedream: Command) -> None:
    """There a reference is an array, but an image to split is one string."""
    raw = put(seedream, "poster.png", make_image("PNG", (640, 640)))
    with Upstream() as upstream:
        upstream._reply = upstream.acedata
        done = edit(seedream, upstream, "--layers", "poster.png", "-m", "pro", provider="acedata")
        assert done.code == 0, done.err
        assert upstream.bodies[0]["image"] == uri(raw, "png")


def test_a_transparent_background_asks_for_png(seedream: Command) -> None:
    """`--background transparent` sends the PNG and asks for PNG, at once at the sandbox, which checks the same."""
    file = io.BytesIO()
    Image.new("RGBA", (700, 700), (9, 9, 9, 0)).save(file, "PNG")
    raw = put(seedream, "logo.png", file.getvalue())
    args = ["x", "logo.png", "-m", "flash", "--background", "transparent"]
    with Upstream() as upstream:
        done = edit(seedream, upstream, *args)
        assert done.code == 0, done.err
        assert upstream.bodies == [
            {
                "model": "doubao-seedream-5-0-flash-260915", "prompt": "x", "image": uri(raw, "png"), "size": "2K",
                "response_format": "url", "watermark": False, "output_format": "png", "background": "transparent",
            }
        ]  # fmt: skip
    done = seedream("edit", *args, "-p", "sandbox")
    assert done.code == 0, done.err
    assert done.paths[0].suffix == ".png"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["a.png", "b.jpg", "--layers", "-m", "pro", "--prompt-file", "p"], "exactly one image"),
        (["x", "small.png", "--layers", "-m", "pro"], "small.png is too small"),
        (["x", "c.webp", "--layers", "-m", "pro"], "c.webp is webp; png, jpeg are taken"),
        (["x", "a.png", "--layers", "-m", "4.5"], "refuses --layers"),
        (["x", "a.png", "--layers", "-m", "pro", "-s", "1024x1024"], "1024x1024"),
        (["x", "a.png", "--layers", "--background", "transparent", "-m", "pro"], "cannot be combined"),
        (["x", "b.jpg", "--background", "transparent", "-m", "pro"], "needs a PNG"),
        (["x", "a.png", "b.jpg", "--background", "transparent", "-m", "pro"], "exactly one reference"),
        (["x", "a.png", "--background", "transparent", "--format", "jpeg", "-m", "pro"], "--format png"),
        (["x", "a.png", "-m", "seededit", "-s", "2K"], "adaptive"),
        (["x", "tall.png", "-m", "seededit"], "tall.png is too long"),
    ],
)
def test_rules_between_options_are_held(inside: Inside, args: list[str], words: str) -> None:
    """What the provider would refuse is refused here, with the reason."""
    put(inside, "p", b"a prompt")
    put(inside, "a.png", make_image("PNG", (640, 640)))
    put(inside, "b.jpg", make_image(size=(640, 640)))
    put(inside, "c.webp", make_image("WEBP", (640, 640)))
    put(inside, "small.png", make_image("PNG", (500, 500)))
    put(inside, "tall.png", make_image("PNG", (100, 400)))
    done = dry(inside, *args)
    assert done.code == 2, done.out
    assert words in done.err


def test_seededit_edits_one_image_adaptively(seedream: Command) -> None:
    """One image, size `adaptive`, its own guidance and seed; the default guidance is told and not sent."""
    raw = put(seedream, "a.jpg", make_image(size=(640, 480)))
    with Upstream() as upstream:
        assert edit(seedream, upstream, "x", "a.jpg", "-m", "seededit").code == 0
        done = edit(seedream, upstream, "x", "a.jpg", "-m", "seededit", "--guidance-scale", "7.5", "--seed", "0")
        assert done.code == 0, done.err
        shared = {
            "model": "doubao-seededit-3-0-i2i-250628", "prompt": "x", "image": uri(raw), "size": "adaptive",
            "response_format": "url", "watermark": False,
        }  # fmt: skip
        assert upstream.bodies == [shared, shared | {"guidance_scale": 7.5, "seed": 0}]
    assert "default 5.5" in " ".join(dry(seedream, "x", "a.jpg", "-m", "seededit", "--explain").out.split())
    done = seedream("generate", "x", "-m", "seededit", "-p", "ark", "--dry-run")
    assert (done.code, "needs a reference image" in done.err) == (2, True)


# --- what becomes of every option -----------------------------------------------------------------------------------

OPTIONS = {
    "seed": ["--seed", "1"],
    "guidance-scale": ["--guidance-scale", "2"],
    "sequence": ["--sequence", "2"],
    "format": ["--format", "png"],
    "optimize-prompt": ["--optimize-prompt", "fast"],
    "web-search": ["--web-search"],
    "background": ["--background", "opaque"],
    "stream": ["--stream"],
    "async": ["--async"],
    "callback-url": ["--callback-url", "https://x.invalid/"],
}
SENT = {
    ("5.0-lite", "ark"): {"sequence", "format", "web-search", "stream", "seed"},
    ("5.0-pro", "byteplus"): {"format", "optimize-prompt", "background", "seed"},
    ("4.5", "ope"): {"sequence", "stream", "seed", "guidance-scale"},
    ("4.0", "acedata"): {"sequence", "optimize-prompt", "stream", "async", "callback-url"},
    ("3.0-t2i", "cometapi"): {"seed", "guidance-scale"},
}
ESSENTIAL = {"sequence", "callback-url"}


@pytest.mark.parametrize(("model", "provider"), SENT)
def test_explain_and_strict_tell_the_fate_of_every_option(inside: Inside, model: str, provider: str) -> None:
    """What is not sent is refused by `--strict`, and explained with a reason, a source and its date."""

    def run(*args: str) -> tuple[int, str, str]:
        done = inside("generate", "x", "-p", provider, "-m", model, *args, env={"COLUMNS": "40"})
        return done.code, done.out, " ".join(done.err.split())

    for option, args in OPTIONS.items():
        taken = option in SENT[model, provider]
        code, _, told = run(*args, "--strict", "--dry-run")
        assert code == 0 or not taken or "not confirmed" in told, (option, told)
        assert taken or (code == 2 and args[0] in told), (option, told)
        code, out, told = run(*args, "--explain")
        if option in ESSENTIAL and not taken:
            assert (code, args[0] in told) == (2, True), (option, told)
            continue
        assert code == 0, (option, told)
        row = next(line for line in out.splitlines() if line.startswith(f"{option} "))
        assert ("not sent" in row) != taken, (option, row)
        assert f"from {args[0]}" in row or not taken, (option, row)
        assert taken or "[" in row, (option, row)
        assert taken or "20" in row.rpartition("[")[2] or "the edition of" in row, (option, row)
