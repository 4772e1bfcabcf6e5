"""examples/digits.ipynb: its cells run one after another, without a notebook server."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

NOTEBOOK = Path(__file__).parent.parent / "examples" / "digits.ipynb"


def cells(kind: str) -> list[str]:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


def test_the_cells_run_one_after_another(capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, object] = {}
    backend = plt.get_backend()
    plt.switch_backend("agg")
    try:
        for source in cells("code"):
            cell = source.replace("epochs=30", "epochs=10")
            exec(compile(cell, NOTEBOOK.name, "exec"), namespace)
    finally:
        plt.close("all")
        plt.switch_backend(backend)
    errors = namespace["errors"]
    assert isinstance(errors, dict)
    assert all(0 < error < 10 for each in errors.values() for error in each)
    assert "like" in capsys.readouterr().out


def test_it_is_small_and_says_nothing_of_whoever_ran_it() -> None:
    assert NOTEBOOK.stat().st_size < 50_000
    metadata = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["metadata"]
    assert metadata["kernelspec"] == {"display_name": "Python 3", "language": "python", "name": "python3"}
