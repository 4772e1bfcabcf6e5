"""Tables of similarities that are known: a matrix, or groups of labels."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.small_batches import batch
from tests.small_runs import small_run
from torch import Tensor

from labelemb import CountedTable, DecoupledLabelEmbeddingLoss, LabelTable
from labelemb.losses.label_embedding import frozen_label_embedding
from labelemb.losses.modes import load_table, make_criterion

GROUPS = [[0, 6, 8], [1, 4, 7, 9], [2, 3, 5]]
NAMES = ["cat", "ship", "dog", "truck", "sun"]


def matrix(num_classes: int = 4) -> Tensor:
    """Rows that sum to 1, some of whose entries are 0."""
    rows = torch.rand(num_classes, num_classes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows[0, 1] = rows[2, 3] = 0
    return rows / rows.sum(dim=1, keepdim=True)


def assert_soft_labels(table: LabelTable, expected: Tensor | Sequence[Sequence[float]]) -> None:
    torch.testing.assert_close(table.soft_labels().double(), torch.as_tensor(expected).double(), rtol=1e-5, atol=1e-7)


def test_the_soft_labels_are_the_rows_of_the_matrix() -> None:
    forms: list[Any] = [matrix(), matrix().float(), matrix().tolist(), matrix().numpy()]
    for given in forms:
        table = LabelTable.from_matrix(given)
        assert_soft_labels(table, matrix())
        assert table.weight.isfinite().all()
    assert_soft_labels(LabelTable.from_matrix(torch.eye(3, dtype=torch.long)), torch.eye(3))


def test_a_matrix_of_rounded_rows_is_normalised() -> None:
    rounded = [[0.333, 0.333, 0.333], [0.5, 0.25, 0.25], [0.0005, 0.0, 1.0]]
    assert_soft_labels(LabelTable.from_matrix(rounded), [[v / math.fsum(row) for v in row] for row in rounded])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.ones(2, 3) / 3, r"must be \(C, C\) numbers, got \(2, 3\)"),
        (torch.ones(3), r"must be \(C, C\) numbers, got \(3,\)"),
        (torch.ones(0, 0), r"must be \(C, C\) numbers, got \(0, 0\)"),
        (torch.eye(2) + 0j, r"must be \(C, C\) numbers, got \(2, 2\) of torch.complex64"),
        ([[1.5, -0.5], [0.0, 1.0]], r"at least 0, got -0\.5 at \(0, 1\)"),
        ([[1.0, 0.0], [math.nan, 1.0]], r"must be finite .*, got nan at \(1, 0\)"),
        ([[1.0, 0.0], [0.6, 0.6]], r"row 1 sums to 1\.2; .* P / P\.sum\(dim=1, keepdim=True\)"),
    ],
)
def test_a_matrix_that_is_none_of_soft_labels_is_refused(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LabelTable.from_matrix(given)


def test_too_many_labels_are_refused_before_a_matrix_is_made() -> None:
    with pytest.raises(ValueError, match="2,000,000 x 2,000,000 labels takes 16000"):  # which no machine could hold
        LabelTable.from_groups([0] * 2_000_000)


def expected_rows(group: Sequence[object], true_share: float, group_share: float) -> list[list[float]]:
    """An entry at a time: every label's group stands in `group`."""
    labels = range(len(group))
    rows = []
    for y in labels:
        inside = [j for j in labels if j != y and group[j] == group[y]]
        outside = [j for j in labels if group[j] != group[y]]
        left = 1 - true_share
        if not inside:
            of_group, of_rest = 0.0, left
        elif not outside:
            of_group, of_rest = left, 0.0
        else:
            of_group, of_rest = group_share, left - group_share
        row = [0.0] * len(group)
        row[y] = true_share
        for j in inside:
            row[j] = of_group / len(inside)
        for j in outside:
            row[j] = of_rest / len(outside)
        rows.append(row)
    return rows


@pytest.mark.parametrize("group", [[0, 1, 0, 2, 1, 0], ["a", "b", "b", "b"], [3, 3, 3], [2, 7, 1]])
@pytest.mark.parametrize("shares", [(0.5, 0.4), (0.7, 0.1), (0.0, 1.0), (0.9, 0.0)])
def test_shares_of_groups_are_the_loops(group: list[Any], shares: tuple[float, float]) -> None:
    table = LabelTable.from_groups(group, true_share=shares[0], group_share=shares[1])
    assert_soft_labels(table, expected_rows(group, *shares))


def test_without_a_group_s_share_it_is_four_fifths_of_the_others() -> None:
    group = [0, 0, 1, 1, 2]
    assert_soft_labels(LabelTable.from_groups(group), expected_rows(group, 0.5, 0.4))
    assert_soft_labels(LabelTable.from_groups(group, true_share=0.8), expected_rows(group, 0.8, 0.16))
    assert_soft_labels(LabelTable.from_groups(group, true_share=1), torch.eye(5))
    assert_soft_labels(LabelTable.from_groups([0]), [[1.0]])


def test_groups_are_lists_of_indices_or_names_or_one_value_a_label() -> None:
    expected = LabelTable.from_groups([[0, 2], [1, 3], [4]]).soft_labels()
    forms: list[Any] = [
        ({2, 0}, (3, 1), [4]),
        [0, 1, 0, 1, 2],
        torch.tensor([7, 3, 7, 3, 5]),
        ["animal", "vehicle", "animal", "vehicle", "star"],
        torch.tensor([7, 3, 7, 3, 5]).numpy(),
    ]
    for form in forms:
        assert torch.equal(LabelTable.from_groups(form).soft_labels(), expected)
    named = LabelTable.from_groups([["dog", "cat"], ["truck", "ship"], ["sun"]], label_names=NAMES)
    assert torch.equal(named.soft_labels(), expected)
    assert [name for name, _ in named.nearest(["dog"], k=1)[0]] == ["cat"]


@pytest.mark.parametrize(
    ("groups", "names", "message"),
    [
        ([], None, "there are no groups"),
        ([[0, 1], [1, 2]], None, "label 1 stands in the groups twice"),
        ([[0, 1], [2, 4]], None, "no label 4 among 4: expected 0 to 3, each once"),
        ([[0, 1], [-1]], None, "no label -1 among 3"),
        ([[0, 1], [2.0]], None, r"no label 2\.0 among 3"),
        ([[0, 1], [True]], None, "no label True among 3"),
        ([[0, 1], 2], None, "got some of both"),
        ([["cat", "dog"]], None, "groups of names such as 'cat' need label_names"),
        ([["cat", "dog"]], NAMES, "3 labels are in no group, e.g. 'ship'"),
        ([["cat", "bird"]], NAMES, "no label is named 'bird'"),
        ([["cat"], ["dog"]], ["cat", "cat", "dog"], "several labels are named 'cat'"),
        ([0, 1], NAMES, "label_names must have one name a label: expected 2, got 5"),
    ],
)
def test_groups_that_do_not_hold_every_label_once_are_refused(groups: Any, names: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LabelTable.from_groups(groups, label_names=names)


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"true_share": 1.2}, r"true_share must lie in 0 to 1, got 1\.2"),
        ({"true_share": math.nan}, "true_share must lie in 0 to 1, got nan"),
        ({"group_share": 0.6}, r"group_share must lie in 0 to 1 - true_share = 0\.5, got 0\.6"),
        ({"group_share": -0.1}, r"group_share must lie in 0 to 1 - true_share = 0\.5, got -0\.1"),
    ],
)
def test_shares_out_of_range_are_refused(shares: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LabelTable.from_groups([0, 0, 1], **shares)


def test_a_table_of_groups_is_saved_and_loaded_with_its_names(tmp_path: Path) -> None:
    table = LabelTable.from_groups([["dog", "cat"], ["truck", "ship", "sun"]], label_names=NAMES)
    table.save(tmp_path / "groups.safetensors")
    again = load_table(tmp_path / "groups.safetensors", NAMES)
    assert torch.equal(again.soft_labels(), table.soft_labels())
    with pytest.raises(ValueError, match="other labels"):
        load_table(tmp_path / "groups.safetensors", NAMES[::-1])


def test_a_frozen_table_of_groups_is_cross_entropy_with_its_rows() -> None:
    logits, target = batch()
    table = LabelTable.from_groups([0, 0, 1, 1, 1])
    found = frozen_label_embedding(4, 5, table=table).double()(logits, target, torch.zeros(7, 4).double())
    rows = torch.tensor(expected_rows([0, 0, 1, 1, 1], 0.5, 0.4), dtype=torch.float64)
    expected = 0.5 * F.cross_entropy(logits, target) + 0.5 * F.cross_entropy(logits, rows[target])
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_counted_rows_are_those_of_the_groups_without_the_label() -> None:
    expected = torch.tensor(expected_rows([0, 0, 1, 1, 1], 0.0, 0.8))
    table = LabelTable.from_groups([0, 0, 1, 1, 1])
    counted = CountedTable.from_soft_labels(table.soft_labels())
    torch.testing.assert_close(counted.soft_labels(), expected, rtol=1e-5, atol=1e-7)
    for mode in ("decoupled-start", "decoupled-frozen"):
        criterion = make_criterion(mode, 4, 5, table=table)
        assert isinstance(criterion, DecoupledLabelEmbeddingLoss)
        torch.testing.assert_close(criterion.table.soft_labels(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("mode", ["emb-frozen", "emb-start", "decoupled-frozen", "decoupled-start"])
def test_a_run_takes_a_table_of_groups(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "groups.safetensors"
    LabelTable.from_groups(GROUPS).save(path)
    table = load_table(small_run(tmp_path, "epochs=1", mode=mode, table=path).table)
    assert table.label_names == [str(digit) for digit in range(10)]
    if mode == "emb-frozen":
        assert torch.equal(table.soft_labels(), LabelTable.from_groups(GROUPS).soft_labels())
    else:
        neighbours = {int(name) for name, _ in table.nearest(["4"], k=3)[0]}
        assert neighbours == {1, 7, 9} or mode == "decoupled-start"
