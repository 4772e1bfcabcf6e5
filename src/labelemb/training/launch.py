"""How this process was started: by itself, or by torchrun as one of several. No torch: errors ask, too."""

import os


def launched_together() -> bool:
    """Whether torchrun started this process, as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def num_restarts() -> int:
    """How often torchrun has started the processes again, after one of them had died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) if launched_together() else 0


def local_rank() -> int:
    """The number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def speaks_for_all() -> bool:
    """Whether what all processes have to say is this one's to say."""
    return not launched_together() or os.environ.get("RANK") == "0"
