"""Means of an epoch's training terms: those of the criterion, whatever they are."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from labelemb.losses.terms import LossTerms
from labelemb.training.epoch_sums import EpochSums
from labelemb.training.processes import ALONE, Processes
from labelemb.training.task import StepOutput

CPU = torch.device("cpu")


class OwnTerms(NamedTuple):
    """Terms of a mode that has others than label embedding."""

    hard: Tensor
    reverse: Tensor
    total: Tensor


def output(num_items: int, *values: float, num_errors: int | None = 1) -> StepOutput:
    terms = OwnTerms(*(torch.tensor(value, requires_grad=True) for value in values))
    return StepOutput(terms, num_items, None if num_errors is None else torch.tensor(num_errors))


def test_columns_are_the_criterion_s_own_terms_weighted_by_items() -> None:
    sums = EpochSums(CPU)
    sums.add(output(3, 1.0, 2.0, 4.0))
    sums.add(output(1, 5.0, 6.0, 8.0))
    expected = {"train_loss": 5.0, "train_hard": 2.0, "train_reverse": 3.0, "train_error": 0.5}
    assert sums.means() == expected
    assert list(sums.means()) == list(expected)


def test_errors_that_are_not_counted_are_no_number() -> None:
    sums = EpochSums(CPU)
    sums.add(output(3, 1.0, 2.0, 4.0, num_errors=None))
    assert sums.means()["train_error"] != sums.means()["train_error"]


def test_sums_go_on_from_their_state_and_begin_anew_after_an_epoch() -> None:
    whole, first, second = EpochSums(CPU), EpochSums(CPU), EpochSums(CPU)
    first.add(output(3, 1.0, 2.0, 4.0))
    second.restore([first.state()], ALONE)
    assert second.means() == first.means()  # also before another step says which terms there are
    for sums in (second, whole):
        sums.add(output(2, 7.0, 2.0, 1.0))
    assert second.means() != whole.means()
    second.clear()
    second.add(output(2, 7.0, 2.0, 1.0))
    assert second.means() == whole.means()


def test_a_checkpoint_that_does_not_name_its_terms_has_those_of_label_embedding() -> None:
    sums = EpochSums(CPU)
    state: dict[str, Any] = {"sums": torch.tensor([2.0, 1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0], dtype=torch.float64)}
    sums.restore([state | {"terms": None}], ALONE)
    assert list(sums.means().values()) == [6.0, 1.0, 2.0, 3.0, 4.0, 5.0, 0.5]
    sums.add(StepOutput(LossTerms(*(torch.tensor(1.0) for _ in range(6))), 2, torch.tensor(0)))
    assert sums.means() == {
        "train_loss": 3.5,
        "train_hard": 1.0,
        "train_soft": 1.5,
        "train_aux": 2.0,
        "train_cap": 2.5,
        "train_match": 3.0,
        "train_error": pytest.approx(0.25),
    }


def test_more_or_fewer_processes_go_on_with_the_sums_of_all() -> None:
    states = []
    for errors in (1, 2):  # of two processes, each with the number of all items and its own part of the rest
        sums = EpochSums(CPU)
        sums.add(output(4, 1.0, 2.0, 3.0, num_errors=errors))
        states.append(sums.state())
    alone, first, second, third = (EpochSums(CPU) for _ in range(4))
    alone.restore(states, ALONE)
    assert alone.means() == {"train_loss": 6.0, "train_hard": 2.0, "train_reverse": 4.0, "train_error": 0.75}
    for rank, each in enumerate((first, second, third)):
        each.restore(states, Processes(rank, 3))
    assert first.means() == alone.means()
    assert second.means() == third.means() == dict.fromkeys(alone.means(), 0.0)
