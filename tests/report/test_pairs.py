"""Modes against smoothing and against the best of the table, on errors that are easy to do by hand."""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from labelemb.errors import InputError
from labelemb.report.comparison import NOTHING, TERMINAL_WIDTH, comparison, summary_text
from labelemb.report.pairs import against_smoothing, best_smoothing, marks, pairs_summary
from labelemb.report.summary import Results, read_results
from labelemb.report.write import write_report
from labelemb.run_folder import RunFolder

MakeRun = Callable[..., RunFolder]
T_2 = 4.302653  # Student's quantile for 95 % and 3 pairs

ERRORS = {
    "baseline": [0.050, 0.052, 0.054],
    "smoothing": [0.030, 0.032, 0.034],
    "strong": [0.028, 0.030, 0.035],
    "emb": [0.020, 0.025, 0.030],
}


def table_of(make_run: MakeRun, output: Path, errors: Mapping[str, Sequence[float]], *, nll: bool = False) -> Results:
    """Runs of one epoch with these errors, seeds 0, 1, ...; `strong` is a variant of smoothing."""
    for name, values in errors.items():
        variant = {"mode": "smoothing", "variant": name} if name == "strong" else {}
        for seed, error in enumerate(values):
            run = make_run(name, seed, settings=variant, epochs=1)
            run.write_metrics([{"epoch": 1, "test_error": error, "test_nll": 0.5, "test_ece": 0.02, "seconds": 123.4}])
            if nll:
                scaled = {"temperature": 2.0, "nll": 0.25 + error, "ece": 0.01}
                run.write_evaluation(run.evaluation | {"scaled": scaled})
    return read_results([output])


def cells(results: Results) -> dict[str, dict[str, str]]:
    table = comparison(results)
    return {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}


def test_modes_are_held_against_the_smoothing_of_the_lowest_mean_error(make_run: MakeRun, tmp_path: Path) -> None:
    results = table_of(make_run, tmp_path, ERRORS)
    assert best_smoothing(results) == "strong"  # 3.10 against 3.20 %
    found = cells(results)
    assert [row["vs smoothing"] for row in found.values()] == ["-2.10", "-0.10", NOTHING, "0.60"]
    differences = [8, 5, 5]  # of emb, in thousandths
    margin = T_2 * statistics.stdev(differences) / 3**0.5
    assert found["emb"]["95 % vs smoothing"] == f"{(6 - margin) / 10:.2f} to {(6 + margin) / 10:.2f}"
    (note,) = [note for note in comparison(results).notes if note.startswith("Vs smoothing")]
    assert "against strong (the best mean of smoothing, strong, chosen on these runs), in percentage points" in note


def test_without_smoothing_there_is_nothing_to_hold_against_it(make_run: MakeRun, tmp_path: Path) -> None:
    results = table_of(make_run, tmp_path, {name: ERRORS[name] for name in ("baseline", "emb")})
    assert best_smoothing(results) is None
    assert against_smoothing(results) == {}
    assert not [text for text in (*comparison(results).columns, *comparison(results).notes) if "smoothing" in text]


def test_what_cannot_be_told_from_the_best_is_marked(make_run: MakeRun, tmp_path: Path) -> None:
    errors = {**ERRORS, "online-smoothing": [0.030, 0.024, 0.026], "tfkd": [0.029]}
    results = table_of(make_run, tmp_path, errors)
    assert marks(results) == {
        "baseline": "",  # worse by 30, 27, 24 thousandths: 27 -+ 7.45
        "smoothing": "=",  # by 10, 7, 4: 7 -+ 7.45
        "strong": "",  # by 8, 5, 5: 6 -+ 4.30
        "online-smoothing": "=",
        "tfkd": "?",
        "emb": "best",
    }
    assert cells(results)["baseline"]["best"] == NOTHING
    (note,) = [note for note in comparison(results).notes if note.startswith("Best: ")]
    assert "= cannot be told apart from it" in note


def test_equal_modes_are_level_and_a_single_one_is_not_marked(make_run: MakeRun, tmp_path: Path) -> None:
    assert marks(table_of(make_run, tmp_path, {"emb": [0.02, 0.03]})) == {}
    results = table_of(make_run, tmp_path, {"baseline": [0.02, 0.03]})
    assert marks(results) == {"baseline": "best", "emb": "="}


def test_of_scores_the_highest_is_best_and_more_than_smoothing_is_positive(make_run: MakeRun, tmp_path: Path) -> None:
    scores = {"baseline": [20.0, 21.0, 22.0], "smoothing": [23.0, 24.0, 25.1], "strong": [24.0, 23.0, 22.0]}
    scores["online-smoothing"] = [26.0, 27.0, 28.0]
    for name, values in scores.items():
        for seed, score in enumerate(values):
            variant = {"mode": "smoothing", "variant": name} if name == "strong" else {}
            run = make_run("emb", seed, metric="bleu", recipe=f"of-{name}", settings={"recipe": "iwslt15"})
            run.write_config(run.config | {"mode": name} | variant)
            run.write_evaluation({"test": {"bleu": score}})
    results = read_results([tmp_path])
    assert best_smoothing(results) == "smoothing"
    found = cells(results)
    assert found["online-smoothing"]["vs smoothing"] == "2.97"
    assert found["baseline"]["vs smoothing"] == "-3.03"
    assert found["online-smoothing"]["best"] == "best"
    assert not [note for note in comparison(results).notes if "percentage" in note or "scaled" in note.lower()]


def test_seeds_that_a_mode_and_smoothing_do_not_share_are_left_out_and_told(make_run: MakeRun, tmp_path: Path) -> None:
    errors = {"baseline": [0.05, 0.05], "smoothing": [0.03, 0.04, 0.05], "emb": [0.02]}
    results = table_of(make_run, tmp_path, errors)
    row = cells(results)["emb"]
    assert (row["vs smoothing"], row["95 % vs smoothing"]) == ("1.00", NOTHING)
    notes = comparison(results).notes
    assert notes.count("emb and smoothing share 1 seed: only these are compared.") == 1
    assert notes.count("emb and baseline share 1 seed: only these are compared.") == 1
    assert len([note for note in notes if "smoothing" in note and "baseline" in note and "share 2 seeds" in note]) == 1


def test_the_summary_adds_two_keys_and_changes_none(make_run: MakeRun, tmp_path: Path) -> None:
    results = table_of(make_run, tmp_path, {**ERRORS, "tfkd": [0.029]})
    write_report(results, output=tmp_path)
    contents = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert list(contents) == ["recipe", "metric", "modes", "differences", "against_smoothing", "best"]
    against = contents["against_smoothing"]
    assert against["smoothing"] == "strong"
    assert list(against["differences"]) == ["baseline", "smoothing", "tfkd", "emb"]
    assert against["differences"]["emb"]["mean"] == pytest.approx(-0.006, rel=1e-9)  # mode minus smoothing
    assert against["differences"]["emb"]["low"] < -0.006 < against["differences"]["emb"]["high"]
    assert against["differences"]["tfkd"]["low"] is None
    assert contents["best"] == {"mode": "emb", "level": ["smoothing"], "unknown": ["tfkd"]}


def test_the_summary_of_one_mode_has_no_best(make_run: MakeRun, tmp_path: Path) -> None:
    assert pairs_summary(table_of(make_run, tmp_path, {"emb": [0.02]})) == {
        "against_smoothing": {"smoothing": None, "differences": {}},
        "best": {"mode": None, "level": [], "unknown": []},
    }


def test_scaled_probabilities_lead_the_table_and_are_explained(make_run: MakeRun, tmp_path: Path) -> None:
    results = table_of(make_run, tmp_path, {name: ERRORS[name] for name in ("baseline", "emb")}, nll=True)
    table = comparison(results)
    assert table.columns[:5] == ["mode", "runs", "test error % (sd)", "best", "NLL scaled"]
    assert [column for column in table.columns if "NLL" in column or "ECE" in column] == [
        *("NLL scaled", "NLL", "ECE %", "ECE % scaled")
    ]
    row = cells(results)["emb"]
    assert [row[column] for column in ("NLL scaled", "NLL", "ECE %", "ECE % scaled")] == [
        *("0.2750", "0.5000", "2.00", "1.00")
    ]
    assert len([note for note in table.notes if note.startswith("Scaled: ")]) == 1
    assert not [note for note in table.notes if "not scaled" in note]


@pytest.mark.parametrize(("held_out", "reason"), [(0, "no held-out data"), (0.1, "from before one was fitted")])
def test_a_table_without_temperatures_says_why(make_run: MakeRun, tmp_path: Path, held_out: float, reason: str) -> None:
    make_run("emb", 0, settings={"data": {"source": "digits", "validation": held_out}})
    table = comparison(read_results([tmp_path]))
    assert "NLL scaled" not in table.columns
    (note,) = [note for note in table.notes if "not scaled" in note]
    assert reason in note


@pytest.mark.parametrize("scaled", ["low", {"nll": "low"}])
def test_damaged_measures_after_scaling_are_named(make_run: MakeRun, tmp_path: Path, scaled: object) -> None:
    run = make_run("emb", 0)
    run.write_evaluation(run.evaluation | {"scaled": scaled})
    with pytest.raises(InputError, match=r"evaluation\.json is damaged: expected numbers under scaled, got 'low'"):
        comparison(read_results([tmp_path]))


def test_the_terminal_has_as_many_columns_as_fit(make_run: MakeRun, tmp_path: Path) -> None:
    results = table_of(make_run, tmp_path, {**ERRORS, "online-smoothing": [0.03, 0.03, 0.04]}, nll=True)
    lines = summary_text(results).splitlines()
    assert 80 < len(lines[0]) <= TERMINAL_WIDTH
    assert len({len(line) for line in lines}) == 1
    for heading in ("test error % (sd)", "best", "reduction", "95 % interval", "vs smoothing"):
        assert f" {heading} " in f"{lines[0]} "
    assert "reduction %" not in lines[0]
