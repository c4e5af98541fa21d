"""What was perhaps meant: the distance between words, and the names nearest to one."""

import itertools
import string

import pytest

from dlrun.core.errors import join_names
from dlrun.core.suggest import compute_edit_distance, did_you_mean, find_nearest


def neighbours(word: str, letters: str) -> set[str]:
    """Everything one edit away."""
    cuts = [(word[:i], word[i:]) for i in range(len(word) + 1)]
    words = {a + b[1:] for a, b in cuts if b} | {a + x + b for a, b in cuts for x in letters}
    words |= {a + x + b[1:] for a, b in cuts if b for x in letters}
    return words | {a + b[1] + b[0] + b[2:] for a, b in cuts if len(b) > 1}


@pytest.mark.parametrize("start", ["", "a", "ab", "abc", "aabb", "abab"])
def test_the_distance_is_the_number_of_edits_on_the_shortest_way(start: str) -> None:
    words = ["".join(w) for n in range(5) for w in itertools.product("abc", repeat=n)]
    reached, front, steps = {start: 0}, {start}, 0
    while front and steps < 5:
        steps += 1
        front = {w for word in front for w in neighbours(word, "abc") if w not in reached and len(w) <= 6}
        reached |= dict.fromkeys(front, steps)
    assert {word: compute_edit_distance(start, word) for word in words} == {word: reached[word] for word in words}


def test_a_swap_with_a_letter_between_is_two_edits_as_damerau_and_levenshtein_count() -> None:
    assert compute_edit_distance("ca", "abc") == 2  # swapped, then one put between
    assert compute_edit_distance("kitten", "sitting") == 3


@pytest.mark.parametrize(
    ("word", "known", "nearest"),
    [
        ("adm", ["adam", "adamw", "radam", "sgd"], ["adam", "adamw", "radam"]),
        ("sdg", ["asgd", "sgd"], ["sgd", "asgd"]),
        ("ResNet", ["mlp", "resnet"], ["resnet"]),
        ("relu", ["ELU", "ReLU"], ["ReLU", "ELU"]),
        ("resnet", ["rnn", "resnet_cifar10", "resnet_mnist"], ["resnet_mnist", "resnet_cifar10"]),
        ("val/acc", ["train/accuracy", "val/accuracy", "val/loss"], ["val/accuracy"]),
        ("x", ["lr", "eps"], []),
        ("c", ["csv", "mlp"], ["csv"]),
        ("zzzzzz", string.ascii_lowercase, []),
        ("a", [], []),
    ],
)
def test_the_nearest_names_come_first(word: str, known: list[str], nearest: list[str]) -> None:
    assert find_nearest(word, known)[: len(nearest) or 1] == nearest


def test_at_most_three_are_named() -> None:
    assert did_you_mean("aab", ["aaa", "aac", "aad", "aae"], "x=") == "did you mean x=aaa or x=aac or x=aad? "
    assert did_you_mean("zz", ["aaaa"]) == ""


def test_long_lists_end_in_where_the_rest_is_shown() -> None:
    assert join_names(["a", "b"]) == "a, b"
    assert join_names(["a", "b", "c"], "dlrun ls x", most=2) == "a, b, … (dlrun ls x)"
    assert join_names(["a", "b", "c"], most=1) == "a and 2 more"
