"""Source from templates: what a template prints is a literal, unless it is source already."""

import ast
import math
from pathlib import Path
from typing import Any

import jinja2
import pytest
import torch

from dlrun.eject.source import Code, create_environment, select_imports, space_out, write_constants, write_literal

EVIL = '"""\nexec("x")\n"""'


def render(template: str, **values: Any) -> str:
    return create_environment().from_string(template).render(values)


@pytest.mark.parametrize(
    "template",
    [
        "x = {{ text }}",
        "x = {% if true %}{{ text }}{% endif %}",
        "{% macro show(value) %}{{ value }}{% endmacro %}x = {{ show(text) }}",
        "{% set shown %}{{ text }}{% endset %}x = {{ shown }}",
        "{% filter indent(0) %}x = {{ text }}{% endfilter %}",
        "x = {{ text ~ '' }}",
        "x = {{ text | string }}",
        "x = {% for item in [text] %}{{ item }}{% endfor %}",
        "{% set code %}{% endset %}x = {{ code ~ text }}",
    ],
)
def test_a_template_prints_text_as_a_literal(template: str) -> None:
    (assignment,) = ast.parse(render(template, text=EVIL)).body
    assert isinstance(assignment, ast.Assign)
    assert ast.literal_eval(assignment.value) == EVIL


def test_source_stays_source_until_something_is_joined_to_it() -> None:
    assert render("x = {{ code }}", code=Code("f(1)")) == "x = f(1)"
    assert render("x = {{ code ~ text }}", code=Code("f"), text="(1)") == 'x = "f(1)"'


def test_text_cannot_be_indented_into_source() -> None:
    with pytest.raises(TypeError, match="only source"):
        render("{{ text | indent(4) }}", text=EVIL)


def test_a_name_that_a_template_does_not_get_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError, match="'missing' is undefined"):
        render("x = {{ missing }}")


@pytest.mark.parametrize(
    "value",
    [True, None, 3, -0.5, 1e-300, math.inf, "it's", 'a "b"', "'\"", "\\n", [1, ["a"]], (1,), (1, 2), {"a": [None]}],
)
def test_a_literal_is_the_value(value: Any) -> None:
    assert eval(write_literal(value)) == value


def test_paths_and_types_are_literals_and_objects_are_not() -> None:
    assert write_literal(Path("a b")) == 'Path("a b")'
    assert write_literal(torch.float64) == "torch.float64"
    with pytest.raises(TypeError, match="Linear is no plain value"):
        write_literal(torch.nn.Linear(1, 1))


def test_imports_are_those_that_the_source_names() -> None:
    imports = "import math\nfrom pathlib import Path\n\nimport numpy as np\nfrom torch import nn"
    source = 'x = np.ones(3)\ny = Path("math.inf")\nz = nn.Linear(1, 1)\n'
    assert select_imports(imports, source) == "from pathlib import Path\n\nimport numpy as np\nfrom torch import nn"
    assert select_imports(imports, "x = 1").strip() == ""


def test_constants_are_those_that_the_source_names() -> None:
    long = [[float(i), float(i)] for i in range(20)]
    lines = write_constants("print(MAX_STEPS, X)", {"LR": 0.1, "MAX_STEPS": 5, "X": long}).splitlines()
    assert lines[0] == "MAX_STEPS = 5  # optimizer steps"
    assert lines[1:3] == ["X = [", "    [0.0, 0.0],"]
    assert len(lines) == 23


def test_two_empty_lines_stand_around_functions_and_one_elsewhere() -> None:
    source = "\nx = 1\n\n\n\ny = 2\n\ndef f():\n    a = 1\n\n\n    return a\n\n# %% Net\n\n# why\nclass A:\n    pass\n"
    spaced = "x = 1\n\ny = 2\n\n\ndef f():\n    a = 1\n\n    return a\n\n\n# %% Net\n# why\nclass A:\n    pass\n"
    assert space_out(source) == spaced
