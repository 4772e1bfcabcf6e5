from pathlib import Path
from typing import Any

import pytest
from tests.small_text import MakeTask, small_task, write_corpus

from labelemb.text.task import TextTask


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("text"))


@pytest.fixture
def make_task(tmp_path: Path, corpus_folder: Path) -> MakeTask:
    """make_task("emb", "epochs=3", recipe=..., corpus=..., output=...): a small task on the CPU."""

    def make(
        mode: str, *overrides: str, recipe: str = "translate", corpus: Path = corpus_folder, **options: Any
    ) -> TextTask:
        return small_task(tmp_path / options.pop("output", "runs"), corpus, mode, *overrides, recipe=recipe, **options)

    return make
