"""The surest mistakes."""

from typing import Any

import numpy as np
import pytest
import torch

from dlrun.data.origin import Origin
from dlrun.data.spec import DataSpec
from dlrun.runs.reports.plots import errors

LETTERS = ("_", *"abcdefg")  # the padding must not be seen
NAMES = DataSpec("tokens", (4,), "multiclass", 3, class_names=("X", "Y", "Z$"), vocabulary=LETTERS)
ORIGIN = Origin.from_lines("t.csv", range(2, 1502))


def cells(figure: Any) -> list[list[str]]:
    """The table's text, line by line."""
    table = figure.axes[0].tables[0].get_celld()
    lines, columns = (max(key[i] for key in table) + 1 for i in (0, 1))
    return [[table[line, column].get_text().get_text() for column in range(columns)] for line in range(lines)]


def test_the_worst_are_the_wrong_ones_the_surest_first() -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(50, 4, generator=generator).softmax(1)
    targets = torch.randint(0, 4, (50,), generator=generator)
    rows, predicted, sure = errors.find_worst(p, targets)
    wanted = sorted((i for i in range(50) if p[i].argmax() != targets[i]), key=lambda i: -p[i].max())
    assert rows.tolist() == wanted
    assert predicted.tolist() == [int(p[i].argmax()) for i in wanted]
    assert sure.tolist() == [float(p[i].max()) for i in wanted]


def test_two_classes_have_one_probability() -> None:
    rows, predicted, sure = errors.find_worst(torch.tensor([0.9, 0.2, 0.3, 0.4]), torch.tensor([0, 1, 0, 1]))
    assert (rows.tolist(), predicted.tolist()) == ([0, 1, 3], [1, 0, 0])
    assert sure.tolist() == pytest.approx([0.9, 0.8, 0.6])


def test_wrong_images_are_tiles_with_both_classes() -> None:
    images = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 1, 3, 3) / 10
    p = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.05, 0.95], [1.0, 0.0], [0.4, 0.6]])
    targets = torch.tensor([0, 0, 0, 0, 0])  # wrong: 2 (0.95), 1 (0.8), 4 (0.6)
    spec = DataSpec("image", (1, 3, 3), "multiclass", 2, class_names=("cat", "dog"))
    figure = errors.draw_image_mistakes(images, p, targets, spec, "test", ORIGIN)
    assert figure is not None
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == [
        "cat → dog\n95.0 %\nline 4",
        "cat → dog\n80.0 %\nline 3",
        "cat → dog\n60.0 %\nline 6",
    ]
    assert [float(np.asarray(image.get_array())[0, 0]) for image in axes.images] == pytest.approx([0.2, 0.1, 0.4])
    assert figure.get_suptitle().startswith("All 3 mistakes on test")


def test_at_most_24_mistakes_are_shown_and_all_are_counted() -> None:
    p = torch.linspace(0.6, 0.99, 1500)
    spec = DataSpec("image", (1, 2, 2), "binary", 1)
    figure = errors.draw_image_mistakes(torch.zeros(1500, 1, 2, 2), p, torch.zeros(1500).long(), spec, "val", ORIGIN)
    assert figure is not None
    assert len(figure.axes[0].images) == 24
    assert figure.get_suptitle().startswith("The 24 surest of 1,500 mistakes on val")


def test_wrong_texts_are_a_table() -> None:
    codes = torch.tensor([[1, 2, 0, 0], [3, 3, 3, 0], [7, 0, 0, 0]])
    p = torch.tensor([[0.1, 0.7, 0.2], [0.8, 0.1, 0.1], [0.02, 0.96, 0.02]])
    figure = errors.draw_text_mistakes(
        (codes, torch.tensor([2, 3, 1])), p, torch.tensor([2, 0, 0]), NAMES, "test", ORIGIN
    )
    assert cells(figure) == [
        ["where", "text", "true", "predicted", "probability"],
        ["line 4", "g", "X", "Y", "0.9600"],
        ["line 2", "ab", r"Z\$", "Y", "0.7000"],  # the backslash keeps it from being read as a formula
    ]
    assert figure is not None
    assert figure.axes[0].get_title() == "All 2 mistakes on test"


def test_wrong_words_are_a_table() -> None:
    spec = DataSpec("tokens", (3,), "tagging", 3, class_names=("p", "q", "r"), vocabulary=LETTERS)
    codes, lengths = torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([3, 2])
    targets = torch.tensor([[0, 1, 2], [2, 1, -100]])
    right = torch.tensor([[0, 1, 2], [2, 1, 0]])  # what stands at the padding is not looked at
    assert errors.draw_tagging_mistakes((codes, lengths), right, targets, spec, "train", ORIGIN) is None
    wrong = torch.tensor([[0, 1, 2], [2, 0, 0]])
    figure = errors.draw_tagging_mistakes((codes, lengths), wrong, targets, spec, "train", ORIGIN)
    assert cells(figure) == [["where", "text", "true", "predicted"], ["line 3", "de", "rq", "rp"]]
    assert figure is not None
    assert figure.axes[0].get_title() == "The only mistake on train"


def test_a_long_file_name_ends_where_it_differs() -> None:
    files = Origin.from_files(np.array([b"cats/a_picture_with_a_long_name_1.jpg"]))
    spec = DataSpec("image", (1, 2, 2), "multiclass", 2)
    figure = errors.draw_image_mistakes(
        torch.zeros(1, 1, 2, 2), torch.tensor([[0.1, 0.9]]), torch.tensor([0]), spec, "val", files
    )
    assert figure is not None
    assert figure.axes[0].texts[0].get_text() == "0 → 1\n90.0 %\n…a_long_name_1.jpg"


def test_nothing_is_drawn_without_a_mistake() -> None:
    p, targets = torch.eye(3), torch.arange(3)
    codes = (torch.ones(3, 2).long(), torch.ones(3).long())
    spec = DataSpec("image", (1, 2, 2), "multiclass", 3)
    assert errors.draw_text_mistakes(codes, p, targets, NAMES, "test", ORIGIN) is None
    assert errors.draw_image_mistakes(torch.zeros(3, 1, 2, 2), p, targets, spec, "test", ORIGIN) is None


def test_tags_with_long_names_have_spaces() -> None:
    spec = DataSpec("tokens", (3,), "tagging", 2, class_names=("noun", "verb"), vocabulary=LETTERS)
    assert errors.format_tags(spec, torch.tensor([0, 1, -100])) == "noun verb"
