from labelemb.losses.catalogue import MODES
from labelemb.report.style import Look, looks

FIRST_SEVEN = {
    "baseline": "#4D4D4D",
    "smoothing": "#E69F00",
    "online-smoothing": "#009E73",
    "tfkd": "#CC79A7",
    "emb": "#0072B2",
    "emb-start": "#D55E00",
    "emb-frozen": "#56B4E9",
}


def ink(look: Look) -> tuple[float, ...]:
    """A pattern over its first 120 line widths: 1 where there is ink."""
    lengths = (1.0, 0.0) if isinstance(look.pattern, str) else look.pattern[1]
    period = [place % 2 == 0 for place, length in enumerate(lengths) for _ in range(round(2 * length))]
    return tuple(float(period[step % len(period)]) for step in range(240))


def test_the_first_seven_modes_keep_the_solid_lines_and_colours_of_published_pictures() -> None:
    assert list(MODES)[:7] == list(FIRST_SEVEN)
    for name, look in looks(list(FIRST_SEVEN)).items():
        assert look == Look(FIRST_SEVEN[name], "-")


def test_twenty_modes_look_different_and_beyond_the_first_seven_without_colours_too() -> None:
    found = list(looks([*FIRST_SEVEN, *(f"variant {number}" for number in range(13))]).values())
    assert len(set(found)) == 20
    dashed = [look for look in found if look.pattern != "-"]
    assert len(dashed) >= 13
    for place, look in enumerate(dashed):
        for other in dashed[:place]:
            assert sum(a != b for a, b in zip(ink(look), ink(other), strict=True)) >= 12, (look, other)


def test_a_mode_looks_the_same_whatever_it_is_compared_with() -> None:
    assert looks(["emb"])["emb"] == looks(["a", "baseline", "emb"])["emb"]


def test_variants_take_the_next_free_looks_in_their_order() -> None:
    found = looks(["emb", "cold", "warm"])
    again = looks(["cold", "warm"])
    assert found["cold"] == again["cold"] != found["warm"] == again["warm"]
    assert found["cold"] not in looks(list(MODES)).values()
