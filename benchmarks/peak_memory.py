"""The peak memory of this process, or of the GPU's allocator."""

import resource
from pathlib import Path

import torch


def peak_bytes(device: torch.device) -> int:
    """The highest resident set so far in bytes; on a GPU what the allocator held at most."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():  # Linux hands getrusage's peak down from the parent process, but not this one
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
