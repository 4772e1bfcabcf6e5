"""examples/sharded.py runs on two processes as it says, and learns."""

import os
import subprocess
import sys
from pathlib import Path

from tests.two_ranks import ROOT

from labelemb import NeighborTable


def test_the_example_trains_on_two_processes_and_saves_one_table(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    small = ["--labels", "101", "--steps", "60", "--batch-size", "256", "--table", str(tmp_path / "table")]
    done = subprocess.run(
        [*command, "examples/sharded.py", *small],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert float(done.stdout.split("last batch ")[1].split()[0]) < 1  # log 101 is 4.6
    assert done.stdout.count("like label 0: [(1, ") == 1  # its pair, and said once
    table = NeighborTable.load(tmp_path / "table")
    pairs = sum(table.nearest([label], k=1)[0][0][0] == label ^ 1 for label in range(100))
    assert pairs > 90
