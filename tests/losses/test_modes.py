"""What holds for every mode of the catalogue, new ones too."""

import inspect
import math
from importlib import import_module
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.small_batches import assert_exact, batch
from torch import Tensor

from labelemb import LabelEmbeddingLoss, LabelTable
from labelemb.losses.catalogue import MODES
from labelemb.losses.items import Reduction
from labelemb.losses.modes import make_criterion
from labelemb.losses.progressive_self_distillation import ProgressiveSelfDistillationLoss
from labelemb.losses.soft_label import SoftLabelLoss


def made(mode: str) -> SoftLabelLoss:
    """A criterion of five labels, four features and nine examples in float64; tables and predictions are random."""
    torch.manual_seed(1)
    table = LabelTable(5)
    with torch.no_grad():
        table.weight.normal_()
    criterion = of_mode(mode, table=table if MODES[mode].takes_table else None).double()
    if isinstance(criterion, ProgressiveSelfDistillationLoss):
        criterion.gathered.copy_(torch.randn(12, 5).softmax(dim=1))
        criterion.end_epoch()
    return criterion


def of_mode(mode: str, **options: Any) -> SoftLabelLoss:
    """A criterion of five labels, four features, twelve examples and three epochs."""
    return make_criterion(mode, 4, 5, num_examples=12, num_epochs=3, **options)


def index(mode: str, *examples: int) -> dict[str, Tensor]:
    """What a call needs beside logits, target and features: which examples its items are, the first seven if none."""
    return {"index": torch.tensor(examples or range(7))} if MODES[mode].takes_index else {}


OF_LOGITS = [mode.name for mode in MODES.values() if not mode.takes_features and not mode.takes_table]
# Where a table learns from the network beside it, gradients stop on the way: the sum is the gradient of nothing.
WITHOUT_STOPS = [mode for mode in OF_LOGITS if not list(made(mode).parameters())]


@pytest.mark.parametrize("mode", WITHOUT_STOPS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradients_are_those_of_finite_differences(mode: str, reduction: Reduction) -> None:
    logits, target = batch()
    criterion = made(mode).eval()
    criterion.reduction = reduction
    target[3] = -100
    torch.autograd.gradcheck(lambda z: criterion(z, target, **index(mode)), logits.requires_grad_(), atol=1e-7)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_distribution_of_weight_one_equals_its_index(mode: str, weighted: bool) -> None:
    logits, target = batch()
    features = torch.randn(7, 4, dtype=torch.float64)
    criterion = made(mode).eval()
    if weighted:
        criterion.class_weight = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.5], dtype=torch.float64)
    by_index = criterion.terms(logits, target, features, **index(mode))
    by_distribution = criterion.terms(logits, F.one_hot(target, 5).double(), features, **index(mode))
    for one, other in zip(by_index, by_distribution, strict=True):
        assert_exact(one, other)


@pytest.mark.parametrize("mode", OF_LOGITS)
def test_a_distribution_is_the_expectation_over_its_labels(mode: str) -> None:
    logits, _ = batch()
    criterion = made(mode).eval()
    target = torch.rand(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).softmax(dim=1)
    expected = math.fsum(
        target[i, label].item() * criterion(logits[i : i + 1], torch.tensor([label]), **index(mode, i)).item()
        for i in range(7)
        for label in range(5)
    )
    assert criterion(logits, target, **index(mode)).item() == pytest.approx(expected / 7, rel=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_ignored_items_have_no_part_in_any_mode(mode: str) -> None:
    logits, target = batch()
    features = torch.randn(7, 4, dtype=torch.float64)
    marked = target.clone()
    marked[[1, 4]] = -100
    kept = marked != -100
    of_all = made(mode)
    of_kept = made(mode)
    of_kept.load_state_dict(of_all.state_dict())
    found = of_all(logits, marked, features, **index(mode))
    assert_exact(found, of_kept(logits[kept], target[kept], features[kept], **index(mode, 0, 2, 3, 5, 6)))
    for name, buffer in of_all.named_buffers():  # what a mode gathers, it gathers of the others alone
        assert_exact(buffer, of_kept.get_buffer(name))


@pytest.mark.parametrize("mode", OF_LOGITS)
@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_extreme_logits_give_finite_losses_and_gradients(mode: str, scale: float) -> None:
    logits = (scale * torch.eye(5))[:4].requires_grad_()
    criterion = of_mode(mode)
    loss = criterion(logits, torch.tensor([0, 2, 2, 4]), **index(mode, 0, 1, 2, 3))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("mode", OF_LOGITS)
def test_no_items_at_all_are_zero(mode: str) -> None:
    logits, target = batch()
    assert made(mode)(logits, torch.full_like(target, -100), **index(mode)).item() == 0
    no_index = {name: value[:0] for name, value in index(mode).items()}
    assert made(mode)(logits[:0], target[:0], **no_index).item() == 0


@pytest.mark.parametrize("mode", [mode.name for mode in MODES.values() if mode.takes_table])
def test_a_mode_that_needs_a_table_says_so(mode: str) -> None:
    with pytest.raises(ValueError, match=f"mode {mode} needs"):
        make_criterion(mode, 4, 5)


@pytest.mark.parametrize("mode", [mode.name for mode in MODES.values() if not mode.takes_table])
def test_a_mode_that_takes_no_table_says_so(mode: str) -> None:
    with pytest.raises(ValueError, match=f"mode {mode} takes no"):
        make_criterion(mode, 4, 5, table=LabelTable(5))


def test_settings_reach_the_label_embedding_loss() -> None:
    criterion = make_criterion("emb", 4, 5, rank=2, hard_weight=0.3, soft_weight=0.6, temperature=3, cap=0.8)
    assert isinstance(criterion, LabelEmbeddingLoss)
    assert (criterion.hard_weight, criterion.soft_weight, criterion.temperature) == (0.3, 0.6, 3)
    assert (criterion.cap, criterion.table.rank) == (0.8, 2)


def test_a_frozen_table_leaves_nothing_to_train() -> None:
    assert not list(made("emb-frozen").parameters())
    assert list(made("emb-start").parameters())


@pytest.mark.parametrize("mode", OF_LOGITS)
def test_targets_that_do_not_fit_are_refused(mode: str) -> None:
    logits, target = batch()
    criterion = made(mode)
    with pytest.raises(ValueError, match="0 to 4"):
        criterion(logits, target + 5)
    with pytest.raises(ValueError, match="logits"):
        criterion(logits[:, :4], target)
    with pytest.raises(ValueError, match="class probabilities"):
        criterion(logits, torch.ones(7, 4))
    criterion.reduction = "sum"
    with pytest.raises(ValueError, match="num_items"):
        criterion(logits, target, num_items=3)


def test_printing_a_mode_shows_its_settings() -> None:
    assert "soft_weight=0.1" in repr(make_criterion("smoothing", 4, 3))


def default_of_constructor(mode: str) -> dict[str, Any]:
    """The defaults that a mode's constructor has."""
    module, _, name = MODES[mode].constructor.partition(":")
    parameters = inspect.signature(getattr(import_module(module), name)).parameters
    return {name: parameter.default for name, parameter in parameters.items()}


@pytest.mark.parametrize("mode", MODES)
def test_settings_of_the_catalogue_have_the_defaults_of_the_constructor(mode: str) -> None:
    defaults = default_of_constructor(mode)
    wanted = {setting.name: setting.default for setting in MODES[mode].settings if setting.of_criterion}
    assert {name: defaults[name] for name in wanted} == wanted


@pytest.mark.parametrize("mode", MODES)
def test_what_the_catalogue_says_of_a_mode_is_so(mode: str) -> None:
    criterion = made(mode)
    assert hasattr(criterion, "table") == MODES[mode].has_table
    assert (type(criterion).fused_terms is not SoftLabelLoss.fused_terms) == MODES[mode].is_fused
    assert MODES[MODES[mode].section].section == MODES[mode].section
    criterion.end_epoch()


@pytest.mark.parametrize("mode", [mode.name for mode in MODES.values() if mode.takes_index])
def test_a_mode_that_takes_an_index_needs_the_sizes_of_the_training(mode: str) -> None:
    with pytest.raises(ValueError, match=f"mode {mode} .* give num_examples and num_epochs"):
        make_criterion(mode, 4, 5, num_examples=9)
    assert "index" in inspect.signature(made(mode).terms).parameters


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("option", ["weight", "label_smoothing", "nonsense"])
def test_unknown_options_are_refused_by_name(mode: str, option: str) -> None:
    with pytest.raises(TypeError, match=option):
        of_mode(mode, table=LabelTable(5) if MODES[mode].takes_table else None, **{option: 0.1})


@pytest.mark.parametrize("weight", [-0.1, math.inf, math.nan])
def test_weights_out_of_range_are_refused(weight: float) -> None:
    for mode in MODES.values():
        if mode.setting("hard_weight"):
            table = LabelTable(5) if mode.takes_table else None
            with pytest.raises(ValueError, match="hard_weight must be finite and at least 0"):
                make_criterion(mode.name, 4, 5, table=table, hard_weight=weight)
