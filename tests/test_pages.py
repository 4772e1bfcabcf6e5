"""The pages of docs/ for users: their code runs, their commands are there, their links and words lead somewhere."""

import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tests.small_runs import SMALL
from tests.test_readme import in_this_process

import labelemb
from labelemb import __main__ as cli
from labelemb.commands.app import command_line
from labelemb.experiments import workers
from labelemb.report.comparison import comparison, summary_text
from labelemb.report.summary import read_results

ROOT = Path(__file__).parent.parent
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
WITH_CODE = [name for name, page in PAGES.items() if "```python\n" in page]
WITH_COMMANDS = ["start"]  # those whose commands need nothing but digits


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    return [block for name, block in found if name == language]


def commands(page: str) -> list[list[str]]:
    """The `labelemb` commands of all blocks that are not Python, those cut into several lines as one."""
    lines = "\n".join(blocks(page, "sh") + blocks(page, "")).replace("\\\n", " ").splitlines()
    return [
        shlex.split(line, comments=True)[1:] for line in lines if line.startswith("labelemb ") and "..." not in line
    ]


def small(arguments: list[str]) -> list[str]:
    """The same command on a few images, with one run a mode."""
    if arguments[0] not in ("train", "compare"):
        return arguments
    settings = list(SMALL) if not any(word.startswith("model.") for word in arguments) else list(SMALL[:3])
    runs = ["--runs", "1"] if arguments[0] == "compare" else []
    runs += ["--tune-runs", "1"] if "--tune" in arguments else []
    if "--runs" in arguments:
        place = arguments.index("--runs")
        arguments = arguments[:place] + arguments[place + 2 :]
    return [*arguments[:2], *settings, *arguments[2:], *runs]


def test_the_pages_of_the_site_have_code_and_commands() -> None:
    assert {"own-loop", "large-label-sets"} <= {*WITH_CODE}
    assert {words[0] for words in commands("start")} >= {"compare", "train", "predict", "neighbors", "recipes"}


@pytest.mark.parametrize("page", WITH_CODE)
def test_python_blocks_run_one_after_another(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if "DATA/" in "".join(blocks(page, "python")):
        if "LABELEMB_DATA" not in os.environ:
            pytest.skip("LABELEMB_DATA names no folder with what the page calls DATA")
        Path("DATA").symlink_to(os.environ["LABELEMB_DATA"])
    namespace: dict[str, object] = {}
    for block in blocks(page, "python"):
        exec(compile(block, f"docs/{page}.md", "exec"), namespace)


@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_commands_run_one_after_another(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workers, "execute_all", in_this_process)
    for arguments in commands(page):
        assert cli.run(small(arguments)) == 0, arguments


@pytest.mark.parametrize(
    ("page", "arguments"),
    [(page, words) for page in PAGES for words in commands(page)],
    ids=lambda value: str(value)[:40],
)
def test_commands_have_options_that_there_are(page: str, arguments: list[str]) -> None:
    group = command_line()
    name, *rest = arguments
    assert name in group.commands, f"docs/{page}.md: labelemb {name}"
    group.commands[name].make_context(name, rest)  # raises where an option is unknown


def test_what_start_shows_is_what_the_runs_gave() -> None:
    shown = next(block for block in blocks("start", "") if block.startswith("mode "))
    assert shown.rstrip() == summary_text(read_results([ROOT / "results" / "digits-table-lr"])).rstrip()


def test_reading_the_page_has_every_part_of_the_page_in_its_order() -> None:
    template = (ROOT / "src" / "labelemb" / "report" / "page" / "template.html").read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", PAGES["reading-the-page"], flags=re.MULTILINE) == re.findall(
        r"<h2>(.+)</h2>", template
    )


def test_reading_the_page_has_every_column() -> None:
    columns = comparison(read_results([ROOT / "results" / "digits-table-lr"])).columns[1:]
    named = {name for line in PAGES["reading-the-page"].splitlines() for name in re.findall(r"`([^`]+)`", line)}
    assert len(columns) > 10
    assert {column.removesuffix(" (sd)") for column in columns} <= named


def test_the_reference_has_every_public_name() -> None:
    named = set(re.findall(r"^::: (\S+)$", PAGES["reference"], flags=re.MULTILINE))
    homes: dict[str, Any] = {name: getattr(labelemb, name) for name in labelemb.__all__}
    assert {f"{home.__module__}.{name}" for name, home in homes.items()} <= named


def test_every_page_is_in_the_site_s_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert not [name for name in PAGES if f": {name}.md\n" not in navigation]


@pytest.mark.skipif(find_spec("zensical") is None, reason="the extra docs is not installed: `make site` does so")
def test_the_site_is_built_without_a_broken_link() -> None:
    done = subprocess.run([sys.executable, "docs/build.py"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
