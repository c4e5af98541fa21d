"""Digits drawn with a font, and small runs to predict with."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from PIL import Image, ImageDraw, ImageFont

QUICK = ("tracking.graph=false", "figures=false", "preflight=false")
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def drawn(
    digit: str,
    font: str = "DejaVuSans",
    points: int = 40,
    at: tuple[int, int] = (20, 10),
    side: int = 80,
    dark: bool = True,
) -> "Image.Image":
    """A digit on a square, black on white or the other way round."""
    image = Image.new("L", (side, side), 255 if dark else 0)
    ImageDraw.Draw(image).text(
        at, digit, fill=0 if dark else 255, font=ImageFont.truetype(FONTS / f"{font}.ttf", points)
    )
    return image


@pytest.fixture(scope="session")
def draw() -> Callable[..., "Image.Image"]:
    """`draw("7")`: see `drawn`."""
    return drawn


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where runs are kept for all tests here."""
    return tmp_path_factory.mktemp("shelf")


@pytest.fixture
def trained(dlrun: Callable[..., Any], tmp_path: Path, shelf: Path) -> Callable[..., Path]:
    """`trained("name", *words)`: a run of these words, made once; a copy of it to do anything with."""

    def run(name: str, *words: str) -> Path:
        if not (shelf / name).exists():
            outcome = dlrun(*words, *QUICK, f"hydra.run.dir={shelf / name}")
            assert outcome.code == 0, outcome.err
        shutil.copytree(shelf / name, tmp_path / name)
        return tmp_path / name

    return run
