"""Settings: defaults in one place, overrides, and one clear line for each mistake."""

import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.small_runs import small_settings

from labelemb.errors import InputError
from labelemb.losses.catalogue import MODES
from labelemb.settings.config import ClassifySettings, describe, plain
from labelemb.settings.recipe import load_recipe, parse_settings, recipe_names
from labelemb.settings.which_run import differences


def error_of(recipe: str, *overrides: str, **options: Any) -> str:
    with pytest.raises(InputError) as error:
        load_recipe(recipe, overrides, options)
    assert "\n" not in str(error.value)
    return str(error.value)


def recipe_file(tmp_path: Path, text: str | bytes) -> str:
    path = tmp_path / "mine.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_comes_back_from_its_plain_values(name: str) -> None:
    settings = load_recipe(name)
    values = yaml.safe_load(yaml.safe_dump(plain(settings), allow_unicode=True))
    assert parse_settings(values, "config.yaml") == settings
    assert not list(differences(values, plain(settings)))
    assert (settings.recipe, settings.mode, settings.seed) == (name, "emb", 0)


@pytest.mark.parametrize("name", recipe_names())
def test_every_setting_has_a_sentence(name: str) -> None:
    without = [key for key, _, sentence in describe(load_recipe(name)) if not sentence]
    assert set(without) <= {"task", "metric"}


def test_overrides_reach_nested_settings_and_keep_their_neighbours() -> None:
    settings = load_recipe("digits", ["emb.temperature=3", "model.hidden=[128,128]", "optimizer.lr=1e-2"])
    assert isinstance(settings, ClassifySettings)
    assert settings.loss["temperature"] == 3
    assert (settings.model.name, settings.model.hidden) == ("mlp", (128, 128))
    assert settings.optimizer.lr == 0.01
    assert settings.data.source == "digits"


def test_the_last_of_two_overrides_holds_and_options_come_after_all() -> None:
    settings = load_recipe("digits", ["epochs=5", "epochs=7", "seed=3"], {"seed": 4, "mode": None})
    assert (settings.epochs, settings.seed, settings.mode) == (7, 4, "emb")


def test_null_takes_a_value_away() -> None:
    assert load_recipe("digits", ["optimizer.clip=5", "optimizer.clip=null"]).optimizer.clip is None


def test_an_override_does_not_change_the_recipe_for_the_next() -> None:
    load_recipe("digits", ["emb.temperature=3"])
    assert load_recipe("digits").loss["temperature"] == 2


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("epoch=3", r"epoch: no such setting; did you mean epochs\?"),
        ("emb.temprature=3", r"emb\.temprature: no such setting; did you mean emb\.temperature\?"),
        ("nonsense.deep=1", r"nonsense: no such setting"),
        ("xyzzy=1", r"xyzzy: no such setting; there are .*epochs"),
        ("epochs=many", r"epochs: expected .*integer.*'many'"),
        ("epochs=0", r"epochs: expected greater than or equal to 1, got 0"),
        ("epochs=1.5", r"epochs: .*1\.5"),
        ("epochs=null", r"epochs: .*None"),
        ("batch_size=-1", r"batch_size: .*-1"),
        ("seed=-1", r"seed: .*-1"),
        ("optimizer.lr=.nan", r"optimizer\.lr: .*nan"),
        ("optimizer.lr=.inf", r"optimizer\.lr: .*inf"),
        ("optimizer.lr=fast", r"optimizer\.lr: expected number.*'fast'"),
        ("optimizer.name=adm", r"optimizer\.name: expected 'adam', 'adamw' or 'sgd', got 'adm'"),
        ("optimizer.momentum=1", r"optimizer\.momentum: .*less than 1"),
        ("emb.cap=0", r"emb\.cap: .*greater than 0"),
        ("emb.cap=1.1", r"emb\.cap: .*less than or equal to 1"),
        ("emb.temperature=.nan", r"emb\.temperature: .*nan"),
        ("emb=5", r"emb: expected .*5"),
        ("epochs.a=5", r"epochs\.a: epochs is a single value"),
        ("model.hidden=128", r"model\.hidden: expected .*128"),
        ("model.hidden=[0]", r"model\.hidden\.0: .*got 0"),
        ("device=gpu", r"device: .*'gpu'"),
        ("device=meta", r"device: .*'meta'"),
        ("compare.modes=[emb,emb]", r"compare\.modes: .*emb.* twice"),
        ("compare.modes=[]", r"compare\.modes: "),
        ("compare.runs=0", r"compare\.runs: .*got 0"),
        ("task=pictures", r"task: expected one of classify, tables, text-classes, text, got 'pictures'"),
        ("task=[classify]", r"task: expected one of classify, tables, text-classes, text, got \['classify'\]"),
        ("recipe=../elsewhere", r"recipe: .*'\.\./elsewhere'"),
        ("recipe=", r"recipe: "),
        ("recipe=''", r"recipe: "),
        ("epochs", r"expected key=value, got 'epochs'"),
        ("=3", r"expected key=value, got '=3'"),
        ("epochs=[", r"epochs: '\[' is not a YAML value"),
        ("mode=soft", r"mode: expected .*emb-frozen.*, got 'soft'"),
        ("mode=emb-start", r"needs a learned label table: --table FILE"),
        ("table=a.safetensors", r"mode emb takes no label table"),
        ("loss.temperature=3", r"loss: no such setting; a mode's own stand in its section, e\.g\. emb\.temperature"),
        ("lspp.epsilon=1", r"lspp\.epsilon: .*less than 1"),
        ("smoothing.epsilon=0.2", r"smoothing\.epsilon: mode emb has no such setting"),
        ("compare.modes=['strong=smoothing:epsilon']", r"expected key=value, got 'epsilon'"),
        ("compare.modes=['smoothing:epsilon=0.3']", r"expected a name for other settings: NAME=smoothing:epsilon=0\.3"),
        ("compare.modes=['emb=smoothing:epsilon=0.3']", r"expected a name that a folder may have and no other mode"),
        ("compare.modes=['a/b=smoothing:epsilon=0.3']", r"expected a name that a folder may have and no other mode"),
        ("augment={mixup: 1, cutmix: 1}", r"mixup and augment\.cutmix exclude"),
    ],
)
def test_a_mistake_is_named_in_one_line(override: str, expected: str) -> None:
    message = error_of("digits", override)
    assert re.search(expected, message), message


def test_every_mistake_has_its_own_line() -> None:
    with pytest.raises(InputError) as error:
        load_recipe("digits", ["epochs=0", "batch_size=x", "losss=1"])
    assert len(str(error.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "expected settings as `key: value`, got NoneType"),
        ("- a\n- b", "got list"),
        ("a: [1\nb: 2", "is not YAML"),
        (b"\xff\xfe\xfd", "is not YAML"),
        ("a: !!python/object/apply:os.getcwd []", "is not YAML"),
        ("epochs: 3", "task: expected one of classify, tables, text-classes, text, got None"),
        ("task: classify", "data: must be set"),
        ("task: classify\ndata: {source: digits}\nmodel: {name: 'os:system'}", "cannot name code to import"),
        ("task: classify\ndata: {source: digits}\n1: 2", "1: "),
    ],
)
def test_a_bad_recipe_file_is_refused_in_one_line(tmp_path: Path, text: str | bytes, expected: str) -> None:
    assert expected in error_of(recipe_file(tmp_path, text))


def test_a_recipe_file_is_named_after_its_file(tmp_path: Path) -> None:
    assert load_recipe(recipe_file(tmp_path, "task: classify\ndata: {source: digits}\nepochs: 2")).recipe == "mine"


def test_code_may_be_named_on_the_command_line_only(tmp_path: Path) -> None:
    path = recipe_file(tmp_path, "task: classify\ndata: {source: digits}")
    settings = load_recipe(path, (), {"model.name": "module:function"})
    assert isinstance(settings, ClassifySettings)
    assert settings.model.name == "module:function"


@pytest.mark.parametrize("name", ["digit", "no-such.yaml", "../digits", ""])
def test_a_recipe_that_is_not_there_is_named(name: str) -> None:
    assert f"{name}" in error_of(name)


def test_a_name_close_to_a_recipe_is_suggested() -> None:
    assert "did you mean digits?" in error_of("digts")


def changes() -> Iterator[tuple[str, str, tuple[Any, Any]]]:
    yield "epochs=4", "epochs", (3, 4)
    yield "model.hidden=[12,12]", "model.hidden", ([12], [12, 12])
    yield "emb.cap=0.8", "emb.cap", (0.9, 0.8)
    yield "data.limit=null", "data.limit", (64, None)


@pytest.mark.parametrize(("override", "key", "values"), list(changes()))
def test_the_first_difference_is_a_dotted_key_with_both_values(
    override: str, key: str, values: tuple[Any, Any]
) -> None:
    one, other = plain(small_settings()), plain(small_settings(override))
    assert next(differences(one, other)) == (key, *values)
    assert next(differences(other, one)) == (key, *reversed(values))


@pytest.mark.parametrize("override", ["device=auto", "compare.runs=3", "report.labels=[a]", "description=other"])
def test_where_and_how_often_a_run_is_done_makes_no_difference(override: str) -> None:
    assert not list(differences(plain(small_settings()), plain(small_settings(override))))


@pytest.mark.parametrize("override", ["epochs=2", "model.width=16", "data.limit=100", "emb.temperature=3"])
def test_the_papers_figures_do_not_stand_beside_other_settings(override: str) -> None:
    assert load_recipe("cifar10", [override]).report.paper is None
    for mean in (5, 6.97):  # other figures, and the same
        given = load_recipe("cifar10", [override, f"report.paper.emb.mean={mean}"]).report.paper
        assert given is not None
        assert given["emb"].mean == mean


def test_the_papers_figures_stand_beside_every_run_of_the_recipe(tmp_path: Path) -> None:
    options = {"mode": "baseline", "seed": 3, "precision": "bfloat16", "data.path": tmp_path, "recipe": "again"}
    for overrides in ((), ("epochs=100",), ("report.labels=[cat]",), ("compare.runs=2",), ("data.image=picture",)):
        assert load_recipe("cifar10", overrides, options).report.paper == load_recipe("cifar10").report.paper


def test_labels_that_look_like_numbers_are_names() -> None:
    assert load_recipe("digits", ["report.labels=[4,9]"]).report.labels == ("4", "9")


def test_a_recipe_that_needs_more_to_be_complete_may_quote_the_paper(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "{task: classify, mode: emb-start, data: {source: digits}, report: {paper: {emb: {mean: 1.0}}}}", "utf-8"
    )
    assert load_recipe(str(path), (), {"table": tmp_path / "table"}).report.paper is not None
    assert load_recipe(str(path), (), {"mode": "baseline"}).report.paper is not None
    path.write_text("{task: classify, report: {paper: {emb: {mean: 1.0}}}}", "utf-8")
    assert load_recipe(str(path), ["data.source=digits"]).report.paper is None


@pytest.mark.parametrize("mode", [mode.name for mode in MODES.values() if not mode.takes_table])
def test_settings_reach_a_worker_process_whole(mode: str) -> None:
    settings = load_recipe("digits", (), {"mode": mode})
    assert pickle.loads(pickle.dumps(settings)) == settings
