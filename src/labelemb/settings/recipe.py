"""From a recipe and what the command line adds to settings, with one line for whatever is wrong."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from labelemb.errors import InputError
from labelemb.losses.catalogue import MODES
from labelemb.settings.config import SECTIONS, ClassifySettings, Settings, plain
from labelemb.settings.kinds import KINDS
from labelemb.settings.variants import Variant, parse_variant
from labelemb.settings.which_run import Between, differences, may_differ
from labelemb.yaml_text import yaml_value


def recipe_names() -> list[str]:
    """The recipes inside the package."""
    return sorted(path.name.removesuffix(".yaml") for path in files("labelemb.settings").joinpath("recipes").iterdir())


def load_recipe(
    recipe: str,
    overrides: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    *,
    beside: Sequence[str] = (),
) -> Settings:
    """The settings of a recipe.

    Args:
        recipe: a name from `recipe_names`, or the path of a YAML file.
        overrides: `key=value` with dots, the value as in YAML. Beside settings other than the recipe's the paper's
            figures are not shown, unless they are given too.
        options: dotted keys and values that come after all others, None for not given.
        beside: other modes that the overrides may speak of: those of a comparison.

    Raises:
        InputError: there is no such recipe, or a setting is unknown, of the wrong type or out of range: one line each.
    """
    given = [(key, value) for key, value in (options or {}).items() if value is not None]
    pairs = [*pairs_of(overrides), *given]
    settings = _settings_with(recipe, pairs)
    _check_of_a_mode(pairs, [settings.mode, *beside])
    if settings.report.paper is None or any(key.split(".")[:2] == ["report", "paper"] for key, _ in pairs):
        return settings
    if _are_those_of_the_paper(settings, recipe, pairs):
        return settings
    return settings.model_copy(update={"report": settings.report.model_copy(update={"paper": None})})


@dataclass(frozen=True)
class Comparison:
    """A recipe with what the command line adds, and the modes or variants that are compared by it."""

    recipe: str
    overrides: Sequence[str]
    options: Mapping[str, Any]
    """As for `load_recipe`, without a table."""
    table: Path | None
    """Goes to the modes that take one."""
    variants: list[Variant]
    first: Settings
    """The baseline's: what is no mode's own is the same for all."""

    def settings(self, variant: Variant, seed: int, more: Sequence[str] = ()) -> Settings:
        """The settings of one run; `more` are overrides that come after all others."""
        own = {
            "mode": variant.mode,
            "variant": variant.name if variant.name != variant.mode else None,
            "seed": seed,
            "table": self.table if MODES[variant.mode].takes_table else None,
        }
        overrides = [*self.overrides, *variant.overrides, *more]
        options = {key: value for key, value in self.options.items() if not _is_set_by(more, key)}
        return load_recipe(self.recipe, overrides, options | own, beside=[each.mode for each in self.variants])

    def settings_of_runs(self, chosen: Mapping[str, Sequence[str]] | None = None) -> list[Settings]:
        """The settings of every run: each mode with each seed, seeds outermost.

        Args:
            chosen: by a mode's or variant's name overrides that come after its own.
        """
        chosen = chosen or {}
        seeds = range(self.first.compare.runs)
        return [self.settings(each, seed, chosen.get(each.name, ())) for seed in seeds for each in self.variants]


def load_comparison(
    recipe: str, overrides: Sequence[str] = (), options: Mapping[str, Any] | None = None
) -> list[Settings]:
    """The settings of every run of a comparison: see `read_comparison`."""
    return read_comparison(recipe, overrides, options).settings_of_runs()


def read_comparison(recipe: str, overrides: Sequence[str] = (), options: Mapping[str, Any] | None = None) -> Comparison:
    """A comparison as it is asked for.

    Args:
        recipe, overrides, options: as for `load_recipe`; a label table goes to the modes that take one.

    Raises:
        InputError: as `load_recipe`; there is a table and no mode that takes it.
    """
    options = dict(options or {})
    table = options.pop("table", None)
    # Of which mode it is asked makes no difference: what is compared stands in every mode's settings.
    first = _settings_with(
        recipe, [*pairs_of(overrides), *((k, v) for k, v in options.items() if v is not None), ("mode", "baseline")]
    )
    variants = [parse_variant(text) for text in first.compare.modes]
    modes = [variant.mode for variant in variants]
    if table is not None and not any(MODES[mode].takes_table for mode in modes):
        takers = ", ".join(mode.name for mode in MODES.values() if mode.takes_table)
        raise InputError(f"--table {table}: none of the modes {', '.join(modes)} uses one; {takers} do")
    return Comparison(recipe, overrides, options, table, variants, first)


def _is_set_by(overrides: Sequence[str], key: str) -> bool:
    return any(text.partition("=")[0] == key for text in overrides)


def _check_of_a_mode(pairs: Sequence[tuple[str, Any]], modes: Sequence[str]) -> None:
    """Raise InputError for a setting of a mode that is not there: it would be ignored."""
    for key, _ in pairs:
        section, _, name = key.partition(".")
        if section in SECTIONS and not any(
            MODES[mode].section == section and MODES[mode].setting(name) for mode in modes
        ):
            *others, last = dict.fromkeys(modes)
            named = f"modes {', '.join(others)} and {last} have" if others else f"mode {last} has"
            raise InputError(f"{key}: {named} no such setting")


def _settings_with(recipe: str, pairs: Sequence[tuple[str, Any]]) -> Settings:
    values = _read_recipe(recipe)
    values.setdefault("recipe", Path(recipe).stem)
    for key, value in pairs:
        _assign(values, key, value)
    return parse_settings(values, origin=recipe)


def _are_those_of_the_paper(settings: Settings, recipe: str, pairs: Sequence[tuple[str, Any]]) -> bool:
    """Whether the settings are the recipe's own: only then do the paper's figures belong beside the results."""
    try:
        published = _settings_with(recipe, [(key, value) for key, value in pairs if may_differ(key, Between.RECIPE)])
    except InputError:  # without what was added it is not whole, and so nothing that was published
        return False
    return not any(differences(plain(settings), plain(published)))


def parse_settings(values: Mapping[str, Any], origin: str) -> Settings:
    """Settings from plain values, as a recipe or config.yaml holds them; `origin` is named in errors."""
    task = values.get("task")
    if not isinstance(task, str) or task not in KINDS:
        raise InputError(f"{origin}: task: expected one of {', '.join(KINDS)}, got {task!r}")
    kind = KINDS[task].settings
    try:
        settings: Settings = kind.model_validate(dict(values))
    except ValidationError as error:
        lines = [f"{origin}: {_explain(details, kind)}" for details in error.errors()]
        raise InputError("\n".join(lines)) from None
    _check(settings, origin)
    return settings


def _read_recipe(recipe: str) -> dict[str, Any]:
    path = Path(recipe)
    is_file = path.suffix in (".yaml", ".yml")
    if is_file and not path.is_file():
        raise InputError(f"no recipe file {recipe}")
    if not is_file and recipe not in recipe_names():
        if path.suffix or len(path.parts) > 1:  # as a file or a folder is written
            raise InputError(f"no file or folder {recipe}, and no such recipe; `labelemb recipes` lists them")
        raise InputError(f"no recipe {recipe!r}{_nearest(recipe, recipe_names())}; `labelemb recipes` lists them")
    source = path if is_file else files("labelemb.settings").joinpath("recipes", f"{recipe}.yaml")
    try:
        values = yaml_value(source.read_text(encoding="utf-8"))
    except ValueError as error:  # not UTF-8, too
        raise InputError(f"{recipe} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{recipe}: expected settings as `key: value`, got {type(values).__name__}")
    model = values.get("model")
    if isinstance(model, dict) and ":" in str(model.get("name")):
        raise InputError(f"{recipe}: model.name: a recipe cannot name code to import; pass --model {model['name']}")
    return values


def pairs_of(overrides: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Keys and values of what was given as `key=value`; raises InputError for what is neither."""
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InputError(f"expected key=value, got {text!r}, e.g. optimizer.lr=0.01")
        try:
            yield key, yaml_value(value)
        except ValueError:
            raise InputError(f"{key}: {value!r} is not a YAML value") from None


def _assign(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        inner = values.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise InputError(f"{key}: {parent} is a single value and has no settings inside")
        values[parent] = values = dict(inner)
    values[last] = value


def _check(settings: Settings, origin: str) -> None:
    """Contradictions between settings that are each legal."""
    if not settings.compare.modes:  # pydantic's own check says so of unknown modes, too
        raise InputError(f"{origin}: compare.modes: expected at least one mode")
    names = [parse_variant(text).name for text in settings.compare.modes]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{origin}: compare.modes: {name} stands there twice")
    mode = MODES[settings.mode]
    if mode.takes_table and settings.table is None:
        raise InputError(f"{origin}: mode {mode.name} needs a learned label table: --table FILE")
    if not mode.takes_table and settings.table is not None:
        takers = " and ".join(other.name for other in MODES.values() if other.takes_table)
        raise InputError(f"{origin}: mode {mode.name} takes no label table; {takers} do")
    of_words = KINDS[settings.task].makes_sequences
    if mode.keeps_all_rows(settings.loss) and of_words:
        ways = " or ".join(f"{mode.section}.{name}" for name in mode.spared_by)
        unless = f" unless {ways} is given" if ways else ""
        raise InputError(f"{origin}: {mode.name} needs a table of all labels and is not for sequences{unless}")
    if not mode.is_fused and of_words:
        raise InputError(f"{origin}: {mode.name} has no form for large label sets and is not for sequences")
    soft_after = settings.loss.get("soft_after", 0.0)
    if soft_after >= 1 and not float(soft_after).is_integer():
        raise InputError(f"{origin}: {mode.section}.soft_after: expected a number of updates or a fraction below 1")
    if not isinstance(settings, ClassifySettings):
        return
    mixup, cutmix = settings.augment.mixup, settings.augment.cutmix
    if mixup and cutmix:
        raise InputError(f"{origin}: augment.mixup and augment.cutmix exclude each other")
    if mode.takes_index and (mixup or cutmix):
        raise InputError(
            f"{origin}: {mode.name} goes by its earlier prediction for each single image, and augment.mixup and "
            "augment.cutmix blend two: set them to 0"
        )


def _explain(details: Any, root: type[BaseModel]) -> str:
    """One pydantic error as one line: the setting, what was expected, what came, the nearest name."""
    location = [part for part in details["loc"] if not (isinstance(part, str) and part.startswith("function-"))]
    key = ".".join(str(part) for part in location)
    if details["type"] == "extra_forbidden":
        if key.partition(".")[0] == "loss":
            return f"{key}: no such setting; a mode's own stand in its section, e.g. emb.temperature"
        elsewhere = setting_names(str(location[-1]), root)
        if elsewhere:
            return f"{key}: no such setting; did you mean {' or '.join(elsewhere)}?"
        names = _names_beside(location, root)
        prefix = "".join(f"{part}." for part in location[:-1])
        return f"{key}: no such setting{_nearest(str(location[-1]), names, prefix)}"
    if details["type"] == "missing":
        return f"{key}: must be set"
    message = details["msg"].removeprefix("Value error, ").removeprefix("Input should be ").removeprefix("a valid ")
    message = message.removeprefix("String should match ")
    return f"{key}: expected {message}, got {details['input']!r}"


def setting_names(name: str, *roots: type[BaseModel]) -> list[str]:
    """Dotted keys whose last part is `name`, in the settings of every task or of these models."""
    keys: dict[str, None] = {}
    for root in roots or [kind.settings for kind in KINDS.values()]:
        for key, field in root.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                keys |= dict.fromkeys(f"{key}.{inner}" for inner in setting_names(name, field.annotation))
            elif key == name:
                keys[key] = None
    return list(keys)


def _names_beside(location: Sequence[Any], root: type[BaseModel]) -> list[str]:
    model = root
    for part in location[:-1]:
        field = model.model_fields.get(str(part), FieldInfo())
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return []
        model = field.annotation
    return list(model.model_fields)


def _nearest(name: str, names: Sequence[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {prefix}{close[0]}?"
    return f"; there are {', '.join(names)}" if names else ""
