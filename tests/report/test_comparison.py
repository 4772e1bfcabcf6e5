from collections.abc import Callable
from pathlib import Path

import pytest

from labelemb.report.comparison import NOTHING, comparison, markdown, summary_text
from labelemb.report.summary import read_results
from labelemb.run_folder import RunFolder

MakeRun = Callable[..., RunFolder]


def cells(folder: Path) -> dict[str, dict[str, str]]:
    table = comparison(read_results([folder]))
    return {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}


def flat(run: RunFolder, errors: list[float], seconds: float = 2.0) -> None:
    """Replace the curve by given errors."""
    rows = [{"epoch": epoch, "test_error": error, "seconds": seconds} for epoch, error in enumerate(errors, start=1)]
    run.write_config(run.config | {"epochs": len(errors)})
    run.write_metrics([{**row, "test_nll": 0.5, "test_ece": 0.02} for row in rows])


def test_columns_stand_in_the_agreed_order(make_run: MakeRun, tmp_path: Path) -> None:
    for mode in ("baseline", "emb"):
        make_run(mode, 0)
    assert comparison(read_results([tmp_path])).columns == [
        *("mode", "runs", "test error % (sd)", "best", "reduction", "reduction %", "95 % interval", "seconds an epoch"),
        *("NLL", "ECE %", "epochs to baseline", "seconds to baseline"),
    ]


def test_lower_error_is_a_positive_reduction_in_percentage_points(make_run: MakeRun, tmp_path: Path) -> None:
    for seed, (baseline, emb) in enumerate([(0.04, 0.03), (0.05, 0.02)]):
        flat(make_run("baseline", seed), [0.2, baseline])
        flat(make_run("emb", seed), [0.04, emb])
    row = cells(tmp_path)["emb"]
    assert row["test error % (sd)"] == "2.50 (0.71)"
    assert row["reduction"] == "2.00"
    assert row["reduction %"] == "44.4"  # 2 of 4.5
    assert row["95 % interval"] == "-10.71 to 14.71"  # 2 -+ 12.7062 * sqrt(2) / sqrt(2)
    assert row["seconds an epoch"] == "2.00"
    assert row["NLL"] == "0.5000"
    assert row["ECE %"] == "2.00"
    assert (row["epochs to baseline"], row["seconds to baseline"]) == ("1", "2.00")
    assert cells(tmp_path)["baseline"]["epochs to baseline"] == "2"


def test_seconds_to_baseline_leave_out_what_an_epoch_does_not_usually_take(make_run: MakeRun, tmp_path: Path) -> None:
    """The first epoch of a mode's first run on a GPU holds the compilation for all its runs."""
    for mode in ("baseline", "emb"):
        run = make_run(mode, 0)
        flat(run, [0.3, 0.2, 0.1, 0.1])
        run.write_metrics([{**row, "seconds": 60.0 if row["epoch"] == 1 else 2.0} for row in run.metrics])
    row = cells(tmp_path)["emb"]
    assert (row["epochs to baseline"], row["seconds to baseline"]) == ("3", "6.00")


def test_higher_bleu_is_a_positive_gain(make_run: MakeRun, tmp_path: Path) -> None:
    for seed, (baseline, emb) in enumerate([(25.0, 26.0), (25.0, 27.0)]):
        for mode, score in (("baseline", baseline), ("emb", emb)):
            run = make_run(mode, seed, metric="bleu", recipe="iwslt15")
            run.write_evaluation({"test": {"bleu": score, "chrf": 50.0}, "signature": "case:lc|tok:none"})
    row = cells(tmp_path)["emb"]
    assert (row["gain"], row["gain %"], row["chrf"]) == ("1.50", "6.0", "50.00")
    assert row["95 % interval"] == "-4.85 to 7.85"  # 1.5 -+ 12.7062 / 2
    assert "Signature: case:lc|tok:none" in comparison(read_results([tmp_path])).notes


def test_higher_error_is_a_negative_reduction(make_run: MakeRun, tmp_path: Path) -> None:
    flat(make_run("baseline", 0), [0.02])
    flat(make_run("emb", 0), [0.03])
    row = cells(tmp_path)["emb"]
    assert (row["reduction"], row["reduction %"]) == ("-1.00", "-50.0")
    assert row["epochs to baseline"] == NOTHING


def test_equal_errors_are_no_negative_reduction(make_run: MakeRun, tmp_path: Path) -> None:
    for mode in ("baseline", "emb"):
        flat(make_run(mode, 0), [0.02])
    row = cells(tmp_path)["emb"]
    assert (row["reduction"], row["reduction %"]) == ("0.00", "0.0")


def test_reduction_compares_only_the_seeds_that_both_have_and_says_so(make_run: MakeRun, tmp_path: Path) -> None:
    flat(make_run("baseline", 0), [0.04])
    flat(make_run("baseline", 1), [0.90])
    flat(make_run("emb", 0), [0.03])
    row = cells(tmp_path)["emb"]
    assert (row["reduction"], row["reduction %"], row["95 % interval"]) == ("1.00", "25.0", NOTHING)
    assert "emb and baseline share 1 seed: only these are compared." in comparison(read_results([tmp_path])).notes


def test_the_papers_figures_stand_beside_ours(make_run: MakeRun, tmp_path: Path) -> None:
    paper = {"baseline": {"mean": 27.35, "std": 0.4}, "emb": {"mean": 23.97, "std": None, "seconds_per_epoch": 87.8}}
    for mode in ("baseline", "smoothing", "emb"):
        make_run(mode, 0, settings={"report": {"paper": paper}})
    found = cells(tmp_path)
    assert [found[mode]["paper: test error % (sd)"] for mode in found] == ["27.35 (0.40)", NOTHING, "23.97"]
    assert [found[mode]["paper: seconds an epoch"] for mode in found] == [NOTHING, NOTHING, "87.8"]


def test_without_a_baseline_there_is_no_reduction(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("emb", 0)
    row = cells(tmp_path)["emb"]
    assert row["reduction"] == row["95 % interval"] == NOTHING
    assert "epochs to baseline" not in row


def test_unfinished_runs_are_named_under_the_table(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("emb", 0)
    make_run("emb", 1, done=7)
    table = comparison(read_results([tmp_path]))
    assert table.rows[0][1] == "1"
    assert "Left out, unfinished: emb, seed 1 (epoch 7 of 30)." in table.notes


@pytest.mark.parametrize("done", [None, 3])
def test_every_line_of_the_markdown_table_has_the_same_cells(
    make_run: MakeRun, tmp_path: Path, done: int | None
) -> None:
    make_run("a|b", 0, done=done)
    lines = [line for line in markdown(comparison(read_results([tmp_path])), "digits").splitlines() if line[:1] == "|"]
    assert len(lines) == (3 if done is None else 2)
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1


def test_variants_of_a_mode_are_rows_under_their_own_names(make_run: MakeRun, tmp_path: Path) -> None:
    flat(make_run("baseline", 0), [0.04])
    flat(make_run("emb", 0), [0.03])
    flat(make_run("emb-cold", 0, settings={"mode": "emb", "variant": "emb-cold"}), [0.02])
    found = cells(tmp_path)
    assert [row["reduction"] for row in found.values()] == [NOTHING, "1.00", "2.00"]
    assert list(found) == ["baseline", "emb", "emb-cold"]


def test_a_variant_of_the_baseline_is_what_the_others_are_held_against(make_run: MakeRun, tmp_path: Path) -> None:
    flat(make_run("plain", 0, settings={"mode": "baseline", "variant": "plain"}), [0.04])
    flat(make_run("plain", 1, settings={"mode": "baseline", "variant": "plain"}), [0.04])
    flat(make_run("emb", 0), [0.03])
    assert cells(tmp_path)["emb"]["reduction"] == "1.00"
    assert "emb and plain share 1 seed: only these are compared." in comparison(read_results([tmp_path])).notes


def test_a_run_that_lost_rows_is_named_under_the_table_and_in_the_terminal(make_run: MakeRun, tmp_path: Path) -> None:
    for seed in range(3):
        make_run("emb", seed)
    damaged = make_run("emb", 3)
    damaged.write_metrics(damaged.metrics[:-2])
    line = (
        f"Left out, damaged: emb, seed 3 ({damaged.path / 'metrics.jsonl'}: no row of epochs 29 to 30); bring the file "
        "back, or remove the run's folder and train again."
    )
    assert line in comparison(read_results([tmp_path])).notes
    assert summary_text(read_results([tmp_path])).splitlines()[-1] == line
    assert summary_text(read_results([tmp_path])).splitlines()[2].split()[:2] == ["emb", "3"]


def test_terminal_says_which_run_is_left_out_as_unfinished(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("emb", 0)
    make_run("emb", 1, done=7)
    assert (
        summary_text(read_results([tmp_path])).splitlines()[-1] == "Left out, unfinished: emb, seed 1 (epoch 7 of 30)."
    )


def test_terminal_table_is_short_and_aligned(make_run: MakeRun, tmp_path: Path) -> None:
    for mode in ("baseline", "emb"):
        for seed in range(3):
            make_run(mode, seed)
    lines = summary_text(read_results([tmp_path])).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert len(lines[0]) <= 100
    assert lines[0].startswith("mode")
    assert lines[3].startswith("emb")


def test_seconds_under_unlike_conditions_are_warned_of_on_the_page_and_in_the_terminal(
    make_run: MakeRun, tmp_path: Path
) -> None:
    first, second, third = (make_run("emb", seed) for seed in range(3))
    first.write_environment(first.environment | {"threads": 1, "jobs": 2})
    second.write_environment(second.environment | {"threads": 1, "jobs": 2})
    assert "unlike" not in markdown(comparison(read_results([tmp_path])), "digits")  # the third is from before
    third.write_environment(third.environment | {"threads": 2, "jobs": 1})
    note = "Seconds an epoch come from runs under unlike conditions and do not compare: threads 1 and 2; jobs 1 and 2."
    assert note in comparison(read_results([tmp_path])).notes
    assert summary_text(read_results([tmp_path])).splitlines()[-1] == note


def test_a_run_resumed_under_other_conditions_is_warned_of(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("emb", 0)
    run.write_environment(run.environment | {"threads": 2, "jobs": 1, "earlier": {"threads": [1]}})
    (note,) = [note for note in comparison(read_results([tmp_path])).notes if "unlike" in note]
    assert note.endswith(": threads 1 and 2.")
