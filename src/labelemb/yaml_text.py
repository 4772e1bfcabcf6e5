"""YAML that somebody wrote, or that something has been at since, as plain values."""

import math
from typing import Any

import yaml

_MOST_BITS = 2048
_MOST_VALUES = 100_000  # those behind aliases counted each time; settings have some hundred


def yaml_value(text: str) -> Any:
    """The value that a text stands for. No code of the text is executed.

    Raises:
        ValueError: it is no YAML, is nested too deeply, stands for more values than settings can have (by aliases of
            aliases), or holds half a character or a number of hundreds of digits.
    """
    try:
        value = yaml.safe_load(text)
        if not _size(value, {}) <= _MOST_VALUES:
            raise ValueError(f"more than {_MOST_VALUES:,} values, by aliases of aliases")
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:  # yaml's own for !!bool x, !!timestamp x
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None
    return value


def _size(value: Any, sizes: dict[int, float]) -> float:
    """How many values there are in a value, itself counted; infinite where it is within itself."""
    if isinstance(value, str):
        value.encode()  # "\ud800" of YAML is half a character, which no file can hold
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise ValueError("a number of too many digits")
    if not isinstance(value, dict | list | tuple | set):
        return 1
    if id(value) not in sizes:
        sizes[id(value)] = math.inf  # until it is known: met again, it is within itself
        inner = [*value, *value.values()] if isinstance(value, dict) else value
        sizes[id(value)] = 1 + sum(_size(each, sizes) for each in inner)
    return sizes[id(value)]
