"""Prompt files from end to end: their options, variables, and mistakes with file and line."""

from __future__ import annotations

import json
from typing import Any

import pytest

from seedream_cli.config.options import by_name
from seedream_cli.config.prompt_file import fill, split_header
from tests.support.command import CANARY, Command, Done, Inside
from tests.support.provider_server import Upstream, make_image


def dry(seedream: Command, *args: str, provider: str = "ark", **more: Any) -> Done:
    """One run that sends nothing."""
    return seedream("generate", *args, *(["-p", provider] if provider else []), "--dry-run", **more)


def write(seedream: Command, name: str, text: str | bytes) -> str:
    """A prompt file in the command's folder."""
    (seedream.folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return name


HEADER = """\
+++
# a comment
model = "4.5"
size = "4K"
aspect = "16:9"
sequence = 3
watermark = true
name = "shot-{index}"
provider = "byteplus"
seed = 7
image = ["https://x.invalid/a.png"]
force = true
extra = {user = "me", depth = {deep = [1, 2.5, true]}}
[var]
animal = "fox"
number = 4
+++
"""
BODY = {
    "model": "seedream-4-5-251128", "prompt": "a fox, 4 times\n\nin {snow", "image": "https://x.invalid/a.png",
    "size": "5504x3040", "response_format": "url", "watermark": True, "seed": 7, "user": "me",
    "sequential_image_generation": "auto", "sequential_image_generation_options": {"max_images": 3},
    "depth": {"deep": [1, 2.5, True]},
}  # fmt: skip


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_header_holds_any_option(seedream: Command, newline: str, mark: str) -> None:
    """Text, numbers, switches, lists and tables become the options they name, whatever the line ends."""
    text = mark + HEADER + "\n\na {animal}, {number} times\n\nin {snow\n\n"
    write(seedream, "shot.txt", text.replace("\n", newline))
    done = dry(seedream, "-f", "shot.txt", "--json", provider="")
    assert done.code == 0, done.err
    body = done.json["request"]
    assert body | {"prompt": body["prompt"].replace("\r\n", "\n")} == BODY
    assert "shot-1" in done.out
    through_stdin = dry(seedream, "-", "--json", provider="", stdin=text.replace("\n", newline).encode())
    assert through_stdin.json["request"] == body


def test_the_command_line_wins_over_the_file_over_the_environment(inside: Inside) -> None:
    """Each option from its nearest place, and `--explain` names that place, with the line in the file."""
    write(inside, "shot.txt", '+++\nsize = "4K"\nwatermark = false\nno_web_search = true\n+++\na fox')
    env = {"SEEDREAM_SIZE": "3K", "SEEDREAM_WATERMARK": "1", "SEEDREAM_ASPECT": "1:1", "COLUMNS": "40"}
    body = json.loads(dry(inside, "-f", "shot.txt", env=env).out)
    assert (body["size"], body["watermark"]) == ("4096x4096", False)
    body = json.loads(dry(inside, "-f", "shot.txt", "-s", "3K", "--watermark", env=env).out)
    assert (body["size"], body["watermark"]) == ("3072x3072", True)
    body = json.loads(dry(inside, "x", env=env).out)
    assert (body["size"], body["watermark"]) == ("3072x3072", True)
    explained = " ".join(inside("generate", "-f", "shot.txt", "-p", "ark", "--explain", env=env).out.split())
    assert "size 4096x4096 size from shot.txt:2" in explained
    assert "watermark off watermark from shot.txt:3" in explained


def test_several_files_are_several_jobs(seedream: Command) -> None:
    """`-f` twice sends both with their own options, in one run; an error in one stops all of them."""
    write(seedream, "a.txt", '+++\nsize = "4K"\n+++\nfirst')
    write(seedream, "b.txt", "second {not a variable} {x}")
    with Upstream() as upstream:
        args = ["generate", "-f", "a.txt", "-f", "b.txt", "-p", "ark", "--base-url", upstream.url]
        done = seedream(*args, "--json", env={"ARK_API_KEY": CANARY})
        assert done.code == 0, done.err
        sent = sorted((body["prompt"], body["size"]) for body in upstream.bodies)
        assert sent == [("first", "4K"), ("second {not a variable} {x}", "2K")]
        assert len(done.json["requests"]) == 2
        names = sorted(path.name for path in seedream.folder.glob("*.jpg"))
        assert names == ["first.jpg", "second-not-a-variable-x.jpg"]
        write(seedream, "c.txt", '+++\nsize = "5K"\n+++\nthird')
        done = seedream(*args, "-f", "c.txt", env={"ARK_API_KEY": CANARY})
        assert (done.code, len(upstream.posts)) == (2, 2)
        assert "c.txt:2" in done.err
        write(seedream, "d.txt", "+++\ndry-run = true\n+++\nfourth")
        assert (seedream(*args, "-f", "d.txt", env={"ARK_API_KEY": CANARY}).code, len(upstream.posts)) == (0, 2)
        assert seedream("generate", "-f", "-", "-f", "-", "-p", "ark", "--dry-run").code == 2


def test_variables_fill_names_and_doubled_braces_are_braces(inside: Inside) -> None:
    """`--var` wins over the file's own; values are never read again; braces without a name stay."""
    write(
        inside, "t.txt", '+++\nvar = ["who=a fox", "how=red"]\n+++\n{how} {who} {{who}} {a b} {} {1} }} { {who.x_y-z}'
    )
    done = dry(inside, "-f", "t.txt", "--var", "who={how}=1", "--var", "who.x_y-z=")
    assert done.code == 0, done.err
    assert json.loads(done.out)["prompt"] == "red {how}=1 {who} {a b} {} {1} } { "
    assert json.loads(dry(inside, "a {who}").out)["prompt"] == "a {who}", "nothing is filled where nothing was asked"
    assert json.loads(dry(inside, "a {who} {{}}", "--var", "who=fox").out)["prompt"] == "a fox {}"


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ('+++\nsiez = "2K"\n+++\nx', "f.txt:2", ["unknown option siez", "did you mean size?"]),
        ('+++\n\n# c\nsize = "2K\n+++\nx', "f.txt:4", ["no TOML"]),
        ("+++\nsize\n+++\nx", "f.txt:2", ["no TOML"]),
        ('+++\nseed = 1\nseed = 2\n+++\nx', "f.txt:3", ["no TOML"]),
        ('+++\nsize = "2K"\nx', "f.txt:1", ["never ends"]),
        ('+++\nseed = 1\nsize = "5K"\n+++\nx', "f.txt:3", ["5K"]),
        ("+++\nseed = 1.5\n+++\nx", "f.txt:2", ["1.5", "whole number"]),
        ("+++\nseed = true\n+++\nx", "f.txt:2", ["seed takes text or a number"]),
        ('+++\nwatermark = "perhaps"\n+++\nx', "f.txt:2", ["'perhaps' is neither yes nor no"]),
        ("+++\nwatermark = [1]\n+++\nx", "f.txt:2", ["watermark takes true or false"]),
        ("+++\nsize = [1]\n+++\nx", "f.txt:2", ["size takes text or a number"]),
        ("+++\nverbose = 2\n+++\nx", "f.txt:2", ["cannot stand in a prompt file"]),
        ('+++\nprompt-file = "g.txt"\n+++\nx', "f.txt:2", ["cannot stand in a prompt file"]),
        ('+++\nvar = "who"\n+++\nx', "f.txt:2", ["the variable who has no text"]),
        ('+++\nseed = 1\n[var]\nwho = ["a"]\n+++\nx', "f.txt:3", ["the variable who has no text"]),
        ("+++\nseed = 1\n+++\n\n\nline six\n{who} is", "f.txt:7", ["no value for {who}", "--var who="]),
        ('+++\n[var]\nanimal = "fox"\n+++\na {animl}', "f.txt:5", ["no value for {animl}", "did you mean {animal}?"]),
        ('+++\nimage = "no.png"\n+++\nx', "f.txt:2", ["cannot read no.png"]),
        ('+++\nimage = "a\\u0000b"\n+++\nx', "f.txt:2", ["cannot be the name of a file"]),
        ('+++\nextra = {stream = true}\n+++\nx', "f.txt:2", ["--stream"]),
        ("+++\nextra = {x = nan}\n+++\nx", "f.txt:2", ["no JSON"]),
        ('+++\nmodel = "5.0-pro"\n+++\nx', "f.txt:2", ["ope does not serve", "5.0 Pro"]),
        ("+++\nseed = 1\n+++\n \n", "f.txt", ["the prompt is empty"]),
        ("", "f.txt", ["the prompt is empty"]),
        (b"caf\xc3\xa9\n\n\xff", "f.txt:3", ["not UTF-8"]),
        (b"a\0b", "f.txt", ["zero bytes"]),
        (b"x" * (1 << 20) + b"x", "f.txt", ["too long"]),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_file_and_line(
    inside: Inside, text: str | bytes, place: str, words: list[str]
) -> None:
    """Exit 2, the place, and what to do; nothing is sent."""
    write(inside, "f.txt", text)
    done = dry(inside, "-f", "f.txt", provider="ope")
    assert done.code == 2, (done.out, done.err)
    assert done.err.startswith((f"error: {place}:", f"error: {place}, ")), done.err
    for word in words:
        assert word in done.err
    assert done.err.count("error:") == 1, done.err
    assert sorted(path.name for path in inside.folder.iterdir()) == ["f.txt"]


def test_files_that_cannot_be_read_are_told(inside: Inside) -> None:
    """A missing file, a folder and a stranger's home are exit 2; so is a prompt given twice."""
    (inside.folder / "folder").mkdir()
    for name in ("missing.txt", "folder", "~nobody-at-all/x"):
        done = dry(inside, "-f", name)
        assert (done.code, f"cannot read {name}" in done.err) == (2, True), done.err
    write(inside, "a.txt", "x")
    assert "given twice" in dry(inside, "x", "-f", "a.txt").err
    assert "NAME=VALUE" in dry(inside, "x", "--var", "who").err


def test_all_mistakes_are_told_at_once(inside: Inside) -> None:
    """Every file's every problem in one go."""
    write(inside, "a.txt", '+++\nsiez = "2K"\nseed = "x"\n+++\n{one} {two}')
    write(inside, "b.txt", "+++\n")
    done = dry(inside, "-f", "a.txt", "-f", "b.txt", "-f", "c.txt", "--size", "9K")
    assert done.code == 2
    for words in ("a.txt:2", "a.txt:3", "{one}", "{two}", "b.txt:1", "cannot read c.txt", "--size"):
        assert words in done.err, done.err


def test_options_of_edit_stand_in_a_file_too(inside: Inside) -> None:
    """Layers and references from a header, and an image as the only argument."""
    (inside.folder / "a.png").write_bytes(make_image("PNG", (640, 640)))
    write(inside, "l.txt", '+++\nmodel = "5.0-pro"\nlayers = true\nimage = "a.png"\n+++\n')
    done = inside("edit", "-f", "l.txt", "-p", "ark", "--dry-run")
    assert done.code == 0, done.err
    assert json.loads(done.out)["layer_decomposition"] is True
    write(inside, "p.txt", "make it night\n")
    done = inside("edit", "a.png", "-f", "p.txt", "-p", "ark", "--dry-run")
    assert json.loads(done.out)["prompt"] == "make it night"
    assert json.loads(done.out)["image"]["file"] == "a.png"


def test_every_long_option_can_be_written_in_a_header() -> None:
    """Each option's name is known there, with dashes or underscores; each switch's off side turns it off."""
    for name, option in by_name().items():
        value = {"switch": "true", "list": '["a=1"]'}.get(option.kind, '"a"')
        for spelling in {name, name.replace("-", "_")}:
            prompt, problems = split_header(f"+++\n{spelling} = {value}\n+++\nx", "f")
            if option.key in {"verbose", "prompt_file", "config", "profile"}:
                assert problems
                continue
            assert not problems, (spelling, problems)
            held = {**prompt.values, **prompt.switches, **prompt.lists, **({"var": 1} if prompt.variables else {})}
            assert list(held) == [option.key]
            assert option.kind != "switch" or held[option.key] is not option.off


def test_filling_never_reads_a_value_again() -> None:
    """A value with braces is text: the result is the template with each name replaced once."""
    prompt, _ = split_header("+++\n+++\n{a}{b}{{a}}", "f")
    assert fill(prompt, {"a": "{b}", "b": "{{c}}"}) == ("{b}{{c}}{a}", [])
