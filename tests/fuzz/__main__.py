"""`python -m tests.fuzz`: malformed recipes, options, data, runs and corpora, and whether each ends as it should.

Every case has a number; `--case N` with the same seed (and the same kinds) runs it alone and shows all that it said.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.fuzz.campaign import WEIGHTS, Result, environment_in, limited_memory, try_case, try_cases, work_folder
from tests.fuzz.originals import make_originals


def main() -> int:
    """Run the cases; the number of failed ones decides the exit code."""
    asked = _arguments()
    with work_folder() as work:
        _at_home_in(work)
        make_originals(work / "originals")
        if asked.case is not None:
            return _show(asked, work)
        start = time.monotonic()
        results = []
        for result in try_cases(asked.seed, range(asked.first, asked.first + asked.cases), work, asked.kinds):
            results.append(result)
            if len(results) % 1000 == 0:
                print(f"{len(results)} cases", file=sys.stderr)
            _tell(result, asked)
        shutil.rmtree(asked.save, ignore_errors=True)
        if (work / "failed").is_dir():
            shutil.copytree(work / "failed", asked.save, symlinks=True, dirs_exist_ok=True)
        print(_summary(results, time.monotonic() - start))
    return int(any(result.faults for result in results))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000, help="how many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--case", type=int, help="run this case alone")
    parser.add_argument(
        "--kinds", nargs="+", default=[], choices=[make.__name__ for make in WEIGHTS], help="only these"
    )
    parser.add_argument("--save", type=Path, default=Path("runs/fuzz"), help="folder for failed cases")
    return parser.parse_args()


def _at_home_in(work: Path) -> None:
    """Let caches lie in the work folder, and nothing be asked of the network."""
    os.environ |= environment_in(work)
    tempfile.tempdir = str(work / "cache" / "temporary")
    sys.dont_write_bytecode = True


def _show(asked: argparse.Namespace, work: Path) -> int:
    with limited_memory():
        result, outcome = try_case(asked.seed, asked.case, work, asked.kinds)
    shutil.rmtree(asked.save / str(asked.case), ignore_errors=True)
    shutil.copytree(work / "sandbox", asked.save / str(asked.case), symlinks=True, dirs_exist_ok=True)
    print(f"{result.kind}: labelemb {result.arguments!r}\nin {asked.save / str(asked.case)}, exit code {result.code}")
    print(outcome.out, outcome.said, *result.faults, sep="\n")
    return int(bool(result.faults))


def _tell(result: Result, asked: argparse.Namespace) -> None:
    if not result.faults:
        return
    kinds = f" --kinds {' '.join(asked.kinds)}" if asked.kinds else ""
    print(f"FAILED {result.kind}: --seed {asked.seed} --case {result.number}{kinds}")
    for lines in [result.said, *result.faults]:
        print(f"    {' '.join(lines.strip().splitlines()[-1:])[:300]}")
    sys.stdout.flush()


def _summary(results: list[Result], seconds: float) -> str:
    kinds, codes = Counter(result.kind for result in results), Counter(str(result.code) for result in results)
    failed = sum(bool(result.faults) for result in results)
    spent = {kind: sum(result.seconds for result in results if result.kind == kind) for kind in kinds}
    lines = [f"{kind}: {count} in {spent[kind]:.1f} seconds" for kind, count in sorted(kinds.items())]
    ended = ", ".join(f"{count} with {code}" for code, count in sorted(codes.items()))
    return "\n".join([*lines, f"{len(results)} cases in {seconds:.0f} seconds: {ended}; {failed} failed"])


if __name__ == "__main__":
    sys.exit(main())
