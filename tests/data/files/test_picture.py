import numpy as np
import pytest
import torch
from PIL import Image

from dlrun.core.errors import DataError
from dlrun.data.files.picture import check_picture, read_picture


def save(folder, image, name="x.png", **options):
    image.save(folder / name, **options)
    return folder / name


def flat(mode, colour, size=(12, 8)):
    return Image.new(mode, size, colour)


GREY16 = np.full((8, 12), 51_400, np.uint16)  # 200 * 257


def palette():
    return flat("RGB", (200, 100, 50)).convert("P", palette=Image.Palette.ADAPTIVE)


@pytest.mark.parametrize(
    ("image", "name", "colour"),
    [
        (flat("RGB", (200, 100, 50)), "x.png", (200, 100, 50)),
        (flat("RGB", (200, 100, 50)), "x.bmp", (200, 100, 50)),
        (flat("RGB", (200, 100, 50)), "x.ppm", (200, 100, 50)),
        (flat("RGBA", (200, 100, 50, 255)), "x.png", (200, 100, 50)),
        (flat("RGBA", (200, 100, 50, 0)), "x.png", (255, 255, 255)),
        (flat("RGBA", (0, 0, 0, 51)), "x.webp", (204, 204, 204)),
        (flat("LA", (0, 51)), "x.png", (204, 204, 204)),
        (palette(), "x.png", (200, 100, 50)),
        (palette(), "x.gif", (200, 100, 50)),
        (flat("L", 77), "x.png", (77, 77, 77)),
        (flat("1", 1), "x.png", (255, 255, 255)),
        (Image.fromarray(GREY16), "x.png", (200, 200, 200)),
        (Image.fromarray(GREY16), "x.tif", (200, 200, 200)),
        (Image.fromarray(GREY16), "x.pgm", (200, 200, 200)),
    ],
)
def test_modes(tmp_path, image, name, colour):
    path = save(tmp_path, image, name)
    check_picture(path)
    pixels = read_picture(path, 4, grayscale=False)
    assert (pixels.dtype, tuple(pixels.shape)) == (torch.uint8, (3, 4, 4))
    difference = (pixels.int() - torch.tensor(colour).view(3, 1, 1)).abs().max()
    assert difference <= (3 if name.endswith("webp") else 0)  # webp is lossy


def test_palette_with_transparency(tmp_path):
    image = palette()
    path = save(tmp_path, image, transparency=image.getpixel((0, 0)))
    assert read_picture(path, 4, grayscale=False).min() == 255


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P"])
def test_grayscale_has_one_channel(tmp_path, mode):
    path = save(tmp_path, flat("RGB", (255, 0, 0)).convert(mode))
    pixels = read_picture(path, 4, grayscale=True)
    assert tuple(pixels.shape) == (1, 4, 4)
    assert (pixels.int() - 76).abs().max() <= 1  # ITU-R 601: 0.299 * 255


@pytest.mark.parametrize(("width", "height"), [(24, 8), (8, 24), (8, 8), (25, 8)])
def test_centre_is_kept(tmp_path, width, height):
    """A white square in the middle of black fills the result but for blurred edges."""
    pixels = np.zeros((height, width, 3), np.uint8)
    top, left = (height - 8) // 2, (width - 8) // 2
    pixels[top : top + 8, left : left + 8] = 255
    result = read_picture(save(tmp_path, Image.fromarray(pixels)), 16, grayscale=False)
    assert result[:, 2:-2, 2:-2].min() == 255


def test_resizing_is_pillows(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 30, 3), np.uint8)
    image = Image.fromarray(pixels)
    expected = np.asarray(image.resize((9, 9), Image.Resampling.BILINEAR))
    result = read_picture(save(tmp_path, image), 9, grayscale=False)
    assert np.array_equal(result.permute(1, 2, 0).numpy(), expected)


def test_turned_upright(tmp_path):
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = 255  # the upper half
    exif = Image.Exif()
    exif[0x0112] = 3  # to be turned by 180 degrees
    result = read_picture(save(tmp_path, Image.fromarray(pixels), exif=exif), 8, grayscale=False)
    assert (result[:, :4].max(), result[:, 4:].min()) == (0, 255)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_no_image(tmp_path, content):
    path = tmp_path / "x.png"
    path.write_bytes(content)
    for look in (check_picture, lambda p: read_picture(p, 8, grayscale=False)):
        with pytest.raises(DataError, match=r"x\.png cannot be read as an image .* replace it") as caught:
            look(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_truncated_image(tmp_path, suffix):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    path = save(tmp_path, noise, f"x.{suffix}")
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError, match=rf"x\.{suffix} cannot be read"):
        read_picture(path, 8, grayscale=False)


def test_floating_point_pixels(tmp_path):
    path = save(tmp_path, Image.fromarray(np.full((8, 8), 0.5, np.float32)), "x.tif")
    with pytest.raises(DataError, match=r"save it with 8 or 16 bits"):
        read_picture(path, 8, grayscale=True)
