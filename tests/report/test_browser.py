"""The page in a real browser, from the disk, with the network off: Debian's Chromium, driven by Playwright."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import which
from typing import Any

import pytest
from tests.report.conftest import write_run

from labelemb.report.recipes import read_recipes
from labelemb.report.write import page as made_page
from labelemb.run_folder import RunFolder

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: the extra dev has it")
CHROMIUM = which("chromium") or which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: `apt-get install chromium` brings it")

MakeRun = Callable[..., RunFolder]
Show = Callable[..., "Opened"]
HOSTILE = [
    "<script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "\"quotes' and `ticks`",
    "\u202eright to left\u202c \u05d0\u05d1\u05d2",
    "🐎🇻🇳👩‍👩‍👧",
    "x" * 500,
    "two\nlines\u2028three",
    "%{x} $x^2$ {{ title }} </script><b>",
    "<a href='javascript:window.hacked=1'>link</a>",
    "&lt;b&gt;",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


class Opened:
    """A page on the screen, and what the browser complained of."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.context = browser.new_context(offline=True, **({"viewport": {"width": 1280, "height": 900}} | options))
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self._asked(request.url))
        self.page.goto(path.as_uri())

    def _asked(self, url: str) -> None:
        if not url.startswith(("file:", "data:", "blob:")):
            self.complaints.append(f"asked for {url}")

    def chart(self, kind: str) -> Any:
        """A chart, scrolled to and drawn."""
        found = self.page.locator(f'[data-chart="{kind}"]')
        found.scroll_into_view_if_needed()
        found.locator(".main-svg").first.wait_for()
        return found

    def draw_all(self) -> None:
        for kind in self.page.locator("[data-chart]").evaluate_all("nodes => nodes.map(node => node.dataset.chart)"):
            self.chart(kind)


@pytest.fixture
def show(browser: Any) -> Iterator[Show]:
    """show(path, viewport=..., ...) opens a page; a complaint fails the test."""
    opened: list[Opened] = []

    def open_page(path: Path, **options: Any) -> Opened:
        opened.append(Opened(browser, path, **options))
        return opened[-1]

    yield open_page
    for each in opened:
        each.context.close()
        assert each.complaints == []


def report(folder: Path) -> Path:
    """The page of all runs below a folder."""
    path = folder / "report.html"
    path.write_bytes(made_page(read_recipes([folder])))
    return path


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of three modes, three runs each."""
    folder = tmp_path_factory.mktemp("compared")
    for mode in ("baseline", "smoothing", "emb"):
        for seed in range(3):
            run = write_run(folder, mode, seed)
            confusion = [[0, 1, 9], [1, 0, 3], [2, 3, 7], [4, 9, 2], [5, 5, 40]]
            run.write_evaluation(run.evaluation | {"confusion": confusion})
    return report(folder)


def test_every_chart_is_drawn_and_nothing_is_asked_for(show: Show, compared: Path) -> None:
    opened = show(compared)
    for kind in ("curves", "heatmap", "plane", "reliability"):
        assert opened.chart(kind).locator("path, image").count() > 0, kind


def test_hover_names_run_and_value(show: Show, compared: Path) -> None:
    opened = show(compared)
    chart = opened.chart("curves")
    box = chart.bounding_box()
    for y in range(40, int(box["height"]) - 80, 12):
        opened.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + y)
        if chart.locator(".hoverlayer text").count():
            break
    text = chart.locator(".hoverlayer").text_content()
    assert re.search(r"(baseline|smoothing|emb).*(seed \d|mean of 3 runs)epoch \d+: \d", text)


def test_the_label_map_tells_both_names_and_can_be_put_in_another_order(show: Show, compared: Path) -> None:
    opened = show(compared)
    chart = opened.chart("heatmap")
    ticks = "node => node.layout.yaxis.ticktext.map(name => name.slice(1, -1))"
    assert sorted(chart.evaluate(ticks)) == [str(digit) for digit in range(10)]
    assert chart.evaluate(ticks) != [str(digit) for digit in range(10)]
    assert chart.evaluate("node => node.layout.shapes.length") > 0
    diagonal = "node => node.data[0].z.every((row, place) => row[place] === null)"
    assert chart.evaluate(diagonal)
    box = chart.locator(".heatmaplayer image").bounding_box()
    opened.page.mouse.move(box["x"] + 0.15 * box["width"], box["y"] + 0.45 * box["height"])
    assert re.search(r"\d.* → .*\d.*: 0\.\d{3}", chart.locator(".hoverlayer").text_content())
    opened.page.select_option('[data-do="order"]', "number")
    assert chart.evaluate(ticks) == [str(digit) for digit in range(10)]


def test_search_shows_the_nearest_labels(show: Show, compared: Path) -> None:
    opened = show(compared)
    opened.page.fill('[data-do="search"]', "6")
    assert opened.page.locator("[data-says]").text_content() == "Nearest to 6:"
    assert opened.page.locator("[data-bars] li").first.locator("bdi").text_content() == "7"
    opened.page.fill('[data-do="search"]', "nothing like it")
    assert opened.page.locator("[data-says]").text_content() == "No label has these letters."


def test_modes_runs_and_the_axis_are_switched(show: Show, compared: Path) -> None:
    opened = show(compared)
    chart = opened.chart("curves")
    names = "node => [...new Set(node.data.map(trace => trace.name.slice(1, -1)))]"
    assert chart.evaluate(names) == ["baseline", "smoothing", "emb"]
    opened.page.uncheck('[data-mode="1"]')
    assert chart.evaluate(names) == ["baseline", "emb"]
    assert chart.evaluate("node => node.data.length") == 4
    opened.page.uncheck('[data-do="runs"]')
    assert chart.evaluate("node => node.data.length") == 2
    assert chart.evaluate("node => node.layout.yaxis.type") == "log"
    opened.page.focus('[data-do="log"]')
    opened.page.keyboard.press("Space")
    assert chart.evaluate("node => node.layout.yaxis.type") == "linear"


def test_the_table_sorts_by_a_column_both_ways(show: Show, compared: Path) -> None:
    opened = show(compared)
    first = opened.page.locator(".numbers tbody th").first
    button = opened.page.get_by_role("button", name="test error % (sd)")
    button.click()
    assert first.text_content() == "emb"
    button.press("Enter")
    assert first.text_content() == "baseline"
    assert opened.page.locator('.numbers [aria-sort="descending"]').count() == 1


def test_dark_is_the_system_s_or_the_button_s(show: Show, compared: Path) -> None:
    opened = show(compared, color_scheme="dark")
    paper = "() => getComputedStyle(document.body).backgroundColor"
    ink = "node => node.layout.font.color"
    assert opened.page.evaluate(paper) == "rgb(23, 24, 26)"
    assert opened.chart("curves").evaluate(ink) == "#e8e8e8"
    opened.page.get_by_role("button", name="Light or dark").click()
    assert opened.page.evaluate(paper) == "rgb(255, 255, 255)"
    assert opened.chart("curves").evaluate(ink) == "#1c1c1c"


def test_the_page_prints_with_all_charts(show: Show, compared: Path) -> None:
    opened = show(compared)
    assert opened.page.pdf(format="A4").startswith(b"%PDF")
    drawn = "nodes => nodes.map(node => node.querySelectorAll('.main-svg').length > 0)"
    assert all(opened.page.locator("[data-chart]").evaluate_all(drawn))


def test_the_data_are_downloaded_as_csv(show: Show, compared: Path) -> None:
    opened = show(compared)
    with opened.page.expect_download() as waiting:
        opened.page.get_by_role("button", name="Download the data").click()
    lines = Path(waiting.value.path()).read_text(encoding="utf-8-sig").splitlines()
    assert waiting.value.suggested_filename == "digits.csv"
    assert lines[0] == "recipe,mode,seed,finished,epoch,test error %"
    assert len(lines) == 1 + 3 * 3 * 30
    assert lines[1].startswith("digits,baseline,0,true,1,")


def test_the_command_is_copied(show: Show, compared: Path) -> None:
    opened = show(compared, permissions=["clipboard-read", "clipboard-write"])
    opened.page.get_by_role("button", name="Copy the command").click()
    opened.page.get_by_role("button", name="Copied").wait_for()
    assert opened.page.evaluate("() => navigator.clipboard.readText()") == "labelemb compare digits"


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_hostile_names_are_shown_as_text_at_every_width(
    show: Show, make_run: MakeRun, tmp_path: Path, width: int
) -> None:
    for mode in ("baseline", "emb"):
        run = make_run(mode, 0, label_names=HOSTILE, settings={"variant": f"{mode} {HOSTILE[0]}{HOSTILE[5]}"})
        run.write_environment(run.environment | {"command": " ".join(HOSTILE)})
        run.write_evaluation(run.evaluation | {"confusion": [[0, 1, 3], [2, 5, 4]]})
    opened = show(report(tmp_path), viewport={"width": width, "height": 800})
    opened.draw_all()
    opened.page.fill('[data-do="search"]', "<scr")
    assert HOSTILE[0] in opened.page.locator("[data-says]").text_content()
    assert opened.page.evaluate("() => window.hacked") is None
    assert opened.page.evaluate("() => document.documentElement.scrollWidth") <= width
    assert opened.page.locator("main b, main img, main script").count() == 0
    words = opened.chart("plane").locator(".textpoint text").all_text_contents()
    assert any("<script>window.hac" in each or "<script>" in each for each in words)
    assert any("&lt;b&gt;" in each for each in words)


def test_a_large_vocabulary_has_a_search_and_no_picture_of_all(show: Show, make_run: MakeRun, tmp_path: Path) -> None:
    names = [f"word{i}" for i in range(400)]
    make_run("emb", 0, recipe="iwslt15", metric="bleu", label_names=names, rank=4)
    opened = show(report(tmp_path), viewport={"width": 390, "height": 800})
    assert opened.page.locator('[data-chart="heatmap"]').count() == 0
    opened.page.fill('[data-do="search"]', "word123")
    assert opened.page.locator("[data-bars] li").count() == 10
    cells = opened.chart("block").evaluate("node => node.data[0].z.length")
    assert cells == 11


def test_pages_without_a_finished_run_open_too(show: Show, make_run: MakeRun, tmp_path: Path) -> None:
    make_run("emb", 0, done=3)
    opened = show(report(tmp_path))
    assert "No run has finished yet" in opened.page.locator("main").text_content()
    assert opened.chart("curves").evaluate("node => node.data[0].line.dash") == "dot"
