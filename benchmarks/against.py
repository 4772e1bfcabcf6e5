"""This tree against another checkout: the same steps in processes that take turns, compared by the time they compute.

    python -m benchmarks.against ../other-checkout

Each process does one case once with one thread and reports its processor time, which other programs on the machine
disturb less than the clock. Ratios are this tree's over the other's, pair by pair.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median, quantiles

CASES = {
    "criterion, 100 items x 10 labels": ("criterion", 10, 100, 500, 4000),
    "criterion, 128 items x 100 labels": ("criterion", 100, 128, 512, 1500),
    "MLP 784-500-500, emb, whole step": ("mlp", 10, 100, 500, 300),
    "fused, 800 items x 20,000 labels, rank 128": ("fused", 20_000, 800, 128, 2),
}

CHILD = """
import json, sys, time
import torch
from torch import nn
from labelemb import LabelEmbeddingLoss
kind, num_classes, num_items, width, steps = json.loads(sys.argv[1])
torch.set_num_threads(1)
torch.manual_seed(0)
criterion = LabelEmbeddingLoss(width, num_classes, rank=width if kind == "fused" else None)
head = nn.Linear(width, num_classes)
body = nn.Sequential(nn.Linear(784, 500), nn.ReLU(), nn.Linear(500, 500), nn.ReLU())
inputs, target = torch.randn(num_items, 784), torch.randint(num_classes, (num_items,))
features = torch.randn(num_items, width)
optimizers = [torch.optim.Adam([*body.parameters(), *head.parameters()], fused=True),
              torch.optim.Adam(criterion.parameters(), fused=True)]

def step():
    if kind == "mlp":
        for optimizer in optimizers:
            optimizer.zero_grad()
        hidden = body(inputs)
        criterion(head(hidden), target, hidden).backward()
        for optimizer in optimizers:
            optimizer.step()
    elif kind == "fused":
        criterion.fused(features, target, head).backward()
    else:
        logits = torch.zeros(num_items, num_classes, requires_grad=True)
        criterion(logits, target, features).backward()

for _ in range(max(1, steps // 10)):
    step()
start = time.process_time()
for _ in range(steps):
    step()
print(time.process_time() - start)
"""


def seconds(checkout: Path, case: tuple[object, ...]) -> float:
    """Processor time of one case in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHILD, json.dumps(case)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=checkout)
    return float(done.stdout)


def main() -> None:
    """Print the median ratio of each case with its quartiles."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", type=Path, help="the checkout to compare with")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    options = parser.parse_args()
    here = Path(__file__).parents[1]
    for name, case in CASES.items():
        if options.only not in name:
            continue
        ratios = []
        for pair in range(options.pairs):
            order = (here, options.other) if pair % 2 else (options.other, here)
            times = {checkout: seconds(checkout, case) for checkout in order}
            ratios.append(times[here] / times[options.other])
        low, _, high = quantiles(ratios, n=4)
        print(f"{name}: {median(ratios):.3f} (quartiles {low:.3f} to {high:.3f}, {options.pairs} pairs)", flush=True)


if __name__ == "__main__":
    main()
