"""What a criterion costs alone, without a network: microseconds of its forward, and of forward and backward.

    python -m benchmarks.criterion_cost [--modes baseline,emb,decoupled] [--items 100] [--labels 10] [--output FILE]

One thread. The fastest of 40 blocks of 50 calls, after 300 calls: other programs can only add to a block. Modes take
turns, block by block.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from benchmarks.measure import environment_of, write_results

from labelemb.losses.modes import make_criterion

WIDTH, WARM, BLOCKS, CALLS = 500, 300, 40, 50


def calls_of(mode: str, num_items: int, num_labels: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """Forward alone, and forward and backward, as one training step of the criterion."""
    criterion = make_criterion(mode, WIDTH, num_labels, num_examples=num_items, num_epochs=1)
    logits, features = torch.randn(num_items, num_labels), torch.randn(num_items, WIDTH)
    target = torch.randint(num_labels, (num_items,))

    def forward() -> torch.Tensor:
        total: torch.Tensor = criterion.terms(logits.clone().requires_grad_(), target, features).total
        criterion.end_step()
        return total

    def step() -> None:
        forward().backward()  # type: ignore[no-untyped-call]

    return forward, step


def seconds(call: Callable[[], object], num_calls: int) -> float:
    """Seconds of one call, over so many in a row."""
    start = time.perf_counter()
    for _ in range(num_calls):
        call()
    return (time.perf_counter() - start) / num_calls


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--modes", default="baseline,emb,decoupled")
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--labels", type=int, default=10)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    environment = environment_of("benchmarks.criterion_cost", torch.device("cpu"))
    runs = {mode: calls_of(mode, options.items, options.labels) for mode in options.modes.split(",")}
    timed = {(mode, part): partial(seconds, call) for mode, calls in runs.items() for part, call in enumerate(calls)}
    for one in timed.values():
        one(WARM)
    best = dict.fromkeys(timed, float("inf"))
    for _ in range(BLOCKS):
        for key, one in timed.items():
            best[key] = min(best[key], one(CALLS))
    rows = [{"mode": mode, "forward_us": 1e6 * best[mode, 0], "step_us": 1e6 * best[mode, 1]} for mode in runs]
    for row in rows:
        print(f"{row['mode']:18} forward {row['forward_us']:6.0f} us, with backward {row['step_us']:6.0f} us")
    sizes = {"items": options.items, "labels": options.labels}
    write_results(options.output, {"environment": environment, **sizes, "rows": rows})


if __name__ == "__main__":
    main()
