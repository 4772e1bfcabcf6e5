"""Where a run computes, and what it ran on."""

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Any

import torch

from labelemb.errors import InputError, first_line
from labelemb.training.launch import launched_together, local_rank


def choose_device(name: str) -> torch.device:
    """The device of a name: `auto` takes the GPU where there is one, of several processes each another.

    Raises:
        InputError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and launched_together():  # each process has a GPU of its own
        name = f"cuda:{local_rank()}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} cannot be used here: {first_line(error)}") from None
    return device


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Where a network computes: in bfloat16 where the settings' precision says so, else as it is."""
    enabled = precision == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled, cache_enabled=enabled)


def can_compile() -> bool:
    """Whether torch.compile can make programs for a GPU: it needs Triton, and a C compiler to call its kernels."""
    return find_spec("triton") is not None and any(which(name) for name in ("cc", "gcc", "clang"))


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Versions, device, command and commit of a run, with its start; nothing that names the machine or its paths."""
    return {
        "labelemb": version("labelemb"),
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}: {_processor()}",
        "threads": torch.get_num_threads(),
        "command": shlex.join(["labelemb", *sys.argv[1:]]),
        "start": now(),
        "end": None,
    }


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in _lines(cpuinfo) if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


@cache  # a worker keeps the code it has loaded, also when the checkout moves on between two of its runs
def _commit() -> str | None:
    """The commit of a source checkout; None for an installed package."""
    folder = Path(__file__).parent
    try:
        result = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
