"""A corpus small enough to train on in a test: sentences of a few words, the target their reversal."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from labelemb.run_folder import RunFolder
from labelemb.settings.config import TextModelSettings, TextSettings, plain
from labelemb.settings.preprocess import PreprocessOptions
from labelemb.settings.recipe import load_recipe
from labelemb.text.corpus.preprocess import preprocess
from labelemb.text.task import TextTask
from labelemb.text.translate import Network, make_network
from labelemb.training.engine import train

WORDS = ("red", "sea", "dog", "runs", "sings", "rain", "good", "joke")
SMALL = ("model.hidden=16", "model.layers=1", "batch_size=8", "epochs=2")  # 40 pairs: 5 steps an epoch

MakeTask = Callable[..., TextTask]


def small_network(
    name: str,
    source_size: int,
    target_size: int,
    *,
    hidden: int = 16,
    layers: int = 2,
    dropout: float = 0.0,
    shared: bool = False,
) -> Network:
    """A network of either kind from torch's random state; of eight heads, or without tanh on the query."""
    sizes = {"hidden": hidden, "layers": layers, "heads": 8}
    settings = TextModelSettings.model_validate({"name": name, "dropout": dropout, **sizes})
    return make_network(settings, source_size, target_size, shared=shared)


def write_texts(folder: Path, words: tuple[str, ...] = WORDS) -> dict[str, Any]:
    """Files of 40 training, 6 development and 5 test pairs, by their names in PreprocessOptions."""
    generator = np.random.default_rng(7)
    files: dict[str, Any] = {}
    for split, count in {"train": 40, "valid": 6, "test": 5}.items():
        rows = [generator.choice(words, generator.integers(2, 6)) for _ in range(count)]
        for end, step in {"src": 1, "tgt": -1}.items():
            path = folder / f"{split}.{end}"
            path.write_text("".join(" ".join(row[::step]) + "\n" for row in rows), encoding="utf-8")
            files[f"{split}_{end}"] = path
    return files


def write_corpus(folder: Path, words: tuple[str, ...] = WORDS, **options: Any) -> Path:
    """A corpus of these pairs in folder/corpus."""
    preprocess(PreprocessOptions(folder / "corpus", **write_texts(folder, words), **options))
    return folder / "corpus"


def small_task(
    output: Path, corpus: Path, mode: str, *overrides: str, recipe: str = "translate", **options: Any
) -> TextTask:
    given = {"mode": mode, "data.path": str(corpus), **options}
    settings = load_recipe(recipe, [*SMALL, "emb.rank=8", *overrides], given, beside=["emb"])
    assert isinstance(settings, TextSettings)
    return TextTask(settings, torch.device("cpu"), RunFolder.at(output, settings.recipe, mode, settings.seed))


def run(task: TextTask) -> TextTask:
    """Train to the end; the folder gets its config too."""
    task.folder.write_config(plain(task.settings))
    train(task, task.settings, task.folder, lambda done, planned, message: None, lambda line: None)
    return task
