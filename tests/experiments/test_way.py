"""The way of `labelemb compare digits` from the command to the loss: how long it is."""

import traceback
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from tests.small_runs import SMALL

from labelemb import __main__ as cli
from labelemb.experiments import workers
from labelemb.experiments.job import Job, execute
from labelemb.losses.soft_label import FiveTermLoss

SOURCE = Path(cli.__file__).parent


def modules_on_the_way() -> list[str]:
    """The modules of this package that the calls in progress pass through, from the outermost, each stay once."""
    files = [Path(frame.filename) for frame in traceback.extract_stack()]
    own = [str(file.relative_to(SOURCE)) for file in files if SOURCE in file.parents]
    return [module for module, _ in groupby(own)]


def test_six_modules_lead_from_the_command_to_the_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ways: list[list[str]] = []
    terms = FiveTermLoss.terms

    def noted(self: FiveTermLoss, *arguments: Any, **options: Any) -> Any:
        ways.append(modules_on_the_way())
        return terms(self, *arguments, **options)

    def in_this_process(jobs: list[Job], num_workers: int, progress: Callable[..., None]) -> None:
        ways.append([*modules_on_the_way(), "experiments/workers.py"])
        for job in jobs:
            execute(job)

    monkeypatch.setattr(FiveTermLoss, "terms", noted)
    monkeypatch.setattr(workers, "execute_all", in_this_process)
    arguments = ["compare", "digits", *SMALL, "--runs", "1", "--modes", "emb", "--quiet", "--output", str(tmp_path)]
    assert cli.run(arguments) == 0
    to_workers, to_loss = ways[:2]
    assert to_workers == ["__main__.py", "commands/training.py", "experiments/workers.py"]
    in_the_worker = [module for module in to_loss if module not in to_workers]
    assert in_the_worker == ["experiments/job.py", "training/engine.py", "classify/task.py"]
