"""`sweep.points`: the runs that one request names, a line of overrides each; a line may itself be a sweep."""

import itertools
from collections.abc import Sequence

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser


def overrides(lines: Sequence[str], given: Sequence[str], loader: ConfigLoader) -> list[list[str]]:
    """The overrides of each run besides those `given` on the command line, which win where they name the same key.

    loader: knows the options that `optimizer=glob(*)` stands for. No run is named twice.
    """
    parser = OverridesParser.create(config_loader=loader)
    found: list[list[str]] = []
    for line in lines:
        words = [word for word in _split(line) if not _named(word, given)]
        parsed = parser.parse_overrides(words)
        choices = [
            [f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()]
            if o.is_sweep_override()
            else [str(o.input_line)]
            for o in parsed
        ]
        found += [list(combination) for combination in itertools.product(*choices)]
    return list(map(list, dict.fromkeys(map(tuple, found))))


def _split(line: str) -> list[str]:
    """Words of a line; what stands in brackets or quotes stays together."""
    words, depth, quote = [""], 0, ""
    for character in line.strip():
        if character in "'\"" and quote in ("", character):
            quote = "" if quote else character
        depth += (character in "([{") - (character in ")]}")
        if character == " " and depth == 0 and not quote:
            words.append("")
        else:
            words[-1] += character
    return [word for word in words if word]


def _named(word: str, given: Sequence[str]) -> bool:
    """Whether the command line says something about this key, or chose the group that it belongs to."""
    key = word.partition("=")[0].lstrip("+~")
    theirs = [other.partition("=")[0].lstrip("+~") for other in given]
    return any(key == other or key.startswith(f"{other}.") for other in theirs)
