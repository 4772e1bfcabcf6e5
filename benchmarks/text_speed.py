"""Speed and memory of text training and beam search, against a stepwise decoder, the direct loss, a beam of objects.

    python -m benchmarks.text_speed --data corpora/iwslt15 --run runs/iwslt15/emb/seed-00 --output text_speed.json

Both sides do the same work with the same weights (benchmarks/stepwise_text.py), which is checked first. Each
measurement is a process of its own, the two sides in turn, so that a slow minute of the machine hits both and the
peak memory is that of one side. Without --run the beam searches with a network that has learned nothing.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from benchmarks.measure import environment_of, in_own_process, peak_bytes, write_results
from benchmarks.stepwise_text import direct_baseline, direct_label_embedding, object_beam_search, stepwise_features
from torch import Tensor

from labelemb.errors import InputError
from labelemb.losses.label_embedding import LabelEmbeddingLoss
from labelemb.run_folder import RunFolder
from labelemb.settings.config import TextSettings
from labelemb.settings.recipe import load_recipe, parse_settings
from labelemb.text.beam import beam_search
from labelemb.text.corpus.corpus import batch_indices, make_batch, ordered_indices
from labelemb.text.corpus.vocab import PAD
from labelemb.text.lstm import AttentionLSTM
from labelemb.text.run_files import load_trained_network
from labelemb.text.task import TextTask
from labelemb.training.optimizers import make_optimizers

SIDES = ("stepwise", "labelemb")


class Size(NamedTuple):
    """What is measured: hidden units, layers, pairs a batch, beam."""

    hidden: int
    layers: int
    pairs: int
    beam: int


SIZES = {"paper": Size(512, 2, 64, 10), "small": Size(64, 1, 16, 4)}


def main() -> None:
    """Check, measure, print a table and write JSON."""
    options = _options()
    if options.worker:
        torch.set_num_threads(options.threads)
        print(json.dumps(_WORK[options.worker](options)))
        return
    torch.set_num_threads(options.threads)
    _check_training(options)
    _check_decoding(options)
    results = {
        "environment": environment_of("benchmarks.text_speed", torch.device("cpu")),
        "size": SIZES[options.size]._asdict(),
        "trained": options.run is not None,
    } | {work: _compare(work, options) for work in options.work}
    print(json.dumps(results, indent=1))
    write_results(options.output, results)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a corpus that labelemb preprocess wrote")
    parser.add_argument("--run", type=Path, help="folder of a finished run of this size, whose network decodes")
    parser.add_argument("--size", choices=SIZES, default="paper")
    parser.add_argument("--steps", type=int, default=5, help="training steps timed in a process")
    parser.add_argument("--sentences", type=int, default=64, help="of the test text, decoded in a process")
    parser.add_argument("--rounds", type=int, default=3, help="processes a side")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--work", nargs="+", choices=("baseline", "emb", "decode"), default=["baseline", "emb", "decode"]
    )
    parser.add_argument("--output", type=Path)
    parser.add_argument("--worker", choices=("baseline", "emb", "decode"), help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    return parser.parse_args()


def _compare(work: str, options: argparse.Namespace) -> dict[str, Any]:
    """Rounds of both sides in turn: items a second (tokens, or sentences), the paired ratio, peak memory."""
    rows: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(options.rounds):
        for side in SIDES:
            rows[side].append(in_own_process("benchmarks.text_speed", *sys.argv[1:], "--worker", work, "--side", side))
            print(work, side, rows[side][-1], file=sys.stderr)
    ratios = [new["rate"] / old["rate"] for old, new in zip(rows["stepwise"], rows["labelemb"], strict=True)]
    result: dict[str, Any] = {
        side: {key: median(row[key] for row in rows[side]) for key in rows[side][0]} for side in SIDES
    }
    memory = result["labelemb"]["gigabytes"] / result["stepwise"]["gigabytes"]
    return result | {"speedup": median(ratios), "speedups": ratios, "memory_ratio": memory}


def _train(options: argparse.Namespace) -> dict[str, float]:
    """Target tokens a second over whole optimiser steps, the first left out."""
    task = _task(options, options.worker)
    module, settings, clock = task.module.train(), task.settings, 0.0
    optimizers, tokens = make_optimizers(module, settings), 0
    batches = [make_batch(task.corpus.train, indices) for indices in _chosen(task, options.steps + 1)]
    floor = 0.0
    for number, batch in enumerate(batches):
        start = time.perf_counter()
        loss = _loss(task, batch, options.side)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(module.network.parameters(), 5)
        for optimizer in optimizers:
            optimizer.step()
        if number:
            clock += time.perf_counter() - start
            tokens += int(batch.target_lengths.sum())
    peak = peak_bytes(torch.device("cpu")) / 1e9
    if options.side == "labelemb":
        floor = sum(_product_seconds(task, batch) for batch in batches[1:])
    return {"rate": tokens / clock, "gigabytes": peak, "products_only_rate": tokens / floor if floor else 0.0}


def _decode(options: argparse.Namespace) -> dict[str, float]:
    """Sentences a second by beam search."""
    task, size = _task(options, "baseline"), SIZES[options.size]
    network, batches = _decoding_network(task, options), _test_batches(task, options)
    start = time.perf_counter()
    for source, lengths in batches:
        _SEARCHES[options.side](network, source, lengths, size.beam)
    seconds = time.perf_counter() - start
    return {
        "rate": sum(len(source) for source, _ in batches) / seconds,
        "gigabytes": peak_bytes(torch.device("cpu")) / 1e9,
    }


_WORK: dict[str, Callable[[argparse.Namespace], dict[str, float]]] = {
    "baseline": _train,
    "emb": _train,
    "decode": _decode,
}
_SEARCHES: dict[str, Callable[[AttentionLSTM, Tensor, Tensor, int], Any]] = {
    "stepwise": lambda network, source, lengths, beam: object_beam_search(
        network, source, lengths, beam_size=beam, max_length=50
    ),
    "labelemb": lambda network, source, lengths, beam: beam_search(
        network, source, lengths, beam_size=beam, max_length=50
    ),
}


def _task(options: argparse.Namespace, mode: str, dropout: float = 0.2) -> TextTask:
    size = SIZES[options.size]
    overrides = [f"model.hidden={size.hidden}", f"model.layers={size.layers}", f"emb.rank={size.hidden}"]
    overrides += [f"batch_size={size.pairs}", f"model.dropout={dropout}", "emb.soft_after=0"]
    settings = load_recipe("iwslt15", overrides, {"mode": mode, "data.path": str(options.data)}, beside=["emb"])
    assert isinstance(settings, TextSettings)
    with tempfile.TemporaryDirectory() as folder:
        return TextTask(settings, torch.device("cpu"), RunFolder(Path(folder)))


def _chosen(task: TextTask, count: int) -> Any:
    """The same batches for every process, of all lengths."""
    return batch_indices(task.corpus.train, seed=0, epoch=0, pairs=task.settings.batch_size)[:count]


def _loss(task: TextTask, batch: Any, side: str | None) -> Tensor:
    network, criterion = task.module.network, task.module.criterion
    if side == "labelemb":
        total: Tensor = task.module(*task.inputs_of(batch)).terms.total
        return total
    assert isinstance(network, AttentionLSTM)
    features = stepwise_features(network, batch.source, batch.source_lengths, batch.target_in)
    if isinstance(criterion, LabelEmbeddingLoss):
        return direct_label_embedding(features, batch.target_out, network.head, criterion)
    return direct_baseline(features, batch.target_out, network.head)


def _product_seconds(task: TextTask, batch: Any) -> float:
    """How long the matrix products of a step would take alone: output layer, loss and LSTMs, by measured products."""
    size, network = task.settings.model.hidden, task.module.network
    target = batch.target_out[batch.target_out != PAD]
    num_items, vocabulary = len(target), int(network.head.out_features)
    features, weight = torch.randn(num_items, size), network.head.weight.detach()
    out = torch.empty(num_items, vocabulary)
    torch.mm(features, weight.T, out=out)
    start = time.perf_counter()
    torch.mm(features, weight.T, out=out)
    unit: float = time.perf_counter() - start  # 2 * N * V * D flops
    products = 3.0
    if isinstance(task.module.criterion, LabelEmbeddingLoss):
        products = 5 + 3 * len(target.unique()) / num_items
    positions = batch.source.numel() + batch.target_in.numel()
    of_gates: float = 3 * positions * 8 * size * task.settings.model.layers  # in units of 2 * D flops
    return unit * (products + of_gates / float(num_items * vocabulary))


def _check_training(options: argparse.Namespace) -> None:
    """Both sides give the same loss and gradients."""
    for mode in ("baseline", "emb"):
        task = _task(options, mode, dropout=0.0)
        (indices,) = _chosen(task, 1)
        batch = make_batch(task.corpus.train, indices[:4])
        gradients = []
        for side in SIDES:
            task.module.zero_grad()
            loss = _loss(task, batch, side)
            loss.backward()  # type: ignore[no-untyped-call]
            gradients.append([loss.detach(), *(parameter.grad for parameter in task.module.parameters())])
        torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-5)


def _check_decoding(options: argparse.Namespace) -> None:
    """Both searches find the same words."""
    task, size = _task(options, "baseline"), SIZES[options.size]
    network, (batch, *_) = _decoding_network(task, options), _test_batches(task, options)
    found = [_SEARCHES[side](network, batch[0][:4], batch[1][:4], size.beam) for side in SIDES]
    tokens = [[hypothesis.tokens for hypothesis in hypotheses] for hypotheses in found]
    if tokens[0] != tokens[1]:
        raise AssertionError("the two beam searches differ")


def _decoding_network(task: TextTask, options: argparse.Namespace) -> AttentionLSTM:
    network = task.module.network
    if options.run is not None:
        folder = RunFolder(options.run)
        settings = parse_settings(folder.config, origin=str(options.run))
        assert isinstance(settings, TextSettings)
        sizes = len(task.corpus.source_vocabulary), len(task.corpus.target_vocabulary)
        network = load_trained_network(folder, settings, "best", sizes, shared=task.corpus.metadata["share"])
    if not isinstance(network, AttentionLSTM):
        raise InputError(f"{options.run}: expected a run with model.name=lstm")
    return network.eval()


def _test_batches(task: TextTask, options: argparse.Namespace) -> list[tuple[Tensor, Tensor]]:
    """The first sentences of the test text, by length, in batches."""
    split = task.corpus.test or task.corpus.valid
    pairs = SIZES[options.size].pairs
    (order,) = ordered_indices(split, pairs=len(split))
    kept = order[order < options.sentences]
    rows = [split.source.padded(kept[start : start + pairs]) for start in range(0, len(kept), pairs)]
    return [(torch.from_numpy(source), torch.from_numpy(lengths)) for source, lengths in rows]


if __name__ == "__main__":
    main()
