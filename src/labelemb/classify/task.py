"""Classification: batches of images from the device, the network with its criterion, evaluation after each epoch."""

from collections.abc import Iterator
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from labelemb.classify.augment import channel_statistics, cutmix, mixup, normalise, random_crop, random_flip
from labelemb.classify.images import ImageData, Split
from labelemb.classify.metrics import ClassificationMetrics
from labelemb.classify.networks import NETWORKS, Classifier
from labelemb.classify.user_network import load_network
from labelemb.errors import input_errors
from labelemb.files import named
from labelemb.losses.label_embedding import LabelEmbeddingLoss
from labelemb.losses.modes import Criterion, OnlineLabelSmoothing, make_criterion
from labelemb.losses.table import LabelTable
from labelemb.losses.terms import LossTerms
from labelemb.run_folder import RunFolder
from labelemb.settings.config import AugmentSettings, ClassifySettings, InputError
from labelemb.training.engine import StepOutput
from labelemb.training.seeds import derived_seed

_EVALUATION_BATCH = 1000
_EXAMPLES_PER_LABEL = 4


class ClassifyModule(nn.Module):
    """Network and criterion together, so that whatever wraps or compiles the module sees both."""

    def __init__(self, network: Classifier, criterion: Criterion) -> None:
        super().__init__()
        self.network = network
        self.criterion = criterion

    def forward(self, inputs: Tensor, target: Tensor) -> StepOutput:
        """One batch: inputs (N, ...), target (N,) indices or (N, C) probabilities."""
        logits, features = self.network(inputs)
        labels = target.argmax(dim=1) if target.is_floating_point() else target
        num_errors = (logits.detach().argmax(dim=1) != labels).sum()
        terms = self.criterion.terms(logits, target, features)
        recorded = (term.detach() for term in terms[:-1])  # a compiler would carry gradients of zero through them
        return StepOutput(LossTerms._make([*recorded, terms.total]), len(target), num_errors)


class ClassifyTask:
    """What the engine trains: see labelemb.training.engine.Task.

    Args:
        settings: of the run.
        data: the data set; moved to the device, where it stays.
        device: where everything lies.
        folder: the run's.

    Raises:
        InputError: the network or the label table does not fit the data.
    """

    varying_shapes = False

    def __init__(self, settings: ClassifySettings, data: ImageData, device: torch.device, folder: RunFolder) -> None:
        self.settings, self.folder, self.device = settings, folder, device
        self.label_names = data.label_names
        self.train, self.test = data.train.to(device), data.test.to(device)
        self.validation = data.validation.to(device) if data.validation is not None else None
        self.module = _make_module(settings, data).to(device)
        # Channels innermost is what fast convolutions want: always on a GPU, on a CPU those in bfloat16 (measured).
        wanted = device.type == "cuda" or settings.precision == "bfloat16"
        channels_last = wanted and self.module.network.takes_channels_last
        self.inputs = InputPipeline(settings.augment, data, device, channels_last)
        if channels_last:
            self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.num_batches = -(-len(self.train) // settings.batch_size)  # the last short batch is kept
        self._evaluation: dict[str, Any] = {}

    def batches(self, epoch: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and targets of an epoch from batch `first` on; the order is drawn from (seed, epoch)."""
        seed, size = self.settings.seed, self.settings.batch_size
        order = torch.randperm(len(self.train), generator=_generator(derived_seed(seed, "order", epoch)))
        order = order.to(self.device)
        for number in range(first, self.num_batches):
            chosen = order[number * size : (number + 1) * size]
            generator = _generator(derived_seed(seed, "augment", epoch, number)) if self.inputs.augments else None
            yield self.inputs.training(self.train.images[chosen], self.train.labels[chosen], generator)

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Error, NLL and calibration error on the validation and test sets."""
        if isinstance(self.module.criterion, OnlineLabelSmoothing):
            self.module.criterion.end_epoch()
        row: dict[str, float] = {}
        for name, split in {"valid": self.validation, "test": self.test}.items():
            if split is not None:
                metrics = self._evaluate(split)
                row |= {f"{name}_{key}": value for key, value in metrics.compute().items()}
        self._evaluation = metrics.evaluation()  # of the test set, which comes last
        return row

    def finish(self) -> None:
        """Write evaluation.json, the learned table, and for the first seed some test images."""
        if not self._evaluation:  # resumed after the last epoch
            self.module.eval()
            self._evaluation = self._evaluate(self.test).evaluation()
        self.folder.write_evaluation(self._evaluation | {"label_names": self.label_names})
        if isinstance(self.module.criterion, LabelEmbeddingLoss):
            table = self.module.criterion.table
            table.label_names = self.label_names
            table.save(self.folder.table)
        if self.settings.seed == 0:
            self._write_examples()

    @torch.no_grad()
    def predict(self, split: Split) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits (B, C) and labels (B,) of a split, batch by batch, as the network in evaluation mode gives them."""
        for start in range(0, len(split), _EVALUATION_BATCH):
            part = slice(start, start + _EVALUATION_BATCH)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16"):
                logits, _ = self.module.network(self.inputs.plain(split.images[part]))
            yield logits, split.labels[part]

    def _evaluate(self, split: Split) -> ClassificationMetrics:
        metrics = ClassificationMetrics(len(self.label_names), self.device)
        for logits, labels in self.predict(split):
            metrics.update(logits, labels)
        return metrics

    def _write_examples(self) -> None:
        from PIL import Image

        self.folder.examples.mkdir(exist_ok=True)
        images, labels = self.test.images.cpu(), self.test.labels.cpu()
        for label in range(len(self.label_names)):
            for number, index in enumerate((labels == label).nonzero().squeeze(1)[:_EXAMPLES_PER_LABEL].tolist()):
                pixels = (images[index].float() * (255 / self.inputs.scale)).clamp(0, 255).byte().permute(1, 2, 0)
                if pixels.shape[2] > 4:  # more bands than a picture has: the first three
                    pixels = pixels[..., :3]
                picture = Image.fromarray(pixels.squeeze(2).numpy() if pixels.shape[2] == 1 else pixels.numpy())
                path = self.folder.examples / f"{label:04d}-{number}.png"
                with named(path):
                    picture.save(path)


class InputPipeline:
    """From stored images to the network's inputs, on the device, a whole batch at once."""

    def __init__(self, augment: AugmentSettings, data: ImageData, device: torch.device, channels_last: bool) -> None:
        self.augment, self.scale, self.num_classes = augment, data.scale, data.num_classes
        self.augments = bool(augment.crop or augment.flip or augment.mixup or augment.cutmix)
        channels = data.image_shape[0]
        self.mean = torch.zeros(channels, device=device)
        self.std = torch.full((channels,), data.scale, device=device)
        if augment.normalise:
            mean, std = channel_statistics(data.train.images)
            self.mean, self.std = mean.to(device), std.to(device)
        self.channels_last = channels_last

    def plain(self, images: Tensor) -> Tensor:
        """Images (N, channels, H, W) as stored -> float32 inputs of the same shape."""
        return normalise(images, self.mean, self.std, channels_last=self.channels_last)

    def training(self, images: Tensor, labels: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Augmented inputs and their targets: (N,) labels, or (N, C) probabilities with mixup or CutMix."""
        if generator is None:
            return self.plain(images), labels
        if self.augment.crop:
            images = random_crop(images, self.augment.crop, generator)
        if self.augment.flip:
            images = random_flip(images, generator)
        inputs = self.plain(images)
        if self.augment.mixup:
            return mixup(inputs, labels, self.num_classes, self.augment.mixup, generator)
        if self.augment.cutmix:
            return cutmix(inputs, labels, self.num_classes, self.augment.cutmix, generator)
        return inputs, labels


def _make_module(settings: ClassifySettings, data: ImageData) -> ClassifyModule:
    """Network first, then criterion, each from its own seed: all modes of a seed start from the same network."""
    torch.manual_seed(derived_seed(settings.seed, "network"))
    network = _make_network(settings, data)
    torch.manual_seed(derived_seed(settings.seed, "criterion"))
    with input_errors():
        table = None if settings.loss.table is None else LabelTable.load(settings.loss.table, data.label_names)
        criterion = make_criterion(
            settings.mode, network.num_features, data.num_classes, table=table, **settings.loss.criterion_options
        )
    torch.manual_seed(derived_seed(settings.seed, "training"))
    return ClassifyModule(network, criterion)


def _make_network(settings: ClassifySettings, data: ImageData) -> Classifier:
    name = settings.model.name
    if ":" in name:
        return load_network(name, data.image_shape, data.num_classes)
    if name not in NETWORKS:
        raise InputError(f"model.name={name}: expected one of {', '.join(NETWORKS)}, or --model module:function")
    options = settings.model.model_dump(exclude={"name"}, exclude_none=True)
    unknown = set(options) - set(signature(NETWORKS[name]).parameters)
    if unknown:
        raise InputError(f"model: {name} has no setting {' or '.join(sorted(unknown))}")
    return NETWORKS[name](data.image_shape, data.num_classes, **options)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
