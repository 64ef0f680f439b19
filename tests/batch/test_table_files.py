"""What people hand to `batch`: plain lines, tables that other programs wrote, and files that are no table at all."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from seedream_cli.batch.table import open_table
from tests.support.batches import results, run, sent, summary, write
from tests.support.command import Command, Inside
from tests.support.provider_server import Upstream
from tests.support.raw_server import answer

SANDBOX = ("-p", "sandbox", "--dry-run")
LINES = (
    "# one prompt a line\r\na red fox, in snow\r\n\r\n   \r\n  # not this\r\n"
    "  a house | by the sea \r\n雪の中の狐\r\n#\r\nan owl"
)
PROMPTS = ["a red fox, in snow", "a house | by the sea", "雪の中の狐", "an owl"]


def zipped(*names: str) -> bytes:
    """A zip file with these members, whose names stand far from its beginning."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("first.bin", bytes(range(256)) * 64)
        for name in names:
            archive.writestr(name, "application/vnd.oasis.opendocument.spreadsheet" if name == "mimetype" else "x")
    return file.getvalue()


# --- one prompt a line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_file_is_one_prompt_a_line(tmp_path: Path, encoding: str) -> None:
    """In any encoding that is certain, with either line end; each with its line in the file."""
    (tmp_path / "prompts.txt").write_bytes(LINES.encode(encoding))
    from seedream_cli.batch.columns import plan_columns

    with open_table(str(tmp_path / "prompts.txt")) as table:
        columns, problems = plan_columns(table.headings)
        assert not problems
        rows = list(table.rows(columns))
    assert [row.prompt for row in rows] == PROMPTS
    assert [row.line for row in rows] == [2, 6, 7, 9]


def test_text_file_is_run_and_not_paid_twice(seedream: Command) -> None:
    """Equal lines are two images; a template and a comment more change nothing of what is done."""
    write(seedream, "a fox\n\n#x\na fox\nan owl\n", "prompts.txt")
    with Upstream() as upstream:
        done = run(seedream, upstream, "--json", name="prompts.txt")
        assert done.code == 0, done.err
        assert summary(done)["succeeded"] == 3
        assert sent(upstream) == {"a fox": 2, "an owl": 1}
        write(seedream, "# more\nan owl\na fox\na fox\n", "prompts.txt")
        assert run(seedream, upstream, name="prompts.txt").code == 0
        assert sent(upstream).total() == 3
    assert [row["prompt"] for row in results(seedream, "prompts")] == ["an owl", "a fox", "a fox"]


def test_lines_option_reads_standard_input_as_lines(seedream: Command) -> None:
    """Also what would else be taken for a table or for JSON; a template takes the line as {prompt}."""
    text = b"id,prompt\n{a brace\n"
    done = seedream("batch", "-", "--lines", "--prompt", "{prompt}, in ink", *SANDBOX, "--json", stdin=text)
    assert done.code == 0, done.err
    assert json.loads(done.out)["rows"] == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,prompt,seed\n1,a fox,2\n", "call it .csv"),
        ('{"prompt": "a fox"}\n', "call it .jsonl"),
        ("# nothing\n\n", "the file holds no prompt"),
        ("", "write one prompt on each line"),
    ],
)
def test_text_file_that_is_a_table_is_not_paid_for(inside: Inside, text: str, said: str) -> None:
    """Its header would be a prompt like any other."""
    write(inside, text, "shots.txt")
    done = inside("batch", "shots.txt", *SANDBOX)
    assert done.code == 2
    assert said in done.err


def test_bad_bytes_in_a_text_file_are_told_by_line(inside: Inside) -> None:
    """All of them at once, with the way out."""
    (inside.folder / "prompts.txt").write_bytes(b"a fox\n\na f\xf6x\nan owl\nb\xe4r\n")
    done = inside("batch", "prompts.txt", *SANDBOX)
    assert done.code == 2
    assert "prompts.txt:3: the line holds bytes that are no text in UTF-8" in done.err
    assert "prompts.txt:5: " in done.err
    assert "UTF-8" in done.err


# --- numbers as programs write them -----------------------------------------------------------------------------------


def test_whole_floats_are_whole_numbers(seedream: Command) -> None:
    """A program writes 42 as 42.0 where a cell of the column is empty; the row stays the one that it was."""
    model = ("-m", "3.0-t2i")
    write(
        seedream,
        "id,prompt,seed,n\na,a fox,42.0,1.0\nb,an owl,,\nc,a bear,7.00,1.\nd,a cat,NaN,nan\ne,a dog,-1.0,None\n",
    )
    with Upstream() as upstream:
        done = run(seedream, upstream, "--json", *model)
        assert done.code == 0, done.err
        seeds = {body["prompt"]: body.get("seed") for body in upstream.bodies}
        assert seeds == {"a fox": 42, "an owl": None, "a bear": 7, "a cat": None, "a dog": -1}
        write(seedream, "id,prompt,seed,n\na,a fox,42,1\nb,an owl,null,\nc,a bear,7,1\nd,a cat,,\ne,a dog,-1,1\n")
        assert run(seedream, upstream, *model).code == 0
        assert sent(upstream).total() == 5, "a row was paid twice"


@pytest.mark.parametrize("seed", ["42.5", "-0.0", "1e3", "4 2.0", "42.0.0", "١.0"])
def test_what_is_no_whole_number_is_refused(inside: Inside, seed: str) -> None:
    """With its place and what may stand there."""
    write(inside, f"prompt,seed\na fox,{seed}\n")
    done = inside("batch", "shots.csv", "-m", "3.0-t2i", *SANDBOX)
    assert done.code == 2
    assert f"shots.csv:2, column seed: '{seed}' is no whole number" in done.err
    assert "give -1 to 2147483647" in done.err


def test_whole_floats_in_json_lines_and_typed(inside: Inside) -> None:
    """The same reading serves JSON, `sequence` and the command line."""
    write(inside, '{"prompt":"a","sequence":3.0}\n{"prompt":"b","sequence":null}\n', "shots.jsonl")
    done = inside("batch", "shots.jsonl", *SANDBOX, "--json")
    assert json.loads(done.out)["images"] == 4
    done = inside("generate", "a fox", "-m", "3.0-t2i", "--seed", "42.0", *SANDBOX, "--json")
    assert json.loads(done.out)["request"]["seed"] == 42


# --- columns that are options -----------------------------------------------------------------------------------------

PRODUCTS = "name,size,colour,prompt\nmug number 5,XL,red,a {colour} mug\n"


def test_plan_names_columns_taken_as_options(inside: Inside) -> None:
    """Before anything is refused or paid; `--map COLUMN=` makes data of one, and the plan says so no more."""
    write(inside, PRODUCTS)
    done = inside("batch", "shots.csv", *SANDBOX)
    assert done.code == 2
    assert "columns taken as options: name, size" in done.err
    error = done.err.partition("error:")[2]
    assert "--map size=" in error
    assert "--map name=" in error
    mapped = ("--map", "size=", "--prompt", "a {colour} mug, size {size}")
    done = inside("batch", "shots.csv", *mapped, *SANDBOX)
    assert done.code == 0
    assert "column taken as an option: name (--map name= " in done.err
    done = inside("batch", "shots.csv", *mapped, "--map", "name=", *SANDBOX, "--json")
    assert json.loads(done.out)["options"] == []
    assert "taken as" not in done.err


def test_columns_mapped_by_the_user_are_no_surprise(inside: Inside) -> None:
    """Nor are `prompt` and `id`; a JSON key is told like a column."""
    write(inside, "id,prompt,Grösse\n1,a fox,2K\n")
    assert "taken as" not in inside("batch", "shots.csv", "--map", "Grösse=size", *SANDBOX).err
    write(inside, '{"prompt":"a","seed":"dark"}\n', "shots.jsonl")
    done = inside("batch", "shots.jsonl", "-m", "3.0-t2i", *SANDBOX, "--json")
    assert done.code == 2
    assert "--map seed=" in json.loads(done.out)["error"]["problems"][0]["hint"]


# --- files that are no table, no prompt and no image ----------------------------------------------------------------

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123456\n"
FILES: list[tuple[str, bytes, str, str]] = [
    ("pointer", POINTER, "a Git LFS pointer", "git lfs pull"),
    ("annex", b"/annex/objects/SHA256E-s1--ab.csv\n", "a git-annex pointer", "git annex get"),
    ("zeros", bytes(5000), "zero bytes", "again"),
    ("page", b"\n<!DOCTYPE html><title>Sign in</title>", "an HTML page", "download"),
    ("pdf", b"%PDF-1.7\n%\xe2\xe3", "a PDF document", "export"),
    ("gzip", b"\x1f\x8b\x08\0\0", "compressed with gzip", "gzip -dc"),
    ("zstd", b"\x28\xb5\x2f\xfd\x04", "compressed with zstd", "zstd -dc"),
    ("zip", zipped("a.csv"), "a zip archive", "unzip"),
    ("excel", zipped("docProps/app.xml", "xl/workbook.xml"), "an Excel workbook", "CSV UTF-8"),
    ("ods", zipped("mimetype", "content.xml"), "an OpenDocument spreadsheet", "Text CSV"),
    ("numbers", zipped("Index/Tables/DataList.iwa"), "a Numbers spreadsheet", "export it as CSV"),
    ("word", zipped("word/document.xml"), "a Word document", "plain text"),
    ("xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "an old Excel workbook", "CSV UTF-8"),
    ("parquet", b"PAR1\x15\x04\x15" + bytes(50) + b"PAR1", "a Parquet file", "read_parquet("),
    ("sqlite", b"SQLite format 3\0" + bytes(80), "an SQLite database", "-csv"),
]
NO_TABLE = [*FILES, ("jpeg", b"\xff\xd8\xff\xe0" + bytes(80), "a JPEG image", "--image")]


def ids(row: Any) -> str | None:
    """Short names for the cases."""
    return row if isinstance(row, str) and row.isalpha() and len(row) < 10 else ""


@pytest.mark.parametrize(("name", "content", "what", "hint"), NO_TABLE, ids=ids)
@pytest.mark.parametrize("suffix", [".csv", ".txt", ""])
def test_what_is_no_table_is_named(
    inside: Inside, name: str, content: bytes, what: str, hint: str, suffix: str
) -> None:
    """By its bytes, whatever it is called, with the way out; never by thousands of bad lines."""
    (inside.folder / (name + suffix)).write_bytes(content)
    done = inside("batch", name + suffix, *SANDBOX)
    assert done.code == 2
    assert what in done.err
    assert hint in done.err
    assert done.err.count("error:") == 1


def test_utf16_without_its_mark_is_named(inside: Inside) -> None:
    """It cannot be read with certainty; with its mark, as Excel writes it, it is."""
    text = "prompt\tseed\na fox in the snow\t1\n"
    (inside.folder / "shots.csv").write_bytes(text.encode("utf-16-le"))
    done = inside("batch", "shots.csv", "-m", "3.0-t2i", *SANDBOX)
    assert done.code == 2
    assert "iconv -f UTF-16LE -t UTF-8" in done.err
    (inside.folder / "shots.csv").write_bytes(text.encode("utf-16"))
    assert inside("batch", "shots.csv", "-m", "3.0-t2i", *SANDBOX).code == 0


@pytest.mark.parametrize(("name", "content", "what", "hint"), FILES, ids=ids)
def test_what_is_no_image_and_no_prompt_is_named(
    inside: Inside, name: str, content: bytes, what: str, hint: str
) -> None:
    """A pointer is text, and would be paid for as a prompt."""
    (inside.folder / f"{name}.png").write_bytes(content)
    done = inside("edit", "make it night", f"{name}.png", *SANDBOX)
    assert done.code == 2
    assert f"{name}.png is {what.replace('zero bytes', 'a file of zero bytes')}" in done.err
    assert hint in done.err
    if name != "page":
        done = inside("generate", "-f", f"{name}.png", *SANDBOX)
        assert (done.code, what in done.err) == (2, True)


@pytest.mark.parametrize(
    ("target", "what"), [("../.git/annex/objects/x", "a git-annex link"), ("away.png", "a link to away.png")]
)
def test_a_link_that_leads_nowhere_is_named(inside: Inside, target: str, what: str) -> None:
    """As a reference, as a table and as a prompt."""
    (inside.folder / "here.png").symlink_to(target)
    for args in (("edit", "x", "here.png"), ("batch", "here.png"), ("generate", "-f", "here.png")):
        done = inside(*args, *SANDBOX)
        assert (done.code, what in done.err) == (2, True), done.err


def test_an_icloud_placeholder_and_an_empty_file_are_named(inside: Inside) -> None:
    """The file's name is there, its contents are not."""
    (inside.folder / ".photo.jpg.icloud").write_bytes(b"bplist00\xd3NSURLNameKey")
    (inside.folder / "empty.png").touch()
    done = inside("edit", "x", "photo.jpg", "empty.png", ".photo.jpg.icloud", *SANDBOX)
    assert done.code == 2
    assert done.err.count("placeholder of iCloud") == 2
    assert "empty.png cannot be used: it is empty" in done.err


# --- faults of whole lines --------------------------------------------------------------------------------------------

BROKEN = {
    "too many cells": ("t.csv", b"id,prompt\na,x\nb,y,z\n", 3, "3 cells"),
    "too few cells": ("t.csv", b"id,prompt,seed\na,x,1\nb\n", 3, "1 cell"),
    "an open quote": ("t.csv", b'id,prompt\na,x\nb,"y\nz\n', 3, "never closed"),
    "a quote inside": ("t.csv", b'id,prompt\na,"x"y\n', 2, "not doubled"),
    "zero bytes": ("t.csv", b"id,prompt\na,x\0y\n", 2, "zero bytes"),
    "no text": ("t.csv", b"id,prompt\na,x\xff\n", 2, "no text"),
    "tabs": ("t.tsv", b"id\tprompt\na\tx\ty\n", 2, "3 cells"),
    "no JSON": ("t.jsonl", b'{"id": "a", "prompt": "x"}\n{"id":\n', 2, "no JSON"),
    "a list": ("t.jsonl", b'{"id": "a", "prompt": "x"}\n[1]\n', 2, "one object"),
    "a key twice": ("t.jsonl", b'{"id": "a", "prompt": "x", "id": "b"}\n', 1, "twice"),
    "no suffix": ("table", b"id,prompt\na,x\nb,y,z\n", 3, "3 cells"),
    "without an id": ("t.csv", b"prompt,seed\na,1\nb,2,3\n", 3, "3 cells"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_fault_of_a_whole_line_blames_no_column(inside: Inside, case: str) -> None:
    """It names the file, the line and what is wrong; a fault in a cell still names its column."""
    name, content, line, said = BROKEN[case]
    (inside.folder / name).write_bytes(content)
    done = inside("batch", name, *SANDBOX)
    assert done.code == 2
    [told] = [text for text in done.err.splitlines() if text.startswith("error:")]
    assert told.startswith(f"error: {name}:{line}: "), told
    assert said in told
    assert "column id" not in done.err
    assert "key id" not in done.err


def test_fault_of_a_cell_names_its_column(inside: Inside) -> None:
    """As before: an id that stands twice, and a value that no option takes."""
    (inside.folder / "t.csv").write_text("id,prompt,size\na,x,2K\na,y,9z\n")
    done = inside("batch", "t.csv", *SANDBOX)
    assert "t.csv:3, column id: the id 'a' stands in line 2 already" in done.err
    assert "t.csv:3, column size: '9z' is no size" in done.err


# --- hidden characters ------------------------------------------------------------------------------------------------

MARKS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c"


def test_hidden_characters_of_a_provider_are_visible_in_the_results(seedream: Command) -> None:
    """Directions, marks and control characters, in words and code; a line break and a tab alone stay."""
    odd = f"no\x1b[31m{MARKS}\x85end\r\nnext\tone"
    write(seedream, "id,prompt\na,a fox\n")
    refusal = {"error": {"code": f"Bad{MARKS}\x9b", "message": odd, "request_id": "r\u202e1"}}
    with Upstream(script=lambda *_: answer(json.dumps(refusal).encode(), status=400)) as upstream:
        run(seedream, upstream)
    raw = (seedream.folder / "shots" / "results.csv").read_bytes().decode()
    assert not set(raw) & {*MARKS, "\x1b", "\x85", "\x9b"}
    assert "\r" not in raw
    assert len(results(seedream)) == 1
    assert "\\u202e" in results(seedream)[0]["error"]
    assert "\\x1b" in results(seedream)[0]["error"]


def test_hidden_characters_of_a_table_are_visible_but_for_what_a_row_is_known_by(seedream: Command) -> None:
    """Ids and prompts read back as they were, so that the results match their table; a note shows what it hides."""
    rows = [f"שלום\u200f {number},\u200e{number},city\u202e,note\u202egpj{MARKS}" for number in (1, 2)]
    write(seedream, "\n".join(["prompt,id,city,note", *rows]) + "\n")
    with Upstream() as upstream:
        assert run(seedream, upstream, "--prompt", "{prompt} in {city}").code == 0
        found = results(seedream)
        assert [row["prompt"] for row in found] == ["שלום\u200f 1", "שלום\u200f 2"]
        assert [row["id"] for row in found] == ["\u200e1", "\u200e2"]
        assert [row["city"] for row in found] == ["city\u202e"] * 2
        assert not set(found[0]["note"]) & set(MARKS)
        assert found[0]["note"].startswith("note\\u202egpj")
        again = run(seedream, upstream, "--prompt", "{prompt} in {city}")
        assert (again.code, len(upstream.posts)) == (0, 2), again.err
        results_table = (seedream.folder / "shots" / "results.csv").read_text()
        (seedream.folder / "shots" / ".seedream" / "ledger.db").unlink()
        third = run(seedream, upstream, "--prompt", "{prompt} in {city}")
        assert (third.code, len(upstream.posts)) == (2, 2), third.err
        assert (seedream.folder / "shots" / "results.csv").read_text() == results_table
