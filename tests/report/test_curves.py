from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from labelemb.report.curves import draw_calibration, draw_curves
from labelemb.report.style import looks, render
from labelemb.report.summary import read_results
from labelemb.run_folder import RunFolder

MakeRun = Callable[..., RunFolder]


def curves(folder: Path) -> tuple[Axes, str]:
    figure, caption = draw_curves(read_results([folder]))
    assert render(figure, "png").startswith(b"\x89PNG")  # tick labels are made only when drawn
    return figure.axes[0], caption


def test_each_run_is_one_light_line_and_the_mean_a_deep_one_of_the_same_colour(
    make_run: MakeRun, tmp_path: Path
) -> None:
    runs = [make_run("emb", seed) for seed in range(3)]
    axes, _ = curves(tmp_path)
    *light, deep = axes.lines
    assert len(light) == 3
    assert {to_hex(str(line.get_color())).upper() for line in axes.lines} == {looks(["emb"])["emb"].color}
    assert all(line.get_linewidth() < deep.get_linewidth() and (line.get_alpha() or 1) < 1 for line in light)
    values = [run.metrics[9]["test_error"] * 100 for run in runs]
    assert np.asarray(deep.get_ydata())[9] == pytest.approx(sum(values) / 3, rel=1e-12)


def test_a_mode_beyond_the_catalogue_is_drawn_with_a_pattern_that_its_legend_has_room_for(
    make_run: MakeRun, tmp_path: Path
) -> None:
    for seed in range(2):
        make_run("emb", seed)
        make_run("emb-cold", seed, settings={"mode": "emb", "variant": "emb-cold"})
    axes, _ = curves(tmp_path)
    (emb, cold) = (line for line in axes.lines if line.get_label() in ("emb (2 runs)", "emb-cold (2 runs)"))
    assert (emb.get_linestyle(), cold.get_linestyle()) == ("-", "--")
    assert to_hex(str(emb.get_color())) != to_hex(str(cold.get_color()))
    legend = axes.get_legend()
    assert legend is not None
    assert legend.handlelength > 4


def test_a_legend_of_many_modes_stands_beside_the_curves(make_run: MakeRun, tmp_path: Path) -> None:
    for number in range(14):
        make_run(f"variant-{number:02d}", 0, settings={"mode": "emb", "variant": f"variant-{number:02d}"})
    axes, _ = curves(tmp_path)
    legend = axes.get_legend()
    assert legend is not None
    assert legend.get_window_extent().x0 >= axes.get_window_extent().x1
    assert legend.get_window_extent().height <= axes.get_window_extent().height


def test_legend_says_how_many_runs_there_are(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("baseline", 0)
    for seed in range(3):
        make_run("emb", seed, done=7 if seed == 2 else None)
    legend = curves(tmp_path)[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["baseline (1 run)", "emb (2 runs, 1 unfinished)"]


def test_the_last_half_of_every_mean_lies_in_the_lower_half_of_a_picture_that_drops_the_first_epochs(
    make_run: MakeRun, tmp_path: Path
) -> None:
    for mode in ("baseline", "smoothing", "emb"):
        for seed in range(4):
            make_run(mode, seed)
    axes, caption = curves(tmp_path)
    bottom, top = axes.get_ylim()
    assert 0 < bottom < 1.0
    assert top < 17.0  # the first epoch's 18 % is outside
    assert "The first epochs lie outside the picture." in caption
    finals = [np.asarray(line.get_ydata())[-1] for line in axes.lines]
    assert all(bottom < final < (bottom * top) ** 0.5 for final in finals)


@pytest.mark.parametrize(("low", "high"), [(0.005, 0.03), (0.23, 0.4), (0.0, 0.0), (0.0119, 0.0121), (0.001, 0.9)])
def test_error_ticks_are_plain_numbers_and_enough_to_read(
    make_run: MakeRun, tmp_path: Path, low: float, high: float
) -> None:
    run = make_run("emb", 0)
    run.write_metrics([{"epoch": epoch, "test_error": high + (low - high) * epoch / 5} for epoch in range(6)])
    axes, _ = curves(tmp_path)
    bottom, top = axes.get_ylim()
    ticks = [text.get_text() for text in axes.get_yticklabels()]
    assert 2 <= len(ticks) <= 14
    assert all(bottom <= float(tick) <= top * 1.001 for tick in ticks)


def test_runs_of_differing_lengths_and_without_any_row_do_not_break_the_picture(
    make_run: MakeRun, tmp_path: Path
) -> None:
    make_run("baseline", 0, epochs=30)
    make_run("emb", 0, epochs=12)
    make_run("smoothing", 0, done=3)
    make_run("tfkd", 0, done=3).write_metrics([])
    axes, caption = curves(tmp_path)
    assert [line.get_linestyle() for line in axes.lines] == ["-", "-", ":", ":", ":", ":"]  # unfinished: run and mean
    assert "Unfinished runs are dotted" in caption


def test_one_epoch_of_one_run_is_a_visible_point(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("emb", 0, epochs=1)
    axes, _ = curves(tmp_path)
    assert axes.lines[0].get_marker() == "o"
    left, right = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if left <= tick <= right] == [1]


def test_text_shows_the_development_score_and_fills_the_upper_part(make_run: MakeRun, tmp_path: Path) -> None:
    for mode in ("baseline", "emb"):
        make_run(mode, 0, metric="bleu", epochs=25)
    axes, caption = curves(tmp_path)
    assert axes.get_ylabel() == "development BLEU"
    assert axes.get_ylim()[0] > 10
    assert caption.startswith("Development BLEU")


def test_calibration_sums_bins_over_runs_and_drops_nearly_empty_ones(make_run: MakeRun, tmp_path: Path) -> None:
    for seed, (count, confidence, correct) in enumerate([(100, 0.95, 90), (300, 0.99, 270)]):
        bins = [{"count": 0, "confidence": None, "correct": 0}] * 13 + [{"count": 4, "confidence": 0.9, "correct": 1}]
        bins.append({"count": count, "confidence": confidence, "correct": correct})
        make_run("emb", seed).write_evaluation({"calibration": bins})
    figure = draw_calibration(read_results([tmp_path]))
    assert figure is not None
    (x, y) = figure.axes[0].lines[1].get_data()
    assert np.asarray(x).tolist() == pytest.approx([98.0])
    assert np.asarray(y).tolist() == pytest.approx([90.0])


def test_without_bins_there_is_no_calibration_picture(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("emb", 0, metric="bleu")
    assert draw_calibration(read_results([tmp_path])) is None
