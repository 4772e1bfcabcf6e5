"""Many cases, each by its number: made up, run under watch, kept where it fails."""

import json
import multiprocessing
import resource
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from tests.fuzz import data_cases, image_cases, run_cases, settings_cases, text_cases
from tests.fuzz.case import Case, Desk, lay_out
from tests.fuzz.watch import LIMIT_SECONDS, Outcome, faults, watched

from labelemb.__main__ import run

MEMORY_BYTES = 4 * 2**30  # more than any case needs, less than a machine has
BLOCK = 200  # cases that one process does

WEIGHTS: dict[Callable[[Desk], Case], int] = {
    settings_cases.recipe_text: 10,
    settings_cases.recipe_values: 10,
    settings_cases.recipe_of_anything: 3,
    settings_cases.overrides: 10,
    settings_cases.options: 6,
    settings_cases.written_settings: 6,
    settings_cases.tuning: 4,
    settings_cases.label_names: 3,
    data_cases.table_file: 12,
    data_cases.table_folder: 4,
    data_cases.rows_to_predict: 5,
    image_cases.image_folder: 6,
    image_cases.images_to_predict: 4,
    image_cases.image_cache: 5,
    image_cases.image_parquet: 4,
    run_cases.run_to_report: 1,
    run_cases.run_to_predict: 12,
    run_cases.run_to_resume: 6,
    run_cases.label_table: 6,
    text_cases.text_files: 6,
    text_cases.corpus: 5,
    text_cases.source_to_translate: 4,
}


class Result(NamedTuple):
    """A case that was run."""

    number: int
    kind: str
    arguments: list[str]
    code: int | None
    said: str
    faults: list[str]
    seconds: float = 0.0


def make_case(seed: int, number: int, sandbox: Path, originals: Path, kinds: Sequence[str] = ()) -> tuple[str, Case]:
    """Lay out case `number`, which depends on the seed and the number alone (and on which kinds there are)."""
    draw = Random(f"{seed}:{number}")
    chosen = {make: weight for make, weight in WEIGHTS.items() if not kinds or make.__name__ in kinds}
    (make,) = draw.choices(list(chosen), list(chosen.values()))
    lay_out(sandbox)
    return make.__name__, make(Desk(draw, sandbox, originals))


def try_case(
    seed: int,
    number: int,
    work: Path,
    kinds: Sequence[str] = (),
    command: Callable[[list[str]], int] = run,
    limit_seconds: float = LIMIT_SECONDS,
) -> tuple[Result, Outcome]:
    """Make a case in `work`/sandbox, from `work`/originals, and run it; the sandbox stays."""
    sandbox = work / "sandbox"
    shutil.rmtree(sandbox, ignore_errors=True)
    kind, case = make_case(seed, number, sandbox, work / "originals", kinds)
    outcome = watched(command, case.arguments, sandbox, case.may_write, case.stdin, limit_seconds)
    return Result(number, kind, case.arguments, outcome.code, outcome.said, faults(outcome), outcome.seconds), outcome


def try_cases(
    seed: int,
    numbers: Sequence[int],
    work: Path,
    kinds: Sequence[str] = (),
    command: Callable[[list[str]], int] = run,
) -> Iterator[Result]:
    """Run many cases, some hundred in a process; what ends a process is a fault of the case that it was at.

    The sandboxes of failed cases are kept as work/failed/NUMBER.
    """
    context = multiprocessing.get_context("fork")  # what is imported, and the originals, are there
    rest = list(numbers)
    while rest:
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=_try_block, args=(seed, rest[:BLOCK], work, kinds, command, there))
        process.start()
        there.close()
        done = 0
        for result in _received(here):
            done += 1
            yield result
        process.join()
        if done < len(rest[:BLOCK]):
            yield _of_the_dead(seed, rest[done], work, kinds, process.exitcode)
            done += 1
        rest = rest[done:]


def _of_the_dead(seed: int, number: int, work: Path, kinds: Sequence[str], exit_code: int | None) -> Result:
    shutil.rmtree(work / "sandbox", ignore_errors=True)
    kind, case = make_case(seed, number, work / "sandbox", work / "originals", kinds)
    _keep(work, number)
    return Result(number, kind, case.arguments, None, "", [f"the process ended with {exit_code}"])


def _received(connection: Any) -> Iterator[Result]:
    try:
        while True:
            yield Result(**json.loads(connection.recv_bytes()))
    except EOFError:
        return


def _try_block(
    seed: int,
    numbers: Sequence[int],
    work: Path,
    kinds: Sequence[str],
    command: Callable[[list[str]], int],
    connection: Any,
) -> None:
    with limited_memory():
        for number in numbers:
            result, outcome = try_case(seed, number, work, kinds, command)
            if result.faults:
                _keep(work, number)
                text = "\n".join([f"labelemb {result.arguments!r}", *result.faults, outcome.said, outcome.out])
                (work / "failed" / f"{number}.txt").write_text(text, encoding="utf-8", errors="backslashreplace")
            connection.send_bytes(json.dumps(result._asdict()).encode())


def _keep(work: Path, number: int) -> None:
    target = work / "failed" / str(number)
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(work / "sandbox", target, symlinks=True)


@contextmanager
def limited_memory(more: int = MEMORY_BYTES) -> Iterator[None]:
    """Let this process have so many bytes more than it has: what asks for all of the machine's fails at once."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except FileNotFoundError:  # not on Linux
        yield
        return
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def environment_in(work: Path) -> dict[str, str]:
    """Variables by which caches lie in the work folder, in a place that is made, and nothing asks the network."""
    (work / "cache" / "temporary").mkdir(parents=True)
    names = ("LABELEMB_CACHE", "XDG_CACHE_HOME", "MPLCONFIGDIR", "HF_HOME")
    return dict.fromkeys(names, str(work / "cache")) | {"HF_HUB_OFFLINE": "1"}


@contextmanager
def work_folder() -> Iterator[Path]:
    """A folder for originals and sandboxes, gone afterwards."""
    with TemporaryDirectory(prefix="labelemb-fuzz-") as folder:
        yield Path(folder)
