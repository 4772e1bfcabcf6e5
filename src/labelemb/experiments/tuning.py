"""Equal tuning, without its runs: the grid, the points that each mode has of it, and which point is chosen."""

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from statistics import fmean, stdev
from typing import Any, NamedTuple
from urllib.parse import quote

from labelemb.errors import InputError
from labelemb.settings.config import Settings
from labelemb.settings.kinds import KINDS
from labelemb.settings.variants import Variant, key_of
from labelemb.settings.which_run import KEYS, is_within
from labelemb.yaml_text import yaml_value

Grid = dict[str, list[Any]]
"""Keys as they were given, each with its values."""
Point = dict[str, Any]
"""Dotted keys of a recipe, each with one value."""

_DECIDE_WHAT_IS_MEASURED = ("task", "metric", "tuning", "data", "score")


class Rule(NamedTuple):
    """What of a run's rows a point is judged by."""

    column: str
    """Of metrics.jsonl: measured on held-out training data, or the development set."""
    higher_is_better: bool
    of_best_epoch: bool
    """Else of the last one, as the recipe's own result."""


class Judged(NamedTuple):
    """A point and what its runs reached, in order of their seeds; None for a run whose loss became infinite."""

    point: Point
    values: list[float | None]

    @property
    def mean(self) -> float | None:
        """None where one of the runs has no value: such a point is not chosen."""
        present = [value for value in self.values if value is not None]
        return fmean(present) if present and len(present) == len(self.values) else None

    @property
    def std(self) -> float | None:
        """With n - 1; None for fewer than two runs."""
        present = [value for value in self.values if value is not None]
        return stdev(present) if len(present) == len(self.values) > 1 else None


def rule(settings: Settings) -> Rule:
    """Errors: of the last epoch. Scores of texts: of the best epoch, whose network is the recipe's result."""
    if KINDS[settings.task].makes_sequences:
        return Rule(f"valid_{settings.metric}", higher_is_better=True, of_best_epoch=True)
    return Rule("valid_error", higher_is_better=False, of_best_epoch=False)


def parse_grid(text: str) -> Grid:
    """The grid that `optimizer.lr=0.05,0.1; epsilon=0.1,0.3` is; each value as in YAML.

    Raises:
        InputError: a part is not KEY=VALUE,VALUE, or a key or a value stands there twice.
    """
    grid: Grid = {}
    for part in text.split(";"):
        key, equals, values = (piece.strip() for piece in part.partition("="))
        if not (key and equals and values):
            raise InputError(f"--tune {part.strip()!r}: expected KEY=VALUE,VALUE with ; between the keys")
        if key in grid:
            raise InputError(f"--tune: {key} stands there twice")
        try:
            grid[key] = [_with_numbers(value) for value in yaml_value(f"[{values}]")]
        except ValueError:
            raise InputError(f"--tune {key}: {values!r} are not YAML values with commas") from None
        twice = next((value for index, value in enumerate(grid[key]) if value in grid[key][:index]), None)
        if twice is not None:
            raise InputError(f"--tune {key}: {twice} stands there twice")
    return grid


def _with_numbers(value: Any) -> Any:
    """1e-3 as a number, too: for YAML it is a word, for lack of a dot."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def points(grid: Grid, variant: Variant) -> list[Point]:
    """Every combination of the values of the keys that a mode or variant has, the last key changing fastest.

    A key of which the variant has a value of its own is not tuned: it is what the variant is.
    """
    fixed = {text.partition("=")[0].strip() for text in variant.overrides}
    keys = {full: grid[key] for key in grid if (full := key_of(key, variant.mode)) and full not in fixed}
    return [dict(zip(keys, values, strict=True)) for values in product(*keys.values())]


def check_grid(grid: Grid, variants: Sequence[Variant], known: Iterable[str]) -> None:
    """Raise InputError for a key that is not there, is no matter of tuning, or that none of the variants has.

    Args:
        grid: from `parse_grid`.
        variants: those compared.
        known: every dotted key of the recipe.
    """
    tunable = [key for key in known if _is_of_training(key) and _tuned(key, variants)]
    for place, key in enumerate(grid):
        if not _is_of_training(key):
            raise InputError(f"--tune {key}: it is not how a network is trained, and so not tuned")
        full = _tuned(key, variants)
        if not full or not full <= {*tunable}:
            names = ", ".join(variant.name for variant in variants)
            raise InputError(f"--tune {key}: none of {names} leaves such a setting open{_nearest(key, tunable)}")
        for other in list(grid)[:place]:
            if full & _tuned(other, variants):
                raise InputError(f"--tune: {other} and {key} are one setting")


def _tuned(key: str, variants: Sequence[Variant]) -> set[str]:
    """The dotted keys that a key of the grid stands for."""
    return {full for variant in variants for point in points({key: [None]}, variant) for full in point}


def _is_of_training(key: str) -> bool:
    """Whether a setting decides how a network is trained, and so may be tuned."""
    others = [*_DECIDE_WHAT_IS_MEASURED, *(each.name for each in KEYS)]
    return not any(is_within(key, name) for name in others)


def _nearest(key: str, known: Sequence[str]) -> str:
    """By the whole key, else by its last part: `lr` is optimizer.lr, `epsilom` smoothing.epsilon."""
    by_last: dict[str, str] = {}
    for each in known:
        by_last.setdefault(each.rpartition(".")[2], each)
    candidates = {each: each for each in known} | by_last
    close = difflib.get_close_matches(key, candidates, n=1, cutoff=0.5)
    return f"; did you mean {candidates[close[0]]}?" if close else ""


def overrides_of(point: Point) -> list[str]:
    """The point as on the command line: `optimizer.lr=0.05`."""
    return [f"{key}={json.dumps(value, ensure_ascii=False, default=str)}" for key, value in point.items()]


def folder_name(point: Point) -> str:
    """`optimizer.lr=0.05,smoothing.epsilon=0.1`; what a folder's name may not hold is written as in addresses."""
    return quote(",".join(text.replace('"', "") for text in overrides_of(point)), safe="=,.+[] ")


def choice(judged: Sequence[Judged], *, higher_is_better: bool) -> Point | None:
    """The point with the best mean, of equal ones the first; None where every point has runs without a value."""
    means = [(each.mean, each.point) for each in judged]
    present = [(mean, point) for mean, point in means if mean is not None]
    sign = -1 if higher_is_better else 1
    return min(present, key=lambda pair: sign * pair[0])[1] if present else None


def at_edge(chosen: Mapping[str, Any], judged: Sequence[Judged]) -> list[str]:
    """The keys whose chosen value is the lowest or the highest of two or more numbers: a better one may lie beyond."""
    edges = []
    for key, value in chosen.items():
        values = [each.point[key] for each in judged]
        if len({*map(str, values)}) > 1 and all(_is_number(each) for each in values) and value in _ends(values):
            edges.append(key)
    return edges


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _ends(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)
