"""A few hundred cases of `python -m tests.fuzz`, and that the harness sees each fault that it looks for."""

import io
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fuzz import damage
from tests.fuzz.campaign import environment_in, make_case, try_case, try_cases
from tests.fuzz.case import lay_out
from tests.fuzz.originals import make_originals
from tests.fuzz.watch import CANARY, faults, watched

CASES = 150
SEED = 1


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment_in(folder).items():
            patch.setenv(name, value)
        patch.setattr(tempfile, "tempdir", str(folder / "cache" / "temporary"))
        make_originals(folder / "originals")
        yield folder


@pytest.mark.parametrize("first", range(0, CASES, 50))
def test_malformed_input_is_one_line_and_code_2(work: Path, first: int) -> None:
    for number in range(first, first + 50):
        result, outcome = try_case(SEED, number, work)
        assert not result.faults, f"--seed {SEED} --case {number}: {result.arguments} {result.faults} {outcome.said}"


def test_a_case_is_the_same_whenever_it_is_made(work: Path, tmp_path: Path) -> None:
    def made(number: int, name: str) -> tuple[object, dict[str, bytes]]:
        kind, case = make_case(SEED, number, tmp_path / name, work / "originals")
        files = [path for path in (tmp_path / name).rglob("*") if path.is_file() and not path.is_symlink()]
        written = {str(path.relative_to(tmp_path / name)): path.read_bytes() for path in files}
        ours = {name: content for name, content in written.items() if not name.endswith(".safetensors")}  # in any order
        return (kind, case), ours

    for number in range(20):
        assert made(number, f"{number}a") == made(number, f"{number}b")


def crashes(arguments: list[str]) -> int:
    raise KeyError("shape")


def works_for_ever(arguments: list[str]) -> int:
    while True:
        pass


def waits_for_ever(arguments: list[str]) -> int:
    time.sleep(60)
    return 0


def blames_itself(arguments: list[str]) -> int:
    print("labelemb: KeyError: 'shape' (labelemb/classify/tables.py:123)", file=sys.stderr)
    return 1


def says_nothing(arguments: list[str]) -> int:
    return 2


def says_much(arguments: list[str]) -> int:
    print("labelemb: " + "x" * 100_000, file=sys.stderr)
    return 2


def says_two_things(arguments: list[str]) -> int:
    print("libsomething: bad chunk\nlabelemb: it is damaged", file=sys.stderr)
    return 2


def ends_oddly(arguments: list[str]) -> int:
    return 3


def warns(arguments: list[str]) -> int:
    warnings.warn("invalid value in divide", RuntimeWarning, stacklevel=1)
    return 0


def prints_a_traceback_from_c(arguments: list[str]) -> int:
    os.write(2, b"Traceback (most recent call last):\n")
    return 0


def writes_over_a_file(arguments: list[str]) -> int:
    Path("bystander").write_text("other")
    return 0


def writes_elsewhere(arguments: list[str]) -> int:
    Path("../elsewhere").write_text("new")
    return 0


def removes_a_file(arguments: list[str]) -> int:
    Path("bystander").unlink()
    return 0


def writes_by_another_process(arguments: list[str]) -> int:
    subprocess.run(["touch", "new"], check=True)
    return 0


def imports(arguments: list[str]) -> int:
    __import__(CANARY)
    return 0


def unpickles(arguments: list[str]) -> int:
    pickle.load(io.BytesIO(damage.pickled())).close()
    return 0


FAULTS = {
    crashes: "KeyError: 'shape'",
    works_for_ever: "still at work",
    waits_for_ever: "still at work",
    blames_itself: "an internal error",
    says_nothing: "no line that says why",
    says_much: "a line of 100,010 characters",
    says_two_things: "libsomething",
    ends_oddly: "exit code 3",
    warns: "RuntimeWarning",
    prints_a_traceback_from_c: "a traceback",
    writes_over_a_file: "changed bystander",
    writes_elsewhere: "elsewhere",
    removes_a_file: "os.remove bystander",
    writes_by_another_process: "subprocess.Popen",
    imports: f"wrote {CANARY}",
    unpickles: "pickle.find_class",
}


@pytest.mark.parametrize("command", FAULTS, ids=lambda command: command.__name__)
@pytest.mark.usefixtures("work")
def test_a_fault_is_seen(command: type, tmp_path: Path) -> None:
    lay_out(tmp_path / "sandbox")
    outcome = watched(command, [], tmp_path / "sandbox", ("out",), limit_seconds=0.2)
    assert FAULTS[command] in "\n".join(faults(outcome))


@pytest.mark.usefixtures("work")
def test_a_command_that_writes_where_it_may_has_no_fault(tmp_path: Path) -> None:
    def writes(arguments: list[str]) -> int:
        Path("out").mkdir()
        Path("out/file").write_text(sys.stdin.read())
        print("done")
        return 0

    lay_out(tmp_path / "sandbox")
    outcome = watched(writes, [], tmp_path / "sandbox", ("out",), b"given")
    assert (faults(outcome), outcome.out) == ([], "done\n")
    assert (tmp_path / "sandbox" / "out" / "file").read_text() == "given"


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_process_that_dies_is_a_fault_of_its_case_alone(work: Path) -> None:
    def dies_with_a_seed(arguments: list[str]) -> int:
        if "--seed" in " ".join(arguments):
            os.kill(os.getpid(), signal.SIGKILL)
        return 0

    results = list(try_cases(SEED, range(12), work, ["options"], dies_with_a_seed))
    assert [result.number for result in results] == list(range(12))
    dead = [result for result in results if result.faults]
    assert dead == [result for result in results if "--seed" in " ".join(result.arguments)]
    assert 0 < len(dead) < 12
    assert dead[0].faults == ["the process ended with -9"]
    assert (work / "failed" / str(dead[0].number) / "bystander").is_file()
