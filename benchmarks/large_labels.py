"""Time and memory of one training step (forward and backward) over large label sets.

    python -m benchmarks.large_labels --size small|large|million|sweep|nearest [--variants NAMES] [--output FILE]

* cross-entropy: F.linear and F.cross_entropy;
* linear-cross-entropy: F.linear_cross_entropy with its chunks (where this torch has it);
* direct: the label embedding loss as its definition stands, every intermediate an (N, C) tensor, gradients by autograd;
* fused: labelemb;
* decoupled-direct: the decoupled loss with rows of low rank, as its definition stands;
* decoupled-low-rank, decoupled-sparse: labelemb, with rows of low rank and with the 32 largest shares of counted rows.

Labels follow Zipf's law; half of the items are matched: their features point to their label's row of the head, and of
the auxiliary head where there is one. Times are paired: each round runs all variants, every other round backwards, in
one process. Memory is measured for each variant in a process of its own: the growth of its peak resident set (on a GPU:
of the allocator's peak) during one step, less the bytes of the gradients it leaves, so above parameters and gradients.
Axes: N items, C classes, D features, R rank, U distinct labels.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from benchmarks.direct_losses import direct_decoupled_loss, direct_loss
from benchmarks.measure import (
    environment_of,
    forget_peak,
    in_own_process,
    in_turn,
    peak_bytes,
    synchronize,
    write_results,
)
from torch import Tensor, nn
from torch.nn import functional as F

from labelemb.losses.decoupled import DecoupledLabelEmbeddingLoss
from labelemb.losses.label_embedding import LabelEmbeddingLoss
from labelemb.losses.soft_label import SoftLabelLoss
from labelemb.losses.table import LabelTable


class Size(NamedTuple):
    """Of a step; num_seen: labels are drawn from so many of the C (None: all, by Zipf's law)."""

    num_items: int
    num_classes: int
    num_features: int
    rank: int
    num_seen: int | None = None


SIZES = {
    "small": Size(1024, 20_000, 512, 512),
    "large": Size(3200, 50_000, 512, 512),
    "million": Size(4096, 1_000_000, 256, 64),
}
SWEEP = [Size(1024, num_classes, 256, 64) for num_classes in (1_000, 10_000, 100_000, 1_000_000)]
SWEEP += [Size(1024, 20_000, 256, 256, num_seen) for num_seen in (16, 256, 1_024, 20_000)]
NUM_NEAREST = 256


NUM_NEIGHBORS = 32


class Problem(NamedTuple):
    criterion: SoftLabelLoss | None
    head: nn.Linear
    features: Tensor
    target: Tensor


def make_problem(size: Size, device: str, variant: str) -> Problem:
    """Parameters as they are initialised, and items of which half are matched."""
    torch.manual_seed(0)
    with torch.device(device):
        head = nn.Linear(size.num_features, size.num_classes)
        target = zipf_labels(size)
        features = torch.randn(size.num_items, size.num_features)
        criterion = make_criterion(size, variant)
    heads = [head, criterion.aux_head] if isinstance(criterion, LabelEmbeddingLoss) else [head]
    with torch.no_grad():  # a row's squared norm is 1/3: a gold logit of 10, the others' within about 2
        features[::2] = 30 * sum(one.weight[target[::2]] for one in heads if one is not None)
    return Problem(criterion, head, features.requires_grad_(), target)


def make_criterion(size: Size, variant: str) -> SoftLabelLoss | None:
    """What a variant learns beside the head."""
    if variant in ("direct", "fused"):
        return LabelEmbeddingLoss(size.num_features, size.num_classes, rank=size.rank)
    if variant == "decoupled-sparse":
        return DecoupledLabelEmbeddingLoss(size.num_classes, neighbors=NUM_NEIGHBORS)
    if variant.startswith("decoupled"):
        return DecoupledLabelEmbeddingLoss(size.num_classes, rank=size.rank)
    return None


def zipf_labels(size: Size) -> Tensor:
    """(N,) labels, the k-th most frequent with probability in proportion to 1/k; or uniform over `num_seen`."""
    if size.num_seen is not None:
        return torch.randint(size.num_seen, (size.num_items,))
    odds = 1 / torch.arange(1, size.num_classes + 1, dtype=torch.float64)  # (C,)
    quantiles = torch.rand(size.num_items, dtype=torch.float64)
    ranks = torch.searchsorted(odds.cumsum(0) / odds.sum(), quantiles).clamp_max(size.num_classes - 1)
    return torch.randperm(size.num_classes)[ranks]


def cross_entropy(problem: Problem) -> Tensor:
    return F.cross_entropy(F.linear(problem.features, problem.head.weight, problem.head.bias), problem.target)


def linear_cross_entropy(problem: Problem) -> Tensor:
    head = problem.head
    options = nn.LinearCrossEntropyOptions()
    return F.linear_cross_entropy(problem.features, head.weight, problem.target, linear_bias=head.bias, options=options)


def direct(problem: Problem) -> Tensor:
    assert isinstance(problem.criterion, LabelEmbeddingLoss)
    return direct_loss(problem.criterion, *problem[1:])


def decoupled_direct(problem: Problem) -> Tensor:
    assert isinstance(problem.criterion, DecoupledLabelEmbeddingLoss)
    return direct_decoupled_loss(problem.criterion, *problem[1:])


def fused(problem: Problem) -> Tensor:
    assert problem.criterion is not None
    loss = problem.criterion.fused(problem.features, problem.target, problem.head)
    problem.criterion.end_step()  # what the items counted is part of the step
    return loss


VARIANTS: dict[str, Callable[[Problem], Tensor]] = {"cross-entropy": cross_entropy}
if hasattr(F, "linear_cross_entropy"):
    VARIANTS["linear-cross-entropy"] = linear_cross_entropy
VARIANTS |= {"direct": direct, "fused": fused, "decoupled-direct": decoupled_direct}
VARIANTS |= {"decoupled-low-rank": fused, "decoupled-sparse": fused}


def step_seconds(variant: str, problem: Problem) -> float:
    """One forward and backward; the gradients are dropped again."""
    synchronize(problem.features.device)
    start = time.perf_counter()
    VARIANTS[variant](problem).backward()  # type: ignore[no-untyped-call]
    synchronize(problem.features.device)
    seconds = time.perf_counter() - start
    for tensor in parameters(problem):
        tensor.grad = None
    return seconds


def parameters(problem: Problem) -> list[Tensor]:
    learned = [] if problem.criterion is None else list(problem.criterion.parameters())
    return [problem.features, *problem.head.parameters(), *learned]


def paired_seconds(problems: dict[str, Problem], rounds: int) -> dict[str, list[float]]:
    """Seconds of each variant in each round, one round for warming up left out."""
    steps = {variant: partial(step_seconds, variant, problem) for variant, problem in problems.items()}
    return {variant: values[1:] for variant, values in in_turn(steps, rounds + 1).items()}


def step_memory(variant: str, size: Size, device: str) -> dict[str, float]:
    """MB (10^6 bytes) of one step in this process, which must be fresh: a peak does not go down again."""
    step_seconds(variant, make_problem(Size(8, 16, 4, 2), device, variant))  # libraries allocate at their first use
    problem = make_problem(size, device, variant)
    forget_peak(torch.device(device))  # of making the problem
    before = peak_bytes(torch.device(device))
    start = time.perf_counter()
    VARIANTS[variant](problem).backward()  # type: ignore[no-untyped-call]
    synchronize(problem.features.device)
    seconds = time.perf_counter() - start
    growth = peak_bytes(torch.device(device)) - before
    held = [tensor.grad.nbytes for tensor in parameters(problem) if tensor.grad is not None]
    all_bytes = sum(tensor.nbytes for tensor in parameters(problem))
    return {
        "extra_mb": (growth - sum(held)) / 1e6,
        "parameters_and_gradients_mb": (all_bytes + sum(held)) / 1e6,
        "peak_over_parameters_and_gradients": (all_bytes + growth) / (all_bytes + sum(held)),
        "first_step_seconds": seconds,
    }


def memory_in_own_process(variant: str, size: Size, device: str) -> dict[str, float]:
    request = json.dumps([variant, list(size), device, torch.get_num_threads()])
    answer: dict[str, float] = in_own_process("benchmarks.large_labels", "--measure-memory", request)
    return answer


def measure(size: Size, variants: list[str], device: str, rounds: int) -> list[dict[str, Any]]:
    """One row a variant: memory, and median seconds, their spread and the ratio to cross entropy, round by round."""
    memory = {variant: memory_in_own_process(variant, size, device) for variant in variants}
    problems = {variant: make_problem(size, device, variant) for variant in variants}
    distinct = len(set(problems[variants[0]].target.tolist())) / size.num_items
    seconds = paired_seconds(problems, rounds) if rounds else {}
    rows = []
    for variant in variants:
        row: dict[str, Any] = {"variant": variant, **size._asdict(), "distinct": distinct, **memory[variant]}
        if rounds:
            ratios = [a / b for a, b in zip(seconds[variant], seconds[variants[0]], strict=True)]
            row |= {
                "seconds": statistics.median(seconds[variant]),
                "lowest": min(seconds[variant]),
                "highest": max(seconds[variant]),
                "ratio": statistics.median(ratios),
            }
        rows.append(row)
        print_row(row)
    return rows


def print_row(row: dict[str, Any]) -> None:
    timed = "seconds" in row
    seconds = f"{row['seconds']:8.3f} s ({row['lowest']:.3f}-{row['highest']:.3f})" if timed else ""
    ratio = f"{row['ratio']:6.2f}x" if timed else f"first step {row['first_step_seconds']:.1f} s"
    print(
        f"N {row['num_items']:5,} C {row['num_classes']:9,} D {row['num_features']} R {row['rank']}"
        f" U/N {row['distinct']:.2f} {row['variant']:21}{seconds} {ratio}"
        f" {row['extra_mb']:8,.0f} MB extra, {row['peak_over_parameters_and_gradients']:.3f}x parameters + gradients",
        flush=True,
    )


def measure_nearest(device: str) -> list[dict[str, Any]]:
    """The nearest labels of some of a million, streamed."""
    size = SIZES["million"]
    table = LabelTable(size.num_classes, rank=size.rank).to(device)
    forget_peak(torch.device(device))
    before, start = peak_bytes(torch.device(device)), time.perf_counter()
    table.nearest(list(range(NUM_NEAREST)), k=5)
    seconds = time.perf_counter() - start
    extra = (peak_bytes(torch.device(device)) - before) / 1e6
    print(f"nearest of {NUM_NEAREST} among {size.num_classes:,}: {seconds:.1f} s, {extra:,.0f} MB extra")
    return [{"num_labels": NUM_NEAREST, "num_classes": size.num_classes, "seconds": seconds, "extra_mb": extra}]


def run(name: str, device: str, rounds: int, variants: list[str] | None) -> list[dict[str, Any]]:
    if name == "nearest":
        return measure_nearest(device)
    if name == "sweep":
        return [row for size in SWEEP for row in measure(size, ["cross-entropy", "fused"], device, rounds)]
    if variants is None:
        variants = ["fused", "decoupled-sparse", "decoupled-low-rank"] if name == "million" else list(VARIANTS)
    return measure(SIZES[name], variants, device, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=[*SIZES, "sweep", "nearest"], default="small")
    parser.add_argument("--variants", help="some of them, with commas; times are compared with the first")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds after one for warming up; 0: memory alone")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--measure-memory", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure_memory is not None:
        variant, size, device, threads = json.loads(options.measure_memory)
        torch.set_num_threads(threads)
        print(json.dumps(step_memory(variant, Size(*size), device)))
        return
    torch.set_num_threads(options.threads)
    environment = environment_of("benchmarks.large_labels", torch.device(options.device))
    rows = run(options.size, options.device, options.rounds, options.variants and options.variants.split(","))
    results = {"environment": environment, "size": options.size, "rounds": options.rounds, "rows": rows}
    write_results(options.output, results)


if __name__ == "__main__":
    main()
