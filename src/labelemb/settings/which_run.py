"""Which settings say which run it is, where it runs and what is only shown: one table, for all who compare settings.

A setting that is not in the table is trained with: where two runs differ in it they are different experiments.
"""

from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, NamedTuple


class Says(Enum):
    """What a setting says of a run."""

    WHICH = "which of the recipe's runs it is"
    WHERE = "on what, and where its data lie"
    SHOWN = "what the report shows; training never reads it"


class Between(Enum):
    """Two sets of settings that are compared, and what it means that they agree."""

    TRIES = "two tries at one run: the second goes on where the first one stopped"
    SEEDS = "two runs of one name: they are in one row of the table"
    RECIPE = "a run and its recipe: the paper's figures belong beside it"


class Key(NamedTuple):
    """A setting, or a section of settings, that may differ."""

    name: str
    says: Says
    sentence: str
    may_differ: frozenset[Between]


_TRIES, _SEEDS, _RECIPE = (frozenset({each}) for each in Between)

KEYS = (
    Key("recipe", Says.WHICH, "a copy of a recipe has a name of its own", _RECIPE),
    Key("mode", Says.WHICH, "the soft labels: each mode is a group of runs", _RECIPE),
    Key("variant", Says.WHICH, "the group's name, where a mode is in a comparison twice", _SEEDS | _RECIPE),
    Key("seed", Says.WHICH, "the run within its group", _SEEDS | _RECIPE),
    Key("table", Says.WHICH, "the learned table it begins with: each seed may have its own", _SEEDS | _RECIPE),
    Key("precision", Says.WHERE, "what the device is fast in", _RECIPE),
    Key("compile", Says.WHERE, "whether the device's compiler is worth its wait", _RECIPE),
    Key("device", Says.WHERE, "another machine may go on with a run", _TRIES | _SEEDS),
    Key("data.path", Says.WHERE, "a local copy of the same data", _SEEDS | _RECIPE),
    Key("data.image", Says.WHERE, "the name of a column in that copy", _RECIPE),
    Key("data.label", Says.WHERE, "the name of a column in that copy", _RECIPE),
    Key("compare", Says.SHOWN, "which other runs were asked for", _TRIES | _SEEDS),
    Key("report", Says.SHOWN, "labels, words and the paper's figures", _TRIES | _SEEDS),
    Key("description", Says.SHOWN, "one line on the recipe", _TRIES | _SEEDS),
)


def may_differ(key: str, between: Between) -> bool:
    """Whether two sets of settings that differ in the dotted `key` still agree."""
    return any(between in each.may_differ for each in KEYS if is_within(key, each.name))


def is_only_shown(key: str) -> bool:
    """Whether the dotted `key` is for the report alone."""
    return any(each.says is Says.SHOWN for each in KEYS if is_within(key, each.name))


def differences(
    one: Mapping[str, Any], other: Mapping[str, Any], between: Between = Between.TRIES
) -> Iterator[tuple[str, Any, Any]]:
    """The dotted keys in which two runs' plain settings differ though they may not, with both values."""
    left, right = flatten(one), flatten(other)
    for key in [*left, *(key for key in right if key not in left)]:
        if left.get(key) != right.get(key) and not may_differ(key, between):
            yield key, left.get(key), right.get(key)


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted keys; tuples as lists, as YAML reads them back."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def is_within(key: str, name: str) -> bool:
    """Whether the dotted `key` is the setting of this name, or one of the section of this name."""
    return key == name or key.startswith(f"{name}.")
