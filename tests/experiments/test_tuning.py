"""The grid of equal tuning: what every mode gets of it, and which point is chosen."""

import pytest
import yaml

from labelemb.errors import InputError
from labelemb.experiments.tuning import (
    Judged,
    at_edge,
    check_grid,
    choice,
    folder_name,
    overrides_of,
    parse_grid,
    points,
    rule,
)
from labelemb.settings.config import describe
from labelemb.settings.recipe import load_recipe
from labelemb.settings.variants import parse_variant

GRID = parse_grid("optimizer.lr=0.025,0.05,0.1,0.2; epsilon=0.1,0.3")
VARIANTS = [parse_variant(text) for text in ("baseline", "smoothing", "emb", "strong=smoothing:epsilon=0.4")]


def refused(text: str, *modes: str) -> str:
    variants = [parse_variant(mode) for mode in modes] or VARIANTS
    with pytest.raises(InputError) as error:
        check_grid(parse_grid(text), variants, [key for key, _, _ in describe(load_recipe("digits"))])
    assert "\n" not in str(error.value)
    return str(error.value)


def judged(*means: float | None) -> list[Judged]:
    return [Judged({"optimizer.lr": 10**place}, [mean]) for place, mean in enumerate(means)]


def test_every_mode_has_the_same_grid_but_for_settings_it_does_not_have() -> None:
    assert [len(points(GRID, variant)) for variant in VARIANTS] == [4, 8, 4, 4]
    assert points(GRID, VARIANTS[1])[:3] == [
        {"optimizer.lr": 0.025, "smoothing.epsilon": 0.1},
        {"optimizer.lr": 0.025, "smoothing.epsilon": 0.3},
        {"optimizer.lr": 0.05, "smoothing.epsilon": 0.1},
    ]
    assert points(parse_grid("epsilon=0.1,0.3"), VARIANTS[0]) == [{}]


def test_a_key_may_name_the_section_which_modes_share() -> None:
    grid = parse_grid("emb.hard_weight=0.3,0.7")
    assert [len(points(grid, parse_variant(mode))) for mode in ("emb", "emb-frozen", "online-smoothing")] == [2, 2, 1]
    assert len(points(parse_grid("hard_weight=0.3,0.7"), parse_variant("online-smoothing"))) == 2


def test_what_makes_a_variant_is_not_tuned() -> None:
    assert set(points(GRID, VARIANTS[3])[0]) == {"optimizer.lr"}


def test_values_are_those_of_yaml_and_lists_keep_their_commas() -> None:
    grid = parse_grid("model.hidden=[12, 3],[4]; optimizer.clip=null,5; optimizer.lr=1e-3,1")
    assert grid == {"model.hidden": [[12, 3], [4]], "optimizer.clip": [None, 5], "optimizer.lr": [0.001, 1]}
    for point in points(grid, VARIANTS[0]):
        settings = load_recipe("digits", overrides_of(point))
        assert settings.optimizer.clip == point["optimizer.clip"]
        assert settings.optimizer.lr == point["optimizer.lr"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr=0.1,0.2", "--tune lr: none of baseline, smoothing, emb, strong leaves such .*mean optimizer.lr?"),
        ("epsilom=0.1", "did you mean smoothing.epsilon?"),
        ("epoch=1,2", "did you mean epochs?"),
        ("emb.temprature=1", "did you mean emb.temperature?"),
        ("seed=0,1", "--tune seed: it is not how a network is trained"),
        ("data.validation=10,20", "--tune data.validation: it is not how a network is trained"),
        ("compare.runs=1,2", "--tune compare.runs: it is not how"),
        ("epsilon", "--tune 'epsilon': expected KEY=VALUE,VALUE"),
        ("epsilon=0.1;", "expected KEY=VALUE,VALUE"),
        ("epsilon=0.1,0.10", "--tune epsilon: 0.1 stands there twice"),
        ("epsilon=0.1;epsilon=0.3", "--tune: epsilon stands there twice"),
        ("epsilon=0.1;smoothing.epsilon=0.3", "--tune: epsilon and smoothing.epsilon are one setting"),
        ("epsilon=[", "not YAML values"),
    ],
)
def test_a_grid_that_cannot_be_is_refused_with_the_nearest_name(text: str, expected: str) -> None:
    before, _, after = expected.partition(".*")
    line = refused(text)
    assert before in line
    assert after in line


def test_a_setting_of_no_compared_mode_is_refused() -> None:
    line = refused("epsilon=0.1,0.3", "baseline", "emb")
    assert "none of baseline, emb leaves such a setting open" in line
    assert "smoothing" not in line


def test_a_point_s_folder_is_readable_one_level_and_its_own() -> None:
    assert folder_name({"optimizer.lr": 0.05, "smoothing.epsilon": 0.1}) == "optimizer.lr=0.05,smoothing.epsilon=0.1"
    names = [folder_name({"model.name": name}) for name in ("a/b", "a b", "a\\b", "../a", "a%2Fb")]
    assert len(set(names)) == 5
    for name in names:
        assert load_recipe("digits", [f"tuning={name}"]).tuning == name
        assert yaml.safe_load(name) == name


def test_the_lowest_error_or_the_highest_score_is_chosen_and_of_equals_the_first() -> None:
    every = judged(0.3, 0.1, 0.4, 0.1, 0.4)
    assert choice(every, higher_is_better=False) == {"optimizer.lr": 10}
    assert choice(every, higher_is_better=True) == {"optimizer.lr": 100}


def test_a_point_with_a_diverged_run_is_never_chosen() -> None:
    half = Judged({"optimizer.lr": 9}, [0.01, None])
    assert (half.mean, half.std) == (None, None)
    assert choice([half, *judged(0.3)], higher_is_better=False) == {"optimizer.lr": 1}
    assert choice([half], higher_is_better=False) is None


def test_a_point_has_the_mean_and_the_deviation_of_its_runs() -> None:
    assert Judged({}, [0.1, 0.3]).mean == pytest.approx(0.2)
    assert Judged({}, [0.1, 0.3]).std == pytest.approx(0.02**0.5)
    assert Judged({}, [0.1]).std is None


def test_an_optimum_at_the_edge_is_told_of_keys_with_two_or_more_numbers() -> None:
    every = judged(0.1, 0.2, 0.3)
    assert [at_edge(each.point, every) for each in every] == [["optimizer.lr"], [], ["optimizer.lr"]]
    assert at_edge({"optimizer.lr": 1}, judged(0.1)) == []
    assert at_edge({"optimizer.lr": 10}, every[::-1]) == []
    words = [Judged({"model.name": name}, [0.1]) for name in ("a", "b")]
    assert at_edge({"model.name": "a"}, words) == []
    order = [Judged({"epochs": epochs}, [0.1]) for epochs in (5, 20, 10)]
    assert at_edge({"epochs": 10}, order) == []


def test_errors_are_judged_at_the_last_epoch_and_scores_of_texts_at_the_best() -> None:
    assert rule(load_recipe("digits")) == ("valid_error", False, False)
    assert rule(load_recipe("multi30k")) == ("valid_bleu", True, True)
