"""The decoupled loss over words: sparse rows, and rows of low rank."""

from typing import Any

import pytest
from tests.small_text import MakeTask, run

from labelemb.losses.modes import load_table


def first_and_last(task: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    rows = task.folder.metrics
    return rows[0], rows[-1]


@pytest.mark.parametrize("way", ["decoupled.neighbors=3", "decoupled.rank=4"])
def test_it_trains_over_words_and_its_table_serves_another_run(make_task: MakeTask, way: str) -> None:
    task = run(make_task("decoupled", way, "optimizer.table_lr=0.01"))
    first, last = first_and_last(task)
    assert last["train_hard"] < first["train_hard"]
    assert (first["train_match"] > 0) == ("rank" in way)
    table = load_table(task.folder.table)
    assert table.label_names == list(task.corpus.target_vocabulary.tokens)
    for mode in ("decoupled-start", "decoupled-frozen"):
        again = run(make_task(mode, table=str(task.folder.table)))
        assert first_and_last(again)[1]["train_shape"] > 0


def test_rows_of_the_published_form_serve_it(make_task: MakeTask) -> None:
    path = run(make_task("emb")).folder.table
    task = run(make_task("decoupled-start", "decoupled.neighbors=3", table=str(path)))
    assert first_and_last(task)[1]["train_shape"] > 0
