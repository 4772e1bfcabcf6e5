"""Several processes and accumulated steps: the same loss, gradients and weights as one process and whole batches."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.small_runs import SMALL, what_was_learned
from tests.training.divided import make_loop, trained
from tests.two_ranks import ROOT, outputs_of_two_ranks
from torch import Tensor

from labelemb import __main__ as cli
from labelemb.losses.fixed import baseline
from labelemb.run_folder import RunFolder
from labelemb.training.process_state import own_state, restore_own_state
from labelemb.training.processes import Processes

MODES = ["emb", "decoupled", "online-smoothing"]

_TRAIN = """
from pathlib import Path
from safetensors.torch import save_file
from tests.training.divided import make_loop, trained
for mode in {modes}:
    for accumulate in (1, 2):
        folder = Path("{folder}") / f"{{mode}}-{{accumulate}}-{{rank}}"
        save_file(trained(folder, mode, f"accumulate={{accumulate}}"), str(folder) + ".safetensors")
"""


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        tolerance = 1e-10 if name.startswith("end ") else 1e-12
        torch.testing.assert_close(found[name].double(), value.double(), rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_in_parts_one_after_another_is_the_whole_batch(mode: str, tmp_path: Path) -> None:
    assert_same(trained(tmp_path / "parts", mode, "accumulate=4"), trained(tmp_path / "whole", mode))


def test_two_processes_are_one_also_with_accumulated_steps(tmp_path: Path) -> None:
    outputs_of_two_ranks(_TRAIN.format(modes=MODES, folder=tmp_path), tmp_path)
    for mode in MODES:
        expected = trained(tmp_path / mode, mode)
        for accumulate in (1, 2):
            for rank in (0, 1):
                assert_same(load_file(tmp_path / f"{mode}-{accumulate}-{rank}.safetensors"), expected)


def test_a_divisor_is_that_of_the_mean() -> None:
    logits, target = torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 1, -100, 2, 2, 0])
    shares = torch.rand(6, 3, dtype=torch.float64)
    for criterion in (baseline(3), baseline(3, class_weight=[1.0, 2.0, 0.5])):
        criterion.double()
        for each in (target, shares):
            divisor = criterion.num_items(each)
            parts = [criterion(logits[part], each[part], num_items=divisor) for part in (slice(0, 2), slice(2, 6))]
            torch.testing.assert_close(sum(parts), criterion(logits, each), rtol=1e-12, atol=0)


def test_shares_hold_every_item_once() -> None:
    for size in (1, 2, 3, 7):
        items = [item for rank in range(size) for item in range(20)[Processes(rank, size).share(20)]]
        assert items == list(range(20))


_OFTEN = """
import sys
from labelemb import __main__ as cli
from labelemb.training import engine
engine.checkpoint_pause = lambda seconds: 0.0
sys.exit(cli.run(sys.argv[1:]))
"""


def torchrun(*arguments: str, folder: Path, restarts: int = 0) -> "subprocess.Popen[str]":
    """`labelemb train` on two processes of this machine, with a checkpoint whenever the processes talk."""
    folder.mkdir(exist_ok=True)
    script = folder / "often.py"
    script.write_text(_OFTEN)
    started = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    run = [f"--max-restarts={restarts}", str(script), "train", *arguments, "--output", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), *sys.path])}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*started, *run], env=environment, text=True, start_new_session=True, stdout=pipe, stderr=pipe
    )


def small(mode: str, *overrides: str) -> list[str]:
    return ["digits", *SMALL, *overrides, "--mode", mode, "--quiet"]


def rows(folder: RunFolder) -> list[dict[str, float]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in folder.metrics]


def test_torchrun_gives_the_run_of_one_process(tmp_path: Path) -> None:
    process = torchrun(*small("online-smoothing"), folder=tmp_path / "two")
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors[-20000:]
    assert cli.run(["train", *small("online-smoothing"), "--output", str(tmp_path / "one")]) == 0
    one, two = (RunFolder(tmp_path / name / "digits/online-smoothing/seed-00") for name in ("one", "two"))
    assert two.is_finished
    assert two.environment["processes"] == 2
    for expected, found in zip(rows(one), rows(two), strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
        assert found["test_error"] == expected["test_error"]  # no item twice, none left out
    assert two.evaluation["num_items"] == one.evaluation["num_items"]


def test_a_mistake_is_said_once_for_all_processes(tmp_path: Path) -> None:
    (tmp_path / "digits/emb/seed-00").mkdir(parents=True)
    (tmp_path / "digits/emb/seed-00/config.yaml").write_text("epochs: [")
    process = torchrun(*small("emb"), folder=tmp_path)
    _, errors = process.communicate(timeout=240)
    assert process.returncode != 0
    assert errors.count("config.yaml is damaged") == 1


def test_compare_is_not_for_torchrun(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert cli.run(["compare", "digits"]) == 2
    assert "torchrun is for one run" in capsys.readouterr().err


LONG = ("epochs=10", "data.limit=512")  # 32 steps an epoch


def newest_step(folder: RunFolder) -> int:
    return max((int(path.name[5:]) for path in folder.checkpoints.glob("step-*")), default=0)


def wait_for_checkpoint(folder: RunFolder, process: "subprocess.Popen[str]", after: int = 0) -> None:
    """Until a run that is under way has a checkpoint of a step after that one."""
    for _ in range(2400):
        if newest_step(folder) > after:
            return
        assert process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.05)
    raise AssertionError("no checkpoint came")


def ranks_of(process: "subprocess.Popen[str]", folder: Path) -> list[int]:
    """The processes that torchrun started, in sessions of their own: they may outlive it."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if str(folder).encode() in path.read_bytes() and path.parent.name != str(process.pid):
                found.append(int(path.parent.name))
    return sorted(found)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the processes in /proc")
def test_two_processes_killed_and_resumed_end_with_the_same_bits(tmp_path: Path) -> None:
    """All at once, then one alone, after which torchrun starts both again; sums of an epoch are each process's own."""
    whole = torchrun(*small("online-smoothing", *LONG), folder=tmp_path / "whole")
    killed = torchrun(*small("online-smoothing", *LONG), folder=tmp_path / "killed")
    folder = RunFolder(tmp_path / "killed/digits/online-smoothing/seed-00")
    wait_for_checkpoint(folder, killed)
    for each in (killed.pid, *ranks_of(killed, folder.path.parents[2])):
        os.kill(each, signal.SIGKILL)
    killed.communicate()
    last = newest_step(folder)
    resumed = torchrun(*small("online-smoothing", *LONG), "--resume", folder=tmp_path / "killed", restarts=1)
    wait_for_checkpoint(folder, resumed, after=last + 16)
    os.kill(ranks_of(resumed, folder.path.parents[2])[1], signal.SIGKILL)
    for process in (whole, resumed):
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors[-20000:]
    learned = what_was_learned(folder)
    assert learned == what_was_learned(RunFolder(tmp_path / "whole/digits/online-smoothing/seed-00"))
    assert len(folder.environment["resumed"]) == 2


def test_a_signal_stops_all_processes_with_a_checkpoint(tmp_path: Path) -> None:
    process = torchrun(*small("emb", *LONG), folder=tmp_path)
    folder = RunFolder(tmp_path / "digits/emb/seed-00")
    wait_for_checkpoint(folder, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=240)
    assert process.returncode != 0
    assert errors.count("stopped by SIGTERM; the run can be resumed") == 1
    assert not folder.is_finished
    assert cli.run(["train", *small("emb", *LONG), "--output", str(tmp_path), "--resume"]) == 0  # by one process alone
    assert folder.is_finished


def test_another_number_of_processes_goes_on_with_the_sums_of_all(tmp_path: Path) -> None:
    """Two processes had each gathered their own part of the rows: one alone has both, and of three the first."""
    loop = make_loop(tmp_path, "online-smoothing")
    sums = loop.criterion.get_buffer("sums")
    states = [own_state(loop.task.module, loop.sums) for _ in range(2)]
    for number, state in enumerate(states, start=1):
        state["buffers"]["criterion.sums"] = torch.full_like(sums, number)
    for rank, size, expected in ((0, 1, 3.0), (0, 3, 3.0), (2, 3, 0.0), (1, 2, 2.0)):
        restore_own_state(loop.task.module, loop.sums, states, Processes(rank, size))
        assert torch.equal(sums, torch.full_like(sums, expected))
