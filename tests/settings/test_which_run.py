from typing import Any

import pytest

from labelemb.settings.config import plain
from labelemb.settings.recipe import load_recipe
from labelemb.settings.which_run import KEYS, Between, differences, flatten, is_only_shown, may_differ


def keys_between(one: dict[str, Any], other: dict[str, Any], between: Between) -> list[str]:
    return [key for key, _, _ in differences(one, other, between)]


@pytest.mark.parametrize("recipe", ["cifar10", "multi30k"])
def test_every_key_of_the_table_is_a_setting(recipe: str) -> None:
    """Those that runs alone have, and those of images, are named here."""
    settings = flatten(plain(load_recipe(recipe)))
    not_of_all = {"variant", "data.image", "data.label"}
    for key in KEYS:
        assert key.name in not_of_all or any(name.startswith(key.name) for name in settings), key.name


def test_a_run_may_go_on_elsewhere_but_not_with_another_seed() -> None:
    first, second = {"device": "cpu", "seed": 0}, {"device": "cuda", "seed": 1}
    assert keys_between(first, second, Between.TRIES) == ["seed"]
    assert keys_between(first, second, Between.SEEDS) == []


def test_runs_of_one_name_have_one_mode() -> None:
    assert keys_between({"mode": "emb"}, {"mode": "tfkd"}, Between.SEEDS) == ["mode"]
    assert may_differ("mode", Between.RECIPE)


def test_a_section_covers_what_stands_in_it_and_no_name_that_begins_alike() -> None:
    assert is_only_shown("report.paper.emb.mean")
    assert not is_only_shown("reporting")
    assert not may_differ("data.path_of_another", Between.SEEDS)
    assert not may_differ("data", Between.SEEDS)


def test_tuples_are_equal_to_the_lists_that_yaml_reads_back() -> None:
    assert not list(differences({"model": {"hidden": (128, 64)}}, {"model": {"hidden": [128, 64]}}))


def test_an_empty_section_is_not_a_missing_one() -> None:
    assert flatten({"a": {}, "b": {"c": None}}) == {"a": {}, "b.c": None}
