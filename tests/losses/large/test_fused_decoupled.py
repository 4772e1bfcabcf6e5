"""The fused decoupled loss against loops and against the loss over (N, C) tensors, for every kind of rows."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.decoupled_reference import counted, item, low_rank_row
from torch import Tensor, nn

from labelemb.losses.counted_table import CountedTable
from labelemb.losses.decoupled import DecoupledLabelEmbeddingLoss
from labelemb.losses.large.fused import FusedLabelEmbeddingLoss
from labelemb.losses.large.gradient_sum import GradientSum
from labelemb.losses.large.label_plan import plan_labels
from labelemb.losses.low_rank_table import LowRankTable

N, C, D, R = 41, 13, 6, 4
CHUNK_SIZES = (1, 7, N, None)


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(default)


KINDS: dict[str, dict[str, Any]] = {"counted": {}, "low-rank": {"rank": R}, "sparse": {"neighbors": 2}}
COUNTED = ("counted", "sparse")


def made(kind: str, **settings: Any) -> DecoupledLabelEmbeddingLoss:
    """A criterion with random rows, the same for one kind and one state of the generator."""
    rows = CountedTable.from_soft_labels((2 * torch.randn(C, C)).softmax(dim=1))
    rows.shares.div_(rows.shares.sum(dim=1, keepdim=True))  # it has the digits of float32
    if kind in COUNTED:
        settings["table"] = rows
    criterion = DecoupledLabelEmbeddingLoss(C, **{**KINDS[kind], **settings})
    with torch.no_grad():
        for parameter in criterion.parameters():
            parameter.normal_()
    return criterion


def problem(num_items: int = N) -> tuple[nn.Linear, Tensor, Tensor]:
    """A head, features and labels of which about half are hits."""
    head = nn.Linear(D, C)
    target = torch.multinomial(1 / torch.arange(1.0, C + 1), num_items, replacement=True)
    features = torch.randn(num_items, D)
    features[::2] += 12 * head.weight.detach()[target[::2]]
    return head, features.requires_grad_(), target


def results(terms: Any, tensors: list[Tensor]) -> list[Tensor]:
    """The terms, and the gradients of their total."""
    gradients = torch.autograd.grad(terms.total, tensors, allow_unused=True)
    made = [torch.zeros_like(t) if g is None else g for t, g in zip(tensors, gradients, strict=True)]
    return [*(term.detach() for term in terms), *made]


def assert_same(
    criterion: DecoupledLabelEmbeddingLoss,
    chunk_size: int | None = 7,
    *,
    ignored: bool = False,
    bias: bool = True,
    num_items: Tensor | int | None = None,
) -> None:
    """Fused and unfused terms, and the gradients of features, head and rows, to 1e-12."""
    head, features, target = problem()
    head = head if bias else nn.Linear(D, C, bias=False)
    if ignored:
        target[::3] = -100
    tensors = [features, *head.parameters(), *criterion.parameters()]
    fused = criterion.fused_terms(features, target, head, num_items=num_items, chunk_size=chunk_size)
    assert [term.requires_grad for term in fused] == [False] * 4 + [True]
    plain = criterion.terms(head(features), target, num_items=num_items)
    for got, want in zip(results(fused, tensors), results(plain, tensors), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk_size", CHUNK_SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_loss_over_all_logits_for_every_chunk_size(kind: str, chunk_size: int | None) -> None:
    assert_same(made(kind).eval(), chunk_size)


OPTIONS: list[dict[str, Any]] = [
    {"shape_weight": 0.0},
    {"epsilon": 0.0},
    {"epsilon": 0.3, "shape_weight": 0.6},
    {"class_weight": torch.linspace(0.0, 2.0, C, dtype=torch.float64)},
    {"reduction": "sum"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ",".join(options))
@pytest.mark.parametrize("kind", KINDS)
def test_options_change_nothing_in_the_equality(kind: str, options: dict[str, Any]) -> None:
    for chunk_size in CHUNK_SIZES:
        assert_same(made(kind, **options).eval(), chunk_size, ignored=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_without_bias_and_a_given_divisor_give_the_same(kind: str) -> None:
    assert_same(made(kind).eval(), bias=False)
    for num_items in (100, torch.tensor(100.0)):
        assert_same(made(kind).eval(), num_items=num_items)


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_rows_give_the_same(kind: str) -> None:
    assert_same(DecoupledLabelEmbeddingLoss(C, table=made(kind).table, freeze_table=True))


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_those_of_the_loops(kind: str) -> None:
    criterion = made(kind, epsilon=0.3, shape_weight=0.6, reduction="sum").eval()
    head, features, target = problem()
    table = criterion.table
    rows = table.soft_labels().tolist()
    if isinstance(table, LowRankTable):
        parts = [part.tolist() for part in (table.codes, table.decoder_weight, table.decoder_bias)]
        rows = [low_rank_row(parts[0][y], parts[1], parts[2], y) for y in range(C)]
    logits = head(features).detach()
    loops = [item(z, rows[y], y, 0.3, 0.6) for z, y in zip(logits.tolist(), target.tolist(), strict=True)]
    assert 0 < sum(one.is_hit for one in loops) < N
    hard, certainty, shape, match = (sum(column) for column in zip(*(one.terms for one in loops), strict=True))
    match = match if list(criterion.parameters()) else 0.0
    d_logits = torch.tensor([one.d_logits for one in loops])
    want = [d_logits @ head.weight, d_logits.T @ features, d_logits.sum(dim=0)]
    if isinstance(table, LowRankTable):
        d_rows = torch.tensor([one.d_row_logits for one in loops])
        of_codes = torch.zeros(C, R).index_add(0, target, d_rows @ table.decoder_weight)
        want += [of_codes, d_rows.T @ table.codes[target], d_rows.sum(dim=0)]
    for chunk_size in CHUNK_SIZES:
        terms = criterion.fused_terms(features, target, head, chunk_size=chunk_size)
        found = torch.stack(terms[:4]).tolist()
        assert found == pytest.approx([hard, certainty, shape, match], rel=1e-12)
        assert terms.total.item() == pytest.approx(certainty + 0.6 * shape + match, rel=1e-12)
        tensors = [features, *head.parameters(), *criterion.parameters()]
        for got, wanted in zip(torch.autograd.grad(terms.total, tensors), want, strict=True):
            torch.testing.assert_close(got, wanted.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "low-rank"])  # its match term stops gradients
def test_gradcheck_holds_in_the_head(kind: str) -> None:
    criterion = made(kind, epsilon=0.2, shape_weight=0.7).eval()
    _, features, target = problem(9)
    head = nn.Linear(D, C)

    def loss(weight: Tensor, bias: Tensor) -> Tensor:
        head.weight, head.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
        total = criterion.fused(features.detach(), target, head, chunk_size=4)
        gradients = torch.autograd.grad(total, [head.weight, head.bias])
        surrogate = (gradients[0].detach() * (weight - weight.detach())).sum()
        return total.detach() + surrogate + (gradients[1].detach() * (bias - bias.detach())).sum()

    assert torch.autograd.gradcheck(loss, (torch.randn(C, D, requires_grad=True), torch.randn(C, requires_grad=True)))


def step(criterion: DecoupledLabelEmbeddingLoss, parts: list[slice], fused: bool, **options: Any) -> None:
    """One optimiser step whose batch comes in parts."""
    head, features, target = problem()
    target[5] = -100
    for part in parts:
        if fused:
            criterion.fused(features[part], target[part], head, num_items=N, **options)
        else:
            criterion(head(features[part]), target[part], num_items=N)
    criterion.end_step()


WHOLE, SPLIT = [slice(None)], [slice(0, 11), slice(11, 12), slice(12, N)]


@pytest.mark.parametrize("chunk_size", CHUNK_SIZES)
@pytest.mark.parametrize("parts", [WHOLE, SPLIT], ids=["whole", "split"])
@pytest.mark.parametrize("kind", COUNTED)
def test_hits_are_counted_as_over_all_logits_whatever_the_split(
    kind: str, parts: list[slice], chunk_size: int | None
) -> None:
    weights = torch.linspace(0.0, 2.0, C)
    fused, plain = (made(kind, class_weight=weights, momentum=0.9) for _ in range(2))
    plain.load_state_dict(fused.state_dict())
    fused.end_step()  # from now on steps end there alone
    for seed in range(4):
        torch.manual_seed(seed)
        step(fused, parts, fused=True, chunk_size=chunk_size)
        torch.manual_seed(seed)
        step(plain, WHOLE, fused=False)
    before = made(kind).table.state_dict()["counts"]
    assert (fused.table.state_dict()["counts"] > before).sum() > 3
    assert torch.equal(fused.table.state_dict()["counts"], plain.table.state_dict()["counts"])
    torch.testing.assert_close(fused.table.soft_labels(), plain.table.soft_labels(), rtol=1e-12, atol=1e-12)


def test_rows_are_counted_by_the_formula() -> None:
    criterion = made("counted", momentum=0.9)
    criterion.end_step()
    head, features, target = problem()
    rows, counts = criterion.table.soft_labels().tolist(), [1] * C
    for _ in range(2):
        criterion.fused(features, target, head, chunk_size=7)
        criterion.end_step()
        loops = [item(z, rows[y], y, 0.1, 1.0) for z, y in zip(head(features).tolist(), target.tolist(), strict=True)]
        for y in range(C):
            others = [
                one.others for one, label in zip(loops, target.tolist(), strict=True) if label == y and one.is_hit
            ]
            if others:
                rows[y] = counted(rows[y], counts[y], others, 0.9)
                counts[y] += len(others)
    torch.testing.assert_close(criterion.table.soft_labels(), torch.tensor(rows), rtol=1e-12, atol=1e-12)
    assert criterion.table.state_dict()["counts"].tolist() == counts


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_counts_nothing_and_keeps_no_gradients(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    criterion, (head, features, target) = made(kind), problem()
    expected = made(kind).eval()
    expected.load_state_dict(criterion.state_dict())
    wanted = expected(head(features), target)
    monkeypatch.setattr("labelemb.losses.large.decoupled_pass.GradientSum", None)  # making one would fail
    for grad_mode in (torch.no_grad, torch.inference_mode):
        with grad_mode():
            loss = criterion.fused(features, target, head)
        assert not loss.requires_grad
        torch.testing.assert_close(loss, wanted.detach(), rtol=1e-12, atol=1e-12)
    criterion.end_step()
    for name, value in expected.state_dict().items():
        assert torch.equal(criterion.state_dict()[name], value)


@pytest.mark.parametrize("kind", KINDS)
def test_only_gradients_asked_for_are_computed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made_for: list[Tensor] = []

    class Watched(GradientSum):
        def __init__(self, tensor: Tensor, dtype: torch.dtype) -> None:
            made_for.append(tensor)
            super().__init__(tensor, dtype)

    monkeypatch.setattr("labelemb.losses.large.decoupled_pass.GradientSum", Watched)
    criterion, (head, features, target) = made(kind).eval(), problem()
    tensors = [features, *head.parameters(), *criterion.parameters()]
    full = torch.autograd.grad(criterion.fused(features, target, head), tensors)
    for index, tensor in enumerate(tensors):
        for other in tensors:
            other.requires_grad_(other is tensor)
        made_for.clear()
        loss = criterion.fused(features, target, head, chunk_size=7)
        assert len(made_for) == 1
        torch.testing.assert_close(torch.autograd.grad(loss, tensor)[0], full[index], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_no_items_at_all_give_zero_and_zero_gradients(kind: str) -> None:
    criterion, head = made(kind), nn.Linear(D, C)
    for target in (torch.full((5,), -100), torch.empty(0, dtype=torch.long)):
        features = torch.randn(len(target), D, requires_grad=True)
        loss = criterion.fused(features, target, head)
        assert loss.item() == 0
        for gradient in torch.autograd.grad(loss, [features, *head.parameters(), *criterion.parameters()]):
            assert not gradient.any()


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_no_further_from_the_truth_than_the_unfused_loss(kind: str, autocast: bool) -> None:
    head, features, target = problem(200)
    narrow, criterion = head.bfloat16(), made(kind).eval().bfloat16()
    given = features.detach().bfloat16()
    exact, exact_head = made(kind).eval(), nn.Linear(D, C)
    exact.load_state_dict(criterion.state_dict())
    exact_head.load_state_dict(narrow.state_dict())
    if autocast:
        criterion, narrow, given = criterion.float(), narrow.float(), given.float()

    def found(criterion: DecoupledLabelEmbeddingLoss, head: nn.Linear, features: Tensor, fused: bool) -> list[Tensor]:
        features = features.detach().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast and features.dtype == torch.float32):
            loss = criterion.fused(features, target, head) if fused else criterion(head(features), target)
        assert not fused or loss.dtype == torch.float32
        leaves = [features, *head.parameters(), *criterion.parameters()]
        return [loss.detach(), *torch.autograd.grad(loss, leaves)]

    truth = found(exact, exact_head, given.double(), False)
    plain, ours = (found(criterion, narrow, given, fused) for fused in (False, True))
    for true, one, other in zip(truth, plain, ours, strict=True):
        assert one.dtype == other.dtype
        error_of_plain, error = ((value.double() - true).norm().item() for value in (one, other))
        assert error <= 1.1 * error_of_plain + 2**-9 * true.norm().item()  # one more rounding to bfloat16


def test_the_factor_of_the_loss_reaches_every_gradient() -> None:
    criterion, (head, features, target) = made("low-rank"), problem()
    tensors = [features, *head.parameters(), *criterion.parameters()]
    once = torch.autograd.grad(criterion.fused(features, target, head), tensors)
    scaled = torch.autograd.grad(-2.5 * criterion.fused(features, target, head), tensors)
    for one, other in zip(once, scaled, strict=True):
        torch.testing.assert_close(other, -2.5 * one, rtol=1e-12, atol=1e-12)


def test_second_derivatives_are_refused() -> None:
    criterion, (head, features, target) = made("counted"), problem()
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(criterion.fused(features, target, head), features, create_graph=True)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's own look at the result, made an error here
def test_a_plan_made_beforehand_and_a_compiler_give_the_same() -> None:
    criterion, (head, features, target) = made("low-rank"), problem()
    module = FusedLabelEmbeddingLoss(criterion, head)
    expected = module(features, target)
    assert torch.equal(module(features, target, plan=plan_labels(target)), expected)
    compiled: Callable[..., Tensor] = torch.compile(module, backend="eager")
    assert torch.equal(compiled(features, target), expected)


def test_a_label_masked_by_the_bias_that_its_rows_have_nothing_on_counts_for_nothing() -> None:
    criterion, (head, features, target) = made("counted").eval(), problem()
    criterion.table.state_dict()["shares"][:, C - 1] = 0
    target = target.clamp(max=C - 2)
    with torch.no_grad():
        head.bias[C - 1] = -torch.inf
    fused, plain = criterion.fused(features, target, head), criterion(head(features), target)
    assert fused.isfinite()
    torch.testing.assert_close(fused, plain, rtol=1e-12, atol=1e-12)


def test_one_label_has_no_loss() -> None:
    criterion, head, features = DecoupledLabelEmbeddingLoss(1), nn.Linear(D, 1), torch.randn(3, D, requires_grad=True)
    loss = criterion.fused(features, torch.zeros(3, dtype=torch.long), head)
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, features)[0].any()


@pytest.mark.parametrize("kind", KINDS)
def test_buffers_hold_far_less_than_all_logits(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    criterion = DecoupledLabelEmbeddingLoss(500, **KINDS[kind])
    head, features, target = nn.Linear(D, 500), torch.randn(300, D), torch.randint(500, (300,))
    largest, empty = 0, torch.empty

    def watched(*args: Any, **kwargs: Any) -> Tensor:
        nonlocal largest
        largest = max(largest, (made := empty(*args, **kwargs)).numel())
        return made

    monkeypatch.setattr(torch, "empty", watched)
    criterion.fused(features, target, head, chunk_size=8)
    assert 0 < largest <= 2 * 8 * 500


@pytest.mark.parametrize("kind", KINDS)
def test_bad_input_is_refused_in_one_line(kind: str) -> None:
    criterion, (head, features, target) = made(kind), problem()
    with pytest.raises(ValueError, match=r"features must be \(N, D\)"):
        criterion.fused(features[:, :3], target, head)
    with pytest.raises(ValueError, match="class indices"):
        criterion.fused(features, torch.rand(N, C), head)
    with pytest.raises(ValueError, match="target must lie in 0 to 12"):
        criterion.fused(features, target + C, head)
    with pytest.raises(ValueError, match="chunk_size must be at least 1"):
        criterion.fused(features, target, head, chunk_size=0)
    with pytest.raises(ValueError, match="head must have 13 outputs, one a label, got 14"):
        criterion.fused(features, target, nn.Linear(D, C + 1))
    with pytest.raises(ValueError, match="reduction must be 'mean' or 'sum'"):
        made(kind, reduction="none").fused(features, target, head)
    with pytest.raises(ValueError, match="num_items replaces the divisor"):
        made(kind, reduction="sum").fused(features, target, head, num_items=3)
    head.register_forward_hook(lambda module, inputs, output: output)
    with pytest.raises(ValueError, match=r"plain nn\.Linear"):
        criterion.fused(features, target, head)


_PEAK = """
import sys
from pathlib import Path
import torch
from torch import nn
from labelemb import DecoupledLabelEmbeddingLoss

def held(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1000

torch.set_num_threads(1)
num_classes, num_items = 200_000, 384
head, criterion = nn.Linear(2, num_classes), DecoupledLabelEmbeddingLoss(num_classes, neighbors=4)
target = torch.arange(num_items)
features = torch.zeros(num_items, 2)
with torch.no_grad():
    head.weight.zero_()
    head.bias.zero_()  # all equal: every item is a hit
for _ in range(2):
    before = held("VmRSS")
    criterion.fused(features, target, head, chunk_size=32).backward()
    print(held("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak is read from /proc")
def test_hits_of_many_labels_leave_no_holes_in_memory() -> None:
    """Small tensors that wait between rows of (C,) kept the memory of these from being used again: a row a hit."""
    done = subprocess.run([sys.executable, "-c", _PEAK], capture_output=True, text=True, check=True)
    assert max(map(float, done.stdout.split())) < 150  # MB; the rows of all hits are 307, those of a chunk 26
