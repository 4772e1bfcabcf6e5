"""Modes x seeds: which runs there are, and how far they are."""

from pathlib import Path
from typing import Any

import pytest
from tests.small_runs import SMALL, small_job, small_run

from labelemb.errors import InputError
from labelemb.experiments.standing import Standing, standing
from labelemb.settings.recipe import load_comparison, read_comparison


def refused(*arguments: Any, **options: Any) -> str:
    with pytest.raises(InputError) as error:
        load_comparison(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_mode_has_every_seed_with_seeds_outermost() -> None:
    every = load_comparison("digits", SMALL, {"compare.modes": ["baseline", "emb"], "compare.runs": 3})
    assert [(settings.mode, settings.seed) for settings in every] == [
        ("baseline", 0),
        ("emb", 0),
        ("baseline", 1),
        ("emb", 1),
        ("baseline", 2),
        ("emb", 2),
    ]


def test_modes_and_runs_are_the_recipe_s_by_default() -> None:
    every = load_comparison("digits", (), {"compare.modes": None, "compare.runs": None})
    assert len(every) == 60
    assert {settings.mode for settings in every} == {"baseline", "smoothing", "emb"}
    assert {settings.seed for settings in every} == set(range(20))


def test_a_table_goes_to_the_modes_that_use_one() -> None:
    every = load_comparison(
        "digits", SMALL, {"compare.modes": ["baseline", "emb-start"], "compare.runs": 1, "table": "a.safetensors"}
    )
    assert [settings.table for settings in every] == [None, Path("a.safetensors")]


def test_comparisons_that_cannot_be_are_refused() -> None:
    assert "compare.runs: expected greater than or equal to 1, got 0" in refused("digits", (), {"compare.runs": 0})
    assert "got 'soft'" in refused("digits", (), {"compare.modes": ["soft"]})
    assert "--table a: none of the modes baseline, smoothing, emb uses one" in refused(
        "digits", (), {"table": Path("a")}
    )
    assert "mode emb-frozen needs a learned label table: --table FILE" in refused(
        "digits", (), {"compare.modes": ["baseline", "emb-frozen"]}
    )
    assert "twice" in refused("digits", (), {"compare.modes": ["emb", "emb"]})


def test_standing_counts_epochs_of_all_runs(tmp_path: Path) -> None:
    jobs = [small_job(tmp_path, seed=seed) for seed in range(4)]
    small_run(tmp_path, seed=0)
    jobs[1].folder.write_config({})
    jobs[1].folder.write_metrics([{"epoch": 1}])
    assert standing(jobs) == Standing(finished=jobs[:1], running=1, total=4, share=(1 + 1 / 3) / 4)


def test_what_is_added_to_one_run_comes_after_the_options_of_all() -> None:
    asked = read_comparison("digits", SMALL, {"model.name": "mlp", "compare.modes": ["baseline"]})
    assert asked.settings(asked.variants[0], 0, ["model.name=resnet8"]).model.name == "resnet8"
    assert asked.settings(asked.variants[0], 0).model.name == "mlp"
