"""Two processes of one process group (gloo, CPU) that run the same script."""

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
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
"""


def outputs_of_two_ranks(script: str, folder: Path, *, timeout_seconds: float = 240) -> list[str]:
    """What each rank prints; the script finds `rank`, torch and dist. A rank that fails or hangs fails the test."""
    rendezvous = folder / "rendezvous"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _START + script, str(rank), str(rendezvous)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(2)
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
