"""Every command and every line of code in the README runs, small."""

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.small_runs import SMALL

from labelemb import LabelEmbeddingLoss, cli, compare
from labelemb.compare import Job, Standing, execute, standing
from labelemb.recipe import recipe_names

ROOT = Path(__file__).parent.parent
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


def in_this_process(jobs: list[Job], num_workers: int, report: Callable[[Standing], None]) -> None:
    for job in jobs:
        execute(job)
    report(standing(jobs))


def test_the_readme_shows_something_to_run() -> None:
    assert blocks("python")
    assert {words[0] for words in commands()} >= {"make", "labelemb"}
    assert {words[1] for words in commands() if words[0] == "labelemb"} >= {"train", "compare", "report"}


def test_python_blocks_run_one_after_another() -> None:
    namespace: dict[str, object] = {}
    for block in blocks("python"):
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
    monkeypatch.setattr(compare, "execute_all", in_this_process)
    for index, (program, *arguments) in enumerate(commands()):
        if program != "labelemb":
            continue
        small = SMALL if arguments[0] in ("train", "compare") else ()
        # A folder holds one run: a second setting of the same recipe needs another name.
        overridden = any(re.fullmatch(r"[\w.]+=\S+", word) for word in arguments)
        name = ["--name", f"again-{index}"] if overridden else []
        if arguments[:2] == ["compare", "digits"] and "--runs" not in arguments:
            name += ["--runs", "1"]  # of twenty
        arguments = [*arguments[:2], *small, *arguments[2:], *name]
        assert cli._run(arguments) == 0, arguments
    assert (tmp_path / "runs" / "digits" / "report.html").is_file()


def test_make_targets_are_there_and_do_what_the_text_says() -> None:
    targets = [words[1] for words in commands() if words[0] == "make"]
    assert targets == ["demo", "test"]
    for target, last in {"demo": "labelemb compare digits", "test": "python -m pytest"}.items():
        shown = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=True)
        # Run by `make test`, this make says in what folder it is, around its commands.
        said = [line for line in shown.stdout.splitlines() if not line.startswith("make[")]
        assert said[-1].endswith(last)


def test_every_other_program_is_known() -> None:
    assert {words[0] for words in commands()} <= {"make", "source", "labelemb"}


def test_every_recipe_named_in_a_command_is_there() -> None:
    named = {words[2] for words in commands() if words[:2] in (["labelemb", "train"], ["labelemb", "compare"])}
    assert named <= set(recipe_names())


def test_every_recipe_stands_in_the_readme() -> None:
    assert not [name for name in recipe_names() if f"`{name}`" not in README]


def test_every_file_of_the_tree_is_there() -> None:
    (tree,) = [block for block in blocks("") if "src/labelemb/" in block]
    for line in tree.splitlines():
        name = line.split()[0]
        parent = ROOT / "src" / "labelemb" if line.startswith("  ") else ROOT
        assert (parent / name).exists(), name
