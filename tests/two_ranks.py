"""Processes of one process group (gloo, CPU) that run the same script: mostly two."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

_START = """
import sys
import torch
import torch.distributed as dist
torch.set_num_threads(1)
rank, num_ranks = int(sys.argv[1]), int(sys.argv[3])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=num_ranks)
"""


def outputs_of_two_ranks(script: str, folder: Path, *, timeout_seconds: float = 240) -> list[str]:
    """What each of two ranks prints; see `outputs_of_ranks`."""
    return outputs_of_ranks(2, script, folder, timeout_seconds=timeout_seconds)


def outputs_of_ranks(num_ranks: int, script: str, folder: Path, *, timeout_seconds: float = 240) -> list[str]:
    """What each rank prints; the script finds `rank`, `num_ranks`, torch and dist.

    A rank that fails or hangs fails the test.
    """
    rendezvous = folder / "rendezvous"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _START + script, str(rank), str(rendezvous), str(num_ranks)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(num_ranks)
    ]
    outputs = []
    try:
        for process in processes:
            output, errors = process.communicate(timeout=timeout_seconds)
            assert process.returncode == 0, errors[-3000:]
            outputs.append(output)
    finally:
        for process in processes:
            process.kill()
    return outputs
