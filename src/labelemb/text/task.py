"""Translation and summarisation: batches of sentence pairs, the network with its criterion, evaluation by search."""

import json
import math
from collections.abc import Iterator
from copy import deepcopy
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from labelemb.errors import InputError
from labelemb.files import write_atomically
from labelemb.losses.fixed import baseline
from labelemb.losses.large.fused import FusedLabelEmbeddingLoss
from labelemb.losses.large.label_plan import LabelPlan, plan_labels
from labelemb.run_folder import RunFolder
from labelemb.settings.config import TextSettings
from labelemb.text.corpus.corpus import Batch, Corpus, Integers, Split, batch_indices, make_batch, ordered_indices
from labelemb.text.corpus.vocab import PAD
from labelemb.text.run_files import BestNetwork, check_vocabularies, score_lines, write_vocabularies
from labelemb.text.translate import Network, Translator, make_network
from labelemb.training.criteria import make_module, save_table
from labelemb.training.device import autocast
from labelemb.training.processes import ALONE, Processes, processes
from labelemb.training.seeds import derived_seed
from labelemb.training.task import Division, StepOutput, TrainedModule

_NUM_EXAMPLES = 20


class TextInputs(NamedTuple):
    """What a TextModule takes: B pairs, padded, and their N unpadded target tokens. Lengths lie on the CPU."""

    source: Tensor  # (B, S) int64
    source_lengths: Tensor  # (B,) int64
    target_in: Tensor  # (B, T) int64, begins with <s>
    target_lengths: Tensor  # (B,) int64; N is their sum
    target: Tensor  # (N,) int64, row by row
    plan: LabelPlan  # of the target


class TextModule(TrainedModule[Network]):
    """A network that reads sentence pairs, and the criterion of its run's mode."""

    def forward(
        self,
        source: Tensor,
        source_lengths: Tensor,
        target_in: Tensor,
        target_lengths: Tensor,
        target: Tensor,
        plan: LabelPlan,
        *,
        num_items: Tensor | int | None = None,
    ) -> StepOutput:
        """One batch: the fields of TextInputs."""
        features = self.network.features(source, source_lengths, target_in, target_lengths)  # (N, D)
        loss = FusedLabelEmbeddingLoss(self.criterion, self.network.head)
        terms = loss.terms(features, target, num_items=num_items, plan=plan)
        return StepOutput(terms, len(target), None)


class TextTask:
    """What the engine trains: see labelemb.training.task.Task.

    Args:
        settings: of the run.
        device: where the network lies; the corpus stays on disk, mapped into memory.
        folder: the run's.

    Raises:
        InputError: there is no corpus, or network, label table or an earlier start of this run do not fit it.
    """

    varying_shapes = True

    def __init__(self, settings: TextSettings, device: torch.device, folder: RunFolder) -> None:
        self.settings, self.device, self.folder = settings, device, folder
        self.corpus = _load_corpus(settings)
        check_vocabularies(folder, self.corpus)
        self.label_names = list(self.corpus.target_vocabulary.tokens)
        self.module = make_module(settings, self.label_names, self._make_network, TextModule).to(device)
        self.num_batches = len(self._batch_indices(epoch=0))
        self.best = BestNetwork(folder.checkpoints)

    def begin(self) -> None:
        """Keep the vocabularies in the run folder."""
        write_vocabularies(self.folder, self.corpus)

    def batches(self, epoch: int, first: int) -> Iterator[TextInputs]:
        """Batches of an epoch from number `first` on; the order is drawn from (seed, epoch), torch's state unused."""
        for indices in self._batch_indices(epoch)[first:]:
            yield self.inputs_of(make_batch(self.corpus.train, indices))

    def divide(self, batch: tuple[Any, ...], num_parts: int) -> Division:
        """The batch in parts, by pairs: see labelemb.training.task.Division. A GPU is waited for."""
        whole, nobody = TextInputs(*batch), self.module.criterion.ignore_index
        num_pairs, ends = len(whole.source), whole.target_lengths.cumsum(0).tolist()
        parts, sizes = [], []
        for number in range(num_parts):
            first, last = number * num_pairs // num_parts, (number + 1) * num_pairs // num_parts
            rows = slice(first, max(last, first + 1))
            tokens = slice(ends[rows.start] - int(whole.target_lengths[rows.start]), ends[rows.stop - 1])
            target = whole.target[tokens] if last > first else torch.full_like(whole.target[tokens], nobody)
            source_lengths, target_lengths = whole.source_lengths[rows], whole.target_lengths[rows]
            source = whole.source[rows, : int(source_lengths.max())]
            target_in = whole.target_in[rows, : int(target_lengths.max())]
            plan = plan_labels(target, nobody).to(self.device)
            parts.append(tuple(TextInputs(source, source_lengths, target_in, target_lengths, target, plan)))
            sizes.append(tokens.stop - tokens.start if last > first else 0)
        return Division(parts, sizes, len(whole.target))

    def evaluate_epoch(self, epoch: int) -> dict[str, float]:
        """Development perplexity and greedy scores, in the last epochs the beam's too; keeps the best network."""
        network, valid, decode, here = self.module.network, self.corpus.valid, self.settings.decode, processes()
        row = {"valid_perplexity": self._perplexity(valid)}
        scores, _ = self._score(self._translate(network, valid, beam=1, shared_by=here), valid)
        row |= {f"valid_{name}": value for name, value in scores.items()}
        if decode.beam > 1 and epoch > self.settings.epochs - decode.beam_epochs:
            beam_scores, _ = self._score(self._translate(network, valid, shared_by=here), valid)
            row |= {f"valid_beam_{name}": value for name, value in beam_scores.items()}
        if here.is_first:  # the greedy score chooses: it alone is there for every epoch
            self.best.offer(network, epoch, epoch * self.num_batches, scores[self.settings.metric])
        return row

    def finish(self) -> None:
        """Search with the best network; write evaluation.json, predictions.txt, examples and the learned table."""
        network = deepcopy(self.module.network)  # the module keeps the last epoch's, for its checkpoint
        network.load_state_dict(self.best.load())
        network.eval()
        evaluation: dict[str, Any] = {"best": self.best.record, "scored_on": "valid"}
        outputs = self._translate(network, self.corpus.valid)
        evaluation["valid"], signature = self._score(outputs, self.corpus.valid)
        scored = self.corpus.valid
        if self.settings.tuning is None:
            evaluation["test"] = evaluation["valid"]
        if self.corpus.test is not None and self.settings.tuning is None:
            outputs, scored = self._translate(network, self.corpus.test), self.corpus.test
            evaluation["test"], _ = self._score(outputs, scored)
            evaluation["scored_on"] = "test"
        self.folder.write_evaluation(evaluation | {"signature": signature})
        self._write_outputs(outputs, scored, signature)
        save_table(self.module.criterion, self.label_names, self.folder.table)

    def inputs_of(self, batch: Batch) -> TextInputs:
        """A batch as the module takes it. Lengths stay on the CPU, where they decide shapes; there the plan is made."""
        target = batch.target_out[batch.target_out != PAD]  # (N,), row by row as the features
        plan = plan_labels(target)
        return TextInputs(
            batch.source.to(self.device),
            batch.source_lengths,
            batch.target_in.to(self.device),
            batch.target_lengths,
            target.to(self.device),
            plan.to(self.device),
        )

    def _make_network(self) -> Network:
        sizes = len(self.corpus.source_vocabulary), len(self.corpus.target_vocabulary)
        return make_network(self.settings.model, *sizes, shared=self.corpus.metadata["share"])

    def _batch_indices(self, epoch: int) -> list[Integers]:
        settings = self.settings
        seed = derived_seed(settings.seed, "order")
        return batch_indices(
            self.corpus.train, seed=seed, epoch=epoch, pairs=settings.batch_size, tokens=settings.batch_tokens
        )

    @torch.no_grad()
    def _perplexity(self, split: Split) -> float:
        """exp of the mean cross entropy a token, `</s>` counted: the hard term alone, whatever the mode."""
        network = self.module.network
        loss = FusedLabelEmbeddingLoss(baseline(network.head.out_features), network.head)
        total, count = torch.zeros((), device=self.device), 0
        here = processes()
        for indices in list(ordered_indices(split))[here.rank :: here.size]:
            inputs = self.inputs_of(make_batch(split, indices))
            with autocast(self.device, self.settings.precision):
                features = network.features(
                    inputs.source, inputs.source_lengths, inputs.target_in, inputs.target_lengths
                )
                total += loss.terms(features, inputs.target, plan=inputs.plan).hard * len(inputs.target)
            count += len(inputs.target)
        sums = here.gathered((total.item(), count))
        return math.exp(min(math.fsum(part for part, _ in sums) / sum(part for _, part in sums), 700.0))

    def _translate(
        self, network: Network, split: Split, *, beam: int | None = None, shared_by: Processes = ALONE
    ) -> list[str]:
        """What the network makes of the source lines; several processes each translate their share."""
        vocabularies = self.corpus.source_vocabulary, self.corpus.target_vocabulary
        translator = Translator(network, *vocabularies, self.settings.decode)
        lines = split.source_lines[shared_by.share(len(split.source_lines))]
        with autocast(self.device, self.settings.precision):
            mine = [output.text for output in translator.translate(lines, beam=beam)]
        return list(chain(*shared_by.gathered(mine)))

    def _score(self, outputs: list[str], split: Split) -> tuple[dict[str, float], str]:
        return score_lines(self.settings, outputs, split.target_lines)

    def _write_outputs(self, outputs: list[str], split: Split, signature: str) -> None:
        lines = [f"# {signature}", *outputs]
        write_atomically(self.folder.path / "predictions.txt", "".join(f"{line}\n" for line in lines).encode())
        triples = zip(split.source_lines, split.target_lines, outputs, strict=True)
        examples = [dict(zip(("source", "reference", "output"), triple, strict=True)) for triple in triples]
        rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in examples[:_NUM_EXAMPLES])
        write_atomically(self.folder.examples / "examples.jsonl", rows.encode())


def _load_corpus(settings: TextSettings) -> Corpus:
    data = settings.data
    if data.path is None:
        raise InputError(
            f"{settings.recipe} needs a corpus: get {data.source}, run `labelemb preprocess` on it and give the folder "
            "that it wrote as --data FOLDER"
        )
    try:
        return Corpus.load(data.path)
    except ValueError as error:
        raise InputError(f"--data {error}") from None
