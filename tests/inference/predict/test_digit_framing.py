"""Pictures of a figure, however they were taken, brought to how the training's figures lie."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dlrun.core.errors import DataError
from dlrun.data.files import framing
from dlrun.data.files.framing import Framing
from dlrun.data.files.picture import open_picture
from dlrun.data.spec import DataSpec
from dlrun.inference.predict.digit_framing import frame_digit
from dlrun.inference.predict.read_image import ImageReader, choose_background

MNIST = Framing(smallest=19 / 28, extent=20 / 28, largest=20 / 28, mass=0.02, box=0.1, stroke=0.08)
Draw = Callable[..., Image.Image]


def likeness(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def test_the_figure_lies_as_in_training(draw: Draw) -> None:
    digit, note = frame_digit(draw("7"), 28, MNIST)
    extent, mass, _, _ = framing.measure_figure(digit)
    assert extent == pytest.approx(20 / 28, abs=1 / 28)
    assert np.abs(mass).max() <= 0.5 / 28 + 1e-9
    assert digit.max() == 1
    assert np.median(framing.get_border(digit)) == 0
    assert note == "inverted, figure 19×29 of 80×80 scaled to 13×20 and centred"


@pytest.mark.parametrize("size", [(28, 28), (33, 57), (800, 600)])
def test_size_place_and_background_make_no_difference(draw: Draw, size: tuple[int, int]) -> None:
    plain = frame_digit(draw("4"), 28, MNIST)[0]
    light, note = frame_digit(draw("4", dark=False), 28, MNIST)
    assert likeness(light, plain) > 0.99
    assert "inverted" not in note
    points = min(size) * 2 // 3
    placed = Image.new("L", size, 255)
    placed.paste(draw("4", points=points, at=(0, 0), side=min(size)), (size[0] - min(size), 0))
    assert likeness(frame_digit(placed, 28, MNIST)[0], plain) > (0.9 if min(size) > 28 else 0.75)


def test_paper_that_is_grey_grainy_and_unevenly_lit(draw: Draw) -> None:
    ink = 1 - np.asarray(draw("3", points=300, at=(90, 30), side=480), dtype=float) / 255
    light = np.linspace(0.45, 0.85, 480)[:, None] * np.linspace(0.9, 1.0, 480)[None]
    generator = np.random.default_rng(0)
    photo = light * (1 - 0.7 * ink) + generator.normal(0, 0.02, ink.shape)
    photo[40:44, 40:44] = 0.05  # a speck
    image = Image.fromarray((photo.clip(0, 1) * 255).astype(np.uint8))
    assert likeness(frame_digit(image, 28, MNIST)[0], frame_digit(draw("3"), 28, MNIST)[0]) > 0.95


def test_a_thin_pen_gets_lines_as_thick_as_the_training(draw: Draw) -> None:
    image = Image.new("L", (600, 600), 255)
    pixels = np.array(image)
    pixels[100:500, 300:304] = 0
    pixels[100:104, 200:400] = 0
    digit, note = frame_digit(Image.fromarray(pixels), 28, MNIST)
    assert "lines thickened" in note
    assert framing.measure_stroke(digit) / 28 == pytest.approx(MNIST.stroke, rel=0.35)


def test_what_lies_as_in_training_is_not_touched(tmp_path: Path) -> None:
    spec = DataSpec("image", (1, 28, 28), "multiclass", 10, mean=(0.5,), std=(2.0,))
    reader = ImageReader(spec, dataclasses.astuple(MNIST), crops=False)
    pixels = np.zeros((28, 28), np.uint8)
    pixels[4:24, 13:15] = 250

    def read(values: np.ndarray) -> tuple[np.ndarray, str]:
        Image.fromarray(values).save(tmp_path / "i.png")
        (item,) = reader.read_items(str(tmp_path / "i.png"))
        prepared = reader.prepare(item)
        return prepared.inputs[0][0].numpy(), prepared.note

    for values, message in ((pixels, ""), (255 - pixels, "inverted")):
        digit, note = read(values)
        assert note == message
        assert np.array_equal(digit, (pixels.astype(np.float32) / 255 - 0.5) / 2)
    large, note = read(255 - pixels.repeat(3, axis=0).repeat(3, axis=1))
    assert note == "inverted, 84×84 to 28×28"
    assert likeness(large, pixels / 255.0) > 0.99
    moved, note = read(np.roll(pixels, 8, axis=1))
    assert "centred" in note
    assert likeness(moved, pixels / 255.0) > 0.9


def test_large_figures_are_not_cut() -> None:
    pixels = np.zeros((40, 40), np.uint8)
    pixels[:, 2] = pixels[0, 2:30] = 255  # its mass is far from the middle of its box
    digit, _ = frame_digit(Image.fromarray(pixels), 28, Framing(1.0, 1.0, 1.0, mass=0.01, box=0.05, stroke=0.04))
    (top, bottom), (left, right) = framing.find_bounds(digit >= framing.LIT)
    assert (top, bottom, right - left) == (0, 28, 20)


@pytest.mark.parametrize("value", [0, 128, 255])
def test_nothing_there(value: int) -> None:
    with pytest.raises(DataError, match="nothing stands out"):
        frame_digit(Image.new("L", (50, 40), value), 28, MNIST)


MODES = ["RGB", "RGBA", "LA", "P", "1", "CMYK", "I;16"]


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_the_same_picture(draw: Draw, tmp_path: Path, mode: str) -> None:
    grey = draw("5")
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    if mode == "I;16":
        Image.fromarray((np.asarray(grey).astype(np.uint16)) * 257).save(path)
    elif mode in ("RGBA", "LA"):  # ink alone, on nothing
        ink = Image.new(mode, grey.size, 0)
        ink.putalpha(Image.fromarray(255 - np.asarray(grey)))
        ink.save(path)
    else:
        grey.convert(mode).save(path)
    digit, note = frame_digit(open_picture(path, choose_background), 28, MNIST)
    assert likeness(digit, frame_digit(grey, 28, MNIST)[0]) > 0.97
    assert "inverted" in note


def test_light_ink_on_nothing_is_seen(draw: Draw, tmp_path: Path) -> None:
    grey = draw("5", dark=False)
    ink = Image.new("RGBA", grey.size, (255, 255, 255, 0))
    ink.putalpha(grey)
    ink.save(tmp_path / "ink.png")
    digit, note = frame_digit(open_picture(tmp_path / "ink.png", choose_background), 28, MNIST)
    assert likeness(digit, frame_digit(grey, 28, MNIST)[0]) > 0.97
    assert "inverted" not in note
    Image.new("RGBA", (9, 9), (5, 5, 5, 0)).save(tmp_path / "nothing.png")
    with pytest.raises(DataError, match="transparent everywhere"):
        open_picture(tmp_path / "nothing.png", choose_background)
