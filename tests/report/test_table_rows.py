"""Tables of every kind, read without torch, have the soft labels that the library has."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from labelemb.errors import InputError
from labelemb.losses.counted_table import CountedTable
from labelemb.losses.hits import Hits
from labelemb.losses.low_rank_table import LowRankTable
from labelemb.losses.neighbor_table import NeighborTable
from labelemb.losses.soft_rows import SoftRows
from labelemb.losses.table import LabelTable
from labelemb.report.table_rows import read_labels, row_logits
from labelemb.table_file import FORMAT

NAMES = [f"label {index}" for index in range(7)]


def dense() -> SoftRows:
    table = LabelTable(7, label_names=NAMES)
    table.weight.data.normal_()
    return table


def low_rank() -> SoftRows:
    return LabelTable(7, rank=3, label_names=NAMES)


def counted() -> SoftRows:
    return with_hits(CountedTable(7, label_names=NAMES))


def sparse() -> SoftRows:
    return with_hits(NeighborTable(7, 2, label_names=NAMES))


def whole_sparse() -> SoftRows:
    return with_hits(NeighborTable(7, 6, label_names=NAMES))


def low_rank_over_others() -> SoftRows:
    table = LowRankTable(7, 3, label_names=NAMES)
    table.decoder_weight.data.normal_()
    table.decoder_bias.data.normal_()
    return table


def with_hits(table: CountedTable | NeighborTable) -> SoftRows:
    labels = torch.arange(20) % 7
    others = torch.randn(20, 7).scatter(1, labels[:, None], -torch.inf).softmax(dim=1)
    table.add(Hits(labels, torch.ones(20), others))
    return table


@pytest.mark.parametrize("make", [dense, low_rank, counted, sparse, whole_sparse, low_rank_over_others])
def test_rows_are_those_of_the_library(make: Callable[[], SoftRows], tmp_path: Path) -> None:
    torch.manual_seed(0)
    table = make()
    table.save(tmp_path / "table.safetensors")
    labels = [3, 0, 6]
    logits = row_logits(tmp_path / "table.safetensors", labels).astype(np.float64)
    soft = np.exp(logits - logits.max(axis=1, keepdims=True))
    soft /= soft.sum(axis=1, keepdims=True)
    expected = table.soft_labels(torch.tensor(labels)).double().numpy()
    assert np.abs(expected - 1 / 7).max() > 0.05
    np.testing.assert_allclose(soft, expected, atol=1e-6)
    assert read_labels(tmp_path / "table.safetensors") == NAMES


def test_a_file_without_a_table_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "table.safetensors"
    save_file({"other": torch.zeros(3)}, path, metadata=dict(FORMAT))
    with pytest.raises(InputError, match="damaged: it has no table of a kind that there is, but"):
        read_labels(path)


def test_a_table_without_its_decoder_is_named(tmp_path: Path) -> None:
    path = tmp_path / "table.safetensors"
    save_file({"rows.weight": torch.zeros(7, 3)}, path, FORMAT)
    with pytest.raises(InputError, match=r"table\.safetensors is damaged: .*decoder"):
        row_logits(path, [0])
