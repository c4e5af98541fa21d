"""`dlrun new DIR`: a small project of the user's own, which trains at once."""

import importlib.machinery
import keyword
import sys
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Template

from dlrun.core.errors import RequestError
from dlrun.core.files import convert_write_errors
from dlrun.core.shell import quote
from dlrun.core.terminal import write_out

_TEMPLATE = Path(__file__).parent / "new_project"
# Stands for the project's name in the paths of the template.
PACKAGE = "package"


def create_project(words: Sequence[str]) -> None:
    """Write the files of the template with the project's name, the last part of DIR; print the commands that follow.

    RequestError for a folder that is not empty, and for a name that cannot be imported.
    """
    if len(words) != 1 or not words[0]:
        wrong = f"; leave out {' '.join(words[1:])}" if len(words) > 1 else "; type dlrun new my_project"
        raise RequestError(f"dlrun new takes one folder{wrong}")
    folder = Path(words[0])
    name = folder.resolve().name
    _refuse_name(name)
    _refuse_folder(folder)

    with convert_write_errors(folder, "type dlrun new <another folder>"):
        for source in sorted(_TEMPLATE.rglob("*.j2")):
            path = source.relative_to(_TEMPLATE).with_suffix("")
            target = folder / str(path).replace(PACKAGE, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            template = Template(source.read_text(encoding="utf-8"), keep_trailing_newline=True)
            target.write_text(template.render(project=name), encoding="utf-8")

    write_out(f"{folder} is written; its README.md says what lies where\n")
    write_out(f"cd {quote(folder)}\ndlrun experiment=first\npytest")


def _refuse_name(name: str) -> None:
    """RequestError for a name that Python cannot import, or that would import something else."""
    if not name.isidentifier() or keyword.iskeyword(name) or not name.isascii():
        letters = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in name).strip("_")
        example = letters if letters.isidentifier() and not keyword.iskeyword(letters) else "my_project"
        raise RequestError(
            f"{name} is no name of a Python module; type letters, digits and _, as in dlrun new {example}"
        )
    if name == "tests" or name in sys.stdlib_module_names or _is_installed(name):
        raise RequestError(f"{name} is the name of another module; type another one, as in dlrun new my_{name}")


def _is_installed(name: str) -> bool:
    # The working directory, where the project itself may lie, does not count.
    working_directory = Path.cwd().resolve()
    places = [place for place in sys.path if place and Path(place).resolve() != working_directory]
    spec = importlib.machinery.PathFinder.find_spec(name, places)
    return spec is not None and spec.origin is not None


def _refuse_folder(folder: Path) -> None:
    """RequestError for a file, and for a folder that is not empty."""
    if folder.is_dir() and any(folder.iterdir()):
        raise RequestError(f"{folder} is not empty, and nothing in it is overwritten; type dlrun new <another folder>")
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"{folder} is a file; type dlrun new <another folder>")
