"""What the benchmarks share: seconds and memory, measured in turn or in processes of their own, and what is written."""

import json
import resource
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from labelemb.training.device import describe_environment


def synchronize(device: torch.device) -> None:
    """Wait for a GPU; on a CPU there is nothing to wait for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(device: torch.device) -> int:
    """The highest resident set so far in bytes; on a GPU what the allocator held at most."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():  # Linux hands getrusage's peak down from the parent process, but not this one
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def forget_peak(device: torch.device) -> None:
    """Let `peak_bytes` begin again from what is held now; does nothing where the system cannot."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif (resets := Path("/proc/self/clear_refs")).exists():
        resets.write_text("5", encoding="ascii")  # proc(5): sets the peak to the present size


def in_turn(measures: Mapping[str, Callable[[], float]], num_rounds: int) -> dict[str, list[float]]:
    """What each measure gives in each round, one after another, every other round backwards."""
    values: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(num_rounds):
        for name in measures if number % 2 else reversed([*measures]):
            values[name].append(measures[name]())
    return values


def in_own_process(module: str, *arguments: str) -> Any:
    """The JSON on the last line that `python -m MODULE ARGUMENTS` prints."""
    command = [sys.executable, "-m", module, *arguments]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(output.splitlines()[-1])


def environment_of(module: str, device: torch.device) -> dict[str, Any]:
    """Versions, device, threads, commit and command of a benchmark."""
    return describe_environment(device) | {"command": shlex.join(["python", "-m", module, *sys.argv[1:]])}


def write_results(path: Path | None, results: Mapping[str, Any]) -> None:
    """Write the results as JSON, where a file was asked for."""
    if path is not None:
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
