"""Every command and every line of code in the README runs, small."""

import importlib.util
import json
import re
import shlex
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.small_runs import SMALL

from labelemb import LabelEmbeddingLoss
from labelemb import __main__ as cli
from labelemb.experiments import workers
from labelemb.experiments.job import Job, execute
from labelemb.experiments.standing import Standing, standing
from labelemb.settings.recipe import recipe_names

ROOT = Path(__file__).parent.parent
OWN_DATA = ("wine.csv",)
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
    return [block for name, block in found if name == language]


def commands() -> list[list[str]]:
    """The commands of all `sh` blocks, and those in running text, as lists of words."""
    lines = [line for block in blocks("sh") for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`(labelemb (?:train|compare|report|recipes|neighbors) [^`]+)`", README)
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def own_files() -> dict[str, str]:
    """The blocks that begin with a comment of a file's name."""
    named = [(re.match(r"# (\w+\.\w+)", block), block) for block in blocks("yaml") + blocks("python")]
    return {match[1]: block for match, block in named if match}


def missing(block: str) -> set[str]:
    """The packages that a block imports and that are not here: those of the trainers are extras."""
    named = set(re.findall(r"^(?:from|import) (\w+)", block, flags=re.MULTILINE))
    return {name for name in named if importlib.util.find_spec(name) is None}


def write_own_data() -> None:
    """What the README calls its reader's own data."""
    rows = [f"{row},{row % 3},{'red' if row % 2 else 'white'}" for row in range(60)]
    Path("wine.csv").write_text("\n".join(["alcohol,sugar,label", *rows]) + "\n", encoding="utf-8")


def mean_of_runs(results: str, mode: str, column: str) -> float:
    """The mean over the runs of a folder in results/ of a column's last value."""
    files = (ROOT / "results" / results / mode).glob("seed-*/metrics.jsonl")
    return statistics.fmean(json.loads(path.read_text(encoding="utf-8").splitlines()[-1])[column] for path in files)


def in_this_process(jobs: list[Job], num_workers: int, progress: Callable[[Standing], None]) -> None:
    for job in jobs:
        execute(job)
    progress(standing(jobs))


def test_the_readme_shows_something_to_run() -> None:
    assert blocks("python")
    assert {words[0] for words in commands()} >= {"make", "labelemb"}
    assert {words[1] for words in commands() if words[0] == "labelemb"} >= {"train", "compare", "report"}


@pytest.mark.filterwarnings("default")  # of the trainers, whatever they are
def test_python_blocks_run_one_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for block in blocks("python"):
        if not missing(block):
            exec(compile(block, "README.md", "exec"), namespace)
    loss, criterion = namespace["loss"], namespace["criterion"]
    assert isinstance(loss, torch.Tensor)
    assert isinstance(criterion, LabelEmbeddingLoss)
    assert loss.isfinite()
    assert criterion.aux_head is not None
    assert criterion.aux_head.weight.grad is not None
    assert criterion.aux_head.weight.grad.abs().sum() > 0


def test_labelemb_commands_run_one_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workers, "execute_all", in_this_process)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_networks", raising=False)  # of another test
    for file, text in own_files().items():
        Path(file).write_text(text, encoding="utf-8")
    for block in blocks("python"):
        if ".save(" in block:  # a file that a command reads
            exec(compile(block, "README.md", "exec"), {})
    write_own_data()
    for index, (program, *arguments) in enumerate(commands()):
        if program != "labelemb":
            continue
        small: tuple[str, ...] = SMALL if arguments[0] in ("train", "compare") else ()
        if "--model" in arguments:
            small = tuple(setting for setting in small if not setting.startswith("model."))
        # A folder holds one run: a second setting of the same recipe needs another name.
        overridden = any(re.fullmatch(r"[\w.]+=\S+", word) for word in arguments)
        name = ["--name", f"again-{index}"] if overridden and "--name" not in arguments else []
        if arguments[:2] == ["compare", "digits"] and "--runs" not in arguments:
            name += ["--runs", "1"]  # of twenty
        arguments = [*arguments[:2], *small, *arguments[2:], *name]
        assert cli.run(arguments) == 0, arguments
    assert (tmp_path / "runs" / "digits" / "report.html").is_file()
    del sys.modules["my_networks"]


def test_make_targets_are_there_and_do_what_the_text_says() -> None:
    targets = [words[1] for words in commands() if words[0] == "make"]
    assert targets == ["demo", "test"]
    for target, last in {"demo": "labelemb compare digits", "test": "python -m pytest"}.items():
        shown = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=True)
        # Run by `make test`, this make says in what folder it is, around its commands.
        said = [line for line in shown.stdout.splitlines() if not line.startswith("make[")]
        assert said[-1].endswith(last)


def test_every_other_program_is_known() -> None:
    assert {words[0] for words in commands()} <= {"make", "source", "labelemb", "pip", "torchrun"}


def test_what_pip_is_told_to_install_is_this_checkout_with_extras_it_has() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    told = [words[1:] for words in commands() if words[0] == "pip"]
    assert ["install", "."] in told
    assert ["install", ".[train]"] in told
    for named in re.findall(r"(?:\.|labelemb)\[([\w,]+)\]", README):
        assert set(named.split(",")) <= set(extras)


def test_what_torchrun_is_told_to_run_is_there() -> None:
    """tests/test_ddp_example.py runs the one, tests/training/test_processes.py such commands as the other."""
    example, train = [words[1:] for words in commands() if words[0] == "torchrun"]
    assert example == ["--nproc-per-node", "2", "examples/ddp.py"]
    assert (ROOT / "examples" / "ddp.py").is_file()
    assert train[:4] == ["--nproc-per-node", "2", "-m", "labelemb"]
    assert cli.run([*train[4:], "--dry-run"]) == 0


def test_the_price_in_calibration_is_that_of_the_results() -> None:
    found = re.search(r"On digits the expected calibration error is\s(.*?)\.\sWhere", README, flags=re.DOTALL)
    assert found is not None
    said = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", found[1])]
    modes = ("emb", "baseline", "smoothing")
    measured = [
        value
        for results in ("digits-table-lr", "mnist-mlp")
        for column, factor, places in (("test_ece", 100, 0), ("test_nll", 1, 2))
        for value in (round(factor * mean_of_runs(results, mode, column), places) for mode in modes)
    ]
    assert said == measured


def test_every_recipe_named_in_a_command_is_there() -> None:
    named = {words[2] for words in commands() if words[:2] in (["labelemb", "train"], ["labelemb", "compare"])}
    assert named <= {*recipe_names(), *own_files(), *OWN_DATA}


def test_every_recipe_stands_in_the_readme() -> None:
    assert not [name for name in recipe_names() if f"`{name}`" not in README]


def test_every_file_of_the_tree_is_there() -> None:
    (tree,) = [block for block in blocks("") if "src/labelemb/" in block]
    for line in tree.splitlines():
        name = line.split()[0]
        parent = ROOT / "src" / "labelemb" if line.startswith("  ") else ROOT
        assert (parent / name).exists(), name
