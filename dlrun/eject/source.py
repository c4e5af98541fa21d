"""Python source from templates: whatever a template prints is a literal, unless it is source already."""

import ast
import keyword
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import jinja2
import torch

from dlrun.core.errors import RequestError

WIDTH = 120

# Remarks behind constants.
_REMARKS = {
    "MAX_STEPS": "optimizer steps",
    "ACCUMULATE_STEPS": "batches an optimizer step",
    "WARMUP_STEPS": "in which the learning rate climbs in a straight line",
    "PATIENCE": "epochs without improvement",
    "MIN_DELTA": "less is no improvement",
    "GAPS": "cells without a value",
    "STEP": "between the values of the first grid",
    "REFINE": "what divides the spacing in each finer grid",
    "MEAN": "of the training images",
    "DATA_SEED": "draws the data or their parts, whatever SEED is",
    "VAL_FRACTION": "of the training rows, held out for validation",
    "TRAIN_ROWS": "of all that there are",
    "LIMIT_BATCHES": "of each part",
    "THREADS": "sums are rounded by how many there are",
}


class Code(str):
    """Text that is Python source. What is joined to it is plain text again, so that it would be quoted."""


class _Environment(jinja2.Environment):
    """Templates whose macros and blocks are source themselves."""

    # jinja2 joins with it what a macro, a block or a template printed, all of which is source by then.
    @staticmethod
    def concat(parts: Iterable[str]) -> Code:
        return Code("".join(parts))


def render(template: str, values: Mapping[str, Any], constants: Mapping[str, Any]) -> str:
    """The script that a template writes. RequestError for a value that would be more than a value.

    constants: value of each name in capitals that the templates may use.
    """
    script = create_environment().get_template(template)
    return space_out(script.render(values, constants=partial(write_constants, constants=constants)))


# One for all scripts of a process: it compiles each template once.
@cache
def create_environment() -> jinja2.Environment:
    """The environment of the templates: what they print is a literal, and what they are not given is an error."""
    environment = _Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined,
        finalize=write_literal,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"prose": write_prose, "commas": write_items, "indent": indent, "needed_by": select_imports}
    return environment


def write_literal(value: Any) -> Code:
    """A plain value as source, on one line: whatever text holds, it stays within its quotes."""
    if isinstance(value, Code):
        return value
    if isinstance(value, str):
        # In double quotes where the text has none, as the formatter would have it.
        text = repr(str(value))
        return Code(text if '"' in text else f'"{text[1:-1]}"')

    if isinstance(value, Path):
        return Code(f"Path({write_literal(str(value))})")
    if isinstance(value, list):
        return Code(f"[{write_items(value)}]")
    if isinstance(value, tuple):
        return Code(f"({write_items(value)}{',' if len(value) == 1 else ''})")
    if isinstance(value, dict):
        return Code(f"{{{', '.join(_write_entries(value))}}}")
    # inf and nan are no names in Python.
    if isinstance(value, float) and not math.isfinite(value):
        return Code(f'float("{value}")')
    # Of anything else repr might be code.
    if value is None or isinstance(value, bool | int | float | torch.dtype):
        return Code(repr(value))

    # A name that the template was not given tells so itself.
    if isinstance(value, jinja2.Undefined):
        str(value)
    raise TypeError(f"a {type(value).__name__} is no plain value")


def write_items(values: Iterable[Any]) -> Code:
    """Values with commas between them, as in a call."""
    return Code(", ".join(write_literal(value) for value in values))


def _write_entries(value: Mapping[Any, Any]) -> list[str]:
    return [f"{write_literal(key)}: {write_literal(item)}" for key, item in value.items()]


def write_prose(text: str | None) -> Code:
    """Text for a docstring: without quotes, backslashes and line ends, nothing in it ends the string."""
    text = str(text).replace('"', "'").replace("\\", "/")
    return Code("".join(character if character.isprintable() else " " for character in text))


def write_name(name: str) -> Code:
    """The name of an argument; RequestError for a name that is none in Python."""
    if not name.isidentifier() or keyword.iskeyword(name):
        raise RequestError(f"format=python cannot write an argument called {name!r}; format=onnx takes the model")
    return Code(name)


def write_arguments(arguments: Mapping[str, Any]) -> list[Code]:
    """`name=value` of each argument of a call; RequestError for a name that is none in Python."""
    return [Code(f"{write_name(name)}={write_literal(value)}") for name, value in arguments.items()]


def write_call(function: str, arguments: Sequence[Code]) -> Code:
    """A call on one line, or with an argument a line where that is too long."""
    return _write_brackets(f"{function}(", arguments, ")")


def _write_brackets(head: str, items: Sequence[str], tail: str) -> Code:
    line = f"{head}{', '.join(items)}{tail}"
    if len(line) <= WIDTH:
        return Code(line)

    # The comma at the end keeps the formatter from joining them again.
    inside = "".join(f"    {item},\n" for item in items)
    return Code(f"{head}\n{inside}{tail}")


def indent(code: str, width: int) -> Code:
    """Source as a block of something; TypeError for text that is no source."""
    if not isinstance(code, Code):
        raise TypeError("only source can be indented")
    return Code(re.sub(r"(?m)^(?=.)", " " * width, code))


def find_names(source: str) -> set[str]:
    """The names that some source reads or assigns."""
    # Of the syntax tree, because words within literals are no names.
    return {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}


def select_imports(imports: str, source: str) -> Code:
    """Of some imports, a line each, those whose names some source needs."""
    names = find_names(source)
    # The last word of an import is the name that it gives; an empty line is between groups.
    lines = imports.splitlines(keepends=True)
    return Code("".join(line for line in lines if line == "\n" or line.split()[-1] in names))


def write_constants(source: str, constants: Mapping[str, Any]) -> Code:
    """The constants that some source names, each with a remark."""
    names = find_names(source)
    return Code("".join(_assign(name, value) for name, value in constants.items() if name in names))


def _assign(name: str, value: Any) -> str:
    line = f"{name} = {write_literal(value)}"
    if len(line) > WIDTH and isinstance(value, list):
        line = _write_brackets(f"{name} = [", [write_literal(item) for item in value], "]")
    if len(line) > WIDTH and isinstance(value, dict):
        line = _write_brackets(f"{name} = {{", _write_entries(value), "}")

    # The remark stands above where it does not fit behind.
    remark = _REMARKS.get(name)
    if remark is None:
        return f"{line}\n"
    if len(line) + len(remark) + 4 > WIDTH:
        return f"# {remark}\n{line}\n"
    return f"{line}  # {remark}\n"


def space_out(source: str) -> str:
    """Two empty lines around functions and classes, at most one elsewhere."""
    source = re.sub(r"\n{3,}", "\n\n", source.strip())
    # The heading of a section belongs to what follows.
    source = re.sub(r"(?m)^(# %% .*\n)\n", r"\1", source)
    # A block begins at the margin: what is indented belongs to the one before.
    blocks = re.split(r"\n\n(?=\S)", source)
    text = blocks[0]
    for before, block in pairwise(blocks):
        gap = "\n\n\n" if _is_definition(before) or _is_definition(block) else "\n\n"
        text += gap + block
    return text + "\n"


def _is_definition(block: str) -> bool:
    return re.match(r"(#.*\n)*(def |class |@)", block) is not None
