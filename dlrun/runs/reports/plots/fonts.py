"""Fonts for the letters of names: matplotlib's own has no Chinese, Japanese, Korean and many more."""

import functools
import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PACKAGES = "fonts-noto-cjk on Debian and Ubuntu, google-noto-sans-cjk-fonts on Fedora, font-noto-sans-cjk of Homebrew"
_OWN = "DejaVu Sans"  # which matplotlib brings
# Families that are made for many languages are looked at first: opening every font of a machine takes seconds.
_WIDE = ("Noto Sans", "Source Han", "WenQuanYi", "Droid", "PingFang", "Hiragino", "YaHei", "SimHei", "Arial Unicode")

_missing: set[int] = set()  # letters that were looked for in every installed font
_boxes: set[int] = set()  # those of them that were drawn since the last note


def choose(figure: "Figure") -> None:
    """Have the texts of a figure drawn with fonts that have their letters; ASCII costs a look at each text."""
    from matplotlib.text import Text

    texts = [text for text in figure.findobj(Text) if not text.get_text().isascii()]
    if not texts:
        return
    families = families_for("".join(text.get_text() for text in texts))
    if families == [_OWN]:
        return
    for text in texts:
        text.set_fontfamily(families)


def families_for(text: str) -> list[str]:
    """matplotlib's own family, and behind it those that have what it lacks.

    Letters that no installed font has are remembered for `note`.
    """
    from matplotlib.font_manager import findfont

    families = [_OWN]
    letters = {ord(letter) for letter in text if unicodedata.category(letter)[0] not in "CZ"}
    lacking = letters - _letters(findfont(_OWN)) - _missing
    for name, path in _installed() if lacking else ():
        covered = lacking & _letters(path)
        if covered:
            families.append(name)
            lacking -= covered
        if not lacking:
            break
    _missing.update(lacking)
    _boxes.update(letters & _missing)
    return families


def note() -> list[str]:
    """A sentence about the letters drawn since the last note that no installed font has, and what to install."""
    letters = sorted(_boxes)
    _boxes.clear()
    if not letters:
        return []
    shown = "".join(map(chr, letters[:10]))
    more = f" and {len(letters) - 10} more" if len(letters) > 10 else ""
    return [
        f"no installed font has the letters {shown}{more}, and they are empty boxes in the pictures; "
        f"install one ({PACKAGES})"
    ]


def _installed() -> Iterator[tuple[str, str]]:
    """Family and file of each installed font: those that matplotlib knows, then those that are newer than its list."""
    from matplotlib.font_manager import findSystemFonts, fontManager

    known = [
        (entry.name, entry.fname)
        for entry in fontManager.ttflist
        if entry.style == "normal" and "Last Resort" not in entry.name  # which has a box for every letter
    ]
    yield from sorted(known, key=lambda font: not any(wide in font[0] for wide in _WIDE))

    files = {entry.fname for entry in fontManager.ttflist}
    for path in findSystemFonts():
        if path in files:
            continue
        try:
            fontManager.addfont(path)
        except Exception:  # no font, or one of bitmaps
            continue
        yield fontManager.ttflist[-1].name, path


@functools.cache
def _letters(path: str) -> frozenset[int]:
    """The characters that a font file has; none where it cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(path).get_charmap())
    except Exception:  # removed since, damaged, or of bitmaps
        return frozenset()
