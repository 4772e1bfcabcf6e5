"""Soft targets of a few labels each in the fused loss: against the same targets spread out, and against loops."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tests.reference import cross_entropy
from torch import Tensor, nn

from labelemb.losses.decoupled import DecoupledLabelEmbeddingLoss
from labelemb.losses.fixed import FixedSoftLabelLoss, baseline, smoothing, teacher_free
from labelemb.losses.label_embedding import LabelEmbeddingLoss
from labelemb.losses.large.fused import FusedLabelEmbeddingLoss
from labelemb.losses.large.label_plan import plan_labels

N, C, D, K = 41, 13, 6, 3
CHUNK_SIZES = (1, 7, N, None)
MODES: list[Callable[..., FixedSoftLabelLoss]] = [baseline, smoothing, teacher_free]


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(default)


def problem() -> tuple[nn.Linear, Tensor, Tensor, Tensor]:
    """A head, features, and targets of which some name a label twice, some are no distribution and some are empty."""
    indices, values = torch.randint(C, (N, K)), torch.rand(N, K)
    values[3:20] = values[3:20].softmax(dim=1)
    values[::5] = 0
    return nn.Linear(D, C), torch.randn(N, D, requires_grad=True), indices, values


def spread(indices: Tensor, values: Tensor) -> Tensor:
    return torch.zeros(len(indices), C, dtype=values.dtype).scatter_add_(1, indices, values)


def assert_same(criterion: FixedSoftLabelLoss, chunk_size: int | None, num_items: int | None = None) -> None:
    """Fused terms and gradients, and those of the target spread out, to 1e-12."""
    head, features, indices, values = problem()
    tensors = [features, *head.parameters()]
    options: dict[str, Any] = {"num_items": num_items}
    fused = criterion.fused_terms(features, (indices, values), head, chunk_size=chunk_size, **options)
    plain = criterion.terms(head(features), spread(indices, values), **options)
    assert [term.requires_grad for term in fused] == [False] * 5 + [True]
    for got, want in zip(fused, plain, strict=True):
        torch.testing.assert_close(got, want.detach(), rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(terms.total, tensors) for terms in (fused, plain)]
    for got, want in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk_size", CHUNK_SIZES)
@pytest.mark.parametrize("mode", MODES)
def test_it_is_the_loss_of_the_target_spread_out(
    mode: Callable[..., FixedSoftLabelLoss], chunk_size: int | None
) -> None:
    assert_same(mode(C), chunk_size)
    assert_same(mode(C), chunk_size, num_items=100)
    assert_same(mode(C, reduction="sum"), chunk_size)
    assert_same(mode(C, class_weight=torch.linspace(0.0, 2.0, C)), chunk_size)


def test_the_loss_is_cross_entropy_by_loops() -> None:
    head, features, indices, values = problem()
    rows = spread(indices, values)
    logits = head(features).tolist()
    expected = 0.0
    for row, z in zip(rows.tolist(), logits, strict=True):
        if mass := sum(row):
            expected += mass * cross_entropy([value / mass for value in row], z)
    found = baseline(C, reduction="sum").fused(features, (indices, values), head, chunk_size=7)
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_an_index_with_the_value_1_is_that_label() -> None:
    head, features, indices, _ = problem()
    target, ones = indices[:, 0], torch.zeros(N, K).index_fill(1, torch.tensor([0]), 1.0)
    sparse = smoothing(C).fused(features, (indices, ones), head)
    torch.testing.assert_close(sparse, smoothing(C).fused(features, target, head), rtol=1e-12, atol=1e-12)


def test_gradcheck_holds() -> None:
    _, features, indices, values = problem()
    weight = torch.randn(C, D, requires_grad=True)

    def loss(features: Tensor, weight: Tensor) -> Tensor:
        head = nn.Linear(D, C, bias=False)
        del head.weight
        head.weight = weight
        return smoothing(C).fused(features, (indices[:5], values[:5]), head, chunk_size=2)

    assert torch.autograd.gradcheck(loss, (features.detach()[:5].requires_grad_(), weight))


def test_a_module_takes_them_and_evaluation_has_no_gradients() -> None:
    head, features, indices, values = problem()
    module = FusedLabelEmbeddingLoss(smoothing(C), head)
    expected = module(features, (indices, values))
    with torch.no_grad():
        loss = module(features, (indices.int(), values))
    assert not loss.requires_grad
    assert torch.equal(loss, expected.detach())


def test_no_items_at_all_are_zero() -> None:
    head, features, indices, values = problem()
    for some in (slice(0, 0), slice(0, 1)):  # the first one's values are zeros
        loss = baseline(C).fused(features[some], (indices[some], values[some]), head)
        assert loss.item() == 0
        assert not any(g.any() for g in torch.autograd.grad(loss, list(head.parameters())))


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_is_no_further_from_the_truth_than_the_unfused_loss(autocast: bool) -> None:
    head, features, indices, values = problem()
    narrow, given = head.bfloat16(), features.detach().bfloat16()
    exact = nn.Linear(D, C)
    exact.load_state_dict(narrow.state_dict())
    if autocast:
        narrow, given = narrow.float(), given.float()

    def results(head: nn.Linear, features: Tensor, fused: bool) -> list[Tensor]:
        features = features.detach().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast and features.dtype == torch.float32):
            target = indices, values.float()
            criterion = smoothing(C)
            loss = criterion.fused(features, target, head) if fused else criterion(head(features), spread(*target))
        return [loss.detach(), *torch.autograd.grad(loss, [features, *head.parameters()])]

    truth = results(exact, given.double(), False)
    plain, ours = (results(narrow, given, fused) for fused in (False, True))
    for true, one, other in zip(truth, plain, ours, strict=True):
        error_of_plain, error = ((value.double() - true).norm().item() for value in (one, other))
        assert error <= 1.1 * error_of_plain + 2**-9 * true.norm().item()


def test_no_tensor_has_the_size_of_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    largest, empty = 0, torch.empty

    def watched(*args: Any, **kwargs: Any) -> Tensor:
        nonlocal largest
        largest = max(largest, (made := empty(*args, **kwargs)).numel())
        return made

    monkeypatch.setattr(torch, "empty", watched)
    target = torch.randint(500, (300, K)), torch.rand(300, K)
    baseline(500).fused(torch.randn(300, D), target, nn.Linear(D, 500), chunk_size=8)
    assert 0 < largest <= 8 * 500


def test_bad_targets_are_refused_in_one_line() -> None:
    head, features, indices, values = problem()
    criterion = baseline(C)
    for target, message in [
        ((indices[:, 0], values), r"indices of a sparse target must be \(N, K\) integers, got \(41,\) of torch.int64"),
        ((values, values), r"indices of a sparse target must be \(N, K\) integers, got .* of torch.float64"),
        ((indices, indices), r"values of a sparse target must be floating point \(41, 3\)"),
        ((indices, values[:, :2]), r"values of a sparse target must be floating point \(41, 3\), got \(41, 2\)"),
        ((indices[:9], values), r"indices of a sparse target must be \(41, K\), got \(9, 3\)"),
        ((indices - 1, values), "must lie in 0 to 12, got -1; give a label that is not meant the value 0"),
        ((indices + 1, values), "must lie in 0 to 12, got 13"),
    ]:
        with pytest.raises(ValueError, match=message):
            criterion.fused(features, target, head)
    with pytest.raises(ValueError, match="num_items=0"):
        criterion.fused(features, (indices, values), head, num_items=0)
    with pytest.raises(ValueError, match="reduction must be 'mean' or 'sum'"):
        baseline(C, reduction="none").fused(features, (indices, values), head)
    with pytest.raises(ValueError, match="a plan is made of class indices"):
        criterion.fused_terms(features, (indices, values), head, plan=plan_labels(indices[:, 0]))


@pytest.mark.parametrize("criterion", [LabelEmbeddingLoss(D, C), DecoupledLabelEmbeddingLoss(C)])
def test_modes_that_learn_refuse_them(criterion: LabelEmbeddingLoss | DecoupledLabelEmbeddingLoss) -> None:
    head, features, indices, values = problem()
    with pytest.raises(ValueError, match=r"takes class indices; \(indices, values\) are for fused baseline"):
        criterion.fused(features, (indices, values), head)
