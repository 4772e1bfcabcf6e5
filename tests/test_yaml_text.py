"""YAML as plain values: what would take for ever, or what no file can hold, is refused."""

import pytest

from labelemb.yaml_text import yaml_value

BOMB = "\n".join(["a0: &a0 [lol]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30))])


def test_an_alias_is_its_value() -> None:
    assert yaml_value("a: &x [1, 2]\nb: *x") == {"a": [1, 2], "b": [1, 2]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "more than 100,000 values, by aliases of aliases"),
        ("&a [*a]", "more than 100,000 values"),
        ("[" * 100_000, "nested too deeply"),
        ("0x" + "f" * 5000, "a number of too many digits"),
        ("1" * 5000, "Exceeds the limit"),
        (r'a: ["\ud800"]', "surrogates not allowed"),
        (r'"\ud800": 1', "surrogates not allowed"),
        ("!!bool x", "x"),
        ("!!timestamp x", "NoneType"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
    ],
)
def test_what_cannot_be_settings_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        yaml_value(text)
