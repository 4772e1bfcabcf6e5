"""A trained classifier as an ONNX file: values as they are stored go in, logits and probabilities come out.

The file needs neither labelemb nor the label table. Its metadata hold the label names, the temperature of the
probabilities, and what the inputs are.
"""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from labelemb.classify.networks import Classifier
from labelemb.classify.predict import load_classifier, temperature_of
from labelemb.classify.record import read_record
from labelemb.classify.user_network import UserNetwork
from labelemb.errors import InputError, RunFailed
from labelemb.files import write_atomically
from labelemb.run_folder import RunFolder
from labelemb.settings.config import LabelingSettings

_LARGEST_DIFFERENCE = 1e-3  # of probabilities, between the file and the network: float32 leaves some 1e-6
_EXAMPLES = 3  # not 1: a size of one is taken for a constant
_LENGTH = 7  # of the texts of the example


class InferenceNetwork(nn.Module):
    """A network with what is done to its inputs before and to its logits after.

    Args:
        network: maps inputs to logits and features, or to logits.
        record: inputs.json of the run.
        temperature: the logits are divided by it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, record: dict[str, Any], temperature: float) -> None:
        super().__init__()
        self.network = network
        self.temperature = temperature
        self.standardizes = "mean" in record
        trailing = (1,) * (len(record["shape"]) - 1)  # a channel's mean is that of all its pixels
        self.register_buffer("mean", torch.tensor(record.get("mean", [0.0])).reshape(-1, *trailing))
        self.register_buffer("std", torch.tensor(record.get("std", [1.0])).reshape(-1, *trailing))

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and probabilities (N, C) of inputs as stored: (N, *shape) float32, or buckets (N, S) int64."""
        outputs = self.network((inputs - self.mean) / self.std if self.standardizes else inputs)
        logits = outputs[0] if isinstance(outputs, tuple) else outputs
        return logits, (logits / self.temperature).softmax(dim=1)


def export_classifier(folder: RunFolder, settings: LabelingSettings, output: Path) -> str:
    """Write the network of a run's last checkpoint, after comparing the file's outputs with the network's.

    Returns:
        What was written, as a line to print.

    Raises:
        InputError: the run has no checkpoint, or is from before inputs.json was kept.
        RunFailed: onnxruntime computes something else.
        ModuleNotFoundError: the extra `export` is missing.
    """
    import onnx
    import onnxruntime
    import onnxscript  # noqa: F401 (what torch's exporter needs, named where it is missing)

    record = read_record(folder, settings)
    if not record:
        raise InputError(f"{folder.path} has no inputs.json: train again, or go on with --resume")
    network = load_classifier(folder, settings, tuple(record["shape"]), len(record["label_names"]))
    inference = InferenceNetwork(_plain(network), record, temperature_of(folder, calibrated=None) or 1.0).eval()
    example = _example(record)
    proto = _exported(inference, example, record["kind"] == "texts")
    onnx.helper.set_model_props(proto, _metadata(folder, record))
    content = proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    difference = _difference(session, inference, example)
    if not difference < _LARGEST_DIFFERENCE:
        raise RunFailed(f"{folder.path}: onnxruntime's probabilities differ from the network's by {difference:.2g}")
    write_atomically(output, content)
    return f"{output}: {len(record['label_names'])} labels; onnxruntime agrees with the network to {difference:.1g}"


def _exported(inference: nn.Module, example: Tensor, of_texts: bool) -> Any:
    """The network as ONNX, for any number of items, and of texts for any length."""
    items, length = torch.export.Dim("items"), torch.export.Dim("length")
    with _silent_exporter():
        program = torch.onnx.export(
            inference,
            (example,),
            input_names=["inputs"],
            output_names=["logits", "probabilities"],
            dynamic_shapes={"inputs": {0: items, 1: length} if of_texts else {0: items}},
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


@contextmanager
def _silent_exporter() -> Iterator[None]:
    """Without what the exporter says of itself: packages that it could use, calls that it will change."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _plain(network: Classifier) -> nn.Module:
    """Without what only training needs."""
    return network.without_features() if isinstance(network, UserNetwork) else network


def _example(record: dict[str, Any]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if record["kind"] == "texts":
        return torch.randint(1, 100, (_EXAMPLES, _LENGTH), generator=generator)
    return torch.rand(_EXAMPLES, *record["shape"], generator=generator)


def _metadata(folder: RunFolder, record: dict[str, Any]) -> dict[str, str]:
    """Strings, as ONNX has them; lists as JSON."""
    kept = {name: record[name] for name in ("label_names", "columns", "kind") if name in record}
    shown = {name: value if isinstance(value, str) else json.dumps(value) for name, value in kept.items()}
    return shown | {
        "temperature": repr(temperature_of(folder, calibrated=None) or 1.0),
        "format": "labelemb.classifier",
        "version": "1",
    }


@torch.no_grad()
def _difference(session: Any, inference: nn.Module, example: Tensor) -> float:
    """The largest one, over the probabilities of a batch of another size than the file was made with."""
    inputs = torch.cat([example, example])
    probabilities = torch.from_numpy(session.run(["probabilities"], {"inputs": inputs.numpy()})[0])
    expected: Tensor = inference(inputs)[1]
    return (probabilities - expected).abs().max().item()
