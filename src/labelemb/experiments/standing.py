"""How far the runs of a comparison are."""

from typing import NamedTuple

from labelemb.experiments.job import Job


class Standing(NamedTuple):
    """How far a comparison is."""

    finished: list[Job]
    running: int
    total: int
    share: float  # of all epochs done, in [0, 1]


def standing(jobs: list[Job]) -> Standing:
    """How far these runs are, read from their folders: workers need tell nothing."""
    finished = [job.folder.is_finished for job in jobs]
    shares = [
        1.0 if done else len(job.folder.metrics) / job.settings.epochs for job, done in zip(jobs, finished, strict=True)
    ]
    running, share = sum(0 < each < 1 for each in shares), sum(shares) / len(jobs)
    return Standing([job for job, done in zip(jobs, finished, strict=True) if done], running, len(jobs), share)
