"""A font is found for letters that matplotlib's own lacks, or a sentence names what to install."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from dlrun.runs.reports.plots import canvas, fonts

CAT = "猫"


def make_font(path: Path, letters: str, family: str) -> None:
    """A font whose letters are all filled squares."""
    names = [".notdef", *(f"letter{i}" for i in range(len(letters)))]
    pen = TTGlyphPen(None)
    for i, point in enumerate(((0, 0), (0, 900), (900, 900), (900, 0))):
        (pen.lineTo if i else pen.moveTo)(point)
    pen.closePath()
    square = pen.glyph()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(letter): f"letter{i}" for i, letter in enumerate(letters)})
    builder.setupGlyf(dict.fromkeys(names, square))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)


@pytest.fixture
def fonts_here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files of the fonts of this machine, besides those of matplotlib: at first none."""
    paths: list[str] = []
    manager = font_manager.fontManager
    shipped = [entry for entry in manager.ttflist if "mpl-data" in entry.fname]
    monkeypatch.setattr(manager, "ttflist", shipped)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: paths)
    monkeypatch.setattr(fonts, "_missing", set())
    monkeypatch.setattr(fonts, "_boxes", set())
    return paths


def picture(title: str) -> np.ndarray:
    figure, axes = canvas.create_axes(3, 2)
    axes.set_title(title)
    return canvas.render_pixels(figure)


@pytest.mark.slow
def test_letters_that_no_font_has_are_said_once_and_warn_of_nothing(fonts_here: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture(CAT)
        picture(CAT)
    (note,) = fonts.describe_missing_letters()
    assert CAT in note
    assert "fonts-noto-cjk" in note
    assert fonts.describe_missing_letters() == []


@pytest.mark.slow
def test_a_font_that_has_the_letters_is_taken(fonts_here: list[str], tmp_path: Path) -> None:
    make_font(tmp_path / "squares.ttf", CAT, "Squares")
    fonts_here.append(str(tmp_path / "squares.ttf"))
    assert fonts.find_families(f"the {CAT}") == ["DejaVu Sans", "Squares"]
    boxes = picture("").sum()
    assert picture(CAT).sum() < boxes - 20 * 3 * 255  # a filled square is darker than an empty one
    assert fonts.describe_missing_letters() == []


def test_several_fonts_share_the_letters(fonts_here: list[str], tmp_path: Path) -> None:
    for letter, family in ((CAT, "Cats"), ("狗", "Dogs")):
        make_font(tmp_path / f"{family}.ttf", letter, family)
        fonts_here.append(str(tmp_path / f"{family}.ttf"))
    (tmp_path / "damaged.ttf").write_bytes(b"no font")
    fonts_here.insert(0, str(tmp_path / "damaged.ttf"))
    assert fonts.find_families(f"{CAT}狗鸟") == ["DejaVu Sans", "Cats", "Dogs"]
    (note,) = fonts.describe_missing_letters()
    assert "letters 鸟," in note


def test_no_font_is_looked_for_where_the_own_has_all(fonts_here: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise AssertionError

    monkeypatch.setattr(fonts, "_list_installed", refuse)
    assert fonts.find_families("Größe − αβγ\n×") == ["DejaVu Sans"]
    picture("plain")


@pytest.mark.slow
def test_a_font_of_this_machine_draws_chinese() -> None:
    """Where one is installed, as .ci/run sees to."""
    if fonts.find_families(CAT) == ["DejaVu Sans"]:
        fonts.describe_missing_letters()
        pytest.skip("no font with Chinese letters here")
    assert (picture(CAT) != picture("狗")).any()
    assert fonts.describe_missing_letters() == []
