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


@pytest.mark.parametrize("mode", ["baseline", "smoothing", "emb"])
def test_a_mode_with_one_is_not(mode: str) -> None:
    assert load_recipe("multi30k", [f"mode={mode}"]).mode == mode
