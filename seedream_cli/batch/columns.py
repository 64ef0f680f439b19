"""What each column of a table sets: an option, a part of the body, the row's id, or a variable."""

from __future__ import annotations

import functools
import itertools
import operator
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ..config.options import by_name
from ..errors import Problem
from ..text import nearest
from .table_source import Cell, Heading, cell_text

# --- what the columns mean --------------------------------------------------------------------------------------------

Role = Literal["variable", "id", "prompt", "value", "switch", "image", "list", "extra", "pair"]


@dataclass(frozen=True, slots=True)
class Column:
    """What a column sets: the option `key`, by its kind; `pair` one key of the body, `part`; `variable` nothing.

    `number` orders image_1, image_2, …; it is 0 for `image`, whose cells may hold several, joined by "|".
    `is_mapped`: the user said what it sets.
    """

    name: str
    role: Role = "variable"
    key: str = ""
    part: str = ""
    negative: bool = False
    number: int = 0
    is_mapped: bool = False

    @property
    def is_free(self) -> bool:
        """Whether rows that differ only here share one judgment: the value has no bearing on other options."""
        return self.key in _STAND_INS


_NO_OPTION: Collection[Role] = {"variable", "id", "prompt"}

_STAND_INS = {"prompt": "…", "seed": "0", "name": "name"}
"""What stands for a prompt, a seed and a name while the other options of a row are judged."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A place in a prompt template: the column that fills it, or the text where its cell is empty."""

    name: str
    at: int
    otherwise: str = ""


@dataclass(frozen=True)
class Columns:
    """The columns of a table, understood. `template` is the prompt's, in pieces; None: the column `prompt` is it."""

    columns: tuple[Column, ...]
    template: tuple[str | Slot, ...] | None = None

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """The columns' names: what templates of prompts and file names may use."""
        return tuple(column.name for column in self.columns if column.name)

    @functools.cached_property
    def unused(self) -> tuple[str, ...]:
        """Variables that the prompt template does not use; a name template may."""
        used = {slot.at for slot in self.slots}
        pairs = enumerate(self.columns)
        return tuple(column.name for at, column in pairs if column.role == "variable" and at not in used)

    @functools.cached_property
    def slots(self) -> tuple[Slot, ...]:
        """The places of the template that columns fill."""
        return tuple(dict.fromkeys(piece for piece in self.template or () if isinstance(piece, Slot)))

    @functools.cached_property
    def options_at(self) -> tuple[int, ...]:
        """Where the columns that set something stand; images in the order of their numbers."""
        setting = [at for at, column in enumerate(self.columns) if column.role not in _NO_OPTION]
        return tuple(sorted(setting, key=lambda at: self.columns[at].number))

    @functools.cached_property
    def keys(self) -> tuple[str, ...]:
        """The options that columns set."""
        return tuple({column.key: None for column in self.columns if column.key})

    @functools.cached_property
    def taken(self) -> tuple[str, ...]:
        """Columns that are options by their own name alone, which may have been meant as data."""
        return tuple(column.name for column in self.columns if column.role not in _NO_OPTION and not column.is_mapped)

    @functools.cached_property
    def places(self) -> Mapping[str, str]:
        """Where each option stands, in words that hold for every row: messages may name where an option came from."""
        headings = {column.key: column.name for column in self.columns if column.key}
        return {key: f"{_HERE}column {headings.get(key, key)}" for key in (*_ALWAYS, *self.keys)}

    @functools.cached_property
    def shape_of(self) -> Callable[[Sequence[Cell]], tuple[Cell, ...]]:
        """Takes the cells that decide on a row's judgment: those of all options but the free ones."""
        at = [at for at in self.options_at if not self.columns[at].is_free]
        if len(at) > 1:
            return operator.itemgetter(*at)
        return lambda cells: tuple(cells[number] for number in at)

    @functools.cached_property
    def prompt_of(self) -> Callable[[Sequence[Cell]], str]:
        """Takes the prompt from the cells: the template filled in, or else the cell; "" where there is neither."""
        template, at = self.template, self.at.get("prompt")

        def fill(cells: Sequence[Cell]) -> str:
            texts = [p if isinstance(p, str) else cell_text(cells[p.at]) or p.otherwise for p in template or ()]
            text = "".join(texts)
            return "" if text.isspace() else text

        def take(cells: Sequence[Cell]) -> str:
            text = "" if at is None else cell_text(cells[at])
            return "" if text.isspace() else text

        return take if template is None else fill

    @functools.cached_property
    def id_at(self) -> int | None:
        """Where the id stands."""
        return self.at.get("id")

    @functools.cached_property
    def exact(self) -> frozenset[int]:
        """Where the cells stand by which a row is known again: its id and what its prompt is made of."""
        own = (
            at for at, column in enumerate(self.columns) if column.role in {"id", "prompt"} or column.key == "prompt"
        )
        return frozenset((*own, *(slot.at for slot in self.slots)))

    @functools.cached_property
    def needed_at(self) -> tuple[int, ...]:
        """Where the cells stand that should not be empty, since the template has no other text for them."""
        return tuple(slot.at for slot in self.slots if not slot.otherwise)

    @functools.cached_property
    def at(self) -> Mapping[str, int]:
        """Where `id`, `prompt`, `seed` and `name` stand."""
        named = enumerate(self.columns)
        return {column.key or column.role: at for at, column in named if column.role == "id" or column.is_free}


def plan_columns(
    headings: Sequence[Heading],
    *,
    maps: Sequence[str] = (),
    template: str | None = None,
    variables: Mapping[str, str] | None = None,
    needs_prompt: bool = True,
) -> tuple[Columns, list[Problem]]:
    """What each column sets, and all that is wrong with the header. Without an error the columns can be used.

    `maps` are COLUMN=OPTION; an empty OPTION makes a plain variable. `template` is the prompt's, `variables` what
    `--var` gives, for cells that are empty or not there. `needs_prompt` is False where the prompt comes from elsewhere
    or none is needed.
    """
    planner = _Planner(headings)
    mapped = planner.read_maps(maps)
    columns = planner.plan(mapped)
    pieces = None
    if template is not None:
        pieces = planner.compile(template, columns, variables or {})
    elif needs_prompt and not {"prompt", "layers"} & {column.key for column in columns}:
        planner.miss_prompt(columns)
    planned = Columns(tuple(columns), pieces)
    planner.look_for_slips(planned, mapped)
    return planned, planner.problems


class _Planner:
    """Finds out what columns mean and notes every problem of a header."""

    def __init__(self, headings: Sequence[Heading]) -> None:
        self.headings = headings
        self.problems: list[Problem] = []

    def add_error(self, name: str, message: str, hint: str = "", origin: str = "") -> None:
        """Note an error at a column."""
        self.problems.append(Problem(name, message, hint, origin=origin))

    def read_maps(self, maps: Sequence[str]) -> dict[str, str]:
        """COLUMN=OPTION by column. An option's name holds no "=", a column's may."""
        mapped: dict[str, str] = {}
        known = [heading.name.strip() for heading in self.headings]
        for pair in maps:
            name, equals, option = (part.strip() for part in pair.rpartition("="))
            if not equals:
                self.add_error("map", f"{pair!r} is not COLUMN=OPTION", "write --map 'Text=prompt'", "--map")
            elif name not in known:
                hint = _guess(name, known, "the columns are")
                if self.headings and not re.search(r":\d+$", self.headings[0].origin):
                    hint = f"{self.headings[0].origin} is read as one prompt a line; a table is called .csv or .tsv"
                self.add_error("map", f"there is no column {name}", hint, "--map")
            elif option and self.understand(option).role == "variable":
                hint = _guess(option, self.known(), "")
                self.add_error("map", f"there is no option {option}", hint or "see seedream batch --help", "--map")
            else:
                mapped[name] = option
        return mapped

    def known(self) -> list[str]:
        """The names that a column can have to set something."""
        found = [name for name, option in by_name().items() if option.accepts("column")]
        return ["prompt", "id", "image", *found]

    def understand(self, name: str) -> Column:
        """The meaning of a column's name."""
        name = name.strip()
        normal = _normal(name)
        if normal == "id":
            return Column(name, "id")
        if normal == "prompt":
            return Column(name, "prompt", "prompt")
        if numbered := re.fullmatch(r"image-([0-9]{1,6})", normal):
            return Column(name, "image", "image", number=int(numbered[1]) + 1)
        if normal.startswith("extra.") and len(normal) > len("extra."):
            return Column(name, "pair", "extra", name[len("extra.") :].strip())
        option = by_name().get("count" if normal == "n" else normal)
        if option is None:
            return Column(name)
        if option.key in {"image", "extra"}:
            return Column(name, "image" if option.key == "image" else "extra", option.key)
        kind: Role = "switch" if option.kind == "switch" else "list" if option.kind == "list" else "value"
        return Column(name, kind, option.key, negative=option.off)

    def plan(self, mapped: Mapping[str, str]) -> list[Column]:
        """Every column, each name and each option once."""
        columns, first = list[Column](), dict[tuple[str, ...], str]()
        for number, heading in enumerate(self.headings, 1):
            name = heading.name.strip()
            column = replace(self.understand(mapped.get(name, name)), name=name, is_mapped=name in mapped)
            if mapped.get(name) == "":
                column = Column(name)
            columns.append(column)
            self.check(column, heading, number, mapped)
            own = name if column.role == "variable" else column.key
            target = (column.role, own, column.part, str(column.number))
            if name and target in first:
                alike = f"the columns {first[target]} and {name} set the same option"
                message = f"two columns are called {name}" if first[target] == name else alike
                self.add_error(name, message, "rename or delete one of them", heading.origin)
            first.setdefault(target, name)
        return columns

    def check(self, column: Column, heading: Heading, number: int, mapped: Mapping[str, str]) -> None:
        """A column on its own: it has a name, and may stand in a table."""
        if not column.name:
            hint = "give it a name, or delete it"
            self.add_error("", f"column {number} has no name", hint, heading.origin)
        if "=" in column.part:
            self.add_error(
                column.name, "a key of the body cannot hold =", "use a column extra with JSON", heading.origin
            )
        target = _normal(mapped.get(column.name, column.name))
        option = by_name().get(target)
        if mapped.get(column.name) != "" and option is not None and not option.accepts("column"):
            hint = f"give --{target} on the command line; --map '{column.name}=' makes the column a plain variable"
            self.add_error(column.name, f"--{target} holds for the whole run, not for a row", hint, heading.origin)

    def compile(self, template: str, columns: Sequence[Column], variables: Mapping[str, str]) -> tuple[str | Slot, ...]:
        """The template in pieces. A name that is no column and no variable is an error, once."""
        pieces, end, missing = list[str | Slot](), 0, dict[str, None]()
        exact = {column.name: at for at, column in reversed(list(enumerate(columns)))}
        loose = {_normal(column.name): at for at, column in reversed(list(enumerate(columns)))}
        for found in _VARIABLE.finditer(template):
            pieces.append(template[end : found.start()])
            end, name = found.end(), (found[1] or "").strip()
            at = exact.get(name, loose.get(_normal(name)))
            if found[1] is None:
                pieces.append(found[0][0])
            elif at is not None:
                pieces.append(Slot(name, at, variables.get(name, "")))
            elif name in variables:
                pieces.append(variables[name])
            else:
                missing[name] = None
        for name in missing:
            hint = _guess(name, [*exact, *variables], "the columns are")
            way_out = f"{hint}; write {{{{{name}}}}} for braces"
            self.add_error("prompt", f"{{{name}}} in the prompt is no column", way_out, "--prompt")
        return tuple(piece for piece in (*pieces, template[end:]) if piece != "")

    def miss_prompt(self, columns: Sequence[Column]) -> None:
        """Tell that there are no prompts, and, where the first line seems to be data, that it is taken for names."""
        origin = self.headings[0].origin if self.headings else ""
        found = [column.name for column in columns]
        hint = _guess("prompt", found, "")
        if not hint and all(column.role == "variable" for column in columns) and any(map(_is_data, found)):
            hint = "the first line looks like data: put a line with the columns' names above it"
        usual = "call a column prompt, or give --prompt with {column} in it, or --map COLUMN=prompt"
        self.add_error("prompt", "no column is called prompt", hint or usual, origin)

    def look_for_slips(self, planned: Columns, mapped: Collection[str]) -> None:
        """Warn of variables that are nearly an option, unless the template uses them or they were mapped."""
        doubtful = {name for name in planned.unused if name and name not in mapped}
        for heading in self.headings:
            name = heading.name.strip()
            # Any name is right for a variable, so that only one which is hardly another is told of.
            near = nearest(name, self.known(), likeness=0.8) if name in doubtful else []
            if near:
                message, hint = f"column {name} is taken as a variable", f"did you mean {near[0]}?"
                self.problems.append(Problem(name, message, hint, "warning", heading.origin, "column_unknown"))


_VARIABLE = re.compile(r"\{\{|\}\}|\{([^{}\r\n]+)\}")


def _normal(name: str) -> str:
    return name.strip().casefold().replace("_", "-")


def _is_data(name: str) -> bool:
    """Whether a column's name reads like a cell: a sentence, a number, an address."""
    return len(name) > 40 or len(name.split()) > 3 or re.fullmatch(r"[-+0-9.,x]+|\w+://.*", name) is not None


def _guess(name: str, known: Collection[str], otherwise: str) -> str:
    """A hint that names what was probably meant, or else some of what there is."""
    if near := nearest(name, known):
        return f"did you mean {near[0]}?"
    some = ", ".join(itertools.islice(filter(None, known), 10))
    return f"{otherwise} {some}" if otherwise and some else ""


_ALWAYS = ("prompt", "image")
"""What is missing in a row, where it is missing, whether there is a column for it or not."""


# --- judging rows -----------------------------------------------------------------------------------------------------


_HERE = "\x1e"
"""Stands for a row's place in problems that were found for all rows of a shape."""
