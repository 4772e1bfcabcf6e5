"""Many runs, several at a time: worker processes that are handed one run after another."""

import os
import signal
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.resource_tracker import ensure_running
from threading import Thread
from traceback import format_exception

from labelemb.errors import InputError, RunFailed, described
from labelemb.experiments.job import Job, execute, show_as_asked
from labelemb.experiments.standing import Standing, standing
from labelemb.files import describe_lack_of_space, is_out_of_space
from labelemb.training.stopping import Stopped, StopSignals


def execute_all(jobs: list[Job], num_workers: int, progress: Callable[[Standing], None]) -> None:
    """Do many runs, `num_workers` at a time, each worker a process; `progress` is called about three times a second.

    Raises:
        Stopped: a signal came; the runs in work have written checkpoints.
        InputError, RunFailed: what the first run that failed said; the others in work have written checkpoints.
    """
    waiting = deque(_unfinished(jobs))
    num_workers = min(num_workers, len(waiting))
    progress(standing(jobs))
    with StopSignals() as stop:
        workers: list[_Worker] = []
        try:
            with _interrupts_held_back():
                for _ in range(num_workers):
                    workers.append(_Worker(num_workers))
            for worker in workers:
                worker.take_from(waiting)
            while stop.signal_number is None and (busy := [worker for worker in workers if worker.job is not None]):
                heard = wait([worker.connection for worker in busy], timeout=0.3)
                for worker in busy:
                    if worker.connection in heard and stop.signal_number is None:  # else it may be stopped, too
                        worker.hear()
                        worker.take_from(waiting)
                progress(standing(jobs))
        finally:  # no worker gets another run: not after a signal, nor after another one's failure
            for worker in workers:
                worker.stop()
            for worker in workers:
                worker.wait()
    if stop.signal_number is not None:
        raise Stopped(stop.signal_number)


def _unfinished(jobs: list[Job]) -> Iterator[Job]:
    for job in jobs:
        if job.folder.is_finished:
            show_as_asked(job)
        else:
            yield job


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Start workers deaf to Ctrl-C from their first moment: a blocked signal is inherited, and not lost here."""
    ensure_running()  # multiprocessing's own helper: where it starts first with a worker, it unblocks the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Worker:
    """A process that does the runs it is handed, seen from the parent. There is no lock that a dead one could hold."""

    def __init__(self, num_workers: int) -> None:
        context = get_context("spawn")  # a fork would copy the threads' locks of torch
        self.job: Job | None = None
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, num_workers))
        self.process.start()
        theirs.close()  # now the worker alone has it: when it dies, whatever the cause, the connection ends

    def take_from(self, waiting: deque[Job]) -> None:
        """Hand over the next run; where there is none, the worker ends."""
        self.job = waiting.popleft() if waiting else None
        if self.job is None:
            self.connection.close()
            return
        with suppress(BrokenPipeError):  # it is dead, which `hear` tells
            self.connection.send(self.job)

    def hear(self) -> None:
        """Hear that the run came to its end; raise what went wrong in it, or that the worker died."""
        try:
            failure = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            assert self.job is not None
            raise RunFailed(
                f"{self.job.folder.path}: its process ended {_how(self.process.exitcode)}; the same command goes on "
                "with the runs that are left"
            ) from None
        if failure is not None:
            raise failure

    def stop(self) -> None:
        """Ask for an end in two ways.

        A signal that comes just as a run ends is answered by nobody; the worker would wait for its next run, and where
        the connection has ended there is none.
        """
        if self.job is not None:
            self.process.terminate()
        self.connection.close()

    def wait(self) -> None:
        self.process.join()
        self.process.close()


def _how(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"by {signal.Signals(-exit_code).name}"
    return f"with exit code {exit_code}"


def _work(jobs: Connection, num_workers: int) -> None:
    """One worker process: does the runs that come, until the connection ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent passes it on as SIGTERM
    Thread(target=_end_with_parent, daemon=True).start()
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, num_cores() // num_workers))
    while (job := _next(jobs)) is not None:
        try:
            execute(job, at_a_time=num_workers)
        except Stopped:
            return
        except Exception as error:
            _tell(jobs, _failure(job, error))
            return
        _tell(jobs, None)


def _tell(jobs: Connection, outcome: InputError | RunFailed | None) -> None:
    with suppress(OSError):  # the parent listens no more: `_next` hears that there is no other run
        jobs.send(outcome)


def _next(jobs: Connection) -> Job | None:
    try:
        job: Job = jobs.recv()
    except (EOFError, OSError):
        return None
    return job


def _failure(job: Job, error: Exception) -> InputError | RunFailed:
    """What the parent raises: with a text of the traceback, as the traceback itself ends with this process."""
    if isinstance(error, InputError):
        failure: InputError | RunFailed = InputError(str(error))
    elif is_out_of_space(error):
        failure = RunFailed(f"{job.folder.path}: {describe_lack_of_space(error)}, then give the same command again")
    else:
        failure = RunFailed(f"{job.folder.path}: {described(error)}")
    failure.add_note("In its process:\n" + "".join(format_exception(error)))
    return failure


def _end_with_parent() -> None:
    """Stop when the parent was killed: else the next comparison would meet this worker in the same folders."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
