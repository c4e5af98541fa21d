"""Fonts for the letters of names: matplotlib's own has no Chinese, Japanese, Korean and many more."""

import functools
import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PACKAGES = "fonts-noto-cjk on Debian and Ubuntu, google-noto-sans-cjk-fonts on Fedora, font-noto-sans-cjk of Homebrew"
# The font that matplotlib ships.
_OWN = "DejaVu Sans"
# Families for many languages are tried first: opening every font of a machine takes seconds.
_WIDE = ("Noto Sans", "Source Han", "WenQuanYi", "Droid", "PingFang", "Hiragino", "YaHei", "SimHei", "Arial Unicode")

# Letters that no installed font has.
_missing: set[int] = set()
# Missing letters that were drawn since the last message.
_boxes: set[int] = set()


def choose_fonts(figure: "Figure") -> None:
    """Set fonts that have the letters of a figure's texts."""
    from matplotlib.text import Text

    texts = [text for text in figure.findobj(Text) if not text.get_text().isascii()]
    if not texts:
        return

    families = find_families("".join(text.get_text() for text in texts))
    if families == [_OWN]:
        return
    for text in texts:
        text.set_fontfamily(families)


def find_families(text: str) -> list[str]:
    """Return matplotlib's own font family, followed by families that have the letters it lacks.

    Letters that no installed font has are remembered for `describe_missing_letters`.
    """
    from matplotlib.font_manager import findfont

    families = [_OWN]
    # Control characters and separators need no glyph.
    letters = {ord(letter) for letter in text if unicodedata.category(letter)[0] not in "CZ"}
    lacking = letters - _read_letters(findfont(_OWN)) - _missing
    if lacking:
        for name, path in _list_installed():
            new_letters = lacking & _read_letters(path)
            if new_letters:
                families.append(name)
                lacking -= new_letters
            if not lacking:
                break

    _missing.update(lacking)
    _boxes.update(letters & _missing)
    return families


def describe_missing_letters() -> list[str]:
    """Report letters that were drawn since the last call and that no installed font has, and what to install."""
    letters = sorted(_boxes)
    _boxes.clear()
    if not letters:
        return []

    first_letters = "".join(map(chr, letters[:10]))
    more = f" and {len(letters) - 10} more" if len(letters) > 10 else ""
    return [
        f"no installed font has the letters {first_letters}{more}, and they are empty boxes in the pictures; "
        f"install one ({_PACKAGES})"
    ]


def _list_installed() -> Iterator[tuple[str, str]]:
    """Yield family and file of each installed font: those that matplotlib knows, then newer ones."""
    from matplotlib.font_manager import findSystemFonts, fontManager

    # "Last Resort" has a box for every letter.
    cached_fonts = [
        (entry.name, entry.fname)
        for entry in fontManager.ttflist
        if entry.style == "normal" and "Last Resort" not in entry.name
    ]
    yield from sorted(cached_fonts, key=lambda font: not _is_wide(font[0]))

    # matplotlib caches its list on the disk, which lacks fonts that were installed later.
    files = {entry.fname for entry in fontManager.ttflist}
    for path in findSystemFonts():
        if path in files:
            continue
        try:
            fontManager.addfont(path)
        except Exception:
            # No font, or a bitmap font.
            continue
        yield fontManager.ttflist[-1].name, path


def _is_wide(family: str) -> bool:
    return any(name in family for name in _WIDE)


@functools.cache
def _read_letters(path: str) -> frozenset[int]:
    """Return the characters of a font file; none if it cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(path).get_charmap())
    except Exception:
        # Removed meanwhile, damaged, or a bitmap font.
        return frozenset()
