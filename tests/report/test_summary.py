import json
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest

from labelemb.report.summary import read_results, summary
from labelemb.run_folder import RunFolder

MakeRun = Callable[..., RunFolder]


def test_summary_holds_fractions_by_seed_and_the_paired_difference(make_run: MakeRun, tmp_path: Path) -> None:
    runs = {mode: [make_run(mode, seed) for seed in (0, 1, 2, 10)] for mode in ("emb", "baseline")}
    contents = summary(read_results([tmp_path]))
    assert contents["recipe"] == "digits"
    assert contents["metric"] == "test_error"
    assert list(contents["modes"]) == ["baseline", "emb"]
    final = {mode: [run.metrics[-1]["test_error"] for run in folders] for mode, folders in runs.items()}
    emb = contents["modes"]["emb"]
    assert emb["seeds"] == [0, 1, 2, 10]
    assert emb["final"] == final["emb"]
    assert emb["mean"] == pytest.approx(statistics.fmean(final["emb"]), rel=1e-12)
    assert emb["std"] == pytest.approx(statistics.stdev(final["emb"]), rel=1e-12)
    assert emb["seconds_per_epoch"] == pytest.approx(0.023)
    difference = contents["differences"]["emb"]
    assert list(contents["differences"]) == ["emb"]
    assert difference["mean"] == pytest.approx(emb["mean"] - contents["modes"]["baseline"]["mean"], rel=1e-12)
    assert difference["low"] < difference["mean"] < difference["high"] < 0


def test_one_run_gives_null_and_never_nan(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("baseline", 0)
    make_run("emb", 0)
    contents = json.loads(json.dumps(summary(read_results([tmp_path])), allow_nan=False))
    assert contents["modes"]["emb"]["std"] is None
    assert contents["differences"]["emb"]["mean"] < 0
    assert contents["differences"]["emb"]["low"] is None
    assert contents["differences"]["emb"]["high"] is None


def test_text_runs_stand_for_the_test_score_of_their_evaluation(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("emb", 0, metric="bleu", recipe="iwslt15")
    assert summary(read_results([tmp_path]))["modes"]["emb"]["final"] == [run.evaluation["test"]["bleu"]]


def test_unfinished_runs_are_kept_apart(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("emb", 0)
    make_run("emb", 1, done=7)
    results = read_results([tmp_path])
    assert [run.seed for run in results.groups["emb"]] == [0]
    assert [run.seed for run in results.unfinished] == [1]


@pytest.mark.parametrize("lost", [slice(None), slice(-2, None), slice(4, 5), slice(0, 1)])
@pytest.mark.parametrize("metric", ["test_error", "bleu"])
def test_a_finished_run_that_lost_rows_is_in_no_mean(
    make_run: MakeRun, tmp_path: Path, lost: slice, metric: str
) -> None:
    whole, damaged = (make_run("emb", seed, metric=metric) for seed in (0, 1))
    rows = damaged.metrics
    del rows[lost]
    damaged.write_metrics(rows)
    results = read_results([tmp_path])
    assert [run.folder.path for run in results.groups["emb"]] == [whole.path]
    assert [run.folder.path for run in results.damaged] == [damaged.path]
    assert results.unfinished == []
    assert summary(results)["modes"]["emb"]["seeds"] == [0]


def test_two_folders_of_one_recipe_are_merged_by_mode_and_seed(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run("emb", 1), make_run("emb", 0), make_run("baseline", 0)]
    results = read_results([run.path for run in runs] + [tmp_path])  # a run met twice counts once
    assert {mode: [run.seed for run in found] for mode, found in results.groups.items()} == {
        "baseline": [0],
        "emb": [0, 1],
    }


def test_groups_stand_in_the_order_of_the_catalogue_each_mode_before_its_variants(
    make_run: MakeRun, tmp_path: Path
) -> None:
    for name in ("unheard-of", "emb-frozen", "emb", "tfkd", "baseline"):
        make_run(name, 0)
    make_run("cold", 0, settings={"mode": "emb", "variant": "cold"})
    make_run("b", 0, settings={"mode": "baseline", "variant": "b"})
    groups = read_results([tmp_path]).groups
    assert list(groups) == ["baseline", "b", "tfkd", "emb", "cold", "emb-frozen", "unheard-of"]
    assert [run.mode for run in groups["cold"]] == ["emb"]


def test_a_variant_of_no_name_is_the_mode_itself(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("emb", 0, settings={"variant": None})
    make_run("emb", 1)  # from before there were variants
    assert [run.seed for run in read_results([tmp_path]).groups["emb"]] == [0, 1]


def test_a_mode_under_two_names_may_have_two_settings(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("emb", 0)
    make_run("cold", 0, settings={"mode": "emb", "variant": "cold", "loss": {"temperature": 1.0}})
    assert list(summary(read_results([tmp_path]))["modes"]) == ["emb", "cold"]


def test_two_modes_under_one_name_are_refused(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("emb", 0, settings={"variant": "best"})
    make_run("tfkd", 1, settings={"variant": "best"})
    with pytest.raises(ValueError, match=r"runs of mode best .*: mode is emb in .* and tfkd in"):
        read_results([tmp_path])


@pytest.mark.parametrize(
    ("names", "baseline"),
    [(["x", "baseline"], "baseline"), (["x"], "x"), (["x", "y"], None), ([], None)],
)
def test_the_baseline_is_the_group_of_that_name_or_else_the_only_one_of_that_mode(
    make_run: MakeRun, tmp_path: Path, names: list[str], baseline: str | None
) -> None:
    make_run("emb", 0)
    for name in names:
        make_run(name, 0, settings={"mode": "baseline", "variant": None if name == "baseline" else name})
    results = read_results([tmp_path])
    assert results.baseline == baseline
    assert ("emb" in summary(results)["differences"]) == (baseline is not None)


def test_while_the_baseline_is_under_way_no_variant_stands_in_for_it(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("baseline", 0, done=3)
    make_run("x", 0, settings={"mode": "baseline", "variant": "x"})
    assert read_results([tmp_path]).baseline is None


def test_another_run_of_the_same_mode_and_seed_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("emb", 3)
    run.path.parent.joinpath("copy").mkdir()
    for file in run.path.glob("*.*"):
        (run.path.parent / "copy" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match=r"copy and .*seed-03 are both emb with seed 3: give one"):
        read_results([tmp_path])


def test_runs_of_two_recipes_are_refused(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("emb", 0)
    make_run("emb", 1, recipe="mnist-mlp")
    with pytest.raises(ValueError, match=r"has recipe digits, .* has mnist-mlp: report them apart"):
        read_results([tmp_path])


def test_runs_of_one_mode_with_other_settings_are_refused_by_the_first_key(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("emb", 0)
    make_run("baseline", 0, epochs=15)  # another mode may
    make_run("emb", 1, settings={"optimizer": {"name": "adam", "lr": 0.01}})
    with pytest.raises(ValueError, match=r"emb .*: optimizer.lr is 0.001 in .*seed-00 and 0.01 in .*seed-01"):
        read_results([tmp_path])


def test_a_part_of_the_data_is_not_the_whole(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("emb", 0, settings={"data": {"source": "mnist", "limit": None}})
    make_run("emb", 1, settings={"data": {"source": "mnist", "limit": 100}})
    with pytest.raises(ValueError, match=r"data.limit is None in .*seed-00 and 100 in .*seed-01"):
        read_results([tmp_path])


def test_where_a_run_was_trained_is_no_difference(make_run: MakeRun, tmp_path: Path) -> None:
    make_run(
        "emb",
        0,
        settings={
            "device": "cpu",
            "data": {"source": "mnist", "path": "DATA/mnist"},
            "compare": {"runs": 5},
            "report": None,
        },
    )
    make_run(
        "emb",
        1,
        settings={
            "device": "cuda",
            "data": {"source": "mnist", "path": None},
            "compare": {"runs": 20},
            "report": {"labels": ["1"]},
        },
    )
    assert len(read_results([tmp_path]).groups["emb"]) == 2


def test_a_folder_without_runs_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no runs \(folders with a config.yaml\) in .*nowhere"):
        read_results([tmp_path / "nowhere"])


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("config.yaml", "[", r"config.yaml is damaged"),
        ("config.yaml", "recipe: digits\nseed: 0\n", r"config.yaml is damaged: it has no `mode`"),
        ("config.yaml", "recipe: digits\nmode: emb\nseed: 0\nmetric: luck\n", r"metric is one of .*, not luck"),
        ("metrics.jsonl", '{"epoch"\n{"epoch": 2}\n', r"metrics.jsonl is damaged at line 1"),
        ("metrics.jsonl", "3\n", r"metrics.jsonl is damaged at line 1"),
        ("metrics.jsonl", '{"step": 3}\n', r"metrics.jsonl is damaged at line 1: a row with its epoch was expected"),
        ("evaluation.json", '{"calibration"', r"evaluation.json is damaged"),
        ("environment.json", "[]", r"environment.json is damaged"),
    ],
)
def test_a_damaged_run_is_named_with_its_file(
    make_run: MakeRun, tmp_path: Path, file: str, text: str, message: str
) -> None:
    (make_run("emb", 0).path / file).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_results([tmp_path])
