import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from labelemb.losses.table import LabelTable
from labelemb.report import learned_labels as words
from labelemb.report.learned_labels import LabelTables, chosen_labels, frequent_words, is_special, learned_tables
from labelemb.report.summary import read_results
from labelemb.run_folder import RunFolder

MakeRun = Callable[..., RunFolder]


def tables(folder: Path) -> LabelTables:
    found = learned_tables(read_results([folder]))
    assert found is not None
    return found


def row_by_loops(path: Path, label: int) -> list[float]:
    """softmax(e_y) from the formula, in Python's floats."""
    with safe_open(path, framework="numpy") as file:
        arrays: dict[str, NDArray[np.float32]] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if "weight" in arrays:
        logits = [float(value) for value in arrays["weight"][label]]
    else:
        code = [float(value) for value in arrays["rows.weight"][label]]
        logits = [
            max(0.0, sum(float(b) * a for b, a in zip(row, code, strict=True)) + float(c))
            for row, c in zip(arrays["decoder.weight"], arrays["decoder.bias"], strict=True)
        ]
    total = math.fsum(math.exp(logit) for logit in logits)
    return [math.exp(logit) / total for logit in logits]


@pytest.mark.parametrize("rank", [None, 3])
def test_rows_are_the_mean_softmax_over_runs_whatever_the_blocks(
    make_run: MakeRun, tmp_path: Path, rank: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [make_run("emb", seed, label_names=[f"n{i}" for i in range(17)], rank=rank) for seed in (0, 1)]
    monkeypatch.setattr(words, "_BLOCK_NUMEL", 12)  # columns in blocks of 4, the last one short
    rows = tables(tmp_path).rows([5, 0, 16])
    for label, row in zip([5, 0, 16], rows, strict=True):
        one, other = (row_by_loops(run.table, label) for run in runs)
        assert row.tolist() == pytest.approx([(a + b) / 2 for a, b in zip(one, other, strict=True)], rel=2e-6)
        assert row.sum() == pytest.approx(1.0, rel=1e-12)


def test_nearest_labels_descend_and_leave_out_the_label_itself(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("emb", 0)
    row = row_by_loops(run.table, 4)
    expected = sorted((-value, label) for label, value in enumerate(row) if label != 4)[:5]
    (nearest,) = tables(tmp_path).nearest([4])
    assert [name for name, _ in nearest] == [str(label) for _, label in expected]
    assert [value for _, value in nearest] == pytest.approx([-value for value, _ in expected], rel=1e-6)


def test_two_labels_have_one_neighbour_each(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("emb", 0, label_names=["no", "yes"])
    assert [[name for name, _ in near] for near in tables(tmp_path).nearest([0, 1])] == [["yes"], ["no"]]


def test_strongest_labels_are_those_of_the_largest_off_diagonal_values(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("emb", 0, label_names=[f"n{i}" for i in range(40)])
    pairs = sorted(
        (-value, label, other)
        for label in range(40)
        for other, value in enumerate(row_by_loops(run.table, label))
        if other != label
    )
    expected: list[int] = []
    for _, label, other in pairs:
        expected += [index for index in (label, other) if index not in expected]
    assert tables(tmp_path).strongest(15) == expected[:15]


def test_frequent_words_are_long_enough_and_outside_the_hundred_most_frequent(
    make_run: MakeRun, tmp_path: Path
) -> None:
    common = [f"common{i}" for i in range(100)]
    rest = ["ab", "&apos;", "2010", "dog", "cats", *(f"word{i}" for i in range(20))]
    make_run("emb", 0, label_names=["<pad>", "<unk>", "<s>", "</s>", *common, *rest], rank=2)
    found = tables(tmp_path)
    assert [found.names[index] for index in frequent_words(found, None)] == [
        "dog",
        "cats",
        *(f"word{i}" for i in range(8)),
    ]


def test_the_recipes_words_come_first_and_missing_ones_are_left_out(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("emb", 0, label_names=["chó", "mưa", "đẹp"])
    assert frequent_words(tables(tmp_path), ["mưa", "trai", "chó"]) == [1, 0]


def test_a_vocabulary_of_characters_shows_characters(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("emb", 0, label_names=["<pad>", *(chr(0x4E00 + index) for index in range(120))])
    found = tables(tmp_path)
    assert frequent_words(found, None) == list(range(101, 111))


@pytest.mark.parametrize(("names", "special"), [(["<pad>", "&apos;", " ", ""], True), (["a", "<", "chó", "&"], False)])
def test_special_marks_are_told_from_words(names: Sequence[str], special: bool) -> None:
    assert [is_special(name) for name in names] == [special] * len(names)


def test_a_learned_table_is_preferred_to_a_given_one(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("emb-frozen", 0)
    make_run("emb", 0)
    assert tables(tmp_path).name == "emb"


def test_tables_of_different_labels_are_refused(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("emb", 0, label_names=["a", "b"])
    make_run("emb", 1, label_names=["b", "a"])
    with pytest.raises(ValueError, match=r"seed-00.*seed-01.* have different labels"):
        tables(tmp_path)


def test_a_half_written_table_is_named(make_run: MakeRun, tmp_path: Path) -> None:
    path = make_run("emb", 0).table
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"label_embedding.safetensors is damaged"):
        tables(tmp_path)


def test_a_table_with_a_bit_flipped_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("emb", 0, label_names=["a", "b", "c"])
    table = LabelTable(3, label_names=["a", "b", "c"])
    table.save(run.table)
    assert tables(tmp_path).names == ["a", "b", "c"]
    content = bytearray(run.table.read_bytes())
    content[-1] ^= 1
    run.table.write_bytes(content)
    with pytest.raises(ValueError, match=r"label_embedding\.safetensors is damaged: its checksum does not fit"):
        tables(tmp_path)


@pytest.mark.parametrize("names", ["[" * 100_000, "[0, 1, 2]", "3", '["a", "b"]'])
def test_a_table_of_bad_names_is_refused(make_run: MakeRun, tmp_path: Path, names: str) -> None:
    run = make_run("emb", 0)
    metadata = {"format": "labelemb.table", "version": "1", "label_names": names}
    save_file({"weight": np.eye(3, dtype=np.float32)}, run.table, metadata=metadata)
    with pytest.raises(ValueError, match=r"label_embedding\.safetensors .*names") as error:
        tables(tmp_path)
    assert "\n" not in str(error.value)


def test_labels_of_one_name_are_asked_for_by_number(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("emb", 0, label_names=["ray", "boa", "ray"])
    with pytest.raises(ValueError, match="labels 0 and 2 are both named 'ray': ask by number"):
        chosen_labels(tables(tmp_path), ["ray"])
    assert chosen_labels(tables(tmp_path), ["2", "boa"]) == [2, 1]
    with pytest.raises(ValueError, match="the table has no label '9999"):
        chosen_labels(tables(tmp_path), ["9" * 5000])


def test_a_row_that_holds_nan_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("emb", 0)
    weight = np.eye(10, dtype=np.float32)
    weight[4, 2] = np.nan
    save_file({"weight": weight}, run.table, metadata={"format": "labelemb.table", "version": "1"})
    with pytest.raises(ValueError, match=r"label_embedding\.safetensors: the row of label '4' has no soft labels"):
        tables(tmp_path).rows([3, 4])
