"""Translation and summarisation: batches of sentence pairs, the network with its criterion, evaluation by search."""

import json
import math
import sys
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from labelemb.config import InputError, TextSettings
from labelemb.engine import StepOutput, planned_soft_after
from labelemb.files import write_atomically
from labelemb.fused import FusedLabelEmbeddingLoss, LabelPlan, plan_labels
from labelemb.loss import LabelEmbeddingLoss
from labelemb.modes import Criterion, baseline, make_criterion
from labelemb.run import RunFolder
from labelemb.seeds import derived_seed
from labelemb.table import LabelTable
from labelemb.text.best import BestNetwork
from labelemb.text.corpus import Batch, Corpus, Split, batch_indices, make_batch, ordered_indices
from labelemb.text.scores import score_texts
from labelemb.text.trained import write_vocabularies
from labelemb.text.translate import Network, Translation, Translator, make_network
from labelemb.text.vocab import PAD

_NUM_EXAMPLES = 20

Step = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, LabelPlan]


class TextModule(nn.Module):
    """Network and criterion together, so that whatever wraps the module sees both."""

    def __init__(self, network: Network, criterion: Criterion) -> None:
        super().__init__()
        self.network = network
        self.criterion = criterion

    def forward(
        self,
        source: Tensor,
        source_lengths: Tensor,
        target_in: Tensor,
        target_lengths: Tensor,
        target: Tensor,
        plan: LabelPlan,
    ) -> StepOutput:
        """One batch: (B, S), (B,), (B, T), (B,) as in labelemb.text.corpus.Batch, the N unpadded target tokens."""
        features = self.network.features(source, source_lengths, target_in, target_lengths)  # (N, D)
        terms = FusedLabelEmbeddingLoss(self.criterion, self.network.head).terms(features, target, plan=plan)
        return StepOutput(terms, len(target), None)


class TextTask:
    """What the engine trains: see labelemb.engine.Task.

    Args:
        settings: of the run.
        device: where the network lies; the corpus stays on disk, mapped into memory.
        folder: the run's.

    Raises:
        InputError: there is no corpus, or network, label table or an earlier start of this run do not fit it.
    """

    def __init__(self, settings: TextSettings, device: torch.device, folder: RunFolder) -> None:
        self.settings, self.device, self.folder = settings, device, folder
        self.corpus = _load_corpus(settings)
        write_vocabularies(folder, self.corpus)
        self.module = _make_module(settings, self.corpus).to(device)
        self.num_batches = len(self._batch_indices(epoch=0))
        self.best = BestNetwork(folder.checkpoints)
        _announce(settings, self.num_batches)

    def batches(self, epoch: int, first: int) -> Iterator[Step]:
        """Batches of an epoch from number `first` on; the order is drawn from (seed, epoch), torch's state unused."""
        for indices in self._batch_indices(epoch)[first:]:
            yield self._on_device(make_batch(self.corpus.train, indices))

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Perplexity and greedy score on the development set, in the last epochs the beam's; keeps the best network."""
        valid, metric = self.corpus.valid, self.settings.metric
        row = {"valid_perplexity": self._perplexity(valid)}
        scores = self._score(self._translate(self.module.network, valid, beam=1), valid)
        row |= {f"valid_{name}": value for name, value in scores.items()}
        decode = self.settings.decode
        if decode.beam > 1 and epoch > self.settings.epochs - decode.beam_epochs:
            beam_scores = self._score(self._translate(self.module.network, valid), valid)
            row |= {f"valid_beam_{name}": value for name, value in beam_scores.items()}
        # The greedy score chooses: it alone is there for every epoch.
        self.best.offer(self.module.network, epoch, epoch * self.num_batches, scores[metric])
        return row

    def finish(self) -> None:
        """Search with the best network; write evaluation.json, predictions.txt, examples and the learned table."""
        network = deepcopy(self.module.network).eval()  # the module keeps the last epoch's, for its checkpoint
        network.load_state_dict(self.best.load())
        evaluation: dict[str, Any] = {"best": self.best.record, "test": None}
        for name, split in {"valid": self.corpus.valid, "test": self.corpus.test}.items():
            if split is not None:
                outputs = self._translate(network, split)
                evaluation[name] = self._score(outputs, split)
                self._write_outputs(split, outputs, evaluation[name])
        evaluation["signature"] = self._signature
        self.folder.write_evaluation(evaluation)
        if isinstance(self.module.criterion, LabelEmbeddingLoss):
            table = self.module.criterion.table
            table.label_names = list(self.corpus.target_vocabulary.tokens)
            table.save(self.folder.table)
