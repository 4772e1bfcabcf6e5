"""The examples run as they stand, small; tests/test_ddp_example.py has that on several processes."""

import importlib.util
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def output_of(example: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, f"examples/{example}.py", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize(("example", "package"), [("plain", "torch"), ("with_skorch", "skorch")])
def test_the_example_learns(example: str, package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}")
    shown = output_of(example, "--epochs", "4")
    assert float(shown.split("test error ")[1].split()[0]) < 20  # of ten digits; nine in ten are wrong untrained
    assert float(shown.split("cross entropy")[1].split("\n")[0].split()[-1]) < 2  # log 10 is 2.30
    neighbours = shown.split("like a 3: ")[1]
    assert "(8, " in neighbours or "(9, " in neighbours  # it has learned what a 3 is like


def test_the_example_of_timm_runs() -> None:
    try:
        for package in ("torchvision", "timm"):
            import_module(package)
    except Exception as error:  # a torchvision of another torch fails in its own ways
        pytest.skip(f"timm cannot be imported: {error}")
    assert "loss " in output_of("with_timm")
