"""The same mode twice in one comparison: `strong=smoothing:epsilon=0.3` is smoothing, called strong."""

import re
from typing import NamedTuple

from labelemb.losses.catalogue import MODES


class Variant(NamedTuple):
    """A mode, what it is called, and the settings it has of its own."""

    name: str
    mode: str
    overrides: tuple[str, ...] = ()
    """As on the command line: `smoothing.epsilon=0.3`."""


def parse_variant(text: str) -> Variant:
    """The variant that a text names: MODE, or NAME=MODE:SETTING=VALUE[:SETTING=VALUE]...

    A setting of the mode needs no section before its name; any other is written as on the command line.

    Raises:
        ValueError: there is no such mode, or the name is missing, not a folder's, or that of another mode.
    """
    head, *settings = (part.strip() for part in text.split(":"))
    name, equals, mode = (part.strip() for part in head.partition("="))
    mode = mode if equals else name
    if mode not in MODES:
        raise ValueError(f"one of {', '.join(MODES)} (or NAME=MODE:SETTING=VALUE)")
    if settings and not equals:
        raise ValueError(f"a name for other settings: NAME={text}")
    if name != mode and (name in MODES or not re.fullmatch(r"[^/\\.][^/\\]*", name)):
        raise ValueError(f"a name that a folder may have and no other mode has, before the =, got {name!r}")
    return Variant(name, mode, tuple(_with_section(mode, setting) for setting in settings))


def key_of(setting: str, mode: str) -> str | None:
    """The dotted key of a setting, of which a mode's own needs no section; None for one that only other modes have."""
    section, dot, name = setting.rpartition(".")
    if MODES[mode].setting(name) and section in ("", MODES[mode].section):
        return f"{MODES[mode].section}.{name}"
    of_modes = [other for other in MODES.values() if (other.section == section if dot else other.setting(name))]
    return None if of_modes else setting


def _with_section(mode: str, setting: str) -> str:
    key, equals, _ = setting.partition("=")
    if not equals:
        raise ValueError(f"key=value, got {setting!r}")
    return f"{MODES[mode].section}.{setting}" if MODES[mode].setting(key.strip()) else setting
