"""The fused loss against the loss over (N, C) tensors, and against its formulas."""

from collections.abc import Callable, Iterator
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.prune import l1_unstructured

from labelemb.losses.fixed import FixedSoftLabelLoss, baseline, smoothing, teacher_free
from labelemb.losses.items import Items
from labelemb.losses.label_embedding import LabelEmbeddingLoss
from labelemb.losses.large.fused import FusedLabelEmbeddingLoss, fused_terms
from labelemb.losses.large.fused_pass import Inputs
from labelemb.losses.large.gradient_sum import GradientSum
from labelemb.losses.large.label_plan import LabelPlan, plan_labels
from labelemb.losses.online_smoothing import OnlineLabelSmoothing
from labelemb.losses.soft_label import SoftLabelLoss
from labelemb.losses.terms import Weights

N, C, D, R = 41, 13, 6, 4
CHUNK_SIZES = (1, 7, N, None)


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(default)


def make_criterion(rank: int | None = R, **options: object) -> LabelEmbeddingLoss:
    """A criterion whose cap binds and whose table, aux head and matches are all at work."""
    criterion = LabelEmbeddingLoss(D, C, rank=rank, **{"cap": 0.3, "cap_weight": 3.0, **options})  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in criterion.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return criterion


def random_labels() -> Tensor:
    return torch.randint(C, (N,))


def zipf_labels() -> Tensor:
    return torch.multinomial(1 / torch.arange(1.0, C + 1), N, replacement=True)


def gradients(loss: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    given = torch.autograd.grad(loss, tensors, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(tensors, given, strict=True)]


def assert_same(
    criterion: LabelEmbeddingLoss | FixedSoftLabelLoss,
    target: Tensor,
    chunk_size: int | None,
    *,
    bias: bool = True,
    num_items: Tensor | int | None = None,
    plan: LabelPlan | None = None,
) -> None:
    """Fused and unfused terms, loss and gradients of features, head and criterion, to 1e-10."""
    head, features = nn.Linear(D, C, bias=bias), torch.randn(len(target), D, requires_grad=True)
    tensors = [features, *head.parameters(), *criterion.parameters()]
    expected = criterion.terms(head(features), target, features, num_items=num_items)
    module = FusedLabelEmbeddingLoss(criterion, head)
    fused = module.terms(features, target, num_items=num_items, chunk_size=chunk_size, plan=plan)
    assert [term.requires_grad for term in fused] == [False] * 5 + [True]
    for name, got, want in zip(fused._fields, fused, expected, strict=True):
        if name != "soft" or criterion.soft_weight:
            torch.testing.assert_close(got, want, rtol=0, atol=1e-10, msg=f"{name}: {got} for {want}")
    for got, want in zip(gradients(fused.total, tensors), gradients(expected.total, tensors), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("chunk_size", CHUNK_SIZES)
@pytest.mark.parametrize("rank", [None, R])
@pytest.mark.parametrize("labels", [random_labels, zipf_labels])
def test_it_is_the_loss_over_all_logits_for_every_chunk_size(labels, rank, chunk_size) -> None:  # type: ignore[no-untyped-def]
    assert_same(make_criterion(rank), labels(), chunk_size)


OPTIONS: list[dict[str, object]] = [
    {"soft_weight": 0.0},
    {"hard_weight": 0.0},
    {"hard_weight": 1.3, "soft_weight": 0.2},
    {"temperature": 1.5},
    {"temperature": 1.5, "soft_weight": 0.0},
    {"cap_weight": 0.0},
    {"class_weight": torch.linspace(0.0, 2.0, C, dtype=torch.float64)},
    {"reduction": "sum"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ",".join(f"{k}" for k in options))
def test_options_change_nothing_in_the_equality(options: dict[str, object]) -> None:
    for rank, chunk_size in product((None, R), CHUNK_SIZES):
        assert_same(make_criterion(rank, **options), zipf_labels(), chunk_size)


def test_ignored_items_have_no_part_and_no_gradient() -> None:
    target = zipf_labels()
    target[::3] = -100
    for chunk_size in CHUNK_SIZES:
        assert_same(make_criterion(), target, chunk_size)


@pytest.mark.parametrize("num_items", [100, torch.tensor(100.0)])
def test_num_items_replaces_the_divisor(num_items: Tensor | int) -> None:
    assert_same(make_criterion(), zipf_labels(), 7, num_items=num_items)


def test_a_head_without_bias_gives_the_same() -> None:
    for chunk_size in CHUNK_SIZES:
        assert_same(make_criterion(), zipf_labels(), chunk_size, bias=False)


@pytest.mark.parametrize("rank", [None, R])
def test_a_frozen_table_gives_the_same(rank: int | None) -> None:
    table = make_criterion(rank).table
    for soft_weight, chunk_size in product((0.5, 0.0), CHUNK_SIZES):
        criterion = LabelEmbeddingLoss(D, C, table=table, freeze_table=True, soft_weight=soft_weight)
        assert_same(criterion, zipf_labels(), chunk_size)


@pytest.mark.parametrize("make", [baseline, smoothing, teacher_free])
def test_the_other_modes_give_the_same(make) -> None:  # type: ignore[no-untyped-def]
    for chunk_size in CHUNK_SIZES:
        assert_same(make(C), zipf_labels(), chunk_size)


def test_a_plan_made_beforehand_gives_the_same() -> None:
    target = zipf_labels()
    target[5] = -100
    assert_same(make_criterion(), target, 7, plan=plan_labels(target))


def test_a_plan_sorts_the_items_by_label_and_leaves_ignored_ones_out() -> None:
    plan = plan_labels(torch.tensor([4, 1, -100, 4, 0]))
    assert plan.order.tolist() == [4, 1, 0, 3]
    assert plan.labels.tolist() == [0, 1, 4]
    assert plan.labels[plan.inverse].tolist() == [0, 1, 4, 4]
    assert plan.ends == (1, 2, 4)
    assert [tuple(chunk) for chunk in plan.chunks(3)] == [(0, 2, 0, 2), (2, 4, 2, 3)]


def test_no_items_at_all_give_zero_and_zero_gradients() -> None:
    criterion, head = make_criterion(), nn.Linear(D, C)
    for target in (torch.full((5,), -100), torch.empty(0, dtype=torch.long)):
        features = torch.randn(len(target), D, requires_grad=True)
        loss = FusedLabelEmbeddingLoss(criterion, head)(features, target)
        assert loss.item() == 0
        for gradient in torch.autograd.grad(loss, [features, *head.parameters(), *criterion.parameters()]):
            assert not gradient.any()


def test_gradients_are_the_closed_forms() -> None:
    """The three formulas of docs/method.md, item by item, for a low-rank table."""
    features, target = torch.randn(N, D), zipf_labels()
    w, b, w2, b2 = torch.randn(C, D), torch.randn(C), torch.randn(C, D), torch.randn(C)
    codes, decoder, c = torch.randn(C, R), torch.randn(C, R), torch.randn(C)
    hard, soft, temperature, cap, cap_weight = weights = Weights(0.7, 0.4, 1.7, 0.2, 3.0)
    leaves = [t.requires_grad_() for t in (features, w, b, w2, b2, codes, decoder, c)]
    want = [torch.zeros_like(leaf) for leaf in leaves]
    total, num_matched = 0.0, 0
    with torch.no_grad():
        for h, y, d_features in zip(features, target.tolist(), want[0], strict=True):
            onehot = torch.eye(C)[y]
            z, z2, e = w @ h + b, w2 @ h + b2, (decoder @ codes[y] + c).relu()
            p, p2, s, q = z.softmax(0), z2.softmax(0), e.softmax(0), (z2 / temperature).softmax(0)
            matched = float(z2[y] == z2.max())
            num_matched += int(matched)
            total += -hard * p[y].log() - soft * (s @ p.log()) - p2[y].log() + cap_weight * max(p2[y] - cap, 0)
            total -= matched * (q @ s.log())
            dz = (hard + soft) * p - hard * onehot - soft * s
            dz2 = p2 - onehot + cap_weight * (p2[y] > cap) * p2[y] * (onehot - p2)
            de = matched * (s - q) * (decoder @ codes[y] + c > 0)
            d_features += w.T @ dz
            for index, part in ((1, torch.outer(dz, h)), (2, dz), (3, torch.outer(dz2, h)), (4, dz2)):
                want[index] += part
            want[5][y] += decoder.T @ de
            want[6] += torch.outer(de, codes[y])
            want[7] += de
    assert 0 < num_matched < N
    for chunk_size in CHUNK_SIZES:
        inputs = Inputs(features, w, b, w2, b2, None, codes, decoder, c)
        loss = fused_terms(inputs, Items(target, reduction="sum"), weights, chunk_size=chunk_size).total
        torch.testing.assert_close(loss.item(), float(total), rtol=0, atol=1e-10)
        for got, wanted in zip(torch.autograd.grad(loss, leaves), want, strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)


def test_gradcheck_holds_in_the_head() -> None:
    criterion, target = make_criterion(), zipf_labels()[:9]
    assert criterion.aux_head is not None
    features, aux = torch.randn(9, D), criterion.aux_head
    rows, decoder = criterion.table.rows, criterion.table.decoder
    weights = Weights(0.5, 0.5, 2.0, 0.3, 3.0)

    def loss(weight: Tensor, bias: Tensor) -> Tensor:
        table = (None, rows.weight, decoder.weight, decoder.bias)
        inputs = Inputs(features, weight, bias, aux.weight, aux.bias, *table)
        return fused_terms(inputs, Items(target), weights, chunk_size=4).total

    assert torch.autograd.gradcheck(loss, (torch.randn(C, D, requires_grad=True), torch.randn(C, requires_grad=True)))


def test_only_gradients_asked_for_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Tensor] = []

    class Watched(GradientSum):
        def __init__(self, tensor: Tensor, dtype: torch.dtype) -> None:
            made.append(tensor)
            super().__init__(tensor, dtype)

    monkeypatch.setattr("labelemb.losses.large.fused_pass.GradientSum", Watched)
    criterion, head, target = make_criterion(), nn.Linear(D, C), zipf_labels()
    features = torch.randn(N, D, requires_grad=True)
    module = FusedLabelEmbeddingLoss(criterion, head)
    tensors = [features, *module.parameters()]
    full = gradients(module(features, target), tensors)
    for index, tensor in enumerate(tensors):
        for other in tensors:
            other.requires_grad_(other is tensor)
        made.clear()
        loss = module(features, target, chunk_size=7)
        assert len(made) == 1
        (got,) = torch.autograd.grad(loss, tensor)
        torch.testing.assert_close(got, full[index], rtol=0, atol=1e-10)


@pytest.mark.parametrize("grad_mode", [torch.no_grad, torch.inference_mode])
def test_evaluation_keeps_no_gradients(grad_mode, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    criterion, head, target, features = make_criterion(), nn.Linear(D, C), zipf_labels(), torch.randn(N, D)
    module = FusedLabelEmbeddingLoss(criterion, head)
    expected = module(features, target).item()
    monkeypatch.setattr("labelemb.losses.large.fused_pass.GradientSum", None)  # making one would fail
    with grad_mode():
        loss = module(features, target)
    assert not loss.requires_grad
    assert loss.item() == expected


def test_a_weight_tied_to_an_embedding_gets_both_gradients() -> None:
    embedding, criterion, target = nn.Embedding(C, D), make_criterion(), zipf_labels()
    head = nn.Linear(D, C)
    head.weight = embedding.weight
    tokens = torch.randint(C, (N,))
    fused = FusedLabelEmbeddingLoss(criterion, head)(embedding(tokens).tanh(), target, chunk_size=7)
    features = embedding(tokens).tanh()
    expected = criterion(head(features), target, features)
    for got, want in zip(
        torch.autograd.grad(fused, [embedding.weight]), torch.autograd.grad(expected, [embedding.weight]), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


def test_the_factor_of_the_loss_reaches_every_gradient() -> None:
    criterion, head, target = make_criterion(), nn.Linear(D, C), zipf_labels()
    features = torch.randn(N, D, requires_grad=True)
    module = FusedLabelEmbeddingLoss(criterion, head)
    tensors = [features, *module.parameters()]
    once, scaled = gradients(module(features, target), tensors), gradients(-2.5 * module(features, target), tensors)
    for one, other in zip(once, scaled, strict=True):
        torch.testing.assert_close(other, -2.5 * one, rtol=0, atol=1e-12)


def test_a_second_backward_is_right_or_raises() -> None:
    criterion, head, target, features = make_criterion(), nn.Linear(D, C), zipf_labels(), torch.randn(N, D)
    module = FusedLabelEmbeddingLoss(criterion, head)
    weight = head.weight
    loss = module(features, target)
    first = torch.autograd.grad(loss, weight, retain_graph=True)[0].clone()
    assert torch.equal(torch.autograd.grad(loss, weight)[0], first)
    scaled = 2 * module(features, target)
    torch.autograd.grad(scaled, weight, retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(scaled, weight)


def test_gradients_become_the_parameters_without_a_copy() -> None:
    criterion, head, target, features = make_criterion(), nn.Linear(D, C), zipf_labels(), torch.randn(N, D)
    loss = FusedLabelEmbeddingLoss(criterion, head)(features, target)
    assert loss.grad_fn is not None
    made = {tensor.data_ptr() for tensor in loss.grad_fn.saved_tensors if tensor is not None}
    loss.backward()
    for parameter in (*head.parameters(), *criterion.parameters()):
        assert parameter.grad is not None
        assert parameter.grad.data_ptr() in made


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("rank", [None, R])
def test_bfloat16_is_no_further_from_the_truth_than_the_unfused_loss(rank: int | None, autocast: bool) -> None:
    num_items = 200
    criterion, head = make_criterion(rank).bfloat16(), nn.Linear(D, C).bfloat16()
    features, target = torch.randn(num_items, D).bfloat16(), torch.randint(C, (num_items,))
    exact, exact_head = make_criterion(rank).double(), nn.Linear(D, C).double()
    exact.load_state_dict(criterion.state_dict())
    exact_head.load_state_dict(head.state_dict())
    if autocast:
        criterion, head, features = criterion.float(), head.float(), features.float()

    def results(criterion: SoftLabelLoss, head: nn.Module, features: Tensor, fused: bool) -> list[Tensor]:
        features = features.detach().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast and features.dtype == torch.float32):
            if fused:
                assert isinstance(head, nn.Linear)
                loss = FusedLabelEmbeddingLoss(criterion, head)(features, target, chunk_size=50)
            else:
                loss = criterion(head(features), target, features)
        assert not fused or loss.dtype == torch.float32
        leaves = [features, *head.parameters(), *criterion.parameters()]
        return [loss.detach(), *torch.autograd.grad(loss, leaves)]

    truth = results(exact, exact_head, features.double(), False)
    plain, ours = (results(criterion, head, features, fused) for fused in (False, True))
    for true, one, other in zip(truth, plain, ours, strict=True):
        assert one.dtype == other.dtype
        error_of_plain, error = ((value.double() - true).norm().item() for value in (one, other))
        assert error <= 1.1 * error_of_plain + 2**-9 * true.norm().item()  # one more rounding to bfloat16


def test_buffers_hold_far_less_than_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    empty = torch.empty

    def watched(*args, **kwargs):  # type: ignore[no-untyped-def]
        nonlocal largest
        made = empty(*args, **kwargs)
        largest = max(largest, made.numel())
        return made

    monkeypatch.setattr(torch, "empty", watched)
    criterion = LabelEmbeddingLoss(D, 500, rank=2)
    FusedLabelEmbeddingLoss(criterion, nn.Linear(D, 500))(torch.randn(300, D), torch.randint(500, (300,)), chunk_size=8)
    assert 0 < largest <= 2 * 8 * 500


def test_bad_input_is_refused_in_one_line() -> None:
    criterion, head, features, target = make_criterion(), nn.Linear(D, C), torch.randn(N, D), zipf_labels()
    module = FusedLabelEmbeddingLoss(criterion, head)
    with pytest.raises(ValueError, match=r"features must be \(N, D\)"):
        module(features[:, :3], target)
    with pytest.raises(ValueError, match="class indices"):
        module(features, torch.rand(N, C))
    with pytest.raises(ValueError, match="target must lie in 0 to 12"):
        module(features, target + C)
    with pytest.raises(ValueError, match="chunk_size must be at least 1"):
        module(features, target, chunk_size=0)
    with pytest.raises(ValueError, match="one row a label, 14 as the head has"):
        FusedLabelEmbeddingLoss(criterion, nn.Linear(D, C + 1))(features, target)
    with pytest.raises(ValueError, match="reduction must be 'mean' or 'sum'"):
        FusedLabelEmbeddingLoss(make_criterion(reduction="none"), head)(features, target)
    with pytest.raises(ValueError, match="num_items replaces the divisor"):
        FusedLabelEmbeddingLoss(make_criterion(reduction="sum"), head)(features, target, num_items=3)
    with pytest.raises(ValueError, match="has no fused form"):
        FusedLabelEmbeddingLoss(OnlineLabelSmoothing(C), head)


class Adapted(nn.Linear):
    """A head with an adapter of low rank, as LoRA has."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + input.sum(dim=1, keepdim=True)


def hooked() -> nn.Linear:
    head = nn.Linear(D, C)
    head.register_forward_hook(lambda module, inputs, output: output * 10)
    return head


def pruned() -> nn.Linear:
    head = nn.Linear(D, C)
    prune: Callable[..., nn.Module] = l1_unstructured
    prune(head, "weight", 0.5)
    return head


def replaced() -> nn.Linear:
    head = nn.Linear(D, C)
    head.forward = lambda input: input @ head.weight.T  # type: ignore[method-assign]
    return head


@pytest.mark.parametrize(
    "make", [lambda: Adapted(D, C), hooked, pruned, replaced, lambda: nn.Sequential(nn.Linear(D, C))]
)
@pytest.mark.parametrize("mode", [make_criterion, lambda: smoothing(C)])
def test_a_head_that_is_more_than_a_linear_map_is_refused(make, mode) -> None:  # type: ignore[no-untyped-def]
    features, target = torch.randn(N, D), random_labels()
    with pytest.raises(ValueError, match=r"plain nn.Linear.*use criterion\(head\(features\), target, features\)"):
        mode().fused(features, target, make())
    with pytest.raises(ValueError, match=r"plain nn\.Linear"):
        FusedLabelEmbeddingLoss(mode(), make())


def test_a_parametrised_head_is_read_as_it_is() -> None:
    head = torch.nn.utils.parametrizations.weight_norm(nn.Linear(D, C))
    criterion, features, target = make_criterion(), torch.randn(N, D), random_labels()
    with torch.no_grad():
        head.parametrizations.weight.original0.mul_(3)
    found = criterion.fused(features, target, head)
    torch.testing.assert_close(found, criterion(head(features), target, features), rtol=1e-12, atol=1e-12)


def test_num_items_of_0_over_items_is_refused() -> None:
    with pytest.raises(ValueError, match="num_items=0"):
        make_criterion().fused(torch.randn(N, D), random_labels(), nn.Linear(D, C), num_items=0)
