import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from labelemb.report.heatmap import draw_heatmap, heatmap_labels
from labelemb.report.learned_labels import LabelTables, learned_tables
from labelemb.report.style import render
from labelemb.report.summary import read_results
from labelemb.run_folder import RunFolder

MakeRun = Callable[..., RunFolder]


def tables(folder: Path) -> LabelTables:
    found = learned_tables(read_results([folder]))
    assert found is not None
    return found


@pytest.mark.parametrize(("num_labels", "num_shown"), [(2, 2), (30, 30), (31, 15), (100, 15)])
def test_up_to_thirty_labels_are_all_shown_and_of_more_the_fifteen_strongest(
    make_run: MakeRun, tmp_path: Path, num_labels: int, num_shown: int
) -> None:
    make_run("emb", 0, label_names=[f"n{i}" for i in range(num_labels)])
    shown = heatmap_labels(tables(tmp_path), None)
    assert len(set(shown)) == len(shown) == num_shown
    if num_shown == num_labels:
        assert shown == list(range(num_labels))


def test_labels_are_chosen_by_name_or_number_each_once(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("emb", 0, label_names=["cat", "dog", "3", "horse"])
    assert heatmap_labels(tables(tmp_path), ["dog", "3", "0", "dog"]) == [1, 2, 0]  # a name goes before a number


def test_an_unknown_label_is_refused_with_the_nearest_name(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("emb", 0, label_names=["cat", "dog", "horse"])
    with pytest.raises(ValueError, match="no label 'hose', nearest is 'horse'"):
        heatmap_labels(tables(tmp_path), ["cat", "hose"])


def test_more_than_thirty_chosen_labels_are_refused(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("emb", 0, label_names=[f"n{i}" for i in range(40)])
    with pytest.raises(ValueError, match="at most 30 labels, 31 were asked for"):
        heatmap_labels(tables(tmp_path), [str(i) for i in range(31)])


def test_cells_are_the_mean_over_runs_in_grey_from_white_zero_to_black_one(make_run: MakeRun, tmp_path: Path) -> None:
    for seed in range(3):
        make_run("emb", seed)
    found = tables(tmp_path)
    figure, caption = draw_heatmap(found, [3, 2, 9])
    axes, bar = figure.axes
    mesh = axes.collections[0]
    expected = found.rows([3, 2, 9])[:, [3, 2, 9]]
    np.testing.assert_allclose(np.asarray(mesh.get_array()).reshape(3, 3), expected, rtol=1e-12)
    assert mesh.get_clim() == (0, 1)
    assert mesh.cmap(0.0)[:3] == (1.0, 1.0, 1.0)
    assert mesh.cmap(1.0)[:3] == (0.0, 0.0, 0.0)
    assert bar.get_ylim() == (0, 1)
    assert [text.get_text() for text in axes.get_yticklabels()] == ["3", "2", "9"]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["3", "2", "9"]
    assert axes.yaxis_inverted()
    spread = max(
        np.std([rows[i, j] for rows in found.run_rows([3, 2, 9])], ddof=1) for i in range(3) for j in (3, 2, 9)
    )
    assert "Mean over 3 runs of emb, rows aligned by label;" in caption
    assert f"a standard deviation of at most {spread:.2f}." in caption
    assert "3 of 10 labels are shown" in caption


@pytest.mark.parametrize(("largest", "black"), [(0.26, 1), (0.25, 0.25), (0.12, 0.25), (0.09, 0.1), (0.03, 0.05)])
def test_small_shares_have_a_scale_on_which_they_can_be_seen(
    make_run: MakeRun, tmp_path: Path, largest: float, black: float
) -> None:
    names = [f"n{i}" for i in range(40)]
    run = make_run("emb", 0, label_names=names)
    weight = np.full((40, 40), math.log((1 - largest) / 39), dtype=np.float64)
    np.fill_diagonal(weight, math.log(largest * 0.9999))
    metadata = {"format": "labelemb.table", "version": "1", "label_names": json.dumps(names)}
    save_file({"weight": weight}, run.table, metadata=metadata)
    figure, caption = draw_heatmap(tables(tmp_path), [1, 2, 3])
    axes, bar = figure.axes
    assert axes.collections[0].get_clim() == (0, black)
    assert bar.get_ylim() == (0, black)
    assert (f"black is {black:g}" in caption) is (black != 1)


def test_a_single_run_is_named_by_its_seed(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("emb", 4)
    assert "One run of emb, seed 4." in draw_heatmap(tables(tmp_path), list(range(10)))[1]


def test_any_name_can_be_drawn_without_a_warning(make_run: MakeRun, tmp_path: Path) -> None:
    names = ["trai", "đẹp", "中国", "$x^{$", "<script>&", "\\frac", "x" * 80, "a|b", " ", "🐎"]
    make_run("emb", 0, label_names=names)
    figure, _ = draw_heatmap(tables(tmp_path), list(range(10)))
    svg = render(figure, "svg").decode()
    for text in ("đẹp", "中国", "$x^{$", "&lt;script&gt;&amp;", "\\frac", "x" * 14 + "…" + "x" * 9):
        assert text in svg
    assert "<script>" not in svg
    assert render(figure, "png").startswith(b"\x89PNG")


def test_the_same_runs_give_the_same_bytes(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("emb", 0, label_names=["a", "b", "c"])
    pictures = [draw_heatmap(tables(tmp_path), [0, 1, 2])[0] for _ in range(2)]
    assert len({render(picture, "svg") for picture in pictures}) == 1
    assert len({render(picture, "png") for picture in pictures}) == 1
