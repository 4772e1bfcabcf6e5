"""What the table says of equal tuning, from tuning.json alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from labelemb.errors import InputError
from labelemb.report.comparison import comparison, summary_text
from labelemb.report.summary import read_results
from labelemb.report.tuning import tuning_notes
from labelemb.run_folder import RunFolder

MakeRun = Callable[..., RunFolder]
POINTS = [{"settings": {"optimizer.lr": lr}, "values": [0.1], "mean": 0.1, "std": None} for lr in (0.001, 0.01)]
RECORD = {
    "judged_by": "valid_error",
    "epoch": "last",
    "points": POINTS,
    "chosen": {"optimizer.lr": 0.001},
    "at_edge": ["optimizer.lr"],
    "runs": 2,
    "seconds": 1234.5,
}
SAID = (
    "Tuned: emb: optimizer.lr=0.001 by the mean valid_error of the last epoch (2 runs of 2 points, 1,234 seconds of "
    "training); at the edge of the grid: optimizer.lr."
)


@pytest.fixture
def notes(make_run: MakeRun, tmp_path: Path) -> Callable[..., list[str]]:
    """notes(emb={...}): the sentences beside a tuning.json of these modes and runs of baseline and emb."""

    def make(folder: str = "", **modes: Any) -> list[str]:
        for mode in ("baseline", "emb"):
            make_run(mode, 0)
        path = tmp_path / "runs" / "digits" / "tuning.json"
        path.write_text(json.dumps({"modes": modes}), encoding="utf-8")
        return tuning_notes(read_results([tmp_path / "runs" / "digits" / folder]))

    return make


def test_the_choice_its_cost_and_its_edge_are_told_of_every_mode(notes: Callable[..., list[str]]) -> None:
    assert notes(emb=RECORD) == [SAID]
    inside = notes(emb=RECORD, baseline=RECORD | {"at_edge": []})
    assert [line.split(":")[1] for line in inside] == [" baseline", " emb"]
    assert "edge" not in inside[0]


def test_the_choice_stands_under_the_table_and_in_the_terminal(notes: Callable[..., list[str]], tmp_path: Path) -> None:
    notes(emb=RECORD)
    results = read_results([tmp_path])
    assert SAID in comparison(results).notes
    assert SAID in summary_text(results).splitlines()


def test_the_choice_is_found_from_a_mode_s_own_folder(notes: Callable[..., list[str]]) -> None:
    assert notes("emb", emb=RECORD) == [SAID]


def test_runs_of_other_settings_than_the_chosen_ones_have_no_sentence(notes: Callable[..., list[str]]) -> None:
    assert notes(emb=RECORD | {"chosen": {"optimizer.lr": 0.01}}) == []
    assert notes(tfkd=RECORD) == []


def test_where_the_text_that_chose_is_scored_too_it_is_said(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("emb", 0, metric="bleu")
    path = tmp_path / "runs" / "digits" / "tuning.json"
    path.write_text(json.dumps({"modes": {"emb": RECORD}}), encoding="utf-8")
    assert "flatters" not in tuning_notes(read_results([tmp_path]))[0]
    run.write_evaluation(run.evaluation | {"scored_on": "valid"})
    assert "which flatters them" in tuning_notes(read_results([tmp_path]))[0]


def test_a_mode_with_nothing_to_choose_says_so(notes: Callable[..., list[str]]) -> None:
    assert notes(emb={"points": [], "chosen": {}}) == ["Tuned: emb: the grid had nothing to choose for it."]


@pytest.mark.parametrize("damage", [{"chosen": 3}, {"points": 3}, {"seconds": "many"}, {"at_edge": None}])
def test_a_damaged_file_is_told_by_its_name(notes: Callable[..., list[str]], damage: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"tuning\.json is damaged: emb"):
        notes(emb=RECORD | damage)


def test_a_file_of_something_else_is_told_by_its_name(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("emb", 0)
    (tmp_path / "runs" / "digits" / "tuning.json").write_text('{"modes": []}', encoding="utf-8")
    with pytest.raises(InputError, match=r"tuning\.json is damaged"):
        tuning_notes(read_results([tmp_path]))
