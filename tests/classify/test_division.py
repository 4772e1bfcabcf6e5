"""The division of one's own data: who is held out, what the labels are called, what is said of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from labelemb.classify.division import Division, Part, balanced_weights, divide, in_order
from labelemb.errors import InputError
from labelemb.settings.data import TableDataSettings


def settings(**values: Any) -> TableDataSettings:
    return TableDataSettings(source="numbers", **values)


def part(labels: str) -> Part[Any]:
    """A letter a label, and the items numbered."""
    return Part(np.arange(len(labels)), list(labels))


def divided(labels: str, seed: int = 0, **values: Any) -> Division[Any]:
    return divide({"train": part(labels)}, settings(**values), seed)


def test_the_test_set_is_that_of_all_seeds_and_each_seed_has_its_own_validation() -> None:
    one, other = (divided("ab" * 50, seed) for seed in (0, 1))
    assert one.test.items.tolist() == other.test.items.tolist()
    assert one.validation is not None
    assert other.validation is not None
    assert one.validation.items.tolist() != other.validation.items.tolist()
    for each in (one, other):
        assert each.validation is not None
        together = [*each.train.items, *each.validation.items, *each.test.items]
        assert sorted(together) == list(range(100))
        assert torch.bincount(each.test.labels).tolist() == [10, 10]
        assert torch.bincount(each.validation.labels).tolist() == [4, 4]


def test_parts_that_are_there_are_used_and_nothing_is_held_out() -> None:
    parts = {"train": part("abab"), "validation": part("ab"), "test": part("ba")}
    found = divide(parts, settings(), 0)
    few = ["warning: labels with fewer than 5 training examples, too few to learn a row from: a 2, b 2"]
    assert found.validation is not None
    assert (len(found.train.items), len(found.validation.items), found.test.labels.tolist()) == (4, 2, [1, 0])
    assert found.notes == [
        "data: 4 to train, 2 to validate, 2 to test; 2 labels, training examples from a 2 to b 2",
        *few,
    ]


def test_labels_are_in_order_and_whole_numbers_by_their_value() -> None:
    labels = ["10", "9", "-1"] * 4
    assert divide({"train": Part(np.arange(12), labels)}, settings(), 0).label_names == ["-1", "9", "10"]
    assert divided("cab" * 4).label_names == ["a", "b", "c"]


def test_labels_of_thousands_of_digits_are_words() -> None:
    assert in_order(["9" * 5000, "10", "9"]) == ["9", "10", "9" * 5000]


def test_label_names_of_a_file_name_numbers_or_give_the_order(tmp_path: Path) -> None:
    (tmp_path / "names").write_text("zero\none\n")
    assert divided("0011" * 3, label_names=tmp_path / "names").label_names == ["zero", "one"]
    (tmp_path / "names").write_text("b\na\n")
    found = divided("aab" * 4, label_names=tmp_path / "names")
    assert found.label_names == ["b", "a"]
    assert torch.bincount(found.test.labels).tolist() == [1, 1]
    with pytest.raises(InputError, match="label 'c' is neither one of the 2 label names nor its number"):
        divided("aabc" * 4, label_names=tmp_path / "names")
    (tmp_path / "names").write_text("a\na\n")
    with pytest.raises(InputError, match=r"--label-names .*, got 'a' twice"):
        divided("aab" * 4, label_names=tmp_path / "names")


@pytest.mark.parametrize(
    ("labels", "line"),
    [
        (["a"] * 9, "expected two labels or more, got one: 'a'"),
        (["a", "b"], "nothing would be left to train on: there is one example alone"),
        (["a"], "expected two labels or more, got one"),
        ([str(number) for number in range(50_000)], "50,000 labels among 50,000 examples: is that the label column"),
    ],
)
def test_labels_that_cannot_be_learned_are_refused_in_one_line(labels: list[str], line: str) -> None:
    with pytest.raises(InputError, match=line) as caught:
        divide({"train": Part(np.arange(len(labels)), labels)}, settings(), 0)
    assert "\n" not in str(caught.value)


def test_a_training_part_of_one_label_is_refused() -> None:
    with pytest.raises(InputError, match="expected training examples of two labels or more, got 3 of one"):
        divide({"train": part("aaa"), "test": part("ab")}, settings(validation=0), 0)


def test_a_limit_keeps_of_each_label_alike() -> None:
    found = divided("a" * 50 + "b" * 50, limit=20, validation=0)
    assert torch.bincount(found.train.labels).tolist() == [10, 10]


def test_imbalance_is_told_and_labels_of_few_examples_are_named() -> None:
    assert divided("a" * 50 + "b" * 5).notes == [
        "data: 40 to train, 4 to validate, 11 to test; 2 labels, training examples from b 4 to a 36",
        "data: no test part, so 20 % of each label is held out, the same for all runs",
        "warning: labels with fewer than 5 training examples, too few to learn a row from: b 4",
    ]


def test_balanced_weights_are_inverse_frequencies_with_mean_one_over_the_items() -> None:
    labels = torch.tensor([0, 0, 0, 1, 3])
    weights = balanced_weights(labels, 4)
    assert (weights[0] * 3).item() == pytest.approx(weights[1].item())
    assert weights[labels].mean().item() == pytest.approx(1)
    assert weights.isfinite().all()
