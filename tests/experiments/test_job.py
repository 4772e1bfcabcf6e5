"""One run: what its folder allows, what a finished, resumed or held one is left as, tables used again."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.small_runs import SMALL, bits, small_job, small_run, small_settings

from labelemb import LabelTable
from labelemb.classify.image_inputs import load_image_inputs
from labelemb.errors import InputError
from labelemb.experiments.job import Job, execute, plan
from labelemb.experiments.standing import Standing
from labelemb.experiments.tasks import TASKS
from labelemb.experiments.workers import execute_all
from labelemb.run_folder import RunFolder
from labelemb.settings.config import plain
from labelemb.settings.recipe import load_comparison
from labelemb.training.stopping import Stopped


def silent(_: Standing) -> None:
    """Report nothing."""


def test_runs_lie_where_the_design_says(tmp_path: Path) -> None:
    every = load_comparison("digits", SMALL, {"recipe": "mine", "compare.modes": ["tfkd"], "compare.runs": 1})
    assert plan(every[0], tmp_path, resume=True).folder.path == tmp_path / "mine" / "tfkd" / "seed-00"


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_other_settings_is_refused_with_the_first_key_and_both_values(tmp_path: Path, resume: bool) -> None:
    small_job(tmp_path).folder.write_config(plain(small_settings()))
    with pytest.raises(InputError, match=r"emb\.temperature=2\.0, not emb\.temperature=3\.0") as error:
        plan(small_settings("emb.temperature=3", "emb.cap=0.8"), tmp_path, resume=resume)
    assert "seed-00" in str(error.value)


def test_train_asks_for_resume_where_a_run_stands(tmp_path: Path) -> None:
    folder = small_job(tmp_path).folder
    folder.write_config(plain(small_settings()))
    with pytest.raises(InputError, match="an unfinished run: pass --resume"):
        plan(small_settings(), tmp_path, resume=False)
    folder.write_environment({"end": "now"})
    with pytest.raises(InputError, match="a finished run: pass --resume"):
        plan(small_settings(), tmp_path, resume=False)
    assert plan(small_settings(), tmp_path, resume=True).folder.path == folder.path


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    folder = small_run(tmp_path)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.path.rglob("*") if path.is_file()}
    small_run(tmp_path)
    execute_all([small_job(tmp_path)], 2, silent)
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.path.rglob("*") if path.is_file()}
    assert before == after


def test_a_finished_run_is_shown_as_asked_now(tmp_path: Path) -> None:
    folder = small_run(tmp_path, "report.labels=[1,2]")
    before = folder.config
    small_run(tmp_path, "report.labels=[3,4]", "device=auto")
    assert folder.config["report"]["labels"] == ["1", "2"]  # read before, and kept
    now = RunFolder(folder.path).config
    assert now["report"]["labels"] == ["3", "4"]
    assert {**now, "report": None} == {**before, "report": None}
    execute_all([small_job(tmp_path, "report.labels=[5]")], 1, silent)
    assert RunFolder(folder.path).config["report"]["labels"] == ["5"]


def test_a_run_that_another_process_works_on_is_left_to_it(tmp_path: Path) -> None:
    job = small_job(tmp_path)
    with job.folder.held():
        with pytest.raises(ValueError, match="another process is at work on this run"):
            execute(job)
        assert not job.folder.exists
    execute(job)
    assert job.folder.is_finished


def test_a_run_that_another_process_ends_meanwhile_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = TASKS["classify"]
    other = small_job(tmp_path)

    def slowly(*arguments: Any) -> Any:
        with monkeypatch.context() as undone:
            undone.setitem(TASKS, "classify", kind)
            execute(other)
        return kind.make(*arguments)

    monkeypatch.setitem(TASKS, "classify", replace(kind, make=slowly))
    execute(small_job(tmp_path))
    assert "resumed" not in other.folder.environment
    other = small_job(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"was run with emb\.temperature=2\.0, not emb\.temperature=7"):
        execute(Job(small_settings("emb.temperature=7"), RunFolder(other.folder.path)))
    assert RunFolder(other.folder.path).config["emb"]["temperature"] == 2
    assert other.folder.is_finished


def learn_table(tmp_path: Path) -> Path:
    return small_run(tmp_path / "teacher", "optimizer.criterion_lr=0.1", seed=7).table


@pytest.mark.parametrize("mode", ["emb-start", "emb-frozen"])
def test_a_learned_table_is_used_again(tmp_path: Path, mode: str) -> None:
    path = learn_table(tmp_path)
    learned = load_file(path)
    assert not torch.equal(learned["weight"], torch.eye(10))
    folder = small_run(tmp_path, "model.hidden=[9]", mode=mode, table=path)  # by another network
    again = load_file(folder.table)
    if mode == "emb-frozen":
        assert bits(again) == bits(learned)
        assert folder.metrics[-1]["train_aux"] == folder.metrics[-1]["train_match"] == 0
    else:
        assert not torch.equal(again["weight"], learned["weight"])
        assert (again["weight"] - learned["weight"]).abs().max() < (again["weight"] - torch.eye(10)).abs().max()
    assert folder.config["table"] == str(path)


def test_the_learned_rows_are_the_soft_labels_of_the_first_step(tmp_path: Path) -> None:
    path = learn_table(tmp_path)
    still = ("optimizer.lr=1e-30", "optimizer.criterion_lr=1e-30", "epochs=1")
    rows = small_run(tmp_path, *still, mode="emb-frozen", table=path).metrics[0]
    settings = small_settings(*still)
    data = load_image_inputs(settings)
    from labelemb.classify.task import ClassifyTask

    task = ClassifyTask(settings, data, torch.device("cpu"), RunFolder(tmp_path / "none"))
    log_probs = task.module.network(data.train.inputs(slice(None)))[0].log_softmax(dim=1)
    soft = LabelTable.load(path).soft_labels(data.train.labels)
    assert rows["train_soft"] == pytest.approx(-(soft * log_probs).sum(dim=1).mean().item(), rel=1e-5)


def test_a_table_that_is_missing_or_of_other_labels_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    LabelTable(3, label_names=["a", "b", "c"]).save(tmp_path / "other.safetensors")
    LabelTable(3).save(tmp_path / "nameless.safetensors")
    for name, expected in {
        "none.safetensors": "no label table at",
        "other.safetensors": "was learned for other labels",
        "nameless.safetensors": "the table has 3 labels, num_classes is 10",
    }.items():
        job = small_job(tmp_path, mode="emb-frozen", table=tmp_path / name)
        with pytest.raises((ValueError, FileNotFoundError), match=expected):
            execute(job)
        assert not job.folder.path.exists()


def test_a_resumed_run_keeps_the_conditions_it_was_begun_under(tmp_path: Path) -> None:
    job = small_job(tmp_path)
    for at_a_time in (3, 2, 3):
        with pytest.raises(Stopped):
            execute(job, lambda done, planned, message: os.kill(os.getpid(), signal.SIGTERM), at_a_time)
        job.folder.write_environment(job.folder.environment | {"threads": 7})
    execute(job)
    environment = job.folder.environment
    assert environment["jobs"] == 1
    assert environment["earlier"] == {"threads": [7], "jobs": [2, 3]}


def test_checkpoints_of_unknown_settings_are_refused(tmp_path: Path) -> None:
    settings = small_settings()
    folder = small_job(tmp_path).folder
    (folder.checkpoints / "step-00000004").mkdir(parents=True)
    with pytest.raises(InputError, match=r"holds checkpoints but no config\.yaml"):
        plan(settings, tmp_path, resume=True)
