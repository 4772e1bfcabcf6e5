"""The examples in the library's docstrings run as they stand, and every public class has one."""

import doctest
from importlib import import_module

import pytest
from tests.test_imports import FILES

import labelemb

WITH_EXAMPLES = [
    module
    for module, path in FILES.items()
    if module.startswith("labelemb.losses") and ">>>" in path.read_text(encoding="utf-8")
]
CLASSES = [name for name in labelemb.__all__ if isinstance(getattr(labelemb, name), type)]


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_the_examples_of_a_module_give_what_they_show(module: str) -> None:
    runner, said = doctest.DocTestRunner(verbose=False), list[str]()
    for example in doctest.DocTestFinder().find(import_module(module)):
        runner.run(example, out=said.append)
    assert runner.tries > 0, "nothing was run"
    assert runner.failures == 0, "".join(said)


@pytest.mark.parametrize("name", CLASSES)
def test_every_public_class_has_an_example(name: str) -> None:
    docstring = getattr(labelemb, name).__doc__ or ""
    assert doctest.DocTestParser().get_examples(docstring), f"{name} has no example"
