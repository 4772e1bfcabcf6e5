"""Cases of settings: recipes, overrides and options that are not what they should be. Nothing is trained."""

from random import Random
from typing import Any

import yaml
from tests.fuzz import damage
from tests.fuzz.case import Case, Desk, as_arguments
from tests.fuzz.originals import QUICK, SMALL

from labelemb.losses.catalogue import MODES
from labelemb.settings.config import plain
from labelemb.settings.recipe import load_recipe, recipe_names
from labelemb.settings.which_run import flatten


def recipe_text(desk: Desk) -> Case:
    """A shipped recipe with lines and words out of place."""
    text = _shipped(desk.draw)
    for _ in range(desk.draw.choice([1, 1, 2, 5])):
        text = damage.damaged_text(desk.draw, text)
    content = damage.encoded(desk.draw, text)
    if desk.draw.random() < 0.2:
        content = damage.damaged_bytes(desk.draw, content)
    return _of_recipe(desk, content)


def recipe_values(desk: Desk) -> Case:
    """A recipe of values of other kinds than its settings have; every setting of it, or only those that are given."""
    values = yaml.safe_load(_shipped(desk.draw))
    if desk.draw.random() < 0.5:
        values = plain(load_recipe(desk.draw.choice(recipe_names()))) | {"recipe": "mine"}
    for _ in range(desk.draw.choice([1, 1, 1, 2, 4])):
        values = damage.damaged_value(desk.draw, values)
    return _of_recipe(desk, _dumped(values))


def recipe_of_anything(desk: Desk) -> Case:
    """A recipe file that is none."""
    if desk.draw.random() < 0.5:
        return _of_recipe(desk, damage.impostor(desk.draw))
    return _of_recipe(desk, _dumped(damage.value(desk.draw, 4)))


def overrides(desk: Desk) -> Case:
    """Some key=value, where key, value or both are odd."""
    recipe = desk.draw.choice(recipe_names())
    given = [override(desk.draw, recipe) for _ in range(desk.draw.choice([1, 1, 2, 3]))]
    return Case(as_arguments([desk.draw.choice(["train", "compare"]), recipe, *given, "--dry-run"]))


def options(desk: Desk) -> Case:
    """An option of `train` or `compare` with an odd value."""
    command = desk.draw.choice(["train", "compare"])
    given = [_option(desk.draw, command) for _ in range(desk.draw.choice([1, 1, 2]))]
    recipe = desk.draw.choice([*recipe_names(), "digits", damage.text(desk.draw)])
    return Case(as_arguments([command, recipe, *given, "--dry-run"]))


def written_settings(desk: Desk) -> Case:
    """Settings that a run is begun with: they name folders, sizes and numbers that reach the training."""
    given = [override(desk.draw, "digits") for _ in range(desk.draw.choice([1, 1, 2]))]
    given += [_option(desk.draw, "train") for _ in range(desk.draw.choice([0, 0, 1]))]
    kept = [each for each in given if not _takes_long(each)]
    return Case(as_arguments(["train", "digits", *SMALL["digits"], *QUICK, *kept, "epochs=1"]))


def tuning(desk: Desk) -> Case:
    """A grid of `--tune` that is none."""
    keys = ["optimizer.lr", "epsilon", "emb.temperature", "mode", "epochs", "data.limit", "model.name", "report"]
    parts = []
    for _ in range(desk.draw.choice([1, 2, 3])):
        values = [desk.draw.choice([written(desk.draw), "0.1", "1e-3"]) for _ in range(desk.draw.randrange(4))]
        key = desk.draw.choice([*keys, damage.text(desk.draw)])
        parts.append(f"{key}{desk.draw.choice(['=', '=', '=', ':', ''])}{','.join(values)}")
    grid = desk.draw.choice(["; ", ";", ","]).join(parts)
    runs = desk.draw.choice(["1", "2", "0", "-1", "99999999999999999999", "x"])
    names = ["--modes", "baseline,smoothing,emb"] if desk.draw.random() < 0.7 else ["--modes", _modes(desk.draw)]
    given = ["--tune", grid, "--tune-runs", runs, *names, "data.validation=0.2", "--dry-run"]
    return Case(as_arguments(["compare", "digits", *given]))


def label_names(desk: Desk) -> Case:
    """A file of label names that does not fit, or is none."""
    names = ["red", "white"]
    content = damage.encoded(desk.draw, damage.damaged_text(desk.draw, "\n".join(names)))
    if desk.draw.random() < 0.3:
        content = damage.impostor(desk.draw)
    desk.copy("data/wine.csv", "in/wine.csv")
    desk.write("in/names", content)
    path = desk.draw.choice(["in/names", "in/names", "in/names", "in", "nowhere", damage.text(desk.draw)])
    return Case(as_arguments(["train", "in/wine.csv", *SMALL["tables"], *QUICK, "--label-names", path]))


def written(draw: Random) -> str:
    """An odd value as it is written on a command line."""
    if draw.random() < 0.4:
        return draw.choice([damage.text(draw), draw.choice(damage.YAML)])
    if draw.random() < 0.1:
        return draw.choice([damage.deep(draw)[:100_000], damage.alias_bomb(draw)])
    return _dumped(damage.value(draw), flow=True).decode("utf-8", "surrogatepass").removesuffix("...\n").strip()


def override(draw: Random, recipe: str) -> str:
    """A setting of the recipe, or what looks like one, with an odd value."""
    keys = list(flatten(load_recipe(recipe).model_dump()))
    key = draw.choice(keys) if draw.random() < 0.85 else damage.damaged_text(draw, draw.choice(keys))
    return f"{key}{draw.choice(['=', '=', '=', '=', '=', '', '==', '= '])}{written(draw)}"


def _takes_long(given: str) -> bool:
    """Whether a setting is legal and long: the compiler, or a network and an evaluation of any size."""
    return given.startswith(("compile", "--device"))


def _option(draw: Random, command: str) -> str:
    names = ["mode", "seed"] if command == "train" else ["modes", "runs", "jobs"]
    names += ["name", "data", "table", "model", "device", "precision", "valid-fraction", "label-names"]
    name = draw.choice([*names, "nonsense", "epochs"])
    value = _modes(draw) if name in ("mode", "modes") and draw.random() < 0.8 else written(draw)
    return f"--{name}={'1' if name == 'runs' and value.isdecimal() else value}"


def _modes(draw: Random) -> str:
    """Modes and variants, some of them well written."""
    names = [*MODES, "strong=smoothing:epsilon=0.3", "a=emb:temperature=x", "a=b", "a:b", "=emb", "emb:", "x=emb:=", ""]
    given = [draw.choice(names) if draw.random() < 0.8 else damage.text(draw) for _ in range(draw.randrange(1, 4))]
    joined = draw.choice([",", ", ", ";"]).join(given)
    return damage.damaged_text(draw, joined) if draw.random() < 0.3 else joined


def _shipped(draw: Random) -> str:
    from importlib.resources import files

    name = draw.choice(recipe_names())
    return files("labelemb.settings").joinpath("recipes", f"{name}.yaml").read_text(encoding="utf-8")


def _dumped(values: Any, flow: bool | None = None) -> bytes:
    """As YAML, which is told to keep objects of Python as such, tags and all."""
    dumped = yaml.dump(values, sort_keys=False, allow_unicode=True, default_flow_style=flow, width=10**6)
    return dumped.encode("utf-8", "surrogatepass")


def _of_recipe(desk: Desk, content: bytes) -> Case:
    name = desk.write(desk.draw.choice(["in/mine.yaml", "in/mine.yml"]), content)
    command = desk.draw.choice([["train"], ["train"], ["compare"], ["recipes"]])
    return Case([*command, name, *(["--dry-run"] if command != ["recipes"] else [])])
