"""Equal tuning from the command to the page: held-out training data choose, the test set is not looked at."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.small_runs import SMALL, small_job, small_run, write_image_cache

from labelemb import __main__ as cli
from labelemb.classify.image_inputs import ImageInputs
from labelemb.errors import InputError, RunFailed
from labelemb.experiments import workers
from labelemb.experiments.job import Job, execute
from labelemb.experiments.standing import Standing, standing
from labelemb.experiments.tuning import Rule, parse_grid
from labelemb.experiments.tuning_runs import plan_tuning, record, value_of
from labelemb.run_folder import RunFolder
from labelemb.settings.recipe import read_comparison

ERRORS = Rule("valid_error", higher_is_better=False, of_best_epoch=False)
Output = pytest.CaptureFixture[str]


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Runs are done in this process; the ones that were not finished before."""
    jobs_done: list[Job] = []

    def in_this_process(jobs: list[Job], num_workers: int, progress: Callable[[Standing], None]) -> None:
        for job in jobs:
            if not job.folder.is_finished:
                execute(job)
                jobs_done.append(job)
        progress(standing(jobs))

    monkeypatch.setattr(workers, "execute_all", in_this_process)
    return jobs_done


def command(output: Path, *arguments: str, tune: str = "optimizer.lr=1e-6,0.03", runs: int = 1) -> list[str]:
    given = ["compare", "digits", *SMALL, "data.limit=300", *arguments, "--runs", str(runs), "--jobs", "1", "--quiet"]
    return [*given, "--tune", tune, "--output", str(output)]


def tuned(output: Path, recipe: str = "digits") -> dict[str, Any]:
    modes: dict[str, Any] = json.loads((output / recipe / "tuning.json").read_text(encoding="utf-8"))["modes"]
    return modes


def cache_whose_test_labels_are_wrong(path: Path) -> Path:
    """Dark images are label 0, light ones label 1, and in the test set the other way round."""
    labels = torch.arange(60) % 2
    images = (labels * 200 + 20).to(torch.uint8).reshape(-1, 1, 1, 1).expand(60, 1, 4, 4).contiguous()
    tensors = {"train_images": images, "train_labels": labels, "test_images": images[:20].clone()}
    return write_image_cache(path, num_classes=2, tensors=tensors | {"test_labels": 1 - labels[:20]})


@pytest.mark.usefixtures("done")
def test_the_test_set_has_no_say_in_what_is_chosen(tmp_path: Path, capsys: Output) -> None:
    data = cache_whose_test_labels_are_wrong(tmp_path / "data.safetensors")
    small = ["model.name=mlp", "model.hidden=[8]", "epochs=6", "batch_size=8", "augment.flip=false", "augment.crop=0"]
    grid = ["--modes", "baseline", "--runs", "1", "--tune", "optimizer.lr=1e-7,0.05"]
    options = ["--device", "cpu", "--jobs", "1", "--quiet", "--output", str(tmp_path), "--name", "wrong"]
    assert cli.run(["compare", "cifar10", *small, *grid, *options, "--data", str(data)]) == 0
    assert tuned(tmp_path, "wrong")["baseline"]["chosen"] == {"optimizer.lr": 0.05}
    final = RunFolder.at(tmp_path, "wrong", "baseline", 0)
    assert final.metrics[-1]["test_error"] == 1  # whoever had looked would have taken the other point
    assert final.config["optimizer"]["lr"] == 0.05
    assert (final.config["data"]["validation"], final.config.get("tuning")) == (0, None)
    capsys.readouterr()


def test_a_run_of_tuning_does_not_touch_the_test_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def looked(_: ImageInputs) -> None:
        raise AssertionError("the test set was looked at")

    monkeypatch.setattr(ImageInputs, "test", property(looked))
    monkeypatch.setattr(ImageInputs, "examples", looked)
    folder = small_run(tmp_path, "tuning=point", "data.validation=0.2")
    assert folder.is_finished
    assert "valid_error" in folder.metrics[-1]
    assert not [key for row in folder.metrics for key in row if key.startswith("test")]
    assert not (folder.path / "evaluation.json").exists()
    assert not folder.examples.exists()


def test_predict_refuses_a_run_of_tuning(tmp_path: Path, capsys: Output) -> None:
    folder = small_run(tmp_path, "tuning=point", "data.validation=0.2")
    assert cli.run(["predict", str(folder.path), "--output", str(tmp_path / "out.csv")]) == 2
    assert "run of tuning" in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()


def test_every_mode_is_tuned_on_its_points_and_runs_with_what_was_chosen(
    tmp_path: Path, capsys: Output, done: list[Job]
) -> None:
    arguments = command(tmp_path, "--modes", "baseline,smoothing", tune="optimizer.lr=1e-6,0.03; epsilon=0.1,0.3")
    assert cli.run(arguments) == 0
    assert [job.settings.tuning is None for job in done] == [False] * (4 + 8) + [True] * 2
    point = "optimizer.lr=0.03,smoothing.epsilon=0.3"
    assert RunFolder.at(tmp_path, "digits", "smoothing", 1, point).is_finished
    modes = tuned(tmp_path)
    assert {name: (each["runs"], len(each["points"])) for name, each in modes.items()} == {
        "baseline": (4, 2),
        "smoothing": (8, 4),
    }
    for name, each in modes.items():
        best = min(each["points"], key=lambda point: point["mean"])
        assert each["chosen"] == best["settings"]
        assert best["values"] == [
            RunFolder.at(tmp_path, "digits", name, seed, job.settings.tuning).metrics[-1]["valid_error"]
            for seed in (0, 1)
            for job in [next(job for job in done if _has(job, name, best["settings"]))]
        ]
        assert each["seconds"] > 0
        config = RunFolder.at(tmp_path, "digits", name, 0).config
        assert config["optimizer"]["lr"] == each["chosen"]["optimizer.lr"]
    assert modes["baseline"]["at_edge"] == ["optimizer.lr"]
    out = capsys.readouterr().out
    assert "Tuned: baseline: optimizer.lr=0.03 " in out
    assert "(8 runs of 4 points, " in out
    assert "at the edge of the grid: optimizer.lr" in out
    for file in ("table.md", "report.html"):
        assert "Tuned: smoothing: optimizer.lr=" in (tmp_path / "digits" / file).read_text(encoding="utf-8")


def _has(job: Job, name: str, settings: dict[str, Any]) -> bool:
    return (
        job.settings.name == name
        and job.settings.optimizer.lr == settings["optimizer.lr"]
        and (name == "baseline" or job.settings.loss["epsilon"] == settings["smoothing.epsilon"])
    )


def test_the_same_command_goes_on_where_it_was_killed(
    tmp_path: Path, capsys: Output, done: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = command(tmp_path, "--modes", "baseline", "--tune-runs", "1")
    whole = workers.execute_all

    def killed(jobs: list[Job], *others: Any) -> None:
        whole(jobs[:1], *others)
        raise KeyboardInterrupt

    monkeypatch.setattr(workers, "execute_all", killed)
    assert cli.run(arguments) == 130
    assert [job.settings.optimizer.lr for job in done] == [1e-6]
    assert not (tmp_path / "digits" / "tuning.json").exists()
    monkeypatch.setattr(workers, "execute_all", whole)
    assert cli.run(arguments) == 0
    assert [job.settings.optimizer.lr for job in done] == [1e-6, 0.03, 0.03]
    first = tuned(tmp_path)
    assert cli.run(arguments) == 0
    assert len(done) == 3
    assert tuned(tmp_path) == first
    capsys.readouterr()


@pytest.mark.usefixtures("done")
def test_another_choice_is_refused_with_its_key_and_the_old_one_stays_written(tmp_path: Path, capsys: Output) -> None:
    assert cli.run(command(tmp_path, "--modes", "baseline")) == 0
    before = tuned(tmp_path)
    assert cli.run(command(tmp_path, "--modes", "baseline", tune="optimizer.lr=1e-6,0.02")) == 2
    assert "was run with optimizer.lr=0.03, not optimizer.lr=0.02" in capsys.readouterr().err
    assert tuned(tmp_path) == before


@pytest.mark.usefixtures("done")
def test_another_mode_is_tuned_beside_those_that_were(tmp_path: Path, capsys: Output) -> None:
    for mode in ("baseline", "tfkd"):
        assert cli.run(command(tmp_path, "--modes", mode, "--tune-runs", "1")) == 0
    assert list(tuned(tmp_path)) == ["baseline", "tfkd"]
    assert "Tuned: baseline" in capsys.readouterr().out


def test_a_mode_with_one_point_is_not_run_for_it(tmp_path: Path, capsys: Output, done: list[Job]) -> None:
    assert cli.run(command(tmp_path, "--modes", "baseline,smoothing", "--tune-runs", "1", tune="epsilon=0.1,0.3")) == 0
    assert [job.settings.mode for job in done] == ["smoothing"] * 2 + ["baseline", "smoothing"]
    assert "Tuned: baseline: the grid had nothing to choose for it." in capsys.readouterr().out


def test_a_diverged_run_counts_as_the_worst_and_ends_nothing(tmp_path: Path, capsys: Output, done: list[Job]) -> None:
    arguments = command(tmp_path, "--modes", "baseline", "--tune-runs", "1", tune="optimizer.lr=1e30,0.03")
    assert cli.run(arguments) == 0
    assert "became" in done[0].folder.environment["diverged"]
    (point, other) = tuned(tmp_path)["baseline"]["points"]
    assert (point["values"], point["mean"]) == ([None], None)
    assert tuned(tmp_path)["baseline"]["chosen"] == other["settings"]
    capsys.readouterr()


def test_where_every_point_diverged_nothing_is_chosen(tmp_path: Path) -> None:
    asked = read_comparison("digits", SMALL, {"compare.modes": ["baseline"]})
    (trials,) = plan_tuning(asked, parse_grid("optimizer.lr=1e30,1e31"), 1, tmp_path)
    for (job,) in trials.jobs:
        execute(job)
    with pytest.raises(RunFailed, match=r"baseline: at every point .* became infinite"):
        record(trials)


def test_a_run_that_lost_rows_is_not_judged(tmp_path: Path) -> None:
    folder = small_run(tmp_path, "tuning=point", "data.validation=0.2")
    assert value_of(folder, ERRORS) == folder.metrics[-1]["valid_error"]
    folder.write_metrics(folder.metrics[:-1])
    with pytest.raises(InputError, match="no row of epoch 3"):
        value_of(folder, ERRORS)


def test_scores_are_judged_at_their_best_epoch(tmp_path: Path) -> None:
    folder = small_job(tmp_path).folder
    folder.write_config({"epochs": 3})
    rows = [{"epoch": epoch, "valid_bleu": score} for epoch, score in enumerate((1.0, 3.0, 2.0), start=1)]
    folder.write_metrics(rows)
    assert value_of(folder, Rule("valid_bleu", higher_is_better=True, of_best_epoch=True)) == 3


@pytest.mark.parametrize(
    ("overrides", "validation"),
    [((), 0.1), (("data.validation=20",), 20), (("data.validation=0.3",), 0.3)],
)
def test_a_tenth_is_held_out_where_the_recipe_holds_out_none(
    tmp_path: Path, overrides: tuple[str, ...], validation: float
) -> None:
    asked = read_comparison("digits", [*SMALL, *overrides], {"compare.modes": ["emb"]})
    (trials,) = plan_tuning(asked, parse_grid("optimizer.lr=0.1,0.2"), 2, tmp_path)
    for job in (job for jobs in trials.jobs for job in jobs):
        assert job.settings.task == "classify"
        assert job.settings.data.validation == validation


def test_a_dry_run_prints_the_runs_of_every_mode_and_its_points(tmp_path: Path, capsys: Output) -> None:
    grid = "optimizer.lr=0.01,0.1; epsilon=0.1,0.3"
    assert cli.run([*command(tmp_path, "--modes", "baseline,smoothing", tune=grid), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        "baseline: 4 runs of tuning",
        "    optimizer.lr=0.01",
        "    optimizer.lr=0.1",
        "smoothing: 8 runs of tuning",
    ]
    assert len(lines) == 8
    assert not list(tmp_path.iterdir())


def test_no_runs_of_tuning_are_refused(tmp_path: Path, capsys: Output) -> None:
    assert cli.run([*command(tmp_path), "--tune-runs", "0"]) == 2
    assert "--tune-runs 0: expected at least 1" in capsys.readouterr().err


def test_a_value_out_of_range_is_refused_before_anything_runs(tmp_path: Path, capsys: Output) -> None:
    assert cli.run(command(tmp_path, "--modes", "smoothing", tune="epsilon=0.1,3")) == 2
    assert "smoothing.epsilon: expected" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_runs_of_tuning_are_in_no_report(tmp_path: Path, capsys: Output) -> None:
    final = small_run(tmp_path)
    trial = small_run(tmp_path, "tuning=point", "data.validation=0.2", seed=1)
    moved = tmp_path / "digits" / "tuning" / "emb" / "point" / "seed-01"
    moved.parent.mkdir(parents=True)
    trial.path.rename(moved)
    assert cli.run(["report", str(tmp_path / "digits")]) == 0
    assert capsys.readouterr().out.splitlines()[2].split()[:2] == ["emb", "1"]
    assert cli.run(["report", str(moved.parent)]) == 2
    assert "holds runs of tuning alone" in capsys.readouterr().err
    assert yaml.safe_load((final.path / "config.yaml").read_text(encoding="utf-8")).get("tuning") is None
