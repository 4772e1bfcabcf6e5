"""The decoupled loss over a vocabulary: `python examples/language_model.py`, or with `--text FILE` (also .gz).

A GRU with tied word vectors reads English lines of LABELEMB_DATA word by word and foretells the next one. Each loss
trains the same network from the same weights, in a process of its own: cross entropy as everybody writes it, PyTorch's
`F.linear_cross_entropy` where this torch has it, and `DecoupledLabelEmbeddingLoss.fused`. Printed are the validation
cross entropy, tokens a second (of CPU time too, which other work on the machine disturbs less) and, on Linux, what the
peak of memory is above that of a step on a few tokens, which has parameters, gradients and Adam's state already.
"""

import argparse
import gzip
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labelemb import DecoupledLabelEmbeddingLoss

Loss = Callable[[Tensor, Tensor], Tensor]  # of features (N, D) and the next words (N,)
END, UNKNOWN = "<end>", "<unk>"


class LanguageModel(nn.Module):
    """Features (B, T, D) of words (B, T); the logits of the next word are `head(features)`.

    Args:
        num_words: V.
        hidden: D.
    """

    def __init__(self, num_words: int, hidden: int) -> None:
        super().__init__()
        self.vectors = nn.Embedding(num_words, hidden)
        self.gru = nn.GRU(hidden, hidden, batch_first=True)
        self.head = nn.Linear(hidden, num_words)
        nn.init.normal_(self.head.weight, std=hidden**-0.5)
        self.vectors.weight = self.head.weight  # tied

    def forward(self, words: Tensor) -> Tensor:
        features: Tensor = self.gru(self.vectors(words))[0]
        return features


class Text(NamedTuple):
    """One stream of word numbers each, lines behind one another."""

    vocabulary: list[str]
    train: Tensor
    valid: Tensor


class Plan(NamedTuple):
    """How long and how large; a step has batch_size * length tokens."""

    steps: int
    batch_size: int
    length: int
    hidden: int
    neighbors: int


class Outcome(NamedTuple):
    """What one loss gave; extra_bytes is None where the system does not tell."""

    valid: float
    tokens_per_second: float
    tokens_per_cpu_second: float
    extra_bytes: int | None
    similar: list[tuple[str, list[str]]]


def cross_entropy(model: LanguageModel, plan: Plan) -> tuple[Loss, nn.Module | None]:
    return lambda features, target: F.cross_entropy(model.head(features), target), None


def linear_cross_entropy(model: LanguageModel, plan: Plan) -> tuple[Loss, nn.Module | None]:
    head, options = model.head, nn.LinearCrossEntropyOptions()  # without options it makes the logits after all
    return lambda features, target: F.linear_cross_entropy(
        features, head.weight, target, linear_bias=head.bias, options=options
    ), None


def decoupled(model: LanguageModel, plan: Plan) -> tuple[Loss, nn.Module | None]:
    criterion = DecoupledLabelEmbeddingLoss(model.head.out_features, neighbors=plan.neighbors)
    return lambda features, target: criterion.fused(features, target, model.head), criterion


LOSSES = {"cross entropy": cross_entropy, "linear_cross_entropy": linear_cross_entropy, "decoupled, fused": decoupled}
if not hasattr(F, "linear_cross_entropy"):
    del LOSSES["linear_cross_entropy"]


def read_text(path: Path, num_words: int, num_lines: int | None) -> Text:
    """The most frequent words of a file, and its lines: every fiftieth is for validation."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        lines = [[*line.split(), END] for line in file][:num_lines]
    counts = Counter(word for line in lines for word in line)
    vocabulary = [UNKNOWN, *(word for word, _ in counts.most_common(num_words - 1))]
    numbers = {word: number for number, word in enumerate(vocabulary)}

    def stream(chosen: Iterable[list[str]]) -> Tensor:
        return torch.tensor([numbers.get(word, 0) for line in chosen for word in line])

    valid = set(range(0, len(lines), 50))
    train = (line for index, line in enumerate(lines) if index not in valid)
    return Text(vocabulary, stream(train), stream(lines[index] for index in sorted(valid)))


def batches(words: Tensor, batch_size: int, length: int, steps: int) -> Iterable[tuple[Tensor, Tensor]]:
    """Words (B, T) and the next word of each (B*T,), from the beginning again where the stream ends."""
    columns = words[: len(words) // batch_size * batch_size].view(batch_size, -1)
    places = (columns.shape[1] - 1) // length
    if places == 0:
        raise SystemExit(f"a text of {len(words)} words has no batch of {batch_size} x {length}")
    for step in range(steps):
        start = step % places * length
        yield columns[:, start : start + length], columns[:, start + 1 : start + length + 1].flatten()


@torch.no_grad()
def validation(model: LanguageModel, words: Tensor, plan: Plan) -> float:
    """Cross entropy a word, of at most 20 batches."""
    places = (len(words) // plan.batch_size - 1) // plan.length
    found = [
        F.cross_entropy(model.head(model(inputs).flatten(0, 1)), target)
        for inputs, target in batches(words, plan.batch_size, plan.length, min(max(places, 1), 20))
    ]
    return float(torch.stack(found).mean())


def peak_bytes() -> int | None:
    """The most memory that this process has held at once, on Linux."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")]
    return found[0] if found else None


def run(name: str, text: Text, plan: Plan) -> Outcome:
    """Train with one loss, in a process that has done nothing else."""
    torch.manual_seed(0)
    model = LanguageModel(len(text.vocabulary), plan.hidden)
    loss_of, criterion = LOSSES[name](model, plan)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def step(inputs: Tensor, target: Tensor) -> None:
        optimizer.zero_grad()
        loss_of(model(inputs).flatten(0, 1), target).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    step(text.train[None, :8], text.train[1:9])  # makes Adam's state
    before, start, cpu_start = peak_bytes(), time.perf_counter(), time.process_time()
    for inputs, target in batches(text.train, plan.batch_size, plan.length, plan.steps):
        step(inputs, target)
    seconds, cpu_seconds, after = time.perf_counter() - start, time.process_time() - cpu_start, peak_bytes()

    tokens = plan.steps * plan.batch_size * plan.length
    extra = None if before is None or after is None else after - before
    similar = similar_words(criterion, text) if isinstance(criterion, DecoupledLabelEmbeddingLoss) else []
    return Outcome(validation(model, text.valid, plan), tokens / seconds, tokens / cpu_seconds, extra, similar)


def similar_words(criterion: DecoupledLabelEmbeddingLoss, text: Text) -> list[tuple[str, list[str]]]:
    """Of the five words that were foretold rightly most often: what else the network thought of."""
    criterion.end_step()  # the last step's counts
    counts = criterion.table.get_buffer("counts")  # of right answers
    often = counts.topk(min(5, len(text.vocabulary))).indices.tolist()
    return [
        (text.vocabulary[label], [text.vocabulary[int(other)] for other, _ in near])
        for label, near in zip(often, criterion.table.nearest(often, k=3), strict=True)
    ]


def main(arguments: list[str] | None = None) -> dict[str, Outcome]:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    data = os.environ.get("LABELEMB_DATA")
    default = None if data is None else Path(data) / "iwslt15-en-vi" / "train.en.gz"
    parser.add_argument("--text", type=Path, default=default, help="lines of words (default: in LABELEMB_DATA)")
    parser.add_argument("--words", type=int, default=40_000, help="of the vocabulary, the most frequent")
    parser.add_argument("--lines", type=int, help="of the text, the first ones")
    for name, value in {"steps": 30, "batch-size": 32, "length": 32, "hidden": 256, "neighbors": 32}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args(arguments)
    if given.text is None:
        parser.error("say --text FILE, or set LABELEMB_DATA")
    text = read_text(given.text, given.words, given.lines)
    plan = Plan(given.steps, given.batch_size, given.length, given.hidden, given.neighbors)
    print(f"{len(text.vocabulary):,} words, {plan.steps} steps of {plan.batch_size * plan.length:,} tokens")
    print(f"{'':22}{'valid':>8}{'tokens/s':>10}{'of CPU':>10}{'extra MB':>10}")
    outcomes = {}
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as own_process:
        for name in LOSSES:
            outcome = outcomes[name] = own_process.submit(run, name, text, plan).result()
            extra = "" if outcome.extra_bytes is None else f"{outcome.extra_bytes / 1e6:,.0f}"
            rates = f"{outcome.tokens_per_second:10,.0f}{outcome.tokens_per_cpu_second:10,.0f}"
            print(f"{name:22}{outcome.valid:8.3f}{rates}{extra:>10}", flush=True)
    for word, others in outcomes["decoupled, fused"].similar:
        print(f"like {word}: {', '.join(others)}")
    return outcomes


if __name__ == "__main__":
    main()
