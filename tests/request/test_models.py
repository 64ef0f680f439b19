"""The model table, recomputed, and the functions that read a row."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from seedream_cli.errors import Problem
from seedream_cli.request.models import DEFAULT_MODEL, MODELS, ModelSpec, find_model, nearest_models
from seedream_cli.request.prices import price_for
from seedream_cli.request.sizes import parse_size, resolve_aspect, size_problem

BY_NAME = {row.name: row for row in MODELS}
ROWS = pytest.mark.parametrize("row", MODELS, ids=lambda row: row.name)
OPTIONS = {"seed", "guidance_scale", "format", "response_format", "stream", "optimize_prompt", "web_search"}
OPTIONS |= {"background", "layers", "sequence", "images", "watermark", "callback_url", "async"}


def model(name: str) -> ModelSpec:
    """A row that must be there."""
    found = find_model(name)
    assert found is not None
    return found


@ROWS
def test_every_listed_size_is_legal_and_has_its_shape(row: ModelSpec) -> None:
    """Each size lies in the model's pixel and ratio ranges, within 2 % of its label, and the right way round."""
    for table in (*row.tiers.values(), *filter(None, [row.aspects])):
        assert set(table) == {"1:1", "4:3", "3:4", "16:9", "9:16", "3:2", "2:3", "21:9"}
        assert len(set(table.values())) == len(table)
        for label, size in table.items():
            width, height = map(int, size.split("x"))
            wide, high = map(int, label.split(":"))
            assert row.pixels is not None
            assert row.pixels[0] <= width * height <= row.pixels[1], f"{label} {size}"
            assert row.ratio[0] <= width / height <= row.ratio[1]
            assert abs(Fraction(width, height) / Fraction(wide, high) - 1) < 0.02, f"{label} {size}"
            assert (width > height, width < height) == (wide > high, wide < high)
            assert size_problem(row, size) is None
            turned = table.get(f"{high}:{wide}")
            assert turned in {None, f"{height}x{width}"}, f"{label} and its turned shape differ"


@ROWS
def test_tiers_have_the_pixels_of_their_name(row: ModelSpec) -> None:
    """A tier's square is K x 1024 wide, and its other shapes are no more than 15 % off that area."""
    for tier, table in row.tiers.items():
        side = round(float(tier.removesuffix("K")) * 1024)
        assert table["1:1"] == f"{side}x{side}"
        for size in table.values():
            width, height = map(int, size.split("x"))
            assert 0.85 < width * height / side**2 < 1.15, size


def test_tiers_ranges_and_references_are_those_of_the_api() -> None:
    """The facts that requests are refused by, spelled out once more."""
    facts = {
        row.name: ("".join(row.tiers), row.pixels, row.references, row.sequence_max, row.default_size) for row in MODELS
    }
    small, large = (921_600, 4_624_220), (3_686_400, 16_777_216)
    assert facts == {
        "5.5": ("1K1.5K2K", small, (0, 10), 0, "2K"),
        "5.0-pro": ("1K1.5K2K", small, (0, 10), 0, "2K"),
        "5.0-flash": ("1K1.5K2K", small, (0, 10), 0, "2K"),
        "5.0-lite": ("2K3K4K", large, (0, 14), 15, "2K"),
        "4.5": ("2K4K", large, (0, 14), 15, "2K"),
        "4.0": ("1K2K4K", (921_600, 16_777_216), (0, 14), 15, "2K"),
        "3.0-t2i": ("", (262_144, 4_194_304), (0, 0), 0, "1024x1024"),
        "seededit-3.0": ("", None, (1, 1), 0, "adaptive"),
    }
    assert model("4.0").tiers["1K"]["16:9"] == "1280x720"
    assert model("pro").tiers["2K"]["16:9"] == "2816x1584"
    assert model("4.5").tiers["4K"]["4:3"] == "4704x3520"
    assert model("lite").tiers["3K"]["3:2"] == "3744x2496"


@ROWS
def test_a_row_is_whole(row: ModelSpec) -> None:
    """Known options, reasons with sources, a legal default size, dates, and prices that rise and end open."""
    assert set(row.rules) <= OPTIONS
    for option, rule in row.rules.items():
        assert rule.note, option
        assert rule.source, option
    assert re.fullmatch(r"20[0-9]{2}-[01][0-9]", row.as_of)
    assert size_problem(row, row.default_size) is None
    assert row.sequence_max == 0 or row.rules.get("sequence") is None
    assert bool(row.layers_max) == bool(row.layer_sizes)
    assert bool(row.price) == bool(row.price_as_of)
    for steps in row.price.values():
        assert [step.amount for step in steps] == sorted(step.amount for step in steps)
        assert all(step.amount > 0 for step in steps)
        assert steps[-1].max_pixels is None


@pytest.mark.parametrize(
    ("option", "states"),
    [
        # 5.5, Pro, Flash, lite, 4.5, 4.0, 3.0, SeedEdit: taken, refused, unconfirmed
        ("images", "tttttt" + "rt"),
        ("seed", "uuuuuu" + "tt"),
        ("guidance_scale", "uuuuuu" + "tt"),
        ("sequence", "rrrttt" + "rr"),
        ("stream", "urrttt" + "rr"),
        ("web_search", "urrtrr" + "rr"),
        ("format", "ttttrr" + "rr"),
        ("optimize_prompt", "uttttt" + "rr"),
        ("response_format", "tttttt" + "tt"),
        ("watermark", "tttttt" + "tt"),
        ("background", "tttrrr" + "rr"),
        ("layers", "tttrrr" + "rr"),
        ("async", "tttttt" + "tt"),
    ],
)
def test_options_fare_as_the_api_says(option: str, states: str) -> None:
    """The table of models and options, letter by letter."""
    seen = "".join(row.rules[option].state[0] if option in row.rules else "t" for row in MODELS)
    assert seen == states


def test_ids_are_exact_and_belong_to_one_model() -> None:
    """Every spelling of every provider family, none of them shared by two models."""
    ids = {row.name: {family: list(spellings) for family, spellings in row.ids.items()} for row in MODELS}
    assert ids == {
        "5.5": {
            "ark": ["doubao-seedream-5-5-261028"],
            "byteplus": ["dola-seedream-5-5-261028", "seedream-5-5-261028"],
        },
        "5.0-pro": {
            "ark": ["doubao-seedream-5-0-pro-260628"],
            "byteplus": ["dola-seedream-5-0-pro-260628", "seedream-5-0-pro-260628"],
            "acedata": ["doubao-seedream-5-0-pro-260628"],
        },
        "5.0-flash": {
            "ark": ["doubao-seedream-5-0-flash-260915"],
            "byteplus": ["dola-seedream-5-0-flash-260915", "seedream-5-0-flash-260915"],
        },
        "5.0-lite": {
            "ark": ["doubao-seedream-5-0-260128", "doubao-seedream-5-0-lite-260128"],
            "byteplus": ["seedream-5-0-260128", "seedream-5-0-lite-260128"],
            "ope": ["bytedance-seedream-5.0"],
            "acedata": ["doubao-seedream-5-0-lite-260128", "doubao-seedream-5-0-260128"],
        },
        "4.5": {
            "ark": ["doubao-seedream-4-5-251128"],
            "byteplus": ["seedream-4-5-251128"],
            "ope": ["doubao-seedream-4.5", "doubao-seedream-4-5-251128"],
            "acedata": ["doubao-seedream-4-5-251128"],
        },
        "4.0": {
            "ark": ["doubao-seedream-4-0-250828"],
            "byteplus": ["seedream-4-0-250828"],
            "ope": ["doubao-seedream-4.0", "doubao-seedream-4-0-250828"],
            "acedata": ["doubao-seedream-4-0-250828"],
        },
        "3.0-t2i": {
            "ark": ["doubao-seedream-3-0-t2i-250415"],
            "byteplus": ["seedream-3-0-t2i-250415"],
            "ope": ["doubao-seedream-3-0-t2i-250415"],
            "acedata": ["doubao-seedream-3-0-t2i-250415"],
        },
        "seededit-3.0": {
            "ark": ["doubao-seededit-3-0-i2i-250628"],
            "byteplus": ["seededit-3-0-i2i-250628"],
            "acedata": ["doubao-seededit-3-0-i2i-250628"],
        },
    }
    for row in MODELS:
        for name in (row.name, *row.aliases):
            assert find_model(name) is row
        for family, spellings in row.ids.items():
            for spelling in spellings:
                assert find_model(spelling) is row
                assert find_model(spelling.upper(), family) is row
                assert find_model(re.sub(r"-[0-9]{6}$", "", spelling)) is row


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("5.0", "5.0-lite"),
        ("5", "5.0-lite"),
        ("lite", "5.0-lite"),
        ("Pro", "5.0-pro"),
        (" flash ", "5.0-flash"),
        ("4", "4.0"),
        ("3.0", "3.0-t2i"),
        ("seededit", "seededit-3.0"),
        ("Seedream 4.5", "4.5"),
        ("seedream_5.0_pro", "5.0-pro"),
        ("doubao-seedream-5-0", "5.0-lite"),
        ("doubao-seedream-4-5-270101", None),
        ("ep-20260101-abcde", None),
        ("", None),
        ("seedream", None),
    ],
)
def test_a_model_is_found_by_what_users_type(typed: str, name: str | None) -> None:
    """Aliases, titles and ids without their date are known; an id with another date is not."""
    found = find_model(typed)
    assert (found.name if found else None) == name


def test_a_misspelled_model_meets_its_neighbours() -> None:
    """The nearest names are offered, none for something else altogether, all for nothing."""
    assert nearest_models("sedream-4.5")[0] == "4.5"
    assert "5.0-lite" in nearest_models("5.0-lit")
    assert nearest_models("ep-20260101-abcde") == []
    assert nearest_models("") == list(BY_NAME)
    assert DEFAULT_MODEL == "5.0-lite"
    assert DEFAULT_MODEL in BY_NAME


@pytest.mark.parametrize(
    ("typed", "size"),
    [
        ("2k", "2K"),
        ("1.5k", "1.5K"),
        (" 2.0K ", "2K"),
        ("8K", "8K"),
        ("2048X2048", "2048x2048"),
        ("2048×1152", "2048x1152"),
        ("2048*1152", "2048x1152"),
        ("2048 x 1152", "2048x1152"),
        ("0640x0480", "640x480"),
        ("1x1", "1x1"),
        ("Adaptive", "adaptive"),
        ("AUTO", "auto"),
        ("", None),
        ("0x0", None),
        ("2048", None),
        ("16:9", None),
        ("2048x", None),
        ("-1x5", None),
        ("２０４８x２０４８", None),
        ("2048x2048x2048", None),
        ("9999999x1", None),
    ],
)
def test_a_size_is_read_as_the_api_spells_it(typed: str, size: str | None) -> None:
    """Tiers, pixels with any cross, and keywords are normalised; anything else is no size."""
    assert parse_size(typed) == size


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [
        ("4.5", "1K", "it takes 2K, 4K or WIDTHxHEIGHT of 3,686,400 to 16,777,216 pixels"),
        ("4.5", "1920x1080", "1,612,800 too few"),
        ("4.5", "1920x1080", "2560x1440"),
        ("lite", "5000x5000", "8,222,784 too many"),
        ("lite", "5000x5000", "4096x4096"),
        ("pro", "3000x3000", "too many"),
        ("4.5", "17000x500", "1:16 and 16:1"),
        ("4.5", "adaptive", "no size adaptive"),
        ("4.5", "16:9", "--aspect 16:9"),
        ("4.5", "large", "is no size"),
        ("3.0", "2K", "1024x1024"),
        ("seededit", "2K", "adaptive"),
        ("seededit", "1024x1024", "adaptive"),
        ("pro", "auto", "no size auto"),
    ],
)
def test_a_size_that_is_not_taken_is_explained(name: str, size: str, said: str) -> None:
    """The message names what is legal: tiers, how many pixels are missing, the nearest size of the same shape."""
    problem = size_problem(model(name), size)
    assert problem is not None
    assert said in problem


def test_layers_have_sizes_of_their_own() -> None:
    """A layered answer takes tiers and `auto`, never WIDTHxHEIGHT."""
    pro = model("pro")
    assert all(size_problem(pro, size, layers=True) is None for size in ("auto", "1K", "1.5K", "2K"))
    assert "auto, 1K, 1.5K or 2K" in (size_problem(pro, "2048x2048", layers=True) or "")


@given(
    st.sampled_from([row for row in MODELS if row.pixels]),
    st.integers(1, 20_000),
    st.integers(1, 20_000),
)
@example(MODELS[0], 938, 14996)
@example(MODELS[0], 14996, 938)
def test_the_nearest_size_that_is_offered_is_legal(row: ModelSpec, width: int, height: int) -> None:
    """Whatever WIDTHxHEIGHT was refused for its pixels, the size in the message is taken and keeps the shape."""
    problem = size_problem(row, f"{width}x{height}")
    offered = re.search(r"nearest of this shape is ([0-9]+)x([0-9]+)", problem or "")
    assume(offered is not None)
    assert offered is not None
    wide, high = int(offered[1]), int(offered[2])
    assert size_problem(row, f"{wide}x{high}") is None
    assert abs(wide / high / (width / height) - 1) < 0.02


@given(st.text(max_size=20), st.sampled_from(MODELS))
def test_no_text_confuses_the_readers(text: str, row: ModelSpec) -> None:
    """Any text is a size, an aspect, a model or none of them; nothing raises, and reading twice changes nothing."""
    size = parse_size(text)
    assert size is None or parse_size(size) == size
    size_problem(row, text)
    resolve_aspect(row, "2K", text)
    find_model(text)
    price_for(row, "ark", text)


@pytest.mark.parametrize(
    ("name", "tier", "aspect", "pixels"),
    [
        ("4.5", "2K", "16:9", "2848x1600"),
        ("4.5", "2k", " 16 : 9 ", "2848x1600"),
        ("4.5", "2K", "32:18", "2848x1600"),
        ("4.5", "2K", "3/4", "1728x2304"),
        ("pro", "1.5K", "21:9", "2352x1008"),
        ("pro", "1.5K", "7:3", "2352x1008"),
        ("4.0", "1K", "1:1", "1024x1024"),
        ("3.0", "1024x1024", "9:16", "720x1280"),
    ],
)
def test_an_aspect_picks_the_tiers_own_pixels(name: str, tier: str, aspect: str, pixels: str) -> None:
    """A ratio in any notation picks the tier's exact size; without tiers it picks from the model's list."""
    assert resolve_aspect(model(name), tier, aspect) == pixels


@pytest.mark.parametrize(
    ("name", "tier", "aspect", "said"),
    [
        ("4.5", "2K", "5:4", "--size 2288x1824"),
        ("4.5", "2K", "wide", "16:9"),
        ("4.5", "2K", "0:9", "16:9"),
        ("4.5", "1K", "16:9", "2K or 4K"),
        ("4.5", "2048x2048", "16:9", "2K or 4K"),
        ("seededit", "adaptive", "16:9", "leave --aspect out"),
        ("4.5", "2K", "100:1", "known ratios"),
        ("3.0", "800x800", "16:9", "leave --aspect out"),
    ],
)
def test_an_aspect_without_pixels_is_explained(name: str, tier: str, aspect: str, said: str) -> None:
    """The problem names the ratios or tiers there are, and a size of that shape where one is legal."""
    problem = resolve_aspect(model(name), tier, aspect)
    assert isinstance(problem, Problem)
    assert said in problem.hint
    suggested = re.search(r"--size ([0-9]+x[0-9]+)", problem.hint)
    assert not suggested or size_problem(model(name), suggested[1]) is None


@pytest.mark.parametrize(
    ("name", "family", "size", "amount"),
    [
        ("lite", "ark", "2K", 0.035),
        ("lite", "acedata", "4K", 0.040),
        ("4.5", "cometapi", "2K", 0.032),
        ("4.5", "byteplus", "2K", 0.04),
        ("4.0", "ope", "1K", 0.03),
        ("pro", "ark", "1K", 0.045),
        ("pro", "ark", "1.5K", 0.045),
        ("pro", "ark", "2K", 0.09),
        ("pro", "ark", "1536x1536", 0.045),
        # Between the two edges that are quoted, the dearer price is held.
        ("pro", "ark", "1792x1344", 0.09),
        ("pro", "acedata", "2K", 0.088),
        ("pro", "ark", "auto", 0.09),
        ("pro", "ark", "nonsense", 0.09),
        ("flash", "ark", "2K", 0.018),
        ("5.5", "ark", "1K", 0.020),
        ("5.5", "ark", "1024x1024", 0.020),
        ("5.5", "ark", "1700x1600", 0.035),
        ("3.0", "ark", "1024x1024", None),
        ("seededit", "acedata", "adaptive", None),
    ],
)
def test_an_image_is_priced_at_the_worst_that_is_known(name: str, family: str, size: str, amount: float | None) -> None:
    """The provider's own price, else the list price; unknown is None, never nothing."""
    step = price_for(model(name), family, size)
    assert (step.amount if step else None) == amount
