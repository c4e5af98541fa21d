"""Digits of three fonts, drawn in three sizes at two places in both polarities: a net trained on MNIST reads them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

FONTS = ("DejaVuSans", "DejaVuSerif", "DejaVuSansMono")
SIZES = (20, 40, 90)
PLACES = ((0.1, 0.1), (0.45, 0.35))  # of the side, where the digit's cell begins


def draw_all(draw: Callable, folder: Path) -> int:
    """Every digit in every way; the file's name begins with the digit."""
    folder.mkdir()
    for digit in "0123456789":
        for font in FONTS:
            for points in SIZES:
                for i, (x, y) in enumerate(PLACES):
                    side = 2 * points
                    at = (round(x * side), round(y * side))
                    for dark in (True, False):
                        name = f"{digit}_{font}_{points}_{i}_{'dark' if dark else 'light'}.png"
                        draw(digit, font, points, at, side, dark).save(folder / name)
    return len(list(folder.iterdir()))


@pytest.mark.slow
def test_digits_of_fonts_are_read_by_a_net_trained_on_mnist(
    dlrun: Callable, draw: Callable, real_data: Path, tmp_path: Path
) -> None:
    """A small net and a few of the rows, so below the figures that the README reports."""
    assert draw_all(draw, tmp_path / "digits") == 360
    quick = ("trainer.epochs=3", "tracking.graph=false", "figures=false", "expect=[]", "hydra.run.dir=run")
    quick = (*quick, "data.train_rows=10000", "optimizer.lr=0.03", "data.batch_size=32")
    assert dlrun("lesson=cnn_mnist", *quick).code == 0
    outcome = dlrun("predict", "run", "digits", "--format", "jsonl")
    assert outcome.code == 0, outcome.err
    answers = [json.loads(line) for line in outcome.out.splitlines()]
    assert len(answers) == 360
    right = [Path(a["input"]).name[0] == a["prediction"] for a in answers]
    assert sum(right) / 360 >= 0.85
    assert all(("inverted" in a["note"]) == ("dark" in a["input"]) for a in answers)
