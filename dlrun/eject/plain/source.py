"""Python source from templates: the lines that are needed, the constants and imports that are used."""

import json
import keyword
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from dlrun.core.errors import RequestError

WIDTH = 120
_CONDITION = re.compile(r"  #\? (.+)$")
_NAME = re.compile(r"\$(\w+)")
_IMPORTS = {  # what in a text needs which import
    r"\bcopy\.": "import copy",
    r"\bcsv\.reader": "import csv",
    r"\bgzip\.": "import gzip",
    r"\bhashlib\.": "import hashlib",
    r"\bmath\.": "import math",
    r"\bDecimal\(": "from decimal import Decimal",
    r"\bfnmatchcase\(": "from fnmatch import fnmatchcase",
    r"\bpartial\(": "from functools import partial",
    r"\bislice\(": "from itertools import islice",
    r"\bproduct\(": "from itertools import product",
    r"\bPath\(": "from pathlib import Path",
    r"\bnp\.": "import numpy as np",
    r"\btorch\.": "import torch",
    r"\bF\.": "import torch.nn.functional as F",
    r"\bImage\.": "from PIL import Image, ImageOps",
    r"\bload_digits\(": "from sklearn.datasets import load_digits",
    r"\bmake_regression\(": "from sklearn.datasets import make_regression",
    r"\bnn\.": "from torch import nn",
    r"\bpack_padded_sequence\(": "from torch.nn.utils.rnn import pack_padded_sequence",
    r"\bpad_packed_sequence\(": "from torch.nn.utils.rnn import pad_packed_sequence",
    r"\bmodels\.": "from torchvision import models",
    r"\bCIFAR100?\(": "from torchvision import datasets",
    r"\bdatasets\.": "from torchvision import datasets",
}
_LIBRARIES = ("numpy", "PIL", "sklearn", "torch", "torchvision")  # the others come with Python


@dataclass(frozen=True)
class Constant:
    """A setting at the top of the file, and what is to be said of it."""

    value: Any
    comment: str = ""


@dataclass(frozen=True)
class Piece:
    """Some of the source, and the constants that it may name."""

    code: str
    constants: Mapping[str, Constant] = field(default_factory=dict)


def filled(template: str, flags: Mapping[str, bool] | None = None, **values: Any) -> str:
    """A template with its values, and without the lines whose condition does not hold.

    `line  #? val & !warmup` is kept when the flag `val` is set and `warmup` is not; `$name` is replaced by a value, and
    where it stands alone on a line by all lines of it, indented alike (none for an empty one).
    """
    lines = []
    for line in template.strip("\n").splitlines():
        condition = _CONDITION.search(line)
        if condition and not _holds(condition[1], flags or {}):
            continue
        kept = _CONDITION.sub("", line)
        alone = _NAME.fullmatch(kept.strip())
        if alone:
            margin = kept[: len(kept) - len(kept.lstrip())]
            lines += textwrap.indent(str(values[alone[1]]), margin).splitlines()
        else:
            lines.append(_NAME.sub(lambda name: str(values[name[1]]), kept))
    return "\n".join(lines) + "\n"


def _holds(condition: str, flags: Mapping[str, bool]) -> bool:
    """Whether all words of a condition hold; KeyError for one that is no flag."""
    words = [word.strip() for word in condition.split("&")]
    return all(flags[word.removeprefix("!")] is not word.startswith("!") for word in words)


def literal(value: Any) -> str:
    """A plain value as source, on one line: whatever text holds, it stays within its quotes."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False) if value.isprintable() else repr(value)
    if isinstance(value, list):
        return f"[{', '.join(literal(item) for item in value)}]"
    if isinstance(value, tuple):
        return f"({', '.join(literal(item) for item in value)}{',' if len(value) == 1 else ''})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{literal(k)}: {literal(v)}' for k, v in value.items())}}}"
    if isinstance(value, Path):
        return f"Path({literal(str(value))})"
    return f'float("{value}")' if isinstance(value, float) and value - value != 0 else repr(value)


def docstring(text: str) -> str:
    """Text that may stand in a docstring: without quotes, backslashes and line ends, nothing in it ends the string."""
    text = text.replace('"', "'").replace("\\", "/")
    return "".join(character if character.isprintable() else " " for character in text)


def named(name: str, value: str) -> str:
    """`name=value`, an argument of a call; RequestError for a name that is none in Python."""
    if not name.isidentifier() or keyword.iskeyword(name):
        raise RequestError(f"format=python cannot write an argument called {name!r}; format=onnx takes the model")
    return f"{name}={value}"


def call(head: str, arguments: Sequence[str], tail: str = "") -> str:
    """`head(arguments)tail`, on as many lines as the formatter would take."""
    line = f"{head}({', '.join(arguments)}){tail}"
    if len(line) <= WIDTH:
        return line
    inside = "    " + ", ".join(arguments)
    if len(inside) <= WIDTH:
        return f"{head}(\n{inside}\n){tail}"
    return f"{head}(\n" + "".join(f"    {argument},\n" for argument in arguments) + f"){tail}"


def stack(name: str, layers: Sequence[str]) -> str:
    """`name = nn.Sequential(...)`, within a method: few layers on one line, else a layer a line."""
    line = f"{name} = nn.Sequential({', '.join(layers)})"
    if len(layers) <= 4 and len(line) <= WIDTH - 8:
        return line
    return f"{name} = nn.Sequential(\n" + "".join(f"    {layer},\n" for layer in layers) + ")"


def script(title: str, sections: Mapping[str, str], constants: Mapping[str, Constant]) -> str:
    """The whole file: docstring, imports, the constants that are named anywhere, then the sections."""
    body = "\n\n".join(f"# %% {name}\n{_spaced(code)}" for name, code in sections.items())
    used = {name: constant for name, constant in constants.items() if re.search(rf"\b{name}\b", body)}
    head = "".join(_assigned(name, constant) for name, constant in used.items())
    return _spaced(f'"""{title}"""\n\n{_imports(head + body)}\n\n{head}\n{body}')


def _assigned(name: str, constant: Constant) -> str:
    line = f"{name} = {literal(constant.value)}"
    remark = f"  # {constant.comment}" if constant.comment else ""
    if len(line + remark) <= WIDTH:
        return f"{line}{remark}\n"
    if len(line) > WIDTH and not re.search("[\"']", line):  # text would be cut where it has a space
        line = "\n    ".join(textwrap.wrap(line, WIDTH - 4)) + "  # fmt: skip"
    return f"# {constant.comment}\n{line}\n" if constant.comment else f"{line}\n"


def _imports(text: str) -> str:
    """The import lines that a text needs: Python's own modules, then the libraries, each in the order of isort."""
    lines = {line for pattern, line in _IMPORTS.items() if re.search(pattern, text)}
    merged: dict[str, list[str]] = {}
    for line in lines:
        module, _, name = line.removeprefix("from ").partition(" import ")
        if line.startswith("from "):
            merged.setdefault(module, []).append(name)
    plain = [line for line in lines if line.startswith("import ")]
    named = [f"from {module} import {', '.join(sorted(names))}" for module, names in merged.items()]
    own = [line for line in [*plain, *named] if line.split()[1].split(".")[0] not in _LIBRARIES]
    others = [line for line in [*plain, *named] if line not in own]
    groups = [sorted(group, key=_isort) for group in (own, others)]
    return "\n\n".join("\n".join(group) for group in groups if group)


def _isort(line: str) -> tuple[bool, str]:
    return line.startswith("from "), line.split()[1].lower()


def _spaced(code: str) -> str:
    """One empty line between blocks, two around functions and classes of the top level."""
    blocks: list[str] = []
    for block in re.split(r"\n{2,}", code.strip("\n")):
        inner = block.startswith((" ", "\t"))
        if inner:
            blocks[-1] += "\n\n" + block
        else:
            blocks.append(block)
    text = blocks[0]
    for before, block in pairwise(blocks):
        apart = "\n\n\n" if _defines(before) or _defines(block) else "\n\n"
        text += apart + block
    return text + "\n"


def _defines(block: str) -> bool:
    lines = [line for line in block.splitlines() if not line.startswith("#")]
    return bool(lines) and lines[0].startswith(("def ", "class ", "@"))
