"""The paper's image scripts are labelemb commands."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.small_runs import write_image_cache

from labelemb.run_folder import RunFolder

PAPER = Path(__file__).parents[1] / "paper"
SMALL = ["epochs=1", "data.limit=12", "batch_size=6", "device=cpu"]
IMAGE_SCRIPTS = {  # script: results, recipe, image, what makes the network small
    "mlp.py": ("mlp_results", "mnist-mlp", (1, 28, 28), ["data.validation=4", "model.hidden=[8]"]),
    "cnn.py": ("cnn_results", "mnist-cnn", (1, 28, 28), ["data.validation=4"]),
    "cifar10.py": ("10_results", "cifar10", (3, 32, 32), ["model.width=2"]),
    "cifar100.py": ("100_results", "cifar100", (3, 32, 32), ["model.width=2"]),
}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(PAPER)  # as `python paper/mlp.py` does


def run_script(monkeypatch: pytest.MonkeyPatch, script: str, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", [f"paper/{script}", *options])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(PAPER / script), run_name="__main__")
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.mark.parametrize("script", IMAGE_SCRIPTS)
def test_an_image_script_trains_into_the_papers_folder(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    results, recipe, shape, small = IMAGE_SCRIPTS[script]
    data = write_image_cache(Path("data.safetensors"), num_train=16, shape=shape)
    assert run_script(monkeypatch, script, "--mode=emb", f"--data={data}", *SMALL, *small) == 0
    folder = RunFolder.at(Path(results), recipe, "emb", 0)
    assert folder.is_finished
    assert len(folder.metrics) == 1
    assert folder.environment["command"].startswith(f"labelemb train {recipe} --mode=emb")


def test_the_papers_options_become_settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--mode=emb", "--lr=0.002", "--tau=3", "--alpha=0.8", "--beta=0.7", "--num=20", "--data=DATA/mnist"]
    assert run_script(monkeypatch, "mlp.py", *options, "--dry-run") == 0
    settings = yaml.safe_load(capsys.readouterr().out.removesuffix("---\n"))
    assert settings["optimizer"]["lr"] == settings["optimizer"]["criterion_lr"] == 0.002
    loss = settings["emb"]
    assert (loss["temperature"], loss["cap"], loss["hard_weight"], loss["soft_weight"]) == (3, 0.8, 0.7, 0.3)
    assert (settings["mode"], settings["seed"], settings["data"]["path"]) == ("emb", 20, "DATA/mnist")


def test_the_papers_defaults_are_the_recipes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from labelemb.settings.config import plain
    from labelemb.settings.recipe import load_recipe

    for script, (_, recipe, _, _) in IMAGE_SCRIPTS.items():
        assert run_script(monkeypatch, script, "--dry-run") == 0
        settings = yaml.safe_load(capsys.readouterr().out.removesuffix("---\n"))
        assert settings == plain(load_recipe(recipe, (), {"mode": "baseline", "seed": 0}))


def test_a_finished_run_is_not_done_again_without_another_number(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_image_cache(Path("data.safetensors"), num_train=16, shape=(1, 28, 28))
    options = ["--mode=baseline", f"--data={data}", *SMALL, *IMAGE_SCRIPTS["mlp.py"][3]]
    assert [run_script(monkeypatch, "mlp.py", *options) for _ in range(2)] == [0, 2]
    assert "pass --resume" in capsys.readouterr().err
    assert run_script(monkeypatch, "mlp.py", *options, "--resume") == 0
    assert run_script(monkeypatch, "mlp.py", *options, "--num=1") == 0
    assert RunFolder.at(Path("mlp_results"), "mnist-mlp", "baseline", 1).is_finished


def test_a_script_runs_as_printed() -> None:
    command = [sys.executable, str(PAPER / "cifar10.py"), "--mode=baseline", "--dry-run"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert yaml.safe_load(result.stdout.removesuffix("---\n"))["recipe"] == "cifar10"
