"""The command line: what it prints, and for every mistake one line on stderr and its exit code."""

import dataclasses
import errno
import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.small_runs import SMALL, small_run, write_image_cache
from torch import nn

from labelemb import LabelEmbeddingLoss, LabelTable, __version__
from labelemb import __main__ as cli
from labelemb.commands import training
from labelemb.run_folder import RunFolder
from labelemb.settings.config import plain
from labelemb.settings.preprocess import PreprocessOptions
from labelemb.settings.recipe import load_recipe, recipe_names
from labelemb.training.checkpoint import load_newest, save_checkpoint

Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a command writes, with or without `--output`, lies in the test's own folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LABELEMB_CACHE", str(tmp_path / "cache"))


def run(capsys: Output, *arguments: str) -> list[str]:
    """Run a command that succeeds; the lines of its output, with nothing on stderr."""
    code = cli.run(list(arguments))
    captured = capsys.readouterr()
    assert (code, captured.err) == (0, "")
    lines: list[str] = captured.out.splitlines()
    return lines


def refused(capsys: Output, *arguments: str, code: int = 2) -> str:
    """Run a command that fails; its one line on stderr."""
    assert cli.run(list(arguments)) == code
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("labelemb: ")
    assert "Traceback" not in captured.out
    return str(lines[0].removeprefix("labelemb: "))


def test_version_is_the_package_s(capsys: Output) -> None:
    assert run(capsys, "--version") == [f"labelemb {__version__}"]


def test_without_a_command_help_is_all_that_is_printed(capsys: Output) -> None:
    assert cli.run([]) == 2
    captured = capsys.readouterr()
    assert "neighbors" in captured.out + captured.err
    assert "labelemb:" not in captured.out + captured.err


@pytest.mark.parametrize(("words", "expected"), [("labelemb tra", "train"), ("labelemb compare dig", "digits")])
def test_a_shell_completes_commands_and_recipes(words: str, expected: str) -> None:
    asked = {"_LABELEMB_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    command = [sys.executable, "-m", "labelemb"]
    done = subprocess.run(command, env=os.environ | asked, capture_output=True, text=True, check=True)
    assert (done.stdout.split(), done.stderr) == ([expected], "")


def test_an_interrupt_is_one_line_and_code_130(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "recipe_names", interrupted)
    assert refused(capsys, "recipes", code=130) == "interrupted"


@pytest.mark.parametrize(
    "module", ["importlib.metadata", "labelemb.training.stopping", "labelemb.commands.app", "torch"]
)
def test_an_interrupted_import_is_one_line_and_code_130(module: str) -> None:
    """At start-up, and where the exception is swallowed, as by C code that imports."""
    script = f"""
import os, signal, sys
from contextlib import suppress
class Interrupted:
    def find_spec(self, name, *_):
        if name == {module!r}:
            with suppress(*[KeyboardInterrupt] if name == "torch" else []):
                os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what runs in the background
sys.meta_path.insert(0, Interrupted())
from labelemb.__main__ import main
sys.argv = ["labelemb", *{["train", "digits", *SMALL, "--quiet"]!r}]
main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "labelemb: interrupted\n")


def test_what_is_said_is_one_line_whatever_names_hold(capsys: Output, tmp_path: Path) -> None:
    (tmp_path / "odd.csv").write_text('number,"two\nlines"\n1,2\n', encoding="utf-8")
    line = refused(capsys, "train", str(tmp_path / "odd.csv"), "--output", str(tmp_path / "out"))
    assert "two lines (numbers)" in line


def test_help_names_every_command(capsys: Output) -> None:
    text = "\n".join(run(capsys, "--help"))
    for command in ("recipes", "train", "compare", "report", "neighbors"):
        assert command in text


def test_recipes_are_listed_with_a_line_each(capsys: Output) -> None:
    lines = run(capsys, "recipes")
    assert [line.split()[0] for line in lines] == recipe_names()


def test_a_recipe_is_listed_with_every_key_value_and_sentence(capsys: Output) -> None:
    lines = run(capsys, "recipes", "digits")
    assert "emb.temperature = 2.0" in lines
    assert "model.hidden = [256, 256]" in lines
    assert "optimizer.clip = null" in lines
    assert len(lines) % 2 == 0


def test_a_dry_run_prints_settings_that_are_a_recipe(capsys: Output, tmp_path: Path) -> None:
    text = "\n".join(run(capsys, "train", "digits", "epochs=5", "--seed", "3", "--dry-run", "--name", "mine"))
    (values,) = (document for document in yaml.safe_load_all(text) if document)
    assert (values["epochs"], values["seed"], values["recipe"]) == (5, 3, "mine")
    path = tmp_path / "again.yaml"
    path.write_text(text.removesuffix("---"), encoding="utf-8")
    assert plain(load_recipe(str(path))) == values
    assert not (Path.cwd() / "runs" / "mine").exists()


def test_mode_and_seed_may_stand_in_the_overrides(capsys: Output) -> None:
    text = "\n".join(run(capsys, "train", "digits", "mode=baseline", "seed=4", "--dry-run"))
    values = next(yaml.safe_load_all(text))
    assert (values["mode"], values["seed"]) == ("baseline", 4)


def test_a_dry_comparison_prints_every_run(capsys: Output) -> None:
    text = "\n".join(run(capsys, "compare", "digits", "--runs", "2", "--modes", "baseline, emb", "--dry-run"))
    runs = [(values["mode"], values["seed"]) for values in yaml.safe_load_all(text) if values]
    assert runs == [("baseline", 0), ("emb", 0), ("baseline", 1), ("emb", 1)]


def test_training_ends_with_the_last_row_and_the_folder(capsys: Output, tmp_path: Path) -> None:
    assert cli.run(["train", "digits", *SMALL, "--output", str(tmp_path), "--mode", "baseline"]) == 0
    row, folder = capsys.readouterr().out.splitlines()
    assert "test_error" in row
    assert Path(folder) == RunFolder.at(tmp_path, "digits", "baseline", 0).path


def test_quiet_training_prints_nothing(capsys: Output, tmp_path: Path) -> None:
    assert run(capsys, "train", "digits", *SMALL, "epochs=1", "--output", str(tmp_path), "--quiet") == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["train"], "recipe"),
        (["train", "digits", "--nonsense"], "No such option: --nonsense"),
        (["train", "digits", "--seed", "one"], "Invalid value for '--seed'"),
        (["train", "digits", "--seed", "-1"], "seed: expected greater than or equal to 0, got -1"),
        (["train", "digts"], "did you mean digits?"),
        (["train", "nowhere.yaml"], "no recipe file nowhere.yaml"),
        (["train", "digits", "epoch=3"], "epoch: no such setting; did you mean epochs?"),
        (["train", "digits", "lr=0.1"], "lr: no such setting; did you mean optimizer.lr?"),
        (["train", "digits", "model.lr=0.1"], "model.lr: no such setting; did you mean optimizer.lr?"),
        (["train", "digits", "every=2"], "every: no such setting; did you mean schedule.every?"),
        (["train", "digits", "name=x"], "did you mean optimizer.name or schedule.name or model.name?"),
        (["train", "digits", "--epochs", "5"], "no such option --epochs; did you mean epochs=5?"),
        (["compare", "digits", "--lr=0.1"], "no such option --lr; did you mean optimizer.lr=0.1?"),
        (["train", "digits", "--batch-size"], "no such option --batch-size; did you mean batch_size=VALUE?"),
        (["report", "runs", "--epochs", "5"], "No such option: --epochs"),
        (["predict", "run", "test.en", "--output", "out"], "run: expected a run folder"),
        (["train", "digits", "epochs=three"], "epochs: expected"),
        (["train", "digits", "epochs"], "expected key=value"),
        (["train", "digits", "--mode", "soft"], "mode: expected"),
        (["train", "digits", "--mode", "emb-start"], "--table FILE"),
        (["train", "digits", "--table", "nowhere.safetensors"], "mode emb takes no label table"),
        (["train", "digits", "--mode", "emb-start", "--table", "nowhere.safetensors"], "nowhere.safetensors"),
        (["train", "digits", "--precision", "half"], "precision: expected"),
        (["train", "digits", "--device", "gpu"], "device: expected"),
        (["train", "digits", "--device", "cuda:99"], "device 'cuda:99' cannot be used here"),
        (["train", "digits", "--model", "nowhere:nothing"], "--model nowhere:nothing: cannot import module nowhere"),
        (["train", "digits", "--model", "resnet"], "model.name=resnet: expected one of mlp"),
        (["train", "digits", "model.name=resnet8", "model.hidden=null"], "images"),
        (["train", "digits", "emb.soft_after=1000000"], "emb.soft_after=1e+06"),
        (["train", "digits", "--name", "../outside"], "recipe: expected"),
        (["train", "digits", "--name", ""], "recipe: expected"),
        (["train", "digits", "--name", "a" * 201], "recipe: expected"),
        (["train", "digits", 'recipe="a\\0"'], "recipe: expected a name without control characters"),
        (["train", "digits", "epochs=" + "[" * 100_000], "is not a YAML value"),
        (["train", "digits", "epochs=&a [*a]"], "is not a YAML value"),
        (["train", "digits", "--data", "nowhere"], "--data nowhere"),
        (["train", "cifar10", "--data", "nowhere"], "--data nowhere does not exist: expected"),
        (["train", "mnist-mlp"], "https://huggingface.co/datasets/ylecun/mnist"),
        (["compare", "digits", "--runs", "0"], "compare.runs: expected greater than or equal to 1, got 0"),
        (["compare", "digits", "--runs", "9" * 20, "--dry-run"], "compare.runs: expected less than or equal to 10000"),
        (["compare", "digits", "--tune", "optimizer.lr=1,2", "--tune-runs", "9" * 20], "--tune-runs 9999"),
        (["compare", "digits", "--jobs", "0"], "--jobs 0: expected at least 1"),
        (["compare", "digits", "--modes", "soft"], "compare.modes"),
        (["compare", "digits", "--modes", ""], "compare.modes"),
        (["compare", "digits", "--modes", "emb,emb"], "twice"),
        (["compare", "digits", "--table", "a.safetensors"], "none of the modes"),
        (["compare", "digits", "--device", "gpu"], "device: expected"),
        (["report", "nowhere"], "nowhere"),
        (["neighbors", "nowhere"], "no label table at nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(capsys: Output, tmp_path: Path, arguments: list[str], expected: str) -> None:
    assert expected in refused(capsys, *arguments)
    assert not list(tmp_path.iterdir())  # nothing was written


def test_a_folder_of_another_recipe_is_refused_by_train_and_compare(capsys: Output, tmp_path: Path) -> None:
    small_run(tmp_path, "epochs=1")
    other = ["digits", *SMALL, "epochs=2", "--output", str(tmp_path)]
    for command in (
        ["train", *other],
        ["train", *other, "--resume"],
        ["compare", *other, "--modes", "emb", "--runs", "1"],
    ):
        line = refused(capsys, *command)
        assert "was run with epochs=1, not epochs=2" in line


def test_a_damaged_run_folder_is_one_line(capsys: Output, tmp_path: Path) -> None:
    folder = small_run(tmp_path, "epochs=1")
    resume = ["train", "digits", *SMALL, "epochs=1", "--output", str(tmp_path), "--resume", "--quiet"]
    (folder.path / "config.yaml").write_text("a: [1", encoding="utf-8")
    assert "config.yaml is damaged" in refused(capsys, *resume)


def test_a_file_where_the_output_folder_should_be_is_one_line(capsys: Output, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    train = ["train", "digits", *SMALL, "--output", str(tmp_path / "runs"), "--quiet"]
    assert "runs" in refused(capsys, *train, code=1)


def test_a_folder_where_a_file_should_be_is_named(capsys: Output, finished: RunFolder) -> None:
    (finished.path / "environment.json").unlink()
    (finished.path / "evaluation.json").unlink()
    (finished.path / "evaluation.json").mkdir()
    resume = ["train", "digits", *SMALL, "epochs=1", "--output", str(finished.path.parents[2]), "--resume", "--quiet"]
    assert refused(capsys, *resume, code=1) == f"{finished.path / 'evaluation.json'}: Is a directory"


def test_an_error_of_many_lines_is_cut_to_one(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("Error(s) in loading state_dict:\n\tsize mismatch\n\tsize mismatch")

    monkeypatch.setattr(training, "recipe_names", fail)
    line = refused(capsys, "recipes", code=1)
    assert re.fullmatch(r"RuntimeError: Error\(s\) in loading state_dict: \(labelemb/commands/training.py:\d+\)", line)


@pytest.fixture
def mistake_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ValueError from deep inside, such as a wrong shape in the loss."""

    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("shapes differ")

    monkeypatch.setattr(LabelEmbeddingLoss, "terms", fail)


TRAIN = ["train", "digits", *SMALL, "--quiet"]


@pytest.mark.usefixtures("mistake_of_ours")
def test_a_mistake_of_ours_is_code_1_with_its_class_and_place(capsys: Output) -> None:
    line = refused(capsys, *TRAIN, code=1)
    assert re.fullmatch(r"ValueError: shapes differ \(labelemb/classify/task.py:\d+\)", line)


@pytest.mark.usefixtures("mistake_of_ours")
@pytest.mark.parametrize("arguments", [["--traceback", *TRAIN], [*TRAIN, "--traceback"], TRAIN])
def test_the_whole_traceback_is_shown_where_it_is_asked_for(
    capsys: Output, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    if arguments is TRAIN:
        monkeypatch.setenv("LABELEMB_TRACEBACK", "1")
    assert cli.run(arguments) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert any("in fail" in line for line in lines)
    assert lines[-1].startswith("labelemb: ValueError: shapes differ (")


def test_every_command_takes_the_option_for_tracebacks(capsys: Output) -> None:
    for command in ("recipes", "train", "compare", "preprocess", "predict", "report", "neighbors"):
        assert "--traceback" in "\n".join(run(capsys, command, "--help"))
    assert "did you mean epochs=5?" in refused(capsys, "train", "digits", "--epochs", "5")
    assert cli.run(["--traceback", "train", "digits", "--epochs", "5"]) == 2
    assert "did you mean epochs=5?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.yaml", b"a: [1"),
        ("config.yaml", b"recipe: 2026-02-30"),
        ("config.yaml", b"\xff"),
        ("config.yaml", b"recipe: digits\nmode: emb\nseed: first"),
        ("environment.json", b"{"),
        ("evaluation.json", b"[]"),
        ("metrics.jsonl", b"{}\n"),
        ("metrics.jsonl", b'{"epoch": 1, "test_error": "none"}\n'),
        ("label_embedding.safetensors", b"half"),
        ("config.yaml", b"[" * 100_000),
        ("config.yaml", b"recipe: digits\nmode: emb\nseed: {a: 1}"),
        ("config.yaml", b"recipe: digits\nmode: emb\nseed: 0\nreport: {labels: {a: 1}}"),
        ("environment.json", b'{"end": "now", "earlier": [3]}'),
        ("environment.json", b'{"end": "now", "device": {}}'),
        ("evaluation.json", b'{"calibration": [{"count": 1}]}'),
        ("evaluation.json", b'{"label_names": 3}'),
        ("metrics.jsonl", b'{"epoch": 1, "test_error": {}}\n'),
        ("metrics.jsonl", b"[" * 100_000 + b"\n{}\n"),
    ],
)
def test_every_damaged_file_of_a_run_is_told_by_its_name_and_code_2(
    capsys: Output, finished: RunFolder, name: str, content: bytes
) -> None:
    (finished.path / name).write_bytes(content)
    assert name in refused(capsys, "report", str(finished.path))


def test_what_is_said_ends_where_a_screen_does_with_what_was_given_cut_in_its_middle(capsys: Output) -> None:
    line = refused(capsys, "train", "digits", "--device", "x" * 100_000)
    assert len(line) < 1600
    assert line.startswith("digits: device: expected pattern")
    assert line.endswith("xxx'")


@pytest.fixture
def finished(tmp_path: Path) -> RunFolder:
    """A run of one epoch that came to its end."""
    return small_run(tmp_path / "runs", "epochs=1")


def test_what_cannot_be_predicted_from_is_code_2(capsys: Output, finished: RunFolder) -> None:
    predict = ["predict", str(finished.path), "--output", "out.csv"]
    (state,) = finished.checkpoints.glob("step-*/state.json")
    state.write_text("{", encoding="utf-8")
    assert "is damaged" in refused(capsys, *predict)


def test_a_run_is_not_resumed_from_a_checkpoint_of_other_shapes(capsys: Output, finished: RunFolder) -> None:
    (finished.path / "environment.json").unlink()
    resume = ["train", "digits", *SMALL, "epochs=1", "--output", str(finished.path.parents[2]), "--resume", "--quiet"]
    position: dict[str, Any] = {"epoch": 1, "batch": 0, "seconds": 0.0}
    wrong: list[dict[str, Any]] = [{"epoch": "one"}, {"epoch": 1.0}, {"batch": 99}, {"seconds": "x"}]
    changes: list[dict[str, Any]] = [{"position": position | each} for each in wrong]
    for change in (*changes, {"sums": 3}, {"sums": torch.zeros(2)}):
        state = load_newest(finished.checkpoints)
        assert state is not None
        save_checkpoint(finished.checkpoints, 99, state | change)
        assert "the checkpoint does not fit this run" in refused(capsys, *resume)
        shutil.rmtree(finished.checkpoints / "step-00000099")


def test_calibrated_predictions_of_a_run_without_a_temperature_are_code_2(
    capsys: Output, finished: RunFolder, tmp_path: Path
) -> None:
    predict = ["predict", str(finished.path), "--output", str(tmp_path / "out.csv")]
    assert "no calibration.json" in refused(capsys, *predict, "--calibrated")
    assert run(capsys, *predict, "--raw")[-1].endswith("% of 719 test images")
    assert (tmp_path / "out.csv").is_file()


@pytest.mark.parametrize("content", [b"half", None])
def test_a_table_that_cannot_be_read_is_code_2(capsys: Output, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "table.safetensors"
    if content is None:
        LabelTable(3).save(path)  # of other labels
    else:
        path.write_bytes(content)
        assert "table.safetensors" in refused(capsys, "neighbors", str(path))
    line = refused(capsys, "train", "digits", *SMALL, "--mode", "emb-start", "--table", str(path), "--quiet")
    assert "table" in line
    assert "no label table at" in refused(capsys, "train", "digits", *SMALL, "--mode", "emb-start", "--table", "none")


def test_what_the_criterion_refuses_is_code_2(capsys: Output, tmp_path: Path) -> None:
    LabelTable(3).save(tmp_path / "table.safetensors")
    table = ["--mode", "emb-start", "--table", str(tmp_path / "table.safetensors")]
    assert "the table has 3 labels" in refused(capsys, "train", "digits", *SMALL, *table, "--quiet")
    assert "mode emb-start has no such setting" in refused(capsys, "train", "digits", *SMALL, *table, "emb.rank=3")


@pytest.mark.parametrize(
    "options", [["--char", "--bpe", "9"], ["--src-length", "0"], ["--train-src", "nowhere"], ["--lcsts", "nowhere"]]
)
def test_a_mistake_in_the_options_of_preprocess_is_code_2(capsys: Output, options: list[str]) -> None:
    refused(capsys, "preprocess", "--save-data", "corpus", *options)


def test_the_options_of_preprocess_have_the_defaults_and_sentences_of_its_settings(capsys: Output) -> None:
    help_text = " ".join(" ".join(line.strip("│ ") for line in run(capsys, "preprocess", "--help")).split())
    assert "--no-lower" not in help_text
    for field in dataclasses.fields(PreprocessOptions):
        assert f"--{field.name.replace('_', '-')} " in help_text
        if isinstance(field.default, int) and field.default is not False:
            assert f"[default: {field.default}]" in help_text


def test_a_missing_package_is_named_with_its_extra(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ModuleNotFoundError("No module named 'tokenizers'", name="tokenizers")

    monkeypatch.setattr(training, "recipe_names", fail)
    assert refused(capsys, "recipes") == (
        "this command needs tokenizers: "
        "pip install 'labelemb[text]', or in a checkout of labelemb: pip install '.[text]'"
    )


def test_one_s_own_network_is_trained(capsys: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("my_networks")
    module.__dict__["small"] = lambda num_classes: nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
    monkeypatch.setitem(sys.modules, "my_networks", module)
    model = ["model.hidden=null", "--model", "my_networks:small", "--output", str(tmp_path)]
    assert cli.run(["train", "digits", *SMALL, "epochs=1", *model, "--quiet"]) == 0
    folder = RunFolder.at(tmp_path, "digits", "emb", 0)
    assert folder.config["model"]["name"] == "my_networks:small"
    capsys.readouterr()
    path = tmp_path / "stranger.yaml"
    path.write_text(yaml.safe_dump(folder.config | {"recipe": "stranger"}), encoding="utf-8")
    assert "a recipe cannot name code to import" in refused(capsys, "train", str(path))


def test_a_run_folder_cannot_name_code_to_import(
    capsys: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "strange_code.py").write_text("def network(num_classes): raise AssertionError('imported')")
    folder = small_run(tmp_path / "runs", "epochs=1")
    folder.write_config(folder.config | {"model": {"name": "strange_code:network"}})
    monkeypatch.syspath_prepend(tmp_path)
    line = refused(capsys, "predict", str(folder.path), "--output", "out.csv")
    assert "a run folder cannot name code to import; pass --model strange_code:network" in line
    assert "strange_code" not in sys.modules
    line = refused(capsys, "predict", str(folder.path), "--output", "out.csv", "--model", "strange_code:network")
    assert "imported" in line  # asked for by name, it is


def test_a_folder_of_odd_name_is_a_folder(capsys: Output, tmp_path: Path) -> None:
    data = write_image_cache(tmp_path / "schöne Bilder 图片 [1].safetensors")
    small = ["model.name=mlp", "model.hidden=[4]", "epochs=1", "batch_size=4", "--device", "cpu"]
    output = str(tmp_path / "Läufe und 运行 #1")
    lines = run(capsys, "train", "cifar10", *small, "--data", str(data), "--output", output, "--quiet")
    assert not lines
    assert RunFolder.at(Path(output), "cifar10", "emb", 0).is_finished


def test_the_command_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["labelemb", "train", "digits", "--name", "a b"])
    environment = small_run(tmp_path, "epochs=1").environment
    assert environment["command"] == "labelemb train digits --name 'a b'"
    assert environment["torch"] == torch.__version__
    assert environment["start"] <= environment["end"]
    assert set(environment) >= {"labelemb", "commit", "python", "system", "device", "threads"}


def test_neighbors_are_printed_with_their_values(capsys: Output, tmp_path: Path) -> None:
    table = LabelTable(3, label_names=["cat", "dog", "tree"])
    with torch.no_grad():
        table.weight.copy_(torch.tensor([[3.0, 2.0, 0.0], [2.0, 3.0, 0.0], [0.0, 1.0, 3.0]]))
    table.save(tmp_path / "label_embedding.safetensors")
    soft = table.soft_labels()
    lines = run(capsys, "neighbors", str(tmp_path), "-k", "1")
    assert lines == [
        f"cat\tdog {soft[0, 1]:.3f}",
        f"dog\tcat {soft[1, 0]:.3f}",
        f"tree\tdog {soft[2, 1]:.3f}",
    ]
    assert run(capsys, "neighbors", str(tmp_path / "label_embedding.safetensors"), "tree", "-k", "1") == lines[2:]
    assert "mouse" in refused(capsys, "neighbors", str(tmp_path), "mouse")
    assert "k must be at least 1" in refused(capsys, "neighbors", str(tmp_path), "-k", "0")


def test_neighbors_of_a_folder_of_runs_names_one(capsys: Output, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "digits" / "emb" / "seed-00"
    folder.mkdir(parents=True)
    LabelTable(3).save(folder / "label_embedding.safetensors")
    line = refused(capsys, "neighbors", str(tmp_path / "runs" / "digits"))
    assert line.endswith(f"expected the folder of a run in a mode that learns one, such as emb, e.g. {folder}")


def test_neighbors_of_a_table_without_names_are_asked_for_by_number(capsys: Output, tmp_path: Path) -> None:
    LabelTable(3).save(tmp_path / "table.safetensors")
    path = str(tmp_path / "table.safetensors")
    assert run(capsys, "neighbors", path, "2", "-k", "2") == ["2\t0 0.212  1 0.212"]
    assert "cat" in refused(capsys, "neighbors", path, "cat")


def test_a_report_is_written_again_from_run_folders(capsys: Output, tmp_path: Path) -> None:
    small_run(tmp_path)
    small_run(tmp_path, mode="baseline")
    lines = run(capsys, "report", str(tmp_path / "digits"))
    assert Path(lines[-1]).is_file()
    assert any("baseline" in line for line in lines)


def test_a_report_without_a_finished_run_is_a_page_that_says_so(capsys: Output, tmp_path: Path) -> None:
    folder = small_run(tmp_path)
    folder.write_environment(folder.environment | {"end": None})
    lines = run(capsys, "report", str(tmp_path))
    assert lines[-2].startswith("Left out, unfinished: emb, seed 0")
    assert "No run has finished yet" in Path(lines[-1]).read_text(encoding="utf-8")


def test_a_report_of_an_empty_folder_is_a_page_that_says_so(capsys: Output, tmp_path: Path) -> None:
    lines = run(capsys, "report", str(tmp_path))
    assert lines[0] == f"no runs (folders with a config.yaml) in {tmp_path}"
    assert "There is nothing to show" in Path(lines[1]).read_text(encoding="utf-8")


def test_the_summary_is_printed_as_json_and_nothing_written(capsys: Output, tmp_path: Path) -> None:
    small_run(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    summary = json.loads("\n".join(run(capsys, "report", str(tmp_path), "--json")))
    assert list(summary["modes"]) == ["emb"]
    assert sorted(tmp_path.rglob("*")) == before
    assert "no runs" in refused(capsys, "report", str(folder_in(tmp_path)), "--json")


def folder_in(path: Path) -> Path:
    """A new empty folder."""
    (path / "empty").mkdir()
    return path / "empty"


def test_recipes_are_reported_side_by_side(capsys: Output, tmp_path: Path) -> None:
    small_run(tmp_path)
    small_run(tmp_path, "recipe=other")
    lines = run(capsys, "report", str(tmp_path))
    assert [line for line in lines if line.endswith(":")] == ["digits:", "other:"]
    assert {each["recipe"] for each in json.loads((tmp_path / "summary.json").read_text())["recipes"]} == {
        "digits",
        "other",
    }


def test_a_port_that_cannot_be_served_on_is_one_line(capsys: Output, tmp_path: Path) -> None:
    line = refused(capsys, "report", str(tmp_path), "--serve", "--bind", "192.0.2.1", "--port", "0")
    assert "--bind 192.0.2.1 --port 0: cannot listen there" in line


@pytest.mark.parametrize(
    ("command", "way_on"), [("train", "go on with --resume"), ("compare", "give the same command again")]
)
def test_a_full_disk_is_told_with_the_file_and_the_way_on(
    capsys: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, way_on: str
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = small_run(tmp_path, "report.labels=[1]").path
    monkeypatch.setattr(os, "fsync", full)
    which = ["--resume"] if command == "train" else ["--modes", "emb", "--runs", "1"]
    line = refused(capsys, command, "digits", *SMALL, *which, "--output", str(tmp_path), "--quiet", code=1)
    assert line == f"no space left for {folder / 'config.yaml'}: free some, then {way_on}"


def test_an_installation_without_the_extra_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    from labelemb.__main__ import main

    monkeypatch.delitem(sys.modules, "labelemb.commands.app", raising=False)
    monkeypatch.setitem(sys.modules, "typer", None)  # importing it now fails as if it were not there
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        "labelemb: the command line needs typer: "
        "pip install 'labelemb[train]', or in a checkout of labelemb: pip install '.[train]'\n"
    )
