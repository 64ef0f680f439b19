"""Tables of requests: read as people and spreadsheets write them, judged with exact places, known by their content."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seedream_cli.batch import table_source
from seedream_cli.batch.checks import Checker, Findings, TemplateCache, gather
from seedream_cli.batch.columns import Columns, plan_columns
from seedream_cli.batch.identity import Identities, row_key, shard_of
from seedream_cli.batch.results_file import RowResult, check_results, write_results
from seedream_cli.batch.table import Row, Table, open_table
from seedream_cli.errors import FileError, InputError, Problem
from seedream_cli.request.image_request import OptionValues

NOTHING = OptionValues()


def make(folder: Path, content: str | bytes, name: str = "shots.csv") -> Table:
    """A table of this content, opened under its whole path."""
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return open_table(str(path))


def plan(table: Table, **more: Any) -> Columns:
    """The columns of a header without errors."""
    columns, problems = plan_columns(table.headings, **more)
    assert not [problem for problem in problems if problem.severity == "error"], problems
    return columns


def read(table: Table, **more: Any) -> list[Row]:
    """Every row; none may have a problem of its own."""
    with table:
        rows = list(table.rows(plan(table, **more)))
    assert not [row.problems for row in rows if row.problems]
    return rows


def sound(options: OptionValues) -> list[Problem]:
    """A judge that looks at the size alone."""
    size = options.values.get("size", "2K")
    return (
        [] if size in {"1K", "2K", "4K"} else [Problem("size", f"{size!r} is no size", origin=options.origin("size"))]
    )


def check_table(table: Table, columns: Columns, base: OptionValues, judge: Any) -> Iterator[Problem]:
    """Every problem of every row, as a batch looks for them."""
    return Checker(TemplateCache(base, lambda options: (None, judge(options)))).check(table, columns)


def complaints(table: Table, folder: Path, **more: Any) -> list[tuple[str, str, str]]:
    """Place, field and message of every problem of the rows; the table's folder is left out of places."""
    with table:
        found = list(check_table(table, plan(table, **more), NOTHING, sound))
    return [(p.origin.removeprefix(f"{folder}{os.sep}"), p.field, p.message) for p in found]


# --- how tables are written -----------------------------------------------------------------------------------------


def test_a_table_as_excel_writes_it(tmp_path: Path) -> None:
    """BOM, `sep=` line, semicolons, CRLF, quoted line breaks, doubled quotes, stray delimiters and blank rows."""
    text = (
        "\ufeffsep=;\r\nprompt;Size;Größe, in m;;\r\n"
        '"a ""red"" fox;\r\nin snow";2K;1,5;;\r\n;;;;\r\n\r\nan owl;;"x";;\r\n'
    )
    table = make(tmp_path, text)
    rows = read(table)
    assert [(row.number, row.line) for row in rows] == [(1, 3), (2, 7)]
    assert rows[0].prompt == 'a "red" fox;\r\nin snow'
    assert rows[0].variables == {"prompt": rows[0].prompt, "Size": "2K", "Größe, in m": "1,5"}
    assert rows[1].options(NOTHING).values == {"prompt": "an owl"}, "an empty cell sets nothing"
    form = table.format
    assert (form.delimiter, form.line_end, form.has_bom, form.names_delimiter) == (";", "\r\n", True, True)


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_delimiter_encoding_and_line_ends_are_found_out(
    tmp_path: Path, delimiter: str, encoding: str, line_end: str
) -> None:
    """Whatever the mixture, whether the file has a telling suffix or none; quoted delimiters do not count."""
    header = delimiter.join(["prompt", '"a,b;c\td,e;f\tg"', "id"])
    text = line_end.join(
        [header, "", delimiter.join(["狐狸 🦊", '"x\ny"', "one"]), delimiter.join(["owl", "", "two"]), ""]
    )
    for name in ("shots.csv", "shots.tsv", "shots"):
        table = make(tmp_path, text.encode(encoding), name)
        rows = read(table)
        assert [(row.prompt, row.id) for row in rows] == [("狐狸 🦊", "one"), ("owl", "two")]
        assert [row.line for row in rows] == [3, 5]
        assert table.format.delimiter == delimiter


def test_json_lines(tmp_path: Path) -> None:
    """Values keep their text, null and missing keys set nothing, lists are images, objects go to the body."""
    lines = [
        '{"prompt": "a\\nb", "seed": 7, "guidance_scale": 2.50, "watermark": true, "image": ["a.png", "b|c.png"]}',
        "",
        '  {"extra": {"k": [1, {"a": null}]}, "extra.text": "5", "extra.number": 5, "prompt": "🦊", "seed": null}',
        '{"prompt": "x", "image": "a.png|https://h/b.png", "extra.none": null, "extra": ["a=1", "b=\\"2\\""]}',
    ]
    rows = read(make(tmp_path, "\ufeff" + "\r\n".join(lines), "shots.jsonl"))
    assert [(row.number, row.line) for row in rows] == [(1, 1), (2, 3), (3, 4)]
    drafted = [row.options(NOTHING) for row in rows]
    assert drafted[0].values == {"prompt": "a\nb", "seed": "7", "guidance_scale": "2.5"}
    assert drafted[0].switches == {"watermark": True}
    assert drafted[0].lists == {"image": (str(tmp_path / "a.png"), str(tmp_path / "b|c.png"))}
    assert drafted[1].values == {"prompt": "🦊"}
    assert drafted[1].lists == {"extra": ('k=[1, {"a": null}]', 'text="5"', "number=5")}
    assert drafted[2].lists["image"] == (str(tmp_path / "a.png"), "https://h/b.png")
    assert drafted[2].lists["extra"] == ("a=1", 'b="2"')


def test_a_table_from_a_pipe_is_read_twice(tmp_path: Path) -> None:
    """Standard input and other pipes are kept, so that the check and the run see the same rows, even side by side."""
    code = """
import sys
from seedream_cli.batch import columns
from seedream_cli.batch import table
with table.open_table("-") as table:
    columns, problems = columns.plan_columns(table.headings)
    rows = [(a.origin, a.prompt, b.prompt) for a, b in zip(table.rows(columns), table.rows(columns))]
    print(rows[-1], len(rows), table.folder)
"""
    text = "prompt\n" + "".join(f"fox {number}\n" for number in range(20_000))
    done = subprocess.run([sys.executable, "-c", code], input=text, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "('standard input:20001', 'fox 19999', 'fox 19999') 20000 ."
    if sys.platform != "win32":
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        feeder = threading.Thread(target=pipe.write_text, args=("prompt\nowl\n",))
        feeder.start()
        table = open_table(str(pipe))
        feeder.join()
        columns = plan(table)
        assert [row.prompt for row in table.rows(columns)] == [row.prompt for row in table.rows(columns)] == ["owl"]
        table.close()


def test_a_table_changed_while_in_use_is_noticed(tmp_path: Path) -> None:
    """Rows that were never checked are not run: a change in place is refused, a new file of the name not looked at."""
    text = "prompt\n" + "".join(f"fox {number:0100}\n" for number in range(5_000))
    with make(tmp_path, text) as table:
        columns = plan(table)
        rows = table.rows(columns)
        next(rows)
        (tmp_path / "new").write_text("prompt\nevil\n")
        (tmp_path / "new").replace(tmp_path / "shots.csv")
        assert len(list(rows)) == 4_999
    with make(tmp_path, text) as table:
        rows = table.rows(columns)
        next(rows)
        with (tmp_path / "shots.csv").open("a") as file:
            file.write("evil\n")
        with pytest.raises(InputError, match="changed while it was in use"):
            list(rows)


REFUSED = [
    ("", "shots.csv", "is empty"),
    ("\ufeff \n", "shots.csv", "is empty"),
    (";;;\n\n", "shots.csv", "no header"),
    ("PK\x03\x04 and so on", "shots.xlsx", "an Excel workbook"),
    (b"\x1f\x8b\x08", "shots.csv.gz", "compressed"),
    ('[{"prompt": "x"}]', "shots.json", "a JSON list"),
    ('{"prompt": x}\n', "shots.jsonl", "no JSON at character 12"),
    ("{}\n", "shots.jsonl", "no line of"),
    ('prompt,"size\nfox,2K\n', "shots.csv", "a quote in the header is never closed"),
    ('prompt,"size" x\nfox,2K\n', "shots.csv", "a quote within a cell is not doubled"),
    ("pr\x00ompt\nfox\n", "shots.csv", "holds zero bytes"),
    (b"pr\xf6mpt\nfox\n", "shots.csv", "no text in UTF-8"),
    (",".join(f"c{number}" for number in range(1001)), "shots.csv", "more than 1,000 columns"),
    ("x" * 5_000_000, "shots.csv", "the line is longer"),
    ('"' + "\n" * 2_000_000, "shots.csv", "a quote in the header is never closed"),
]


@pytest.mark.parametrize(("content", "name", "message"), REFUSED, ids=[row[2] for row in REFUSED])
def test_what_is_no_table_is_refused(tmp_path: Path, content: str | bytes, name: str, message: str) -> None:
    """At once, by what it is."""
    with pytest.raises(InputError, match=message):
        make(tmp_path, content, name)


def test_what_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    """With the reason; no name ends in a traceback."""
    for name in (str(tmp_path / "none.csv"), str(tmp_path), "a\0b.csv", "~nobody-of-this-name/x.csv"):
        with pytest.raises(InputError, match="cannot read"):
            open_table(name)


# --- mistakes in rows -----------------------------------------------------------------------------------------------


def test_every_mistake_is_told_with_its_place(tmp_path: Path) -> None:
    """All at once: ragged rows, bad bytes, zero bytes, quotes, switches, equal ids, and what the judge says."""
    text = (
        b'prompt,size,watermark,id\n"two\nlines",2K,yes,a\n'  # 2, 3
        b"fox,2K,true\n"  # 4
        b"a fox, in snow,2K,true,c\n"  # 5
        b"f\xf6x,2K,,d\n"  # 6
        b"f\x00x,2K,,e\n"  # 7
        b"fox,9K,perhaps,a\n"  # 8
        b'fox,2K,"on" x,g\n'  # 9
        b"fox,huge,OFF,h,,\n"  # 10
        b'"never closed,2K,,i\n'  # 11
    )
    assert complaints(make(tmp_path, text), tmp_path) == [
        ("shots.csv:4", "", "the row has 3 cells, but the header names 4 columns"),
        ("shots.csv:5", "", "the row has 5 cells, but the header names 4 columns"),
        ("shots.csv:6", "", "the line holds bytes that are no text in UTF-8"),
        ("shots.csv:7", "", "the line holds zero bytes, so it is no text"),
        ("shots.csv:8", "watermark", "'perhaps' is neither yes nor no"),
        ("shots.csv:8", "size", "'9K' is no size"),
        ("shots.csv:8", "id", "the id 'a' stands in line 2 already"),
        ("shots.csv:9", "", "a quote within a cell is not doubled"),
        ("shots.csv:10", "size", "'huge' is no size"),
        ("shots.csv:11", "", "a quote in this row is never closed"),
    ]


def test_every_mistake_in_json_is_told_with_its_place(tmp_path: Path) -> None:
    """The line and the character of the mistake, or the key."""
    lines = [
        '{"prompt": "a", "size": "9K"}',
        '{"prompt": "a" "size": "2K"}',
        '["prompt"]',
        '{"prompt": "a", "prompt": "b"}',
        '{"prompt": {"text": "a"}, "size": ["2K"], "seed": 1e999, "image": [1]}',
        '{"prompt": "\\ud800"}',
        '{"prompt": NaN}',
        "[" * 100_000,
        '{"image_1": ["a.png"], "prompt": "a"}',
    ]
    assert complaints(make(tmp_path, "\n".join(lines), "shots.jsonl"), tmp_path) == [
        ("shots.jsonl:1", "size", "'9K' is no size"),
        ("shots.jsonl:2", "", "no JSON at character 16: expecting ',' delimiter"),
        ("shots.jsonl:3", "", "a line must hold one object in braces"),
        ("shots.jsonl:4", "", "no JSON: the key 'prompt' stands twice"),
        ("shots.jsonl:5", "prompt", "prompt takes no object"),
        ("shots.jsonl:5", "size", "size takes one value, not a list"),
        ("shots.jsonl:5", "seed", "the number is too large"),
        ("shots.jsonl:5", "image", "image takes a list of texts"),
        ("shots.jsonl:6", "prompt", "the cell holds a zero byte or half a character, which is no text"),
        ("shots.jsonl:7", "", "no JSON: NaN is no JSON"),
        ("shots.jsonl:8", "", "no JSON: it is nested too deeply"),
        ("shots.jsonl:9", "image_1", "image_1 takes one value, not a list"),
    ]


@pytest.mark.parametrize(
    ("content", "name", "place"),
    [
        ("prompt,size\nfox,2K\nowl," + "x" * 10_000_000 + "\n\nfox,9K\n", "shots.csv", "shots.csv:3"),
        ('prompt,size\nfox,2K\nowl,"' + "x,y\n" * 2_000_000, "shots.csv", "shots.csv:3"),
        ("prompt,size\nfox,2K\nowl," + "x" * 2_000_000 + "\n", "shots.csv", "shots.csv:3"),
        ('{"prompt": "a"}\n{"prompt": "' + "x" * 2_000_000 + '"}\n', "shots.jsonl", "shots.jsonl:2"),
        ('{"prompt": "a"}\n{"prompt": "' + "x" * 10_000_000 + '"}\n', "shots.jsonl", "shots.jsonl:2"),
    ],
)
def test_a_huge_cell_is_refused_with_its_place(tmp_path: Path, content: str, name: str, place: str) -> None:
    """10 MB in a cell, or a quote that is never closed, neither fill the memory nor hide where it is."""
    ((origin, _, message),) = complaints(make(tmp_path, content, name), tmp_path)
    assert origin == place
    assert "characters" in message


def test_utf_16_cut_in_half_is_told(tmp_path: Path) -> None:
    """Excel's "Unicode text" with a byte missing at its end."""
    found = complaints(make(tmp_path, "prompt\tsize\nfox\t2K\nowl\t2K".encode("utf-16")[:-1]), tmp_path)
    assert [place for place, _, _ in found] == ["shots.csv:3"]


def test_problems_beyond_the_cap_are_counted(tmp_path: Path) -> None:
    """Fifty of each severity are shown, and how many more there are; warnings never push an error out."""
    text = "prompt,size\n" + "".join(f"fox {n},9K\n" for n in range(200))
    with make(tmp_path, text) as table:
        problems = check_table(table, plan(table), NOTHING, sound)
        warnings = (Problem("x", str(number), severity="warning") for number in range(60))
        found = gather([*warnings, *problems], most=50)
    assert isinstance(found, Findings)
    assert (len(found.errors), found.more_errors, len(found.warnings), found.more_warnings) == (50, 150, 50, 10)
    assert found.errors[0].origin.endswith("shots.csv:2")


def test_a_table_without_rows_is_told(tmp_path: Path) -> None:
    """What it has is said."""
    with make(tmp_path, "prompt,size\n\n") as table:
        assert not list(table.rows(plan(table)))
        assert table.no_rows == "the table has a header and no rows"


# --- what columns mean ----------------------------------------------------------------------------------------------


def test_columns_set_options(tmp_path: Path) -> None:
    """Any spelling of a long option, `n`, numbered images, body keys and the off side of switches."""
    text = (
        " Prompt ,N,guidance_SCALE,no-watermark,Web_Search,sync,"
        "image_10,image_2,image,extra.a,extra.B_c,extra.d,color\n"
        'fox,3,2.5,yes,0,1,ten.png,/abs/two.png,one.png | https://h/x.png|,5,"[1, {""x"": 2}]",plain text,red\n'
    )
    (row,) = read(make(tmp_path, text))
    options, problems = row.options(NOTHING), row.sort_cells().problems
    assert not problems
    assert options.values == {"prompt": "fox", "count": "3", "guidance_scale": "2.5"}
    assert options.switches == {"watermark": False, "web_search": False, "asynchronous": False}
    one, ten = str(tmp_path / "one.png"), str(tmp_path / "ten.png")
    assert options.lists["image"] == (one, "https://h/x.png", "/abs/two.png", ten)
    assert options.lists["extra"] == ("a=5", 'B_c=[1, {"x": 2}]', 'd="plain text"')
    assert set(options.origins.values()) == {f"{tmp_path / 'shots.csv'}:2"}
    assert row.columns.unused == ("color",)


def test_a_row_goes_over_the_options_of_the_run(tmp_path: Path) -> None:
    """Flags are defaults of every row; body keys are joined; what misses everywhere misses in the row."""
    base = OptionValues(
        {"size": "4K", "model": "m"}, {"watermark": True}, {"image": ("x.png",), "extra": ("a=1",)}, {"size": "--size"}
    )
    rows = read(make(tmp_path, "prompt,size,extra.b,image\nfox,2K,2,y.png\nowl,,,\n,,,z.png\n"))
    first, second, third = (row.options(base) for row in rows)
    assert first.values == {"prompt": "fox", "size": "2K", "model": "m"}
    assert first.lists == {"image": (str(tmp_path / "y.png"),), "extra": ("a=1", "b=2")}
    assert second.values["size"] == "4K"
    assert second.origin("size") == "--size"
    assert second.lists["image"] == ("x.png",)
    assert third.origin("prompt") == rows[2].origin
    assert first.switches == {"watermark": True}


def test_images_lie_in_the_tables_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the command runs; addresses, data URIs, homes and whole paths stay; standard input is refused."""
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    text = "prompt,image\n"
    text += "".join(f'x,"{ref}"\n' for ref in ("a.png", "../b.png", "data:image/png;base64,AA==", "~/c.png", "-"))
    rows = read(make(Path("sub"), text))
    found = [row.options(NOTHING).lists.get("image", ()) for row in rows]
    here = Path("sub")
    wanted = [(str(here / "a.png"),), (str(here / "../b.png"),), ("data:image/png;base64,AA==",), ("~/c.png",), ()]
    assert found == wanted
    (problem,) = rows[4].sort_cells().problems
    assert "standard input" in problem.message


def header_problems(header: str, folder: Path, **more: Any) -> list[tuple[str, str, str, str]]:
    """Severity, field, message and hint of each problem of a header."""
    with make(folder, header + "\n") as table:
        _, problems = plan_columns(table.headings, **more)
        assert all(p.origin == f"{table.name}:1" or p.origin.startswith("--") for p in problems)
    return [(p.severity, p.field, p.message, p.hint) for p in problems]


HEADERS: list[tuple[str, dict[str, Any], str, str, str]] = [
    ("prompt,Size,size", {}, "error", "the columns Size and size set the same option", "rename"),
    ("prompt,n,count", {}, "error", "the columns n and count set the same option", "rename"),
    ("prompt,watermark,no-watermark", {}, "error", "watermark and no-watermark set the same option", "rename"),
    ("prompt,image_1,image_01", {}, "error", "image_1 and image_01 set the same option", "rename"),
    ("prompt,id,ID", {}, "error", "the columns id and ID set the same option", "rename"),
    ("prompt,extra.a=b", {}, "error", "a key of the body cannot hold =", "use a column extra"),
    ("prompt,color,color", {}, "error", "two columns are called color", "rename"),
    ("prompt,,color", {}, "error", "column 2 has no name", "give it a name"),
    ("prompt,json", {}, "error", "--json holds for the whole run", "--map 'json=' makes the column a plain variable"),
    ("prompt,API_KEY_FILE", {}, "error", "--api-key-file holds for the whole run", "on the command line"),
    ("prompt,concurrency", {}, "error", "--concurrency holds for the whole run", "on the command line"),
    ("prompt,verbose", {}, "error", "--verbose holds for the whole run", "on the command line"),
    ("prompt,modle", {}, "warning", "column modle is taken as a variable", "did you mean model?"),
    ("promt,size", {}, "error", "no column is called prompt", "did you mean promt?"),
    ("a red fox in the snow,2K", {}, "error", "no column is called prompt", "the first line looks like data"),
    ("text,size", {}, "error", "no column is called prompt", "--map COLUMN=prompt"),
    ("prompt,size", {"maps": ["Text=prompt"]}, "error", "there is no column Text", "the columns are prompt, size"),
    ("text,size", {"maps": ["text=promt"]}, "error", "there is no option promt", "did you mean prompt?"),
    ("prompt,size", {"maps": ["size"]}, "error", "'size' is not COLUMN=OPTION", "write --map"),
    ("color", {"template": "a {colour} {fox}"}, "error", "{colour} in the prompt is no column", "did you mean color?"),
]


@pytest.mark.parametrize(("header", "more", "severity", "message", "hint"), HEADERS)
def test_mistakes_in_a_header(
    tmp_path: Path, header: str, more: dict[str, Any], severity: str, message: str, hint: str
) -> None:
    """Each is told at the header, with a way out."""
    found = header_problems(header, tmp_path, **more)
    assert [p for p in found if p[0] == severity and message in p[2] and hint in p[3]], found


def test_headers_that_are_fine(tmp_path: Path) -> None:
    """Variables, mapped columns, columns freed from their meaning, and no prompt where none is needed."""
    assert not header_problems("prompt,color,Prompt text", tmp_path)
    assert not header_problems("Text;Kennung;json", tmp_path, maps=["Text=prompt", "Kennung = id", "json="])
    assert not header_problems("prompt,modle", tmp_path, maps=["modle="])
    assert not header_problems("prompt,mood,season,time,tags,notes,number,page,file", tmp_path), "none is a slip"
    assert not header_problems("image,layers", tmp_path)
    assert not header_problems("image", tmp_path, needs_prompt=False)
    assert not header_problems("colour,promt", tmp_path, template="{colour} {promt}"), "what is used is meant"


def test_prompt_templates(tmp_path: Path) -> None:
    """Every column is a variable, in any spelling; braces are doubled; empty cells take --var, or are told once."""
    text = "prompt,Guidance-Scale,farb ton,size\nfox,2.5,red,2K\nowl {x},,,4K\n"
    table = make(tmp_path, text)
    template = "{{{farb ton}}} {prompt} at {size}, {guidance_scale}: {style} {}{farb ton}"
    columns = plan(table, template=template, variables={"style": "oil", "farb ton": "grey"})
    rows = list(table.rows(columns))
    assert [row.prompt for row in rows] == ["{red} fox at 2K, 2.5: oil {}red", "{grey} owl {x} at 4K, : oil {}grey"]
    (problem,) = check_table(table, columns, NOTHING, sound)
    assert (problem.severity, problem.origin, problem.field) == ("warning", rows[1].origin, "guidance_scale")
    table.close()
    assert [row.prompt for row in read(make(tmp_path, 'prompt\n"{color} {{"\n'))] == ["{color} {{"], "cells are literal"


def test_fields_of_names_are_safe(tmp_path: Path) -> None:
    """Columns in file names: one line, no separators that lead out, short; the row's number and id beside them."""
    rows = read(make(tmp_path, 'prompt,id,where,name\n"a\n b", ../x ,' + "é" * 100 + ",{where}-{row}\n"))
    fields = rows[0].fields
    assert (fields["prompt"], fields["id"], fields["row"]) == ("a b", "_x", "1")
    assert len(fields["where"].encode()) == 80
    assert rows[0].text("name") == "{where}-{row}"


# --- judging --------------------------------------------------------------------------------------------------------


def test_rows_of_one_shape_are_judged_once(tmp_path: Path) -> None:
    """Prompt, seed and name apart; the judge sees stand-ins, so that no answer hangs on which row came first."""
    seen: list[OptionValues] = []

    def judge(options: OptionValues) -> tuple[str, list[Problem]]:
        seen.append(options)
        values = sorted(options.values.items())
        return repr(values), [
            Problem("size", f"refuses {options.origin('size')}", origin=options.origin("size")),
            Problem("seed", f"ignores {options.origin('seed')}", severity="warning", origin=options.origin("seed")),
            Problem("model", "is retired", origin="--model"),
        ]

    text = "prompt,size,seed,name\n" + "".join(f"fox {n},{'24'[n % 2]}K,{n},pic-{n}\n" for n in range(10))
    table = make(tmp_path, text)
    columns = plan(table)
    rows = list(table.rows(columns))
    shapes = TemplateCache(OptionValues({"model": "m"}), judge)
    forward = [shapes.judge(row).value for row in rows]
    assert len(seen) == 2
    backward = [TemplateCache(OptionValues({"model": "m"}), judge).judge(row).value for row in reversed(rows)]
    assert forward == backward[::-1]
    judged = shapes.judge(rows[7])
    assert (judged.prompt, judged.seed) == ("fox 7", "7")
    assert [(p.origin, p.message) for p in judged.problems] == [
        (rows[7].origin, "refuses column size"),
        (rows[7].origin, "ignores column seed"),
        ("--model", "is retired"),
    ]
    checker = Checker(shapes)
    found = [problem for row in rows for problem in checker.judge(row).problems] + checker.close()
    assert sum(p.origin == "--model" for p in found) == 1, "an option of the run is told once"
    assert sum(p.field == "size" for p in found) == 10, "an error is told in every row"
    warnings = [p for p in found if p.severity == "warning"]
    assert [(p.origin, p.message) for p in warnings] == [(rows[0].origin, "ignores column seed (and in 9 more rows)")]
    table.close()


def test_what_is_not_sound_in_itself_is_judged_as_it_stands(tmp_path: Path) -> None:
    """An empty prompt, a seed that is no number and a name with fields never hide behind a stand-in."""
    seen: list[dict[str, str]] = []

    def judge(options: OptionValues) -> tuple[None, list[Problem]]:
        seen.append(dict(options.values))
        return None, []

    text = 'prompt,seed,name\nfox,1,a\n" ",2,b\nowl,3.5,c\nbee,99999999999,d\nelk,4,{seed}\ncat, +005 ,../x\n'
    rows = read(make(tmp_path, text))
    shapes = TemplateCache(OptionValues({"seed": "9"}), judge)
    judged = [shapes.judge(row) for row in rows]
    assert seen == [
        {"prompt": "…", "seed": "0", "name": "name"},
        {"seed": "0", "name": "name"},
        {"prompt": "…", "seed": "3.5", "name": "name"},
        {"prompt": "…", "seed": "99999999999", "name": "name"},
        {"prompt": "…", "seed": "0", "name": "{seed}"},
        {"prompt": "…", "seed": "0", "name": "../x"},
    ]
    assert [one.seed for one in judged] == ["1", "2", "", "", "4", "5"]


def test_what_the_run_sets_for_all_rows_is_judged_with_its_own_place(tmp_path: Path) -> None:
    """A prompt, seed or name typed for the whole run is part of every row, and to blame where it is."""

    def judge(options: OptionValues) -> tuple[dict[str, str], list[Problem]]:
        return dict(options.values), [Problem("seed", "is ignored", origin=options.origin("seed"))]

    table = make(tmp_path, "image,size\na.png,2K\nb.png,\n")
    base = OptionValues({"prompt": "a fox", "seed": "07", "name": "{row}"}, origins={"seed": "--seed"})
    rows = read(table, needs_prompt=False)
    checker = Checker(TemplateCache(base, judge))
    first, second = (checker.judge(row) for row in rows)
    assert first.value == {"prompt": "…", "seed": "0", "name": "{row}", "size": "2K"}
    assert second.value == {"prompt": "…", "seed": "0", "name": "{row}"}
    assert (first.prompt, first.seed) == ("a fox", "7")
    assert [problem.origin for problem in (*first.problems, *second.problems)] == ["--seed"]


CHECKED = [
    "id,prompt,size,place\na,fox,2K,wood\nb,owl,2K,\na,elk,4K,sea\nc,,2K,\nd,bad,5K,ice\ne,yak,2K,ice\nb,emu,7K,\n",
    "id,prompt,size,place\na,fox,2K,wood\na,b,c,d,e\n,owl,2K,\n,owl,,\na,x,,y\n",
    '{"id": "a", "prompt": "fox", "place": ""}\n{"id": "a", "prompt": 3}\n{"size": ["x"]}\n{"id": "a"}\n',
]


@pytest.mark.parametrize("content", CHECKED)
@pytest.mark.parametrize("template", [None, "{prompt} in {place}"])
def test_rows_that_pass_at_a_glance_are_those_that_are_sound(
    tmp_path: Path, content: str, template: str | None
) -> None:
    """A check of a whole table tells, in this order, what judging its rows one by one tells."""

    def judge(options: OptionValues) -> tuple[None, list[Problem]]:
        size = options.values.get("size", "")
        doubt = Problem("size", f"{size} is rare", severity="warning", origin=options.origin("size"))
        wrong = Problem("size", f"{size} is none", origin=options.origin("size"))
        return None, [doubt, *([wrong] if size in {"5K", "7K"} else [])]

    name = "shots.jsonl" if content.startswith("{") else "shots.csv"
    with make(tmp_path, content, name) as table:
        columns = plan(table, template=template, needs_prompt=False)
        one_by_one, at_a_glance = (Checker(TemplateCache(NOTHING, judge)) for _ in range(2))
        expected = [problem for row in table.rows(columns) for problem in one_by_one.judge(row).problems]
        expected += one_by_one.close()
        assert list(at_a_glance.check(table, columns)) == expected
        assert at_a_glance.rows == len(list(table.rows(columns)))


@given(
    st.lists(st.sampled_from(["a", ",", '"', "\n", "\r", "\r\n", "é", "\u2028", "\x0b", "\0"]), max_size=60).map(
        "".join
    )
)
@settings(max_examples=300, deadline=None)
def test_lines_come_each_with_its_problems(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """Wherever its line breaks are, and whether or not they are those of the system."""
    path = tmp_path_factory.mktemp("t") / "t.csv"
    path.write_bytes(b"prompt\n" + text.encode().replace("\u2028".encode(), b"\xff"))
    expected = ["prompt\n", *re.findall("[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+", text)]
    with open_table(str(path)) as table:
        lines = table_source.Lines(table._source, table._source.open_text("utf-8"))
        found = [(line, [problem.origin for problem in lines.take_problems()]) for line in lines]
    assert found == [
        (
            line.replace("\u2028", "\udcff").replace("\0", "\ufffd"),
            [f"{path}:{number}"] * (("\0" in line) + ("\u2028" in line)),
        )
        for number, line in enumerate(expected, 1)
    ]


@pytest.mark.parametrize("lines_before", [0, 1, 700])
def test_a_line_too_long_is_told_in_its_place(tmp_path: Path, lines_before: int) -> None:
    """The rows above it are read."""
    content = (
        "prompt\n" + "a fox in a wide and quiet forest at night\n" * lines_before + "x" * (table_source.LINE_MOST + 9)
    )
    with make(tmp_path, content) as table:
        rows = list(table.rows(plan(table)))
    assert [bool(row.problems) for row in rows] == [False] * lines_before + [True]
    (problem,) = rows[-1].problems
    assert problem.origin.endswith(f"shots.csv:{lines_before + 2}")
    assert problem.message.startswith("the line is longer than")


def test_shapes_beyond_the_limit_are_judged_again(tmp_path: Path) -> None:
    """However many shapes there are, only so many are kept, and none with an image in its key."""
    calls = 0

    def judge(options: OptionValues) -> tuple[str, list[Problem]]:
        nonlocal calls
        calls += 1
        return options.values["size"], []

    text = "prompt,size\n" + "".join(f"fox,{n % 20}\n" for n in range(60)) + "fox,19\n" + f"fox,{'x' * 5000}\n" * 2
    rows = read(make(tmp_path, text))
    shapes = TemplateCache(NOTHING, judge, most=10)
    assert [shapes.judge(row).value for row in rows] == [row.cells[1] for row in rows]
    assert calls == 60 + 2
    assert len(shapes._kept) == 10


# --- identity -------------------------------------------------------------------------------------------------------


def keys(table: Table) -> list[str]:
    """The key of every row, by all that it asks for."""
    identities = Identities()
    shapes = TemplateCache(NOTHING, lambda options: (json.dumps([options.values, options.lists], sort_keys=True), []))
    with table:
        judged = [shapes.judge(row) for row in table.rows(plan(table))]
        return [identities.key_of(one.row.id, (one.value or "", one.prompt, one.seed)) for one in judged]


def test_rows_are_known_by_what_they_ask_for(tmp_path: Path) -> None:
    """Equal rows are two images, order is nothing, an edit is a new row, and so is another id."""
    before = keys(make(tmp_path, "prompt,size,seed,id\nfox,2K,,\nowl,2K,,\nfox,2K,,\nfox,2K,7,\nfox,2K,,a\n"))
    assert len(set(before)) == 5
    after = keys(
        make(tmp_path, "id;seed;prompt;note;size\n;;fox;x;2K\na;;fox;;2K\n;+07;fox;;2K\n;;fox;y;2K\n;;owl;;2K\n")
    )
    assert sorted(after) == sorted(before)
    edited = keys(make(tmp_path, "prompt,size,seed,id\nfox,2K,,\nowl,4K,,\nfox,2K,,\nfox,2K,8,\nfox,2K,,b\n"))
    assert [old == new for old, new in zip(before, edited, strict=True)] == [True, False, True, False, False]
    as_json = '{"size": "2K", "prompt": "fox"}\n{"prompt": "fox", "size": "2K", "seed": 7}\n'
    assert keys(make(tmp_path, as_json, "shots.jsonl")) == [before[0], before[3]]


def test_keys_hold_for_ever() -> None:
    """What is written down today is found again by later versions; texts divided differently differ."""
    assert row_key(("fingerprint", "a fox", "7")) == "39574a0e74d83603e69c955bc7cd55fd"
    divided = [("ab", "c"), ("a", "bc"), ("abc", ""), ("", "abc")]
    assert len({row_key(parts, *more) for parts in divided for more in [(), ("x",), ("", 2)]}) == 12


def test_shards_part_the_rows() -> None:
    """Each row is in one shard, by its key alone, and shards are about equal."""
    parts = [shard_of(row_key((str(number),)), 7) for number in range(7000)]
    assert {parts.count(shard) > 850 for shard in range(7)} == {True}
    assert shard_of(row_key(("0",)), 1) == 0


# --- results --------------------------------------------------------------------------------------------------------


def results(rows: Iterable[Row], **more: str) -> Iterator[tuple[Row, RowResult]]:
    """The same result for every row."""
    return ((row, RowResult("succeeded", "out/a.png", cost="0.04", **more)) for row in rows)


def test_results_are_the_table_with_more_columns(tmp_path: Path) -> None:
    """BOM, `sep=`, delimiter, order and line ends as they came in; formulas are text, numbers are numbers."""
    cells = ["=1+1", "+x", "@x", "-1", "-1,5", "- item", "\ttab", " =x", "+49 30", "a\rb", 'say "hi"; x', "-"]
    body = "".join('"' + cell.replace('"', '""') + '";2K\r\n' for cell in cells)
    with make(tmp_path, "\ufeffsep=;\r\nprompt;status\r\n" + body) as table:
        rows = list(table.rows(plan(table)))
        write_results(tmp_path / "results.csv", table, results(rows, error="=cmd|' /C calc'!A0\nbroken \ud800"))
    raw = (tmp_path / "results.csv").read_bytes()
    assert raw.startswith(b"\xef\xbb\xbfsep=;\r\nprompt;status;seedream_status;path;error;provider_code;billed;cost;")
    assert raw.count(b"\r\n") == 2 + len(cells)
    _, header, *found = csv.reader(io.StringIO(raw.decode("utf-8-sig"), newline=""), delimiter=";")
    own = ["path", "error", "provider_code", "billed", "cost", "request_id", "warning"]
    assert header[2:] == ["seedream_status", *own]
    texts = ["'=1+1", "'+x", "'@x", "-1", "-1,5", "'- item", "'\ttab", "' =x", "'+49 30", "a\rb", 'say "hi"; x', "'-"]
    assert [row[0] for row in found] == texts
    assert found[0][2:] == ["succeeded", "out/a.png", "'=cmd|' /C calc'!A0\nbroken \\ud800", "", "", "0.04", "", ""]
    again = read(open_table(str(tmp_path / "results.csv")))
    assert [row.prompt for row in again] == texts


def test_results_of_json_lines_are_a_table(tmp_path: Path) -> None:
    """One column for each key, lists joined, the body's values as JSON."""
    text = '{"prompt": "fox", "image": ["a.png", "b.png"]}\n{"prompt": "owl", "extra.x": {"k": 1}, "n": 2}\n'
    with make(tmp_path, text, "shots.jsonl") as table:
        write_results(tmp_path / "r.csv", table, results(table.rows(plan(table))))
    lines = (tmp_path / "r.csv").read_text().splitlines()
    assert lines[0] == "prompt,image,extra.x,n,status,path,error,provider_code,billed,cost,request_id,warning"
    assert lines[1:] == [
        "fox,a.png|b.png,,,succeeded,out/a.png,,,,0.04,,",
        'owl,,"{""k"": 1}",2,succeeded,out/a.png,,,,0.04,,',
    ]


def test_results_come_whole_or_not_at_all(tmp_path: Path) -> None:
    """A failure half way leaves the earlier results and nothing else; the table itself is never replaced."""
    path = tmp_path / "results.csv"
    earlier = "prompt,status,path,error,provider_code,billed,cost,request_id,warning\nowl,,,,,,,,\n"
    path.write_text(earlier)

    def broken(rows: Iterable[Row]) -> Iterator[tuple[Row, RowResult]]:
        yield from results(rows)
        raise KeyboardInterrupt

    with make(tmp_path, "prompt\nfox\n") as table:
        columns = plan(table)
        with pytest.raises(KeyboardInterrupt):
            write_results(path, table, broken(table.rows(columns)))
        assert path.read_text() == earlier
        (tmp_path / "link.csv").symlink_to(tmp_path / "shots.csv")
        for own in (tmp_path / "shots.csv", tmp_path / "link.csv", tmp_path):
            assert check_results(own, table)
            with pytest.raises(InputError):
                write_results(own, table, results(table.rows(columns)))
        with pytest.raises(FileError, match="cannot write"):
            write_results(tmp_path / "none" / "r.csv", table, results(table.rows(columns)))
        write_results(path, table, results(table.rows(columns)))
    assert path.read_text().count("\n") == 2
    assert not list(tmp_path.glob(".*")), "no part is left"


# --- properties -----------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), max_size=12)
HOSTILE = st.sampled_from(['"', '""', "\r", "\n", "\r\n", ",;\t|", "=1", "'", "\ufeff", "\u2028", "\x85", "\x1c", " "])
CELL = st.lists(TEXT | HOSTILE, max_size=3).map("".join)


@given(
    st.lists(st.lists(CELL, min_size=3, max_size=3), max_size=8),
    st.sampled_from(",;\t"),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_any_table_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory,
    written: Sequence[Sequence[str]],
    delimiter: str,
    line_end: str,
    encoding: str,
    quoted: bool,
) -> None:
    """Cells come back letter by letter, at the right lines; results hold them again, behind a quote at most.

    Control characters, which a terminal would obey, and hidden marks stand in the results as visible escapes.
    """

    def escaped(cell: str, at: int) -> str:
        shown = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", cell)
        marks = "[\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff0-\ufffb]"
        # The prompt, by which a row is known again, keeps its marks.
        return re.sub(marks, lambda found: f"\\u{ord(found[0]):04x}", shown) if at else shown

    folder = tmp_path_factory.getbasetemp() / "any"
    folder.mkdir(exist_ok=True)
    file = io.StringIO(newline="")
    # The module leaves a carriage return alone unless line ends hold one, so cells are quoted where they do not.
    all_quoted = csv.QUOTE_ALL if quoted or line_end == "\n" else csv.QUOTE_MINIMAL
    writer = csv.writer(file, delimiter=delimiter, lineterminator=line_end, quoting=all_quoted)
    writer.writerow(["prompt", "a,b", "x;y\tz"] if quoted else ["prompt", "a", "b"])
    wanted, lines = [], []
    for cells in written:
        line = len(io.StringIO(file.getvalue(), newline="").readlines()) + 1
        writer.writerow(cells)
        if "".join(cells).strip():
            wanted.append(list(cells))
            lines.append(line)
    with make(folder, file.getvalue().encode(encoding)) as table:
        rows = list(table.rows(plan(table)))
        assert [list(row.cells) for row in rows] == wanted
        assert [row.line for row in rows] == lines
        write_results(folder / "results.csv", table, results(rows))
    assert table.format.delimiter == delimiter
    with open_table(str(folder / "results.csv")) as again:
        columns = plan(again)
        back = [[*row.cells] for row in again.rows(columns)]
    assert [[cell.removeprefix("'") for cell in map(str, cells[:3])] for cells in back] == [
        [escaped(cell.removeprefix("'"), at) for at, cell in enumerate(cells)] for cells in wanted
    ]
    assert all(cells[3] == "succeeded" for cells in back)


@given(st.binary(max_size=200) | TEXT.map(str.encode), st.sampled_from(["t.csv", "t.jsonl", "t"]))
@settings(max_examples=300, deadline=None)
def test_no_bytes_end_in_a_crash(tmp_path_factory: pytest.TempPathFactory, raw: bytes, name: str) -> None:
    """Whatever a file holds, it is a table or problems."""
    folder = tmp_path_factory.getbasetemp() / "bytes"
    folder.mkdir(exist_ok=True)
    for content in (raw, b"prompt,a\n" + raw, b'{"prompt": "x"}\n' + raw):
        try:
            table = make(folder, content, name)
        except InputError:
            continue
        with table:
            columns, _ = plan_columns(table.headings, needs_prompt=False)
            for problem in check_table(table, columns, NOTHING, sound):
                assert problem.message


# --- size -----------------------------------------------------------------------------------------------------------

MEASURE = """
import pathlib, re, sys, time
from seedream_cli.engine import plan
from seedream_cli import providers
from seedream_cli.request.models import find_model
from seedream_cli.providers.contract import rule_for
from seedream_cli.request.image_request import OptionValues, TargetModel
from seedream_cli.request.validation import build
from seedream_cli.config.options import parse_values
from seedream_cli.batch.checks import Checker, TemplateCache
from seedream_cli.batch.columns import plan_columns
from seedream_cli.batch.identity import Identities
from seedream_cli.batch.table import open_table

dialect = providers.load(providers.PROVIDERS[-1])
recipient = TargetModel("p", find_model("4.5", ""), "m", lambda option: rule_for(dialect.spec, None, option))

def judge(draft):
    built = build(draft, parse_values(draft, []), recipient)
    return built.request.fingerprint if built.request else "", built.problems

def run(name):
    with open_table(name) as table:
        columns, _ = plan_columns(table.headings)
        checker, identities = Checker(TemplateCache(OptionValues(), judge)), Identities()
        keys = 0
        for row in table.rows(columns):
            judged = checker.judge(row)
            assert not judged.problems, judged.problems
            keys += len(identities.key_of(row.id, (judged.value, judged.prompt, judged.seed))) == 32
        return keys

def peak():
    # Not getrusage: it begins with the peak of the process that started this one.
    text = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s+([0-9]+) kB", text)[1]) * 1024

run(sys.argv[1])
before, start = peak(), time.process_time()
rows = run(sys.argv[2])
print(rows, time.process_time() - start, (peak() - before) / 2**20)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is asked of Linux")
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_hundred_thousand_rows(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Checked and named in less than 20 MiB more than a thousand, and fast enough to enter them in two seconds."""
    names = []
    for count in (1_000, 100_000):
        path = tmp_path / f"{count}.{kind}"
        names.append(str(path))
        rows = (
            [f"a fox, number {n}", "2K", "red", f"note {n}", ("16:9", "1:1")[n % 2], "oil", "", ""]
            for n in range(count)
        )
        header = ["prompt", "size", "color", "note", "aspect", "style", "shot", "title"]
        with path.open("w", newline="") as file:
            if kind == "csv":
                csv.writer(file).writerows([header])
                csv.writer(file).writerows(rows)
            else:
                file.writelines(json.dumps(dict(zip(header, row, strict=True))) + "\n" for row in rows)
    done = subprocess.run([sys.executable, "-c", MEASURE, *names], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found, seconds, grown = (float(word) for word in done.stdout.split())
    with capsys.disabled():
        print(f"\n100,000 rows of {kind}: {seconds:.2f} s of CPU, {grown:.1f} MiB more than for 1,000")
    assert found == 100_000
    assert grown < 20
    # Five times what a quiet machine needs: a guard against a slip, not a measurement.
    assert seconds < 5


def test_row_records_are_plain(tmp_path: Path) -> None:
    """A row can be made anew with other cells, as tests and later rooms do."""
    (row,) = read(make(tmp_path, "prompt,size\nfox,2K\n"))
    assert row._replace(cells=["owl", "4K"]).options(NOTHING).values == {"prompt": "owl", "size": "4K"}
