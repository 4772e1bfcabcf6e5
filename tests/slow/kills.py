"""Kill -9 at random moments, the same command again, until it ends: do the same bits come out?

    python -m tests.slow.kills [--kinds run,processes,text,tuned] [--kills 50] [--seed 0]

Each kind is done once without interruption, and then with kills, from whose folders it goes on, until there were so
many. Checkpoints are written as often as can be. Prints a line a kind; exit code 1 where a byte differs.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from tests.small_runs import what_was_learned
from tests.small_text import SMALL as SMALL_TEXT
from tests.small_text import write_corpus
from tests.two_ranks import ROOT

from labelemb.run_folder import find_runs

_OFTEN = """
import sys
from labelemb import __main__ as cli
from labelemb.training import engine
engine.checkpoint_pause = lambda seconds: 0.0
if __name__ == "__main__":
    sys.exit(cli.run(sys.argv[1:]))
"""
_DIGITS = ["digits", "data.limit=512", "batch_size=16", "model.hidden=[12]", "device=cpu"]


class Kind(NamedTuple):
    """What is killed."""

    command: list[str]
    processes: int = 1


def kinds(corpus: Path) -> dict[str, Kind]:
    """By their names."""
    tuned = ["compare", *_DIGITS, "epochs=2", "--modes", "baseline,emb", "--runs", "2", "--jobs", "2"]
    return {
        "run": Kind(["train", *_DIGITS, "epochs=8", "--mode", "emb", "--resume"]),
        "processes": Kind(["train", *_DIGITS, "epochs=8", "--mode", "online-smoothing", "--resume"], processes=2),
        "text": Kind(["train", "translate", *SMALL_TEXT, "epochs=10", "--data", str(corpus), "--resume"]),
        "tuned": Kind([*tuned, "--tune", "optimizer.lr=0.001,0.01", "--tune-runs", "1"]),
    }


def start(kind: Kind, output: Path) -> "subprocess.Popen[bytes]":
    """The command, in a process group of its own."""
    output.mkdir(exist_ok=True)
    script = output / "often.py"
    script.write_text(_OFTEN)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={kind.processes}"]
    command = [sys.executable, *(launcher if kind.processes > 1 else []), str(script), *kind.command]
    paths = os.pathsep.join([str(ROOT / "src"), *sys.path])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    said = subprocess.DEVNULL
    return subprocess.Popen(
        [*command, "--quiet", "--output", str(output)],
        env=environment,
        stdout=said,
        stderr=said,
        start_new_session=True,
    )


def kill(process: "subprocess.Popen[bytes]", output: Path) -> None:
    """Kill all that were started: workers and ranks have the folder in their command, or die with their parent."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if str(output).encode() in path.read_bytes():
                os.kill(int(path.parent.name), signal.SIGKILL)
    process.wait()


def learned(output: Path) -> dict[str, Any]:
    """All that every run left behind but the clock."""
    found = {str(run.path.relative_to(output)): what_was_learned(run) for run in find_runs(output)}
    for path in output.glob("*/tuning.json"):
        for name, record in json.loads(path.read_text())["modes"].items():
            found[f"tuning {name}"] = {key: value for key, value in record.items() if key != "seconds"}
    return found


def try_kind(name: str, kind: Kind, num_kills: int, folder: Path, generator: random.Random) -> bool:
    """Whether the bits of an interrupted run are those of a whole one, as often as it takes for so many kills."""
    whole = folder / f"{name}-whole"
    begin = time.monotonic()
    assert start(kind, whole).wait() == 0, f"{name}: the command failed without a kill"
    seconds, expected = time.monotonic() - begin, learned(whole)
    kills = rounds = differing = 0
    while kills < num_kills:
        output = folder / f"{name}-{rounds}"
        rounds += 1
        for _ in range(5):  # a run that is killed sooner than it starts would never end
            process = start(kind, output)
            try:
                process.wait(timeout=generator.uniform(0.3, 1.0) * seconds)
                break
            except subprocess.TimeoutExpired:
                kill(process, output)
                kills += 1
        assert start(kind, output).wait() == 0, f"{name}: the command failed after a kill"
        differing += learned(output) != expected
    print(f"{name}: {kills} kills in {rounds} rounds, {differing} of which ended with other bits", flush=True)
    return not differing


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kinds", default="run,processes,text,tuned")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        known = kinds(write_corpus(folder))
        generator = random.Random(options.seed)
        wanted = [(each, known[each]) for each in options.kinds.split(",")]
        results = [try_kind(each, kind, options.kills, folder, generator) for each, kind in wanted]
    sys.exit(not all(results))


if __name__ == "__main__":
    main()
