"""Modes x seeds: which runs are done, left, resumed or refused, and that several processes change nothing."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.small_runs import SMALL, bits, small_job, small_run, small_settings, what_was_learned

from labelemb import LabelTable
from labelemb.classify.image_inputs import load_image_inputs
from labelemb.commands import app as cli
from labelemb.experiments import comparison as compare
from labelemb.experiments.comparison import Job, RunFailed, Standing, execute, execute_all, plan, standing
from labelemb.experiments.tasks import TASKS
from labelemb.run_folder import RunFolder
from labelemb.settings.config import InputError, plain
from labelemb.settings.recipe import load_comparison
from labelemb.training.engine import Loop
from labelemb.training.stopping import Stopped


def silent(_: Standing) -> None:
    """Report nothing."""


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


def test_runs_lie_where_the_design_says(tmp_path: Path) -> None:
    every = load_comparison("digits", SMALL, {"recipe": "mine", "compare.modes": ["tfkd"], "compare.runs": 1})
    assert plan(every[0], tmp_path, resume=True).folder.path == tmp_path / "mine" / "tfkd" / "seed-00"


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


def test_standing_counts_epochs_of_all_runs(tmp_path: Path) -> None:
    jobs = [small_job(tmp_path, seed=seed) for seed in range(4)]
    small_run(tmp_path, seed=0)
    jobs[1].folder.write_config({})
    jobs[1].folder.write_metrics([{"epoch": 1}])
    assert standing(jobs) == Standing(finished=jobs[:1], running=1, total=4, progress=(1 + 1 / 3) / 4)


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


def test_two_processes_do_the_same_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "num_cores", lambda: 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = [small_job(tmp_path / "alone", mode=mode, seed=seed) for seed in (0, 1) for mode in ("baseline", "emb")]
        for job in alone:
            execute(job)
    finally:
        torch.set_num_threads(before)
    together = [
        Job(job.settings, RunFolder(tmp_path / "two" / job.folder.path.name / job.settings.mode)) for job in alone
    ]
    seen: list[Standing] = []
    execute_all(together, 2, seen.append)
    assert seen[0] == Standing(finished=[], running=0, total=4, progress=0.0)
    assert seen[-1] == Standing(finished=together, running=0, total=4, progress=1.0)
    for one, other in zip(alone, together, strict=True):
        assert what_was_learned(one.folder) == what_was_learned(other.folder)
        assert one.folder.environment["jobs"] == 1
        assert (other.folder.environment["jobs"], other.folder.environment["threads"]) == (2, 1)


def test_a_worker_that_fails_gives_its_line_and_its_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["compare", "digits", *SMALL, "--runs", "1", "--modes", "baseline", "--jobs", "1", "--quiet"]
    assert cli._run([*arguments, "optimizer.lr=1e30", "--output", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "seed-00" in line
    assert "the training loss became" in line


class Parent:
    """The parent's end of a connection: hands over runs, remembers what the worker says of each."""

    def __init__(self, *jobs: Job) -> None:
        self.jobs = list(jobs)
        self.said: list[Exception | None] = []
        self.send = self.said.append

    def recv(self) -> Job:
        if not self.jobs:
            raise EOFError
        return self.jobs.pop(0)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Parent], None]]:
    """What a worker does, done in this process, which it leaves as it was."""
    monkeypatch.setattr(compare, "_end_with_parent", lambda: None)
    before, threads = signal.getsignal(signal.SIGINT), torch.get_num_threads()
    yield lambda parent: compare._work(parent, 1)  # type: ignore[arg-type]
    signal.signal(signal.SIGINT, before)
    torch.set_num_threads(threads)


def test_an_error_of_the_library_is_input_in_a_worker_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: Callable[[Parent], None]
) -> None:
    for raised, expected in {
        ValueError("no such thing"): InputError,
        FileNotFoundError("no file"): InputError,
        FloatingPointError("nan"): RunFailed,
        OSError(13, "Permission denied"): RunFailed,
    }.items():

        def fail(job: Job, at_a_time: int, error: Exception = raised) -> None:
            raise error

        monkeypatch.setattr(compare, "execute", fail)
        parent = Parent(small_job(tmp_path))
        work(parent)
        (failure,) = parent.said
        assert type(failure) is expected
        assert str(raised) in str(failure)


def test_a_full_disk_is_told_with_the_file_and_the_way_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: Callable[[Parent], None]
) -> None:
    fsync = os.fsync

    def full(handle: int) -> None:
        if os.readlink(f"/proc/self/fd/{handle}").rpartition("/")[2].startswith(".state.json"):
            raise OSError(28, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    job = small_job(tmp_path)
    parent = Parent(job)
    work(parent)
    path = job.folder.checkpoints / ".partial-00000012" / "state.json"
    (failure,) = parent.said
    assert str(failure) == (f"{job.folder.path}: no space left for {path}: free some, then give the same command again")


@pytest.mark.parametrize(("variable", "expected"), [("1", 1), (None, 3)])
def test_a_worker_takes_the_threads_that_the_environment_says(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    work: Callable[[Parent], None],
    variable: str | None,
    expected: int,
) -> None:
    monkeypatch.setattr(compare, "num_cores", lambda: 3)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(1)  # what torch has made of the variable, where there is one
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    job = small_job(tmp_path, "epochs=1")
    work(Parent(job))
    assert job.folder.environment["threads"] == expected


def test_a_worker_takes_runs_until_there_are_none(tmp_path: Path, work: Callable[[Parent], None]) -> None:
    jobs = [small_job(tmp_path, seed=seed) for seed in (0, 1)]
    parent = Parent(*jobs)
    work(parent)
    assert parent.said == [None, None]
    assert all(job.folder.is_finished for job in jobs)


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


LONG = "epochs=4000"


def start(output: Path, *arguments: str, patch: str = "") -> "subprocess.Popen[str]":
    """`labelemb compare digits`, a real command in a group of processes of its own; `patch` is run in workers too."""
    script = output / "command.py"
    script.write_text(f"{patch}\nif __name__ == '__main__':\n    from labelemb.commands.app import main\n    main()\n")
    command = [sys.executable, str(script), "compare", "digits", *SMALL, *arguments, "--output", str(output)]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_until(happened: Callable[[], object], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_comparison_leaves_checkpoints_and_no_process(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """A real command, stopped as Ctrl-C and batch systems do: the signal reaches every process of the group."""
    process = start(tmp_path, LONG, "--runs", "1", "--modes", "baseline,emb", "--jobs", "2", "--quiet")
    folders = [RunFolder.at(tmp_path, "digits", mode, 0) for mode in ("baseline", "emb")]
    wait_until(lambda: all(folder.metrics for folder in folders), process)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=60)  # which ends when the last process that could write there has ended
    assert process.returncode == code
    assert errors.splitlines() == [f"labelemb: stopped by {number.name}; the run can be resumed"]
    for folder in folders:
        assert len(list(folder.checkpoints.glob("step-*"))) == 1


# In place of `finish` or of the last evaluation: says that it is there, and takes its time.
SLOW = """
import time
from labelemb.classify.task import ClassifyTask
def slow(task, *_):
    (task.folder.path / "there").touch()
    time.sleep(3)
    return {{}}
ClassifyTask.{} = slow
"""


@pytest.mark.parametrize("moment", ["evaluate_epoch", "finish"])
def test_a_stop_after_the_last_step_starts_no_other_run(tmp_path: Path, moment: str) -> None:
    arguments = ["epochs=1", "--runs", "2", "--modes", "baseline", "--jobs", "1", "--quiet"]
    process = start(tmp_path, *arguments, patch=SLOW.format(moment))
    first, second = (RunFolder.at(tmp_path, "digits", "baseline", seed) for seed in (0, 1))
    wait_until((first.path / "there").exists, process)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert errors.splitlines() == ["labelemb: stopped by SIGINT; the run can be resumed"]
    assert process.returncode == 130
    assert [path.name for path in first.checkpoints.glob("step-*")] == ["step-00000004"]
    assert not second.path.exists()


BEFORE_TRAINING = """
import time
from pathlib import Path
from labelemb.classify.task import ClassifyTask
def slow(*_):
    Path(__file__).with_name("there").touch()
    time.sleep(60)
ClassifyTask.__init__ = slow
"""


def test_workers_that_a_signal_kills_before_they_train_are_no_failure(tmp_path: Path) -> None:
    process = start(tmp_path, "--runs", "1", "--modes", "baseline", "--quiet", patch=BEFORE_TRAINING)
    wait_until((tmp_path / "there").exists, process)
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert errors.splitlines() == ["labelemb: stopped by SIGTERM; the run can be resumed"]
    assert process.returncode == 143


FAILS_BESIDE_A_SLOW_ONE = """
import time
from labelemb.classify.task import ClassifyTask
def fail_or_wait(task):
    there = task.folder.path.parent / "seed-01" / "there"
    if task.settings.seed == 0:
        while not there.exists():
            time.sleep(0.02)
        raise RuntimeError("no luck")
    there.touch()
    time.sleep(3)
ClassifyTask.finish = fail_or_wait
"""


def test_a_failed_run_leaves_its_siblings_no_other(tmp_path: Path) -> None:
    arguments = ["epochs=1", "--runs", "3", "--modes", "baseline", "--jobs", "2", "--quiet"]
    process = start(tmp_path, *arguments, patch=FAILS_BESIDE_A_SLOW_ONE)
    _, errors = process.communicate(timeout=120)
    folders = [RunFolder.at(tmp_path, "digits", "baseline", seed) for seed in (0, 1, 2)]
    assert not folders[2].path.exists()
    assert errors.splitlines() == [f"labelemb: {folders[0].path}: RuntimeError: no luck"]
    assert process.returncode == 1


KILLED = """
import os, signal
from labelemb.classify.task import ClassifyTask
batches = ClassifyTask.batches
def killed(task, epoch, first):
    if task.settings.seed == 0 and epoch == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return batches(task, epoch, first)
ClassifyTask.batches = killed
"""


def test_a_killed_worker_is_told_with_its_run_and_the_others_stop(tmp_path: Path) -> None:
    arguments = [LONG, "--runs", "2", "--modes", "baseline", "--jobs", "2", "--quiet"]
    process = start(tmp_path, *arguments, patch=KILLED)
    _, errors = process.communicate(timeout=120)
    killed, other = (RunFolder.at(tmp_path, "digits", "baseline", seed) for seed in (0, 1))
    assert errors.splitlines() == [
        f"labelemb: {killed.path}: its process ended by SIGKILL; the same command goes on with the runs that are left"
    ]
    assert process.returncode == 1
    assert not other.is_finished


def test_into_a_file_each_run_that_ends_is_a_line(tmp_path: Path) -> None:
    execute(small_job(tmp_path, mode="baseline"))  # done before, so no line
    process = start(tmp_path, "--runs", "2", "--modes", "baseline,emb", "--jobs", "1")
    _, errors = process.communicate(timeout=120)
    error = {
        (mode, seed): RunFolder.at(tmp_path, "digits", mode, seed).metrics[-1]["test_error"]
        for mode, seed in (("emb", 0), ("baseline", 1), ("emb", 1))
    }
    assert errors.splitlines() == [
        f"digits {mode} seed {seed}: test error {100 * value:.2f} % ({number} of 4 runs)"
        for number, ((mode, seed), value) in enumerate(error.items(), start=2)
    ]


def test_a_quiet_comparison_says_nothing_of_its_runs(tmp_path: Path) -> None:
    process = start(tmp_path, "--runs", "1", "--modes", "baseline", "--jobs", "1", "--quiet")
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")


def test_a_worker_ends_when_its_parent_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        def join(self) -> None:
            """At once."""

    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    monkeypatch.setattr(compare, "parent_process", Gone)
    compare._end_with_parent()
    signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]


def test_a_stopped_worker_fails_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: Callable[[Parent], None]
) -> None:
    take_step = Loop.take_step

    def interrupted(self: Loop, batch: tuple[Any, ...]) -> None:
        take_step(self, batch)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Loop, "take_step", interrupted)
    jobs = [small_job(tmp_path, seed=seed) for seed in (0, 1)]
    parent = Parent(*jobs)
    work(parent)
    assert not parent.said
    assert jobs[0].folder.checkpoints.is_dir()
    assert not jobs[1].folder.exists  # it took no other run
    with pytest.raises(Stopped):
        execute(jobs[1])


def test_checkpoints_of_unknown_settings_are_refused(tmp_path: Path) -> None:
    settings = small_settings()
    folder = small_job(tmp_path).folder
    (folder.checkpoints / "step-00000004").mkdir(parents=True)
    with pytest.raises(InputError, match=r"holds checkpoints but no config\.yaml"):
        plan(settings, tmp_path, resume=True)
