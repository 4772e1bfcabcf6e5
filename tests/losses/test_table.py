"""The label table: rows, soft labels, neighbours, and its file."""

import json
import os
import pickle
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests import reference
from torch import nn

from labelemb import LabelTable
from labelemb import __main__ as cli
from labelemb.losses import soft_rows

NAMES = ["chó", "trai", "chạy", "hát", "đẹp"]


def random_table(num_classes: int = 5, rank: int | None = None, label_names: list[str] | None = None) -> LabelTable:
    torch.manual_seed(num_classes)
    table = LabelTable(num_classes, rank=rank, label_names=label_names)
    for parameter in table.parameters():
        nn.init.normal_(parameter)
    return table


@pytest.mark.parametrize(
    ("rank", "expected"),
    [(None, {"weight": (5, 5)}), (2, {"rows.weight": (5, 2), "decoder.weight": (5, 2), "decoder.bias": (5,)})],
)
def test_state_dict_keys_are_exactly_the_fixed_names(rank: int | None, expected: dict[str, tuple[int, ...]]) -> None:
    state = LabelTable(5, rank=rank).state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == expected


def test_a_dense_table_starts_as_the_identity() -> None:
    assert torch.equal(LabelTable(4).row_logits(), torch.eye(4))


@pytest.mark.parametrize("rank", [None, 3])
def test_rows_equal_the_loops(rank: int | None) -> None:
    table = random_table(6, rank).double()
    if rank is None:
        expected = table.weight.tolist()
    else:
        decoder = table.decoder.weight.tolist(), table.decoder.bias.tolist()
        expected = reference.relu(reference.linear(table.rows.weight.tolist(), *decoder))
    labels = torch.tensor([4, 0, 4])
    assert torch.allclose(table.row_logits(), torch.tensor(expected, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(table.row_logits(labels), table.row_logits()[labels], atol=1e-12)


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_soft_labels_are_rows_that_sum_to_1_without_gradient(rank: int | None, dtype: torch.dtype) -> None:
    table = random_table(7, rank).to(dtype)
    soft_labels = table.soft_labels()
    assert soft_labels.shape == (7, 7)
    assert soft_labels.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert not soft_labels.requires_grad
    assert torch.allclose(soft_labels.sum(dim=1), torch.ones(7, dtype=soft_labels.dtype), atol=1e-6)
    labels = torch.tensor([6, 2])
    assert torch.allclose(
        table.soft_labels(labels), soft_labels[labels], atol=1e-3 if dtype == torch.bfloat16 else 1e-6
    )


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("k", [1, 3, 8, 20])
@pytest.mark.parametrize("block_numel", [1, 20, 2**24])
def test_nearest_equals_the_loop_in_blocks_of_any_size(
    rank: int | None, k: int, block_numel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soft_rows, "_BLOCK_NUMEL", block_numel)
    table = random_table(9, rank).double()
    rows = table.row_logits().tolist()
    assert len(table.nearest(k=k)) == 9
    for labels in (None, [3, 0, 3], torch.tensor([8, 1])):
        asked = range(9) if labels is None else [int(label) for label in labels]
        for label, pairs in zip(asked, table.nearest(labels, k), strict=True):
            expected = reference.nearest(rows, label, k)
            assert [other for other, _ in pairs] == [other for other, _ in expected]
            assert [value for _, value in pairs] == pytest.approx([value for _, value in expected], abs=1e-12)


@pytest.mark.parametrize("k", [1, 3, 6])
def test_nearest_breaks_ties_by_index(k: int) -> None:
    table = LabelTable(7)  # the identity: all other labels tie
    for label, pairs in enumerate(table.nearest(k=k)):
        assert [other for other, _ in pairs] == [other for other in range(7) if other != label][:k]
    with torch.no_grad():
        table.weight[2, 4] = table.weight[2, 6] = 0.5
    assert [other for other, _ in table.nearest([2], k=4)[0]] == [4, 6, 0, 1]


def test_nearest_of_the_only_label_is_empty() -> None:
    assert LabelTable(1).nearest() == [[]]
    assert LabelTable(3).nearest([]) == []


def test_nearest_takes_and_gives_names() -> None:
    table = random_table(label_names=NAMES)
    by_name, by_index = table.nearest(["hát", "chó"], k=2), table.nearest([3, 0], k=2)
    assert by_name == by_index
    assert all(name in NAMES and name != "hát" for name, _ in by_name[0])


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("names", [None, NAMES])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_save_and_load_keep_every_bit(
    rank: int | None, names: list[str] | None, dtype: torch.dtype, tmp_path: Path
) -> None:
    table = random_table(rank=rank, label_names=names).to(dtype)
    table.save(tmp_path / "table.safetensors")
    loaded = LabelTable.load(str(tmp_path / "table.safetensors"))
    assert (loaded.num_classes, loaded.rank, loaded.label_names) == (5, rank, names)
    assert loaded.state_dict().keys() == table.state_dict().keys()
    for name, value in table.state_dict().items():
        assert loaded.state_dict()[name].dtype == dtype
        assert torch.equal(loaded.state_dict()[name], value)
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in loaded.parameters())


def test_a_frozen_table_is_saved_under_the_same_names(tmp_path: Path) -> None:
    table = random_table(rank=2)
    table.copy(frozen=True).save(tmp_path / "frozen")
    loaded = LabelTable.load(tmp_path / "frozen")
    assert [name for name, _ in loaded.named_parameters()] == [name for name, _ in table.named_parameters()]


def test_a_loaded_table_does_not_hang_on_its_file(tmp_path: Path) -> None:
    path = tmp_path / "table.safetensors"
    random_table().save(path)
    loaded = LabelTable.load(path)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert torch.equal(loaded.weight, random_table().weight)


def test_loading_draws_no_random_numbers(tmp_path: Path) -> None:
    random_table(rank=2).save(tmp_path / "table")
    before = torch.random.get_rng_state()
    LabelTable.load(tmp_path / "table")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_saved_metadata_holds_format_version_and_names(tmp_path: Path) -> None:
    path = tmp_path / "table"
    random_table(label_names=NAMES).save(path)
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    metadata = header["__metadata__"]
    assert json.loads(metadata.pop("label_names")) == NAMES
    assert re.fullmatch("[0-9a-f]{64}", metadata.pop("sha256"))
    assert metadata == {"format": "labelemb.table", "version": "1"}


@pytest.mark.parametrize("rank", [None, 2])
def test_a_file_with_any_bit_flipped_never_loads_as_another_table(rank: int | None, tmp_path: Path) -> None:
    path, table = tmp_path / "table.safetensors", random_table(3, rank, ["a", "b", "c"])
    table.save(path)
    content = path.read_bytes()
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        loaded = table
        with suppress(ValueError):
            loaded = LabelTable.load(path)
        if loaded is not table:  # the flip hit the name of the checksum itself, or white space
            assert loaded.label_names == table.label_names
            assert all(torch.equal(loaded.state_dict()[name], value) for name, value in table.state_dict().items())


def test_a_file_of_before_the_checksum_still_loads(tmp_path: Path) -> None:
    table = random_table(label_names=NAMES)
    save_file(table.state_dict(), tmp_path / "old", OURS | {"label_names": json.dumps(NAMES)})
    loaded = LabelTable.load(tmp_path / "old")
    assert torch.equal(loaded.weight, table.weight)
    assert loaded.label_names == NAMES


def one_line(error: pytest.ExceptionInfo[ValueError]) -> bool:
    return "\n" not in str(error.value)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.safetensors"
    random_table(rank=2, label_names=NAMES).save(path)
    content = path.read_bytes()
    for size in [0, 1, 7, 8, 60, len(content) // 2, len(content) - 1]:
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"table\.safetensors") as error:
            LabelTable.load(path)
        assert one_line(error)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


def test_a_pickled_file_is_refused_and_none_of_its_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pickled").write_bytes(pickle.dumps(Bomb()))
    torch.save({"weight": torch.eye(3)}, "saved")
    for name in ("pickled", "saved"):
        with pytest.raises(ValueError, match=name) as error:
            LabelTable.load(name)
        assert one_line(error)
    assert not Path("exploded").exists()


OURS = {"format": "labelemb.table", "version": "1"}
FOREIGN: dict[str, tuple[dict[str, torch.Tensor], dict[str, str]]] = {
    "no metadata": ({"weight": torch.eye(3)}, {}),
    "another format": ({"weight": torch.eye(3)}, {"format": "pt"}),
    "a later version": ({"weight": torch.eye(3)}, OURS | {"version": "2"}),
    "no table": ({"head": torch.eye(3)}, OURS),
    "a missing tensor": ({"rows.weight": torch.ones(3, 2)}, OURS),
    "one too many": ({"weight": torch.eye(3), "head": torch.eye(3)}, OURS),
    "not square": ({"weight": torch.ones(3, 4)}, OURS),
    "one axis": ({"weight": torch.ones(3)}, OURS),
    "no axis": ({"weight": torch.tensor(1.0)}, OURS),
    "rows of one axis": (
        {"rows.weight": torch.ones(3), "decoder.weight": torch.ones(3, 1), "decoder.bias": torch.ones(3)},
        OURS,
    ),
    "no labels": ({"weight": torch.ones(0, 0)}, OURS),
    "integers": ({"weight": torch.ones(3, 3, dtype=torch.int64)}, OURS),
    "names that are no JSON": ({"weight": torch.eye(3)}, OURS | {"label_names": "[cat"}),
    "names that are no list": ({"weight": torch.eye(3)}, OURS | {"label_names": '"cat"'}),
    "names that are a number": ({"weight": torch.eye(3)}, OURS | {"label_names": "3"}),
    "names of endless depth": ({"weight": torch.eye(3)}, OURS | {"label_names": "[" * 100_000}),
    "names that are numbers": ({"weight": torch.eye(3)}, OURS | {"label_names": "[0, 1, 2]"}),
    "another checksum": ({"weight": torch.eye(3)}, OURS | {"sha256": "0" * 64}),
    "too few names": ({"weight": torch.eye(3)}, OURS | {"label_names": '["cat"]'}),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_or_inconsistent_file_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    tensors, metadata = FOREIGN[kind]
    path = tmp_path / "foreign.safetensors"
    save_file(tensors, path, metadata)
    with pytest.raises(ValueError, match=r"foreign\.safetensors") as error:
        LabelTable.load(path)
    assert one_line(error)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        LabelTable.load(tmp_path / "absent")


def test_a_failed_save_keeps_the_previous_table_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "table"
    random_table().save(path)
    before = path.read_bytes()

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        LabelTable(5).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("rank", [None, 2])
def test_a_copy_is_its_own(rank: int | None, frozen: bool) -> None:
    table = random_table(rank=rank)
    own = table.copy(frozen=frozen)
    assert own.state_dict().keys() == table.state_dict().keys()
    assert len(list(own.parameters())) == (0 if frozen else len(list(table.parameters())))
    assert torch.equal(own.row_logits(), table.row_logits())
    before = own.soft_labels()
    for parameter in table.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(own.soft_labels(), before)


def test_a_copy_of_a_frozen_table_learns_again() -> None:
    frozen = random_table(rank=2).copy(frozen=True)
    assert [name for name, _ in frozen.copy().named_parameters()] == list(frozen.state_dict())


def test_a_dense_table_of_too_many_labels_names_its_memory_and_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"10\.0 GB.*rank=256"):
        LabelTable(50_000)
    assert LabelTable(20_001, rank=1).num_classes == 20_001


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"num_classes": 3, "rank": 0}, "rank must be at least 1, or None for a dense table, got 0"),
        ({"num_classes": 3, "label_names": ["a"]}, "expected 3, got 1"),
        ({"num_classes": 3, "label_names": [0, 1, 2]}, r"must be strings, got 0 of type int.*str\(name\)"),
        ({"num_classes": 2, "label_names": ["a", None]}, r"must be strings, got None of type NoneType"),
        ({"num_classes": 2, "label_names": [True, "b"]}, r"must be strings, got True of type bool"),
    ],
)
def test_bad_settings_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        LabelTable(**arguments)
    assert one_line(error)


@pytest.mark.parametrize(
    ("labels", "k", "message"),
    [
        ([5], 1, "no label 5, expected 0 to 4"),
        ([-1], 1, "no label -1, expected 0 to 4"),
        (["dog"], 1, "no label 'dog', expected one of its names"),
        ([1.7], 1, "no label 1.7, expected 0 to 4"),
        ([1.0], 1, "no label 1.0, expected 0 to 4"),
        ([True], 1, "no label True, expected 0 to 4"),
        (torch.tensor([True]), 1, "no label True, expected 0 to 4"),
        ([None], 1, "no label None, expected 0 to 4"),
        ([0], 0, "k must be at least 1, got 0"),
    ],
)
def test_bad_questions_are_refused(labels: Any, k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        random_table(label_names=NAMES).nearest(labels, k)
    assert one_line(error)


def test_labels_of_one_name_are_asked_for_by_index() -> None:
    table = random_table(3, label_names=["ray", "boa", "ray"])
    with pytest.raises(ValueError, match="labels 0 and 2 are both named 'ray': ask by index") as error:
        table.nearest(["ray"])
    assert one_line(error)
    assert [len(pairs) for pairs in table.nearest([0, "boa", 2])] == [2, 2, 2]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_row_without_soft_labels_is_an_error_and_no_empty_answer(value: float) -> None:
    table = random_table(label_names=NAMES)
    with torch.no_grad():
        table.weight[3, 1] = value
    with pytest.raises(
        ValueError, match="the row of label 'hát' has no soft labels: it holds NaN or infinity"
    ) as error:
        table.nearest(k=2)
    assert one_line(error)
    assert len(table.nearest(["chó"])) == 1


def test_all_neighbours_are_printed_where_labels_share_a_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random_table(3, label_names=["ray", "boa", "ray"]).save(tmp_path / "table")
    assert cli.run(["neighbors", str(tmp_path / "table")]) == 0
    assert [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()] == ["ray", "boa", "ray"]


def test_indices_of_other_integer_types_are_labels() -> None:
    import numpy as np

    table = random_table()
    assert table.nearest(list(np.arange(2))) == table.nearest([0, 1]) == table.nearest(torch.arange(2).int())
