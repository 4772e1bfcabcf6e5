"""Items a second of one process and of several, which share each batch.

    python -m benchmarks.scaling [--networks mnist-mlp,mnist-cnn,resnet8] [--text CORPUS] [--processes 1,2] [--rounds 5]
        [--mode emb] [--seconds 3] [--threads 1] [--output FILE.json] [batch_size=256 ...]

Steps are the engine's own, on random images of the recipe's shape (images a second), or on a corpus that `labelemb
preprocess` wrote (recipe multi30k, target tokens a second). The numbers of processes are paired: each round starts all
of them, one after another, every other round backwards; the ratio to the first number is the median over rounds.
Gradient bytes are those of one step and process: what an all-reduce has to sum.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from benchmarks.measure import environment_of, in_turn, synchronize, write_results
from benchmarks.step_cost import NETWORKS, Steps

from labelemb.run_folder import RunFolder
from labelemb.settings.config import TextSettings
from labelemb.settings.recipe import load_recipe
from labelemb.text.task import TextTask
from labelemb.training.device import choose_device
from labelemb.training.engine import Loop
from labelemb.training.processes import joined

WARM = 5


def make_loop(options: argparse.Namespace, device: torch.device) -> Loop:
    """The loop of a network over random images, or of the text recipe over a corpus."""
    if options.worker != "text":
        return Steps(NETWORKS[options.worker], options.mode, device, options.overrides).loop
    settings = load_recipe("multi30k", options.overrides, {"mode": options.mode, "data.path": options.text})
    assert isinstance(settings, TextSettings)
    folder = RunFolder(Path(tempfile.mkdtemp()))  # steps write nothing there
    return Loop(TextTask(settings, device, folder), settings, folder, lambda done, planned, message: None)


def num_items(loop: Loop, batch: tuple[Any, ...]) -> int:
    """Images, or target tokens."""
    return int(loop.task.divide(batch, 1).sizes[0])


def work(options: argparse.Namespace) -> dict[str, float] | None:
    """What one process does: whole steps for some seconds; the first one says how fast all were."""
    torch.set_num_threads(options.threads)
    with joined() as here:
        device = choose_device(options.device)
        loop = make_loop(options, device)
        loop.task.module.train()
        endless = (batch for epoch in itertools.count() for batch in loop.task.batches(epoch, 0))
        batches = list(itertools.islice(endless, 10))
        counts = [num_items(loop, batch) for batch in batches]
        for batch in batches[:WARM]:
            loop.take_step(batch)
        synchronize(device)
        items, steps, start, is_over = 0, 0, time.perf_counter(), 0
        while not is_over:
            for batch, count in zip(batches, counts, strict=True):
                loop.take_step(batch)
                items, steps = items + count, steps + 1
            synchronize(device)
            (is_over,) = here.largest(time.perf_counter() - start > options.seconds)
        seconds = time.perf_counter() - start
        gradients = [each.grad.nbytes for each in loop.task.module.parameters() if each.grad is not None]
    if not here.is_first:
        return None
    return {"rate": items / seconds, "step_seconds": seconds / steps, "gradient_megabytes": sum(gradients) / 1e6}


def started(name: str, threads: int, processes: int, found: dict[tuple[str, int], dict[str, float]]) -> float:
    """Items a second of so many processes, each started anew."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    own = ["-m", "benchmarks.scaling", *sys.argv[1:], "--worker", name]
    command = [sys.executable, *(launcher if processes > 1 else []), *own]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout
    row: dict[str, float] = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
    found[name, processes] = row
    return row["rate"]


def measure(name: str, numbers: list[int], rounds: int, threads: int) -> list[dict[str, Any]]:
    """A row for each number of processes."""
    found: dict[tuple[str, int], dict[str, float]] = {}
    measures = {str(number): partial(started, name, threads, number, found) for number in numbers}
    rates = in_turn(measures, rounds)
    rows = []
    for number in numbers:
        ratios = [a / b for a, b in zip(rates[str(number)], rates[str(numbers[0])], strict=True)]
        row = {"network": name, "processes": number, **found[name, number], "rate": median(rates[str(number)])}
        rows.append(row | {"ratio": median(ratios), "lowest": min(ratios), "highest": max(ratios)})
        print(
            f"{name:12} {number} processes {row['rate']:10,.0f} items/s, {rows[-1]['ratio']:.2f} times "
            f"({min(ratios):.2f}-{max(ratios):.2f}), {row['gradient_megabytes']:.1f} MB of gradients",
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--networks", default="mnist-mlp,mnist-cnn,resnet8")
    parser.add_argument("--text", type=Path, help="an encoded corpus: target tokens a second, too")
    parser.add_argument("--processes", default="1,2", help="with commas; ratios are to the first")
    parser.add_argument("--mode", default="emb")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of steps, in each process of each round")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_intermixed_args()
    if options.worker is not None:
        row = work(options)
        if row is not None:
            print(json.dumps(row), flush=True)
        return
    names = [*(name for name in options.networks.split(",") if name), *(["text"] if options.text else [])]
    numbers = [int(number) for number in options.processes.split(",")]
    environment = environment_of("benchmarks.scaling", choose_device(options.device))
    rows = [row for name in names for row in measure(name, numbers, options.rounds, options.threads)]
    write_results(options.output, {"environment": environment, "rounds": options.rounds, "rows": rows})


if __name__ == "__main__":
    main()
