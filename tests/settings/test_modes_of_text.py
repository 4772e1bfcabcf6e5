"""Which soft-label modes a recipe for text may have: those with a form for large label sets."""

import pytest

from labelemb.errors import InputError
from labelemb.losses.catalogue import MODES
from labelemb.settings.recipe import load_recipe

NOT_FUSED = [mode.name for mode in MODES.values() if not mode.is_fused and not mode.takes_table]


@pytest.mark.parametrize("mode", NOT_FUSED)
def test_a_mode_without_a_form_for_large_label_sets_is_refused_for_text(mode: str) -> None:
    with pytest.raises(InputError, match=f"{mode} .* is not for sequences"):
        load_recipe("multi30k", [f"mode={mode}"])


@pytest.mark.parametrize("mode", ["baseline", "smoothing", "tfkd", "emb"])
def test_a_mode_with_one_is_not(mode: str) -> None:
    assert load_recipe("multi30k", [f"mode={mode}"]).mode == mode


@pytest.mark.parametrize("way", ["rank", "neighbors"])
def test_decoupled_needs_a_row_that_is_smaller_than_all_labels(way: str) -> None:
    settings = load_recipe("multi30k", ["mode=decoupled", f"decoupled.{way}=8"])
    assert settings.criterion_options[way] == 8
    with pytest.raises(InputError, match=r"not for sequences unless decoupled\.rank or decoupled\.neighbors is given"):
        load_recipe("multi30k", ["mode=decoupled"])


@pytest.mark.parametrize("mode", ["decoupled-start", "decoupled-frozen"])
def test_what_a_given_table_needs_is_seen_when_it_is_read(mode: str) -> None:
    settings = load_recipe("multi30k", [f"mode={mode}", "table=some.safetensors", "decoupled.neighbors=8"])
    assert settings.criterion_options["neighbors"] == 8


def test_sizes_of_rows_are_whole_numbers_above_0() -> None:
    for value in ("0", "1.5"):
        with pytest.raises(InputError, match=r"decoupled\.neighbors"):
            load_recipe("digits", ["mode=decoupled", f"decoupled.neighbors={value}"])
