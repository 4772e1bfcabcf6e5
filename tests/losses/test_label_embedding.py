"""How the criterion behaves in a user's program: kinds of target, precisions, transforms, copies, bad input."""

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labelemb import LabelEmbeddingLoss, LabelTable

RANKS = [None, 3]
N, D, C = 10, 4, 5


def make_criterion(rank: int | None = None, dtype: torch.dtype = torch.float64, **settings: Any) -> LabelEmbeddingLoss:
    """A criterion as after some training: random parameters."""
    torch.manual_seed(1)
    criterion = LabelEmbeddingLoss(D, C, rank=rank, **settings)
    with torch.no_grad():
        for parameter in criterion.parameters():
            parameter.normal_()
    return criterion.to(dtype)


def make_batch(dtype: torch.dtype = torch.float64, num_items: int = N) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(2)
    logits, features = torch.randn(num_items, C, dtype=dtype), torch.randn(num_items, D, dtype=dtype)
    return logits.requires_grad_(), torch.randint(C, (num_items,)), features


def value_and_gradients(
    criterion: LabelEmbeddingLoss, logits: Tensor, target: Tensor, features: Tensor | None, **options: Any
) -> list[Tensor]:
    loss = criterion(logits, target, features, **options)
    return [loss.detach(), *torch.autograd.grad(loss.sum(), [logits, *criterion.parameters()])]


def assert_all_close(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# Targets, divisors, reductions


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_target_of_weight_1_equals_its_index(rank: int | None, weighted: bool, reduction: str) -> None:
    class_weight = torch.tensor([0.5, 2.0, 0.1, 1.0, 3.0], dtype=torch.float64) if weighted else None
    criterion = make_criterion(rank, class_weight=class_weight, reduction=reduction)
    logits, target, features = make_batch()
    target[[1, 4]] = -100
    distribution = F.one_hot(target.clamp(min=0), C).double()
    distribution[[1, 4]] = 0.0
    by_index = value_and_gradients(criterion, logits, target, features)
    assert_all_close(value_and_gradients(criterion, logits, distribution, features), by_index)
    assert_all_close([*criterion.terms(logits, distribution, features)], [*criterion.terms(logits, target, features)])


def test_a_mixed_target_is_the_mixture_of_its_labels() -> None:
    criterion = make_criterion(class_weight=torch.tensor([0.5, 2.0, 0.1, 1.0, 3.0]), reduction="none")
    logits, target, features = make_batch()
    other = target.flip(0)
    mixed = 0.3 * F.one_hot(target, C).double() + 0.7 * F.one_hot(other, C).double()
    expected = 0.3 * criterion(logits, target, features) + 0.7 * criterion(logits, other, features)
    torch.testing.assert_close(criterion(logits, mixed, features), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_every_integer_type_is_an_index(dtype: torch.dtype) -> None:
    criterion, (logits, target, features) = make_criterion(), make_batch()
    assert_all_close(
        value_and_gradients(criterion, logits, target.to(dtype), features),
        value_and_gradients(criterion, logits, target, features),
        tolerance=0.0,
    )


@pytest.mark.parametrize("ignore_index", [-100, -1, 2, 99])
def test_ignored_items_have_no_part(ignore_index: int) -> None:
    criterion, (logits, target, features) = make_criterion(ignore_index=ignore_index), make_batch()
    target[[0, 3, 9]] = ignore_index
    kept = target != ignore_index
    assert_all_close(
        [*criterion.terms(logits, target, features)],
        [*criterion.terms(logits[kept], target[kept], features[kept])],
    )
    moved = logits.detach().clone()
    moved[~kept] += 100 * torch.randn(int((~kept).sum()), C)
    assert torch.equal(criterion(moved, target, features), criterion(logits, target, features))


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("as_distribution", [False, True])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_accumulation_with_num_items_equals_the_whole_batch(
    rank: int | None, weighted: bool, as_distribution: bool, as_tensor: bool
) -> None:
    class_weight = torch.tensor([0.5, 2.0, 0.1, 1.0, 3.0], dtype=torch.float64) if weighted else None
    criterion, (logits, target, features) = make_criterion(rank, class_weight=class_weight), make_batch()
    target[[0, 1, 2, 7]] = -100  # the first part of four has no item at all
    num_items = torch.tensor(6) if class_weight is None else class_weight[target[target >= 0]].sum()
    if as_distribution:
        target = F.one_hot(target.clamp(min=0), C).double() * (target >= 0)[:, None]
    whole = value_and_gradients(criterion, logits, target, features)
    given = num_items if as_tensor else num_items.item()
    parts = [slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 10)]
    found = [torch.zeros_like(value) for value in whole]
    for part in parts:
        loss = criterion(logits[part], target[part], features[part], num_items=given)
        for total, value in zip(
            found, [loss.detach(), *torch.autograd.grad(loss, [logits, *criterion.parameters()])], strict=True
        ):
            total += value
    assert_all_close(found, whole)


@pytest.mark.parametrize("num_items", [0, torch.tensor(0)])
def test_no_items_in_the_whole_of_several_batches_give_0(num_items: int | Tensor) -> None:
    criterion, (logits, _, features) = make_criterion(), make_batch()
    target = torch.full((N,), -100)
    for value in value_and_gradients(criterion, logits, target, features, num_items=num_items):
        assert torch.equal(value, torch.zeros_like(value))


def test_forward_equals_the_total_of_the_terms_in_train_and_eval_mode() -> None:
    criterion, (logits, target, features) = make_criterion(), make_batch()
    total = criterion.terms(logits, target, features).total
    assert torch.equal(criterion(logits, target, features), total)
    assert torch.equal(criterion.eval()(logits, target, features), total)


def test_the_loss_may_be_changed_in_place() -> None:
    criterion, (logits, target, features) = make_criterion(), make_batch()
    expected = value_and_gradients(criterion, logits, target, features)
    for loss in (criterion(logits, target, features), criterion.terms(logits, target, features).total):
        loss /= 4
        gradients = torch.autograd.grad(loss, [logits, *criterion.parameters()])
        assert_all_close([4 * value for value in (loss.detach(), *gradients)], expected)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradients_of_total_and_single_terms_add_up(reduction: str) -> None:
    criterion, (logits, target, features) = make_criterion(reduction=reduction), make_batch()
    inputs = [logits, *criterion.parameters()]

    def gradients(*factors: float) -> tuple[Tensor, ...]:
        terms = criterion.terms(logits, target, features)
        value = sum(factor * term.sum() for factor, term in zip(factors, terms, strict=True) if factor)
        assert isinstance(value, Tensor)
        return torch.autograd.grad(value, inputs, allow_unused=True, materialize_grads=True)

    of_total, of_terms, of_both = gradients(0, 0, 0, 0, 0, 1), gradients(2, 3, 4, 5, 6, 0), gradients(2, 3, 4, 5, 6, 1)
    assert_all_close(list(of_both), [a + b for a, b in zip(of_total, of_terms, strict=True)])


def test_weights_may_change_between_steps() -> None:
    criterion, (logits, target, features) = make_criterion(), make_batch()
    before = criterion.terms(logits, target, features)
    criterion.soft_weight = 0.0
    after = criterion.terms(logits, target, features)
    torch.testing.assert_close(after.total, before.total - 0.5 * before.soft)
    assert torch.equal(after.soft, before.soft)


# Precision


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_reduced_in_float32(rank: int | None, reduction: str, dtype: torch.dtype) -> None:
    for of_criterion in (dtype, torch.float32):
        criterion = make_criterion(rank, of_criterion, reduction=reduction)
        logits, target, features = make_batch(dtype)
        loss, d_logits, *_ = value_and_gradients(criterion, logits, target, features)
        assert loss.dtype == torch.float32
        assert d_logits.dtype == dtype


def plain_hard_and_soft(logits: Tensor, rows: Tensor, target: Tensor) -> Tensor:
    """The network's terms by the formula in whatever precision the inputs have."""
    log_probs = logits.log_softmax(dim=1)
    hard = -log_probs.gather(1, target[:, None]).squeeze(1)
    soft = -(rows[target].softmax(dim=1) * log_probs).sum(dim=1)
    return (0.5 * hard + 0.5 * soft).mean()


def test_bfloat16_is_no_further_from_the_truth_than_the_plain_formula() -> None:
    num_items, num_classes = 64, 300
    torch.manual_seed(3)
    criterion = LabelEmbeddingLoss(D, num_classes).bfloat16()
    nn.init.normal_(criterion.table.weight)
    rows = criterion.table.weight.detach()
    target = torch.randint(num_classes, (num_items,))
    features = torch.randn(num_items, D).bfloat16()
    logits = (4 * torch.randn(num_items, num_classes)).bfloat16().requires_grad_()

    def network_part(values: Tensor) -> Tensor:
        terms = criterion.terms(values, target, features)
        return 0.5 * terms.hard + 0.5 * terms.soft

    wide = logits.detach().double().requires_grad_()
    results = {
        "truth": (wide, plain_hard_and_soft(wide, rows.double(), target)),
        "plain": (logits, plain_hard_and_soft(logits, rows, target)),
        "ours": (logits, network_part(logits)),
    }
    truth = results["truth"][1].detach()
    (true_gradient,) = torch.autograd.grad(results["truth"][1], wide)
    errors = {}
    for name in ("plain", "ours"):
        inputs, value = results[name]
        (gradient,) = torch.autograd.grad(value, inputs)
        errors[name] = (value.double() - truth).abs().item(), (gradient.double() - true_gradient).abs().max().item()
    assert errors["ours"][0] <= errors["plain"][0] + 1e-6
    assert errors["ours"][1] <= errors["plain"][1] + 1e-6
    assert errors["ours"][0] < 1e-5 * truth.item()  # float32 from the first step on


@pytest.mark.parametrize("as_distribution", [False, True])
def test_autocast_leaves_the_reductions_in_float32(as_distribution: bool) -> None:
    criterion, (logits, target, features) = make_criterion(dtype=torch.float32), make_batch(torch.float32)
    given = F.one_hot(target, C).float() if as_distribution else target
    plain = criterion.terms(logits, given, features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = criterion.terms(logits, given, features)
    assert all(term.dtype == torch.float32 for term in found)
    torch.testing.assert_close([found.hard, found.soft], [plain.hard, plain.soft], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close([*found], [*plain], rtol=0.02, atol=0.02)  # the auxiliary head itself is narrower
    for gradient in torch.autograd.grad(found.total, [logits, *criterion.parameters()]):
        assert gradient.dtype == torch.float32


@pytest.mark.parametrize("as_distribution", [False, True])
@pytest.mark.parametrize("of_weights", [torch.float32, torch.float64, torch.int64])
def test_class_weights_of_any_type_fit_logits_of_any_type(of_weights: torch.dtype, as_distribution: bool) -> None:
    for dtype in (torch.float32, torch.float64):
        criterion = make_criterion(dtype=dtype)
        criterion.class_weight = torch.tensor([1, 2, 3, 4, 5]).to(of_weights)
        logits, target, features = make_batch(dtype)
        given = F.one_hot(target, C).to(dtype) if as_distribution else target
        assert criterion(logits, given, features).dtype == dtype


# Transforms, devices, copies


def compiled(criterion: LabelEmbeddingLoss) -> Callable[..., Tensor]:
    result: Callable[..., Tensor] = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    return result


@pytest.mark.parametrize(
    ("rank", "settings"), [(None, {}), (3, {"reduction": "none"}), (None, {"class_weight": torch.arange(1.0, 6.0)})]
)
@pytest.mark.parametrize("as_distribution", [False, True])
def test_compiled_equals_eager(rank: int | None, settings: dict[str, Any], as_distribution: bool) -> None:
    torch._dynamo.reset()
    criterion, (logits, target, features) = make_criterion(rank, **settings), make_batch()
    given = torch.rand(N, C, dtype=torch.float64) if as_distribution else target.index_fill(0, torch.tensor([3]), -100)
    loss = compiled(criterion)(logits, given, features)
    found = [loss.detach(), *torch.autograd.grad(loss.sum(), [logits, *criterion.parameters()])]
    assert_all_close(found, value_and_gradients(criterion, logits, given, features))


def test_compiled_with_num_items_and_a_frozen_table_equals_eager() -> None:
    torch._dynamo.reset()
    logits, target, features = make_batch()
    criterion = make_criterion()
    num_items = torch.tensor(20)
    found = compiled(criterion)(logits, target, features, num_items=num_items)
    torch.testing.assert_close(found, criterion(logits, target, features, num_items=20), rtol=1e-12, atol=0)
    frozen = LabelEmbeddingLoss(D, C, table=criterion.table, freeze_table=True)
    torch.testing.assert_close(compiled(frozen)(logits, target), frozen(logits, target), rtol=1e-12, atol=0)


@pytest.mark.parametrize("rank", RANKS)
def test_the_closed_form_equals_what_torch_func_differentiates(rank: int | None) -> None:
    criterion = make_criterion(rank, class_weight=torch.arange(1.0, 6.0))
    logits, target, features = make_batch()
    target[3] = -100
    parameters = {name: parameter.detach() for name, parameter in criterion.named_parameters()}

    def loss(parameters: dict[str, Tensor], logits: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(criterion, parameters, (logits, target, features))
        return result

    gradients, value = torch.func.grad_and_value(loss, argnums=(0, 1))(parameters, logits.detach())
    found = [value, gradients[1], *gradients[0].values()]
    assert_all_close(found, value_and_gradients(criterion, logits, target, features))


@pytest.mark.parametrize("rank", RANKS)
def test_stacked_criteria_under_vmap_equal_them_one_by_one(rank: int | None) -> None:
    criteria = []
    for seed in range(3):
        torch.manual_seed(seed)
        criteria.append(LabelEmbeddingLoss(D, C, rank=rank, class_weight=torch.arange(1.0, 6.0)).double())
    torch.manual_seed(9)
    logits, features = torch.randn(3, N, C, dtype=torch.float64), torch.randn(3, N, D, dtype=torch.float64)
    target = torch.randint(C, (3, N))
    target[1, 4] = -100
    state = torch.func.stack_module_state(criteria)
    skeleton = copy.deepcopy(criteria[0]).to("meta")

    def losses(parameters: dict[str, Tensor], logits: Tensor) -> tuple[Tensor, Tensor]:
        def one(parameters: Any, buffers: Any, *inputs: Tensor) -> Tensor:
            result: Tensor = torch.func.functional_call(skeleton, (parameters, buffers), inputs)
            return result

        each = torch.func.vmap(one)(parameters, state[1], logits, target, features)
        return each.sum(), each

    gradients, (_, each) = torch.func.grad_and_value(losses, argnums=(0, 1), has_aux=True)(state[0], logits)
    for index, criterion in enumerate(criteria):
        inputs = logits[index].clone().requires_grad_(), target[index], features[index]
        found = [each[index], gradients[1][index], *(value[index] for value in gradients[0].values())]
        assert_all_close(found, value_and_gradients(criterion, *inputs))


def test_it_runs_on_the_meta_device_so_no_value_is_read_back() -> None:
    criterion = make_criterion(class_weight=torch.arange(1.0, 6.0)).to("meta")
    logits, target, features = (value.to("meta") for value in make_batch())
    num_items = torch.tensor(3, device="meta")
    assert criterion(logits, target, features, num_items=num_items).device.type == "meta"
    assert criterion.terms(logits, target, features).hard.shape == ()


def deep_copied(criterion: LabelEmbeddingLoss) -> LabelEmbeddingLoss:
    return copy.deepcopy(criterion)


def pickled(criterion: LabelEmbeddingLoss) -> LabelEmbeddingLoss:
    result: LabelEmbeddingLoss = pickle.loads(pickle.dumps(criterion))
    return result


@pytest.mark.parametrize("duplicate", [deep_copied, pickled])
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("frozen", [False, True])
def test_copies_give_the_same_and_are_their_own(
    duplicate: Callable[[LabelEmbeddingLoss], LabelEmbeddingLoss], rank: int | None, frozen: bool
) -> None:
    criterion = make_criterion(rank, class_weight=torch.arange(1.0, 6.0))
    if frozen:
        criterion = LabelEmbeddingLoss(D, C, table=criterion.table, freeze_table=True)
    logits, target, features = make_batch()
    before = criterion(logits, target, features)  # copies are made in the middle of training
    own = duplicate(criterion)
    assert torch.equal(own(logits, target, features), before)
    with torch.no_grad():
        for value in criterion.state_dict().values():
            value.zero_()
    assert torch.equal(own(logits, target, features), before)


# State, tables


@pytest.mark.parametrize(
    ("rank", "table_keys"), [(None, ["weight"]), (3, ["rows.weight", "decoder.weight", "decoder.bias"])]
)
def test_state_dict_keys_are_exactly_the_fixed_names(rank: int | None, table_keys: list[str]) -> None:
    criterion = make_criterion(rank, class_weight=torch.ones(C))
    keys = {f"table.{key}" for key in table_keys}
    assert set(criterion.state_dict()) == keys | {"aux_head.weight", "aux_head.bias"}
    frozen = LabelEmbeddingLoss(D, C, table=criterion.table, freeze_table=True)
    assert set(frozen.state_dict()) == keys
    assert frozen.aux_head is None
    frozen.load_state_dict(LabelEmbeddingLoss(D, C, table=criterion.table, freeze_table=True).state_dict())
    other = LabelEmbeddingLoss(D, C, rank=rank).double()
    other.load_state_dict(criterion.state_dict())
    logits, target, features = make_batch()
    other.class_weight = torch.ones(C)
    assert torch.equal(other(logits, target, features), criterion(logits, target, features))


@pytest.mark.parametrize("rank", RANKS)
def test_a_given_table_is_copied_and_fixes_the_rank(rank: int | None) -> None:
    table = LabelTable(C, rank=rank, label_names=list("abcde"))
    for criterion in (LabelEmbeddingLoss(D, C, table=table), LabelEmbeddingLoss(D, C, table=table, rank=rank)):
        assert (criterion.table.rank, criterion.table.label_names) == (rank, list("abcde"))
        assert torch.equal(criterion.table.row_logits(), table.row_logits())
        before = table.soft_labels()
        for parameter in criterion.table.parameters():
            nn.init.normal_(parameter)
        assert torch.equal(table.soft_labels(), before)
        assert not torch.equal(criterion.table.soft_labels(), before)


def test_a_table_that_was_frozen_learns_when_it_is_given_unfrozen() -> None:
    frozen = LabelEmbeddingLoss(D, C, table=LabelTable(C), freeze_table=True)
    criterion = LabelEmbeddingLoss(D, C, table=frozen.table)
    assert "table.weight" in dict(criterion.named_parameters())


@pytest.mark.parametrize("rank", RANKS)
def test_a_frozen_table_keeps_every_bit_and_gives_hard_and_soft_alone(rank: int | None) -> None:
    learned = make_criterion(rank)
    criterion = LabelEmbeddingLoss(D, C, table=learned.table, freeze_table=True)
    assert not list(criterion.parameters())
    before = {name: value.clone() for name, value in criterion.state_dict().items()}
    network = nn.Linear(D, C).double()
    optimizer = torch.optim.Adam([*network.parameters(), *criterion.parameters()], lr=0.1)
    _, target, features = make_batch()
    for _ in range(5):
        optimizer.zero_grad()
        terms = criterion.terms(network(features), target)
        expected = learned.terms(network(features), target, features)
        assert_all_close([terms.hard, terms.soft], [expected.hard, expected.soft])
        assert not torch.stack([terms.aux, terms.cap, terms.match]).count_nonzero()
        assert_all_close([terms.total], [0.5 * expected.hard + 0.5 * expected.soft])
        loss: Tensor = criterion(network(features), target, features)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    for name, value in criterion.state_dict().items():
        assert torch.equal(value, before[name])


def test_same_seed_same_bits() -> None:
    def trained() -> list[Tensor]:
        torch.manual_seed(5)
        network, criterion = nn.Linear(D, C), LabelEmbeddingLoss(D, C, rank=2)
        parameters = [*network.parameters(), *criterion.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=1e-2)
        features, target = torch.randn(N, D), torch.randint(C, (N,))
        for _ in range(10):
            optimizer.zero_grad()
            criterion(network(features), target, features).backward()
            optimizer.step()
        return [parameter.detach() for parameter in parameters]

    for first, second in zip(trained(), trained(), strict=True):
        assert torch.equal(first, second)


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, labelemb; assert 'torch' not in sys.modules; labelemb.LabelTable; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# Bad input: each is one line that says what was expected and what came


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_features": 0}, "num_features must be at least 1, got 0"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"rank": 0}, "rank must be at least 1, or None for a dense table, got 0"),
        ({"num_classes": 20_001}, "rank=256"),
        ({"hard_weight": -0.1}, "hard_weight must be finite and at least 0, got -0.1"),
        ({"soft_weight": float("nan")}, "soft_weight must be finite and at least 0, got nan"),
        ({"cap_weight": float("inf")}, "cap_weight must be finite and at least 0, got inf"),
        ({"temperature": 0.0}, "temperature must be finite and above 0, got 0.0"),
        ({"cap": 1.1}, "cap must lie above 0 and at most at 1, got 1.1"),
        ({"cap": 0.0}, "cap must lie above 0 and at most at 1, got 0.0"),
        ({"class_weight": torch.ones(4)}, r"class_weight must be \(5,\), got \(4,\)"),
        ({"class_weight": torch.tensor([1.0, 1.0, -1.0, 1.0, 1.0])}, "class_weight must be finite and at least 0"),
        ({"reduction": "avg"}, "reduction must be 'mean', 'sum' or 'none', got 'avg'"),
        ({"freeze_table": True}, "freeze_table=True needs a learned table"),
        ({"table": LabelTable(4)}, "the table has 4 labels, num_classes is 5"),
        ({"table": LabelTable(5, rank=2), "rank": 3}, "rank=3 contradicts the table's rank 2"),
        ({"table": LabelTable(5), "rank": 3}, "rank=3 contradicts the table's rank None"),
    ],
)
def test_bad_settings_are_refused_in_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        LabelEmbeddingLoss(**{"num_features": D, "num_classes": C} | settings)
    assert "\n" not in str(error.value)


LOGITS, TARGET, FEATURES = torch.zeros(N, C), torch.zeros(N, dtype=torch.long), torch.zeros(N, D)
BAD_CALLS: dict[str, tuple[tuple[Tensor | None, ...], str]] = {
    "too large a target": ((LOGITS, TARGET + 5, FEATURES), r"target must lie in 0 to 4 .*got 5"),
    "a negative target": ((LOGITS, TARGET - 1, FEATURES), r"target must lie in 0 to 4 .*got -1"),
    "too large a byte": ((LOGITS, (TARGET + 200).byte(), FEATURES), r"target must lie in 0 to 4 .*got 200"),
    "too large a word": ((LOGITS, (TARGET + 9).to(torch.uint16), FEATURES), r"target must lie in 0 to 4 .*got 9"),
    "a byte that wraps to ignore_index": ((LOGITS, (TARGET + 156).byte(), FEATURES), "target must lie in 0 to 4"),
    "logits of another width": ((LOGITS[:, :4], TARGET, FEATURES), r"logits must be \(N, 5\) or .*, got \(10, 4\)"),
    "logits with time": ((LOGITS[None], TARGET[None], FEATURES[None]), r"classes come second.*movedim\(-1, 1\)"),
    "integer logits": ((LOGITS.long(), TARGET, FEATURES), "logits must be floating point, got torch.int64"),
    "a short target": ((LOGITS, TARGET[:9], FEATURES), r"target .* must be \(10,\), got \(9,\)"),
    "a target column": ((LOGITS, TARGET[:, None], FEATURES), r"target .* must be \(10,\), got \(10, 1\)"),
    "a bool target": ((LOGITS, TARGET.bool(), FEATURES), "got torch.bool"),
    "a bool distribution": ((LOGITS, LOGITS.bool(), FEATURES), "got torch.bool"),
    "an integer distribution": ((LOGITS, LOGITS.long(), FEATURES), r"must be \(10,\), got \(10, 5\)"),
    "a wide distribution": ((LOGITS, torch.zeros(N, 6), FEATURES), r"must be \(10, 5\), got \(10, 6\)"),
    "a float index": ((LOGITS, TARGET.float(), FEATURES), r"class probabilities .*must be \(10, 5\), got \(10,\)"),
    "no features": ((LOGITS, TARGET), r"features.*must be \(10, 4\), got none"),
    "features of another width": ((LOGITS, TARGET, FEATURES[:, :3]), r"features.*must be \(10, 4\), got \(10, 3\)"),
    "too few features": ((LOGITS, TARGET, FEATURES[:9]), r"features.*must be \(10, 4\), got \(9, 4\)"),
}


@pytest.mark.parametrize("kind", BAD_CALLS)
def test_bad_calls_are_refused_in_one_line(kind: str) -> None:
    inputs, message = BAD_CALLS[kind]
    with pytest.raises(ValueError, match=message) as error:
        LabelEmbeddingLoss(D, C)(*inputs)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_num_items_without_a_mean_is_refused(reduction: str) -> None:
    with pytest.raises(ValueError, match="num_items replaces the divisor of reduction='mean'"):
        make_criterion(reduction=reduction)(*make_batch(), num_items=3)


@pytest.mark.parametrize("num_items", [torch.ones(N), torch.ones(1), -1])
def test_num_items_that_is_no_count_is_refused(num_items: Tensor | int) -> None:
    with pytest.raises(ValueError, match="num_items must be"):
        make_criterion()(*make_batch(), num_items=num_items)


def test_distributions_over_too_many_labels_are_refused() -> None:
    criterion = LabelEmbeddingLoss(1, 20_001, rank=1)
    with pytest.raises(ValueError, match=r"class probabilities need every row.*20,001 x 20,001"):
        criterion(torch.zeros(1, 20_001), torch.zeros(1, 20_001), torch.zeros(1, 1))


@pytest.mark.parametrize("num_items", [0, torch.tensor(0)])
@pytest.mark.parametrize("as_distribution", [False, True])
def test_num_items_of_0_over_items_is_refused(num_items: Tensor | int, as_distribution: bool) -> None:
    criterion, (logits, target, features) = make_criterion(), make_batch()
    given = F.one_hot(target, C).double() if as_distribution else target
    with pytest.raises(ValueError, match="num_items=0, but there are items that are not ignored"):
        criterion(logits, given, features, num_items=num_items)


def test_num_items_of_0_over_ignored_items_is_0() -> None:
    criterion, (logits, target, features) = make_criterion(), make_batch()
    assert criterion(logits, torch.full_like(target, -100), features, num_items=0).item() == 0.0


# Masked classes, mixed types, torch's names


@pytest.mark.parametrize("as_distribution", [False, True])
def test_a_masked_class_leaves_plain_cross_entropy_finite(as_distribution: bool) -> None:
    criterion = make_criterion(hard_weight=1.0, soft_weight=0.0)
    logits, target, features = make_batch()
    target = target.clamp(max=C - 2)
    masked = logits.detach().masked_fill(torch.arange(C) == C - 1, -torch.inf).requires_grad_()
    given = F.one_hot(target, C).double() if as_distribution else target
    loss = criterion(masked, given, features)
    expected = F.cross_entropy(masked, target)
    terms = criterion.terms(masked, given, features)
    torch.testing.assert_close(terms.hard, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(loss - terms.aux - 100 * terms.cap - terms.match, expected, rtol=1e-12, atol=1e-12)
    (found,), (wanted,) = torch.autograd.grad(loss, masked), torch.autograd.grad(expected, masked)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("of_criterion", [torch.float32, torch.float64])
def test_distributions_take_logits_of_another_type_than_the_table(of_criterion: torch.dtype) -> None:
    of_logits = torch.float64 if of_criterion == torch.float32 else torch.float32
    criterion = make_criterion(dtype=of_criterion)
    logits, target, features = make_batch(of_logits)
    mixed = 0.5 * F.one_hot(target, C) + 0.5 * F.one_hot(target.flip(0), C)
    found = criterion(logits, mixed.to(of_logits), features)
    expected = make_criterion()(logits.double(), mixed.double(), features.double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_class_weights_may_be_a_list() -> None:
    logits, target, features = make_batch()
    weights = [1, 2, 3, 4, 5]
    found = make_criterion(class_weight=weights)(logits, target, features)
    expected = make_criterion(class_weight=torch.tensor(weights, dtype=torch.float64))(logits, target, features)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("weight", "class_weight"), ("label_smoothing", "smoothing"), ("reduce", "reduction"), ("tau", "'tau'")],
)
def test_the_names_that_torch_has_are_explained(name: str, hint: str) -> None:
    with pytest.raises(TypeError, match=rf"LabelEmbeddingLoss has no argument '{name}'") as caught:
        LabelEmbeddingLoss(D, C, **{name: 0.1})  # type: ignore[arg-type]
    assert hint in str(caught.value)


def test_printing_a_criterion_shows_its_settings() -> None:
    shown = repr(make_criterion(temperature=3.0, reduction="sum", class_weight=torch.ones(C)))
    for setting in ("num_classes=5", "temperature=3.0", "cap_weight=100.0", "reduction='sum'", "class_weight=(5,)"):
        assert setting in shown


def test_the_package_offers_its_public_names_alone() -> None:
    import labelemb

    assert dir(labelemb) == sorted([*labelemb.__all__, "__version__"])


def test_the_weighted_mean_over_distributions_is_torch_s_but_for_its_divisor() -> None:
    """What the README says: the sum of class weights, where torch divides by the number of items."""
    weight = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)
    logits = torch.randn(6, 4, dtype=torch.float64)
    target = torch.rand(6, 4, dtype=torch.float64).softmax(dim=1)
    criterion = LabelEmbeddingLoss(3, 4, class_weight=weight).double()
    hard = criterion.terms(logits, target, torch.randn(6, 3, dtype=torch.float64)).hard
    expected = F.cross_entropy(logits, target, weight) * 6 / (target * weight).sum()
    torch.testing.assert_close(hard, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("num_classes", "expected"), [(10, 2.0), (100, 1.478), (1000, 1.318), (8000, 1.244)])
def test_a_temperature_of_none_leaves_half_on_the_label(num_classes: int, expected: float) -> None:
    criterion = LabelEmbeddingLoss(1, num_classes, temperature=None)
    assert criterion.temperature == pytest.approx(expected, abs=1e-3)
    probs = torch.full((num_classes,), 0.1 / (num_classes - 1), dtype=torch.float64)
    probs[0] = 0.9
    assert (probs.log() / criterion.temperature).softmax(dim=0)[0].item() == pytest.approx(0.5, rel=1e-9)


def test_a_temperature_of_none_needs_a_cap_that_makes_one() -> None:
    with pytest.raises(ValueError, match=r"between 0\.5 and 1 for it, got 1\.0"):
        LabelEmbeddingLoss(1, 10, temperature=None, cap=1.0)
    assert LabelEmbeddingLoss(1, 2, temperature=None, cap=1.0).temperature == 2.0
