"""What docs/method.md, docs/architecture.md and the README's tree name is there: files, functions, tests, imports."""

import re
from collections.abc import Iterator
from importlib import import_module
from operator import attrgetter
from pathlib import Path

import pytest
from tests.test_imports import FILES, MAY_IMPORT, SOURCE

ROOT = Path(__file__).parent.parent
METHOD, ARCHITECTURE = ROOT / "docs" / "method.md", ROOT / "docs" / "architecture.md"
PAGES = [METHOD, ARCHITECTURE]
WITH_LINKS = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
FENCE = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
REFERENCE = re.compile(r"((?:`[\w.]+`, )*`[\w.]+`) \(`([^`]+)`\)")  # `name`, `name` (`file`)
PATH = re.compile(r"[a-z][\w.-]*(/[\w.-]+)+/?|\w+\.py")
NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)?")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def spans(text: str) -> list[str]:
    """What stands in backticks, outside of fenced blocks."""
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", text))


def named_lines(kind: str) -> list[str]:
    """The lines of docs/method.md that name code ("Code") or tests ("Test")."""
    return [line for line in text_of(METHOD).splitlines() if line.startswith(f"{kind}:")]


def references(kind: str) -> list[tuple[str, str]]:
    """Every (name, file) of those lines."""
    return [
        (name, file)
        for line in named_lines(kind)
        for names, file in REFERENCE.findall(line)
        for name in re.findall(r"`([^`]+)`", names)
    ]


def assert_has(file: Path, name: str) -> None:
    """The module of a file defines this name, or something that it defines has it as an attribute."""
    assert file in FILES.values(), f"there is no module {file}"
    module = import_module(next(module for module, path in FILES.items() if path == file))
    first = getattr(module, name.partition(".")[0], None)
    assert getattr(first, "__module__", module.__name__) == module.__name__, f"{file} only imports {name}"
    try:
        attrgetter(name)(module)
    except AttributeError:
        pytest.fail(f"{file} has no {name}")


def sections() -> Iterator[tuple[int, str]]:
    """The numbered sections of docs/method.md."""
    for part in re.split(r"^## ", text_of(METHOD), flags=re.MULTILINE)[1:]:
        yield int(part.split(".")[0]), part


def steps() -> Iterator[tuple[str, str]]:
    """The numbered steps of docs/architecture.md, each (file, name): a name belongs to the file before it."""
    items = re.findall(r"^\d+\. .*(?:\n .*)*", text_of(ARCHITECTURE), flags=re.MULTILINE)
    for item in items:
        file = ""
        for span in spans(item):
            if span.endswith(".py"):
                file = span
            elif NAME.fullmatch(span) and not span.endswith((".json", ".md", ".html")):
                yield file, span


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_on_a_page_is_there(page: Path) -> None:
    paths = [span for span in spans(text_of(page)) if PATH.fullmatch(span)]
    assert len(paths) > 10
    missing = [path for path in paths if not any((folder / path).exists() for folder in (ROOT, SOURCE))]
    assert not missing, f"{page.name} names what is not there: {', '.join(missing)}"


@pytest.mark.parametrize("page", WITH_LINKS, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text_of(page)))
    assert links or page not in [*PAGES, ROOT / "README.md"]
    for link in links:
        if link.startswith("http"):
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.is_file(), f"{page.name} links to {link}"
        headings = re.findall(r"^#+ (.+)$", text_of(target), flags=re.MULTILINE) if anchor else []
        anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert not anchor or anchor in anchors, f"{page.name} links to {link}"


def test_code_and_test_lines_are_written_as_they_are_read() -> None:
    for line in [*named_lines("Code"), *named_lines("Test")]:
        rest = REFERENCE.sub("", line.partition(":")[2]).strip(" ;-")
        assert not rest, f"not `name` (`file`): {rest}"


@pytest.mark.parametrize(("name", "file"), references("Code"))
def test_the_code_of_a_formula_is_there(name: str, file: str) -> None:
    assert_has(ROOT / file, name)


@pytest.mark.parametrize(("name", "file"), references("Test"))
def test_the_test_of_a_formula_is_there(name: str, file: str) -> None:
    assert re.search(rf"^def {name}\(", text_of(ROOT / file), flags=re.MULTILINE), f"{file} has no {name}"


def test_every_formula_is_followed_by_its_test() -> None:
    assert [number for number, _ in sections()] == list(range(1, 13))
    for number, section in sections():
        assert "\nTest: " in section, f"section {number} names no test"
        for part in re.split(r"^(?=\*\*|#)", section, flags=re.MULTILINE):  # a bold word begins another formula
            *tested, rest = re.split(r"^Test: .*$", part, flags=re.MULTILINE)
            assert "\n    " not in rest, f"section {number}: a formula without a test in {part[:60]!r}"
            for text in tested:
                blocks = re.findall(r"(?:^    .*\n(?:\n(?=    ))*)+", text, flags=re.MULTILINE)
                assert len(blocks) <= 1, f"section {number}: only the last of {blocks} has a test"


@pytest.mark.parametrize(("file", "name"), [*steps()])
def test_what_a_command_passes_on_its_way_is_there(file: str, name: str) -> None:
    assert_has(SOURCE / file, name)


def test_the_tree_of_folders_names_what_is_there() -> None:
    tree = FENCE.findall(text_of(ARCHITECTURE))[0]
    there = {path.name for path in SOURCE.rglob("*")}
    assert set(MAY_IMPORT) <= set(re.findall(r"^  (\w+)/", tree, flags=re.MULTILINE))
    named = re.findall(r"\b\w+\.py\b", tree) + re.findall(r"^ +(\w+)/", tree, flags=re.MULTILINE)
    assert not set(named) - there


def test_the_arrows_are_those_that_the_imports_keep_to() -> None:
    drawn: dict[str, set[str]] = {folder: set() for folder in MAY_IMPORT}
    for one, other in re.findall(r"^ +(\w+) --> (\w+)$", text_of(ARCHITECTURE), flags=re.MULTILINE):
        drawn[one].add("losses.catalogue" if other == "catalogue" else other)
    assert drawn == MAY_IMPORT


def test_the_readme_s_tree_names_every_folder_and_every_file_beside_them() -> None:
    tree = next(block for block in FENCE.findall(text_of(ROOT / "README.md")) if block.startswith("src/labelemb/"))
    for path in SOURCE.iterdir():
        if path.name != "__pycache__":
            assert re.search(rf"(?<![\w/]){re.escape(path.name)}\b", tree), f"the tree does not name {path.name}"
