"""Classification: batches in an order of their own, the network with its criterion, evaluation after each epoch."""

from collections.abc import Iterator
from functools import partial
from inspect import signature
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from labelemb.classify.calibration import fit_temperature
from labelemb.classify.data import ClassifyData, ClassifySplit
from labelemb.classify.division import balanced_weights
from labelemb.classify.metrics import ClassificationMetrics
from labelemb.classify.networks import NETWORKS, Classifier
from labelemb.classify.text_networks import make_text_network
from labelemb.classify.user_network import load_network
from labelemb.errors import InputError
from labelemb.losses.catalogue import MODES
from labelemb.run_folder import RunFolder
from labelemb.settings.config import ClassifierSettings, LabelingSettings, SentenceModelSettings
from labelemb.training.criteria import make_module, save_table
from labelemb.training.device import autocast
from labelemb.training.processes import ALONE, Processes, processes
from labelemb.training.seeds import derived_seed
from labelemb.training.task import Division, StepOutput, TrainedModule

_EVALUATION_BATCH = 1000


class ClassifyModule(TrainedModule[Classifier]):
    """A network that takes a batch of inputs at once, and the criterion of its run's mode."""

    def forward(
        self, inputs: Tensor, target: Tensor, index: Tensor | None = None, *, num_items: Tensor | int | None = None
    ) -> StepOutput:
        """One batch: inputs (N, ...), target (N,) indices or (N, C) probabilities, index (N,) if the mode takes it."""
        logits, features = self.network(inputs)
        labels = target.argmax(dim=1) if target.is_floating_point() else target
        num_errors = (logits.detach().argmax(dim=1) != labels).sum()
        of_mode = {} if index is None else {"index": index}
        terms = self.criterion.terms(logits, target, features, num_items=num_items, **of_mode)
        # A compiler would carry gradients of zero through the terms that are only recorded.
        recorded = {name: term.detach() for name, term in zip(terms._fields, terms, strict=True) if name != "total"}
        return StepOutput(terms._replace(**recorded), len(target), num_errors)


class ClassifyTask:
    """What the engine trains: see labelemb.training.task.Task.

    Args:
        settings: of the run.
        data: the data set; moved to the device, where it stays.
        device: where everything lies.
        folder: the run's.

    Raises:
        InputError: the network or the label table does not fit the data.
    """

    def __init__(self, settings: LabelingSettings, data: ClassifyData, device: torch.device, folder: RunFolder) -> None:
        self.settings, self.folder, self.device = settings, folder, device
        network = partial(make_network, settings.model, data.shape, len(data.label_names))
        weight = None
        if settings.class_weight == "balanced":
            weight = balanced_weights(data.train.labels, len(data.label_names))
        module = make_module(
            settings, data.label_names, network, ClassifyModule, num_examples=len(data.train), class_weight=weight
        )
        self.module = module.to(device)
        # Channels innermost is what fast convolutions want: always on a GPU, on a CPU those in bfloat16 (measured).
        wanted = device.type == "cuda" or settings.precision == "bfloat16"
        channels_last = wanted and self.module.network.takes_channels_last
        self.data = data.to(device, channels_last=channels_last)
        if channels_last:
            self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.num_batches = -(-len(data.train) // settings.batch_size)  # the last short batch is kept
        self.varying_shapes = data.varying_shapes
        self._of_test: ClassificationMetrics | None = None

    def begin(self) -> None:
        """Write what makes inputs of other items, for predictions; a run goes on with the data that it began with."""
        record, found = self.data.record, self.folder.inputs
        exact = [key for key in found if key not in ("mean", "std")]  # another machine may round these otherwise
        if any(found[key] != record.get(key) for key in exact):
            raise InputError(f"{self.folder.path}: the data have changed since this run began: choose another --output")
        self.folder.write_inputs(found or record)

    def batches(self, epoch: int, first: int) -> Iterator[tuple[Tensor, ...]]:
        """Inputs and targets of an epoch from batch `first` on; the order is drawn from (seed, epoch).

        With a mode that takes it, the index too: which training item each of them is.
        """
        seed, size = self.settings.seed, self.settings.batch_size
        order = torch.randperm(len(self.data.train), generator=_generator(derived_seed(seed, "order", epoch)))
        order = order.to(self.device)
        for number in range(first, self.num_batches):
            generator = _generator(derived_seed(seed, "augment", epoch, number))
            index = order[number * size : (number + 1) * size]
            batch = self.data.inputs(index, generator)
            yield (*batch, index) if MODES[self.settings.mode].takes_index else batch

    def divide(self, batch: tuple[Tensor, ...], num_parts: int) -> Division:
        """The batch in parts: see labelemb.training.task.Division."""
        target, criterion = batch[1], self.module.criterion
        bounds = [part * len(target) // num_parts for part in range(num_parts + 1)]
        sizes = [after - before for before, after in pairwise(bounds)]
        parts = [
            tuple(each[start : start + max(size, 1)] for each in batch)
            for start, size in zip(bounds, sizes, strict=False)
        ]
        nobody = 0.0 if target.is_floating_point() else criterion.ignore_index
        parts = [
            part if size else (part[0], torch.full_like(part[1], nobody), *part[2:])
            for part, size in zip(parts, sizes, strict=True)
        ]
        return Division(parts, sizes, criterion.num_items(target))

    def evaluate_epoch(self, epoch: int) -> dict[str, float]:
        """Error, NLL and calibration error on the validation and test sets; a run of tuning sees no test set."""
        row: dict[str, float] = {}
        if self.data.validation is not None:
            row |= _columns("valid", self._measure(self.data.validation, shared_by=processes()))
        if self.settings.tuning is not None:
            return row
        self._of_test = self._measure(self.data.test, shared_by=processes())
        return row | _columns("test", self._of_test)

    def finish(self) -> None:
        """Write the temperature, evaluation.json, the learned table, and for the first seed some test items."""
        self.module.eval()
        save_table(self.module.criterion, self.data.label_names, self.folder.table)
        if self.settings.tuning is not None:
            return
        metrics = self._of_test or self._measure(self.data.test)  # the latter where resumed after the last epoch
        self.folder.write_evaluation(metrics.evaluation() | self._calibrate() | {"label_names": self.data.label_names})
        if self.settings.seed == 0:
            self.data.examples(self.folder.examples, metrics.answers())

    @torch.no_grad()
    def predict(self, split: ClassifySplit, items: slice | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits (B, C) and labels (B,) of a split, batch by batch, as the network in evaluation mode gives them.

        `items`: of its items, from start to stop; None for all.
        """
        first, last = (0, len(split)) if items is None else (items.start, items.stop)
        for start in range(first, last, _EVALUATION_BATCH):
            part = slice(start, min(start + _EVALUATION_BATCH, last))
            with autocast(self.device, self.settings.precision):
                logits, _ = self.module.network(split.inputs(part))
            yield logits, split.labels[part]

    def _calibrate(self) -> dict[str, Any]:
        """Fit the temperature on the held-out items and write it; what evaluation.json has of the test set with it.

        Nothing without held-out items: the test set is for measuring, and items trained on look too certain.
        """
        if self.data.validation is None:
            return {}
        held_out = [(logits.float().cpu(), labels.cpu()) for logits, labels in self.predict(self.data.validation)]
        logits, labels = (torch.cat(parts) for parts in zip(*held_out, strict=True))
        calibration = fit_temperature(logits, labels)
        if calibration is None:  # a run that diverged
            return {}
        self.folder.write_calibration(calibration._asdict())
        scaled = self._measure(self.data.test, calibration.temperature)
        return {"scaled": {"temperature": calibration.temperature, **scaled.probability_measures()}}

    def _measure(
        self, split: ClassifySplit, temperature: float = 1.0, shared_by: Processes = ALONE
    ) -> ClassificationMetrics:
        """Of all items; several processes each predict their share."""
        metrics = ClassificationMetrics(len(self.data.label_names), self.device, temperature)
        for logits, labels in self.predict(split, shared_by.share(len(split))):
            metrics.update(logits, labels)
        metrics.gather(shared_by)
        return metrics


def make_network(
    settings: ClassifierSettings | SentenceModelSettings, shape: tuple[int, ...], num_classes: int
) -> Classifier:
    """The network that a recipe or --model names, from torch's current random state.

    Raises:
        InputError: there is none of that name, it has no such setting, or takes no inputs of this shape.
    """
    name = settings.name
    if isinstance(settings, SentenceModelSettings):
        return make_text_network(settings, num_classes)
    if ":" in name:
        return load_network(name, shape, num_classes)
    if name not in NETWORKS:
        raise InputError(f"model.name={name}: expected one of {', '.join(NETWORKS)}, or --model module:function")
    options = settings.model_dump(exclude={"name"}, exclude_none=True)
    unknown = set(options) - set(signature(NETWORKS[name]).parameters)
    if unknown:
        raise InputError(f"model: {name} has no setting {' or '.join(sorted(unknown))}")
    return NETWORKS[name](shape, num_classes, **options)


def _columns(prefix: str, metrics: ClassificationMetrics) -> dict[str, float]:
    return {f"{prefix}_{key}": value for key, value in metrics.compute().items()}


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
