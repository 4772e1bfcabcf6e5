"""What the catalogue says of its modes, in words and formulas."""

import re
from pathlib import Path

import pytest

from labelemb.losses.catalogue import MODES, described

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.parametrize("mode", MODES)
def test_a_formula_names_every_number_of_the_criterion(mode: str) -> None:
    named = set(re.findall(r"\{(\w+)\}", MODES[mode].formula))
    floats = {s.name for s in MODES[mode].settings if s.of_criterion and s.kind is float}
    assert MODES[mode].formula
    assert named == floats


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_is_described_on_one_line_with_its_defaults(mode: str) -> None:
    text = described(mode, {})
    assert text.startswith(f"{mode}: ")
    assert "\n" not in text
    assert "{" not in text
    for setting in MODES[mode].settings:
        if setting.of_criterion and setting.kind is float:
            changed = described(mode, {setting.name: 0.765})
            assert "0.765" in changed
            assert changed != text


def test_the_formula_in_force_has_its_numbers() -> None:
    assert described("zipf", {}) == "zipf: H(y, p) + 0.1*H(w, p~)"
    assert described("maxsup", {"end": 0.5}) == "maxsup: H(y, p) + a*(max z - mean z), a from 0.1 to 0.5"
    assert described("smoothing", {"epsilon": 0.3}) == "smoothing: H((1 - 0.3)*y + 0.3/C, p)"


def test_a_size_that_is_given_is_named() -> None:
    assert "neighbors" not in described("decoupled", {})
    assert described("decoupled", {"neighbors": 8}).endswith(", neighbors 8")
    assert described("emb", {"rank": 64}).endswith(", rank 64")


def test_a_mode_that_there_is_not_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"mode must be one of baseline, .*, got 'nothing'"):
        described("nothing", {})


@pytest.mark.parametrize("mode", MODES)
def test_the_readme_names_every_mode(mode: str) -> None:
    assert f"`{mode}`" in README.read_text(encoding="utf-8")


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "baseline"])
def test_a_mode_has_a_source_with_its_year(mode: str) -> None:
    assert re.search(r"\b(19|20)\d\d\b", MODES[mode].source)
