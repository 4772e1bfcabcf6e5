"""Logits, targets and features of more axes than two: every position is an item, in every mode."""

import pytest
import torch
import torch.nn.functional as F
from tests.losses.test_modes import index, made
from tests.small_batches import assert_exact
from torch import Tensor

from labelemb.losses.catalogue import MODES
from labelemb.losses.items import Reduction
from labelemb.losses.modes import make_criterion

N, C, D, H, W = 2, 5, 4, 3, 2
POSITIONS: list[tuple[int, ...]] = [(H,), (H, W), (1, H, W)]


def image_batch(positions: tuple[int, ...] = (H, W)) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (N, C, ...), target (N, ...) with two ignored positions, features (N, D, ...)."""
    generator = torch.Generator().manual_seed(4)
    logits = 3 * torch.randn(N, C, *positions, dtype=torch.float64, generator=generator)
    features = torch.randn(N, D, *positions, dtype=torch.float64, generator=generator)
    target = torch.randint(C, (N, *positions), generator=generator)
    target.view(-1)[[1, 4]] = -100
    return logits, target, features


def by_loops(values: Tensor) -> Tensor:
    """(N, K, ...) as (N', K), position by position."""
    flat = values.flatten(2)
    return torch.stack([flat[i, :, j] for i in range(len(flat)) for j in range(flat.shape[2])])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("positions", POSITIONS)
def test_indices_of_any_shape_equal_the_flattened_call(
    mode: str, reduction: Reduction, positions: tuple[int, ...]
) -> None:
    logits, target, features = image_batch(positions)
    shaped, flat = made(mode), made(mode)
    shaped.reduction = flat.reduction = reduction
    logits.requires_grad_()
    examples = index(mode, *range(target.numel()))
    got = shaped.terms(logits, target, features, **{name: which.view(target.shape) for name, which in examples.items()})
    expected = flat.terms(by_loops(logits), target.flatten(), by_loops(features), **examples)
    for one, other in zip(got, expected, strict=True):
        assert one.shape == (target.shape if reduction == "none" else ())
        assert_exact(one.flatten(), other.flatten())
    (gradient,) = torch.autograd.grad(got.total.sum(), logits)
    assert_exact(gradient, torch.autograd.grad(expected.total.sum(), logits)[0])
    for name, buffer in shaped.named_buffers():  # what a mode gathers
        assert_exact(buffer, flat.get_buffer(name))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_probabilities_of_any_shape_equal_the_flattened_call(mode: str, reduction: Reduction) -> None:
    logits, _, features = image_batch()
    target = torch.rand(N, C, H, W, dtype=torch.float64).softmax(dim=1)
    shaped, flat = made(mode).eval(), made(mode).eval()
    shaped.reduction = flat.reduction = reduction
    got = shaped(logits, target, features, num_items=5 if reduction == "mean" else None)
    expected = flat(
        by_loops(logits), by_loops(target), by_loops(features), num_items=5 if reduction == "mean" else None
    )
    assert_exact(got.flatten(), expected.flatten())


def test_cross_entropy_of_any_shape_is_that_of_torch() -> None:
    logits, target, _ = image_batch()
    assert_exact(make_criterion("baseline", D, C)(logits, target), F.cross_entropy(logits, target))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_hard_needs_no_features_and_counts_nothing(mode: str, reduction: Reduction) -> None:
    logits, target, features = image_batch()
    criterion = made(mode)
    criterion.class_weight = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.5], dtype=torch.float64)
    criterion.reduction = reduction
    before = {name: value.clone() for name, value in criterion.state_dict().items()}
    found = criterion.hard(logits, target)
    for name, value in criterion.state_dict().items():
        assert torch.equal(value, before[name]), name
    examples = {name: which.view(target.shape) for name, which in index(mode, *range(target.numel())).items()}
    assert_exact(found, criterion.terms(logits, target, features, **examples).hard)
    rows = criterion.hard(by_loops(logits), target.flatten())
    assert_exact(found.flatten(), rows.flatten())


@pytest.mark.parametrize("mode", ["baseline", "emb", "uskd"])
def test_shapes_that_do_not_fit_are_refused(mode: str) -> None:
    logits, target, features = image_batch()
    criterion = made(mode)
    with pytest.raises(ValueError, match=r"classes come second.*logits\.movedim\(-1, 1\)"):
        criterion(logits.movedim(1, -1), target, features)
    with pytest.raises(ValueError, match=r"class indices .* must be \(2, 3, 2\), got \(2, 2, 3\)"):
        criterion(logits, target.mT, features)
    with pytest.raises(ValueError, match=r"class probabilities .* must be \(2, 5, 3, 2\), got \(2, 3, 2\)"):
        criterion(logits, target.double(), features)
    with pytest.raises(ValueError, match="0 to 4"):
        criterion(logits, target + 5, features)
    if MODES[mode].takes_features:
        with pytest.raises(ValueError, match=r"features.* must be \(2, 4, 3, 2\), got \(2, 4\)"):
            criterion(logits, target, features[:, :, 0, 0])
        with pytest.raises(ValueError, match=r"features.* must be \(2, 4, 3, 2\), got none"):
            criterion(logits, target)


@pytest.mark.parametrize("positions", [(), (H, W)])
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
def test_targets_of_several_labels_are_refused_by_their_kind(positions: tuple[int, ...], dtype: torch.dtype) -> None:
    criterion = make_criterion("baseline", D, C)
    with pytest.raises(ValueError, match="several labels"):
        criterion(torch.zeros(N, C, *positions), torch.zeros(N, C, *positions, dtype=dtype))


@pytest.mark.parametrize("positions", [(), (H, W)])
def test_several_ones_an_item_are_refused_when_probabilities_first_come(positions: tuple[int, ...]) -> None:
    logits, target = torch.zeros(N, C, *positions), torch.zeros(N, C, *positions)
    target[:, 1] = 1
    make_criterion("baseline", D, C)(logits, target)
    target[0, 3] = 1
    with pytest.raises(ValueError, match="several ones"):
        make_criterion("baseline", D, C)(logits, target)
