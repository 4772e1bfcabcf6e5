"""The seven facts of the method, and the whole loss, against the loops of reference.py in float64."""

import math
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from tests import reference
from torch import Tensor, nn

from labelemb import LabelEmbeddingLoss, LabelTable

RANKS = [None, 3]


class Problem(NamedTuple):
    criterion: LabelEmbeddingLoss
    logits: Tensor  # (N, C)
    target: Tensor  # (N,)
    features: Tensor  # (N, D)


def problem(
    num_items: int = 9, num_features: int = 4, num_classes: int = 5, rank: int | None = None, scale: float = 2.0
) -> Problem:
    """Random float64 inputs of a spread that lets caps bind and some items match, others not."""
    torch.manual_seed(num_items * 100 + num_classes)
    criterion = LabelEmbeddingLoss(num_features, num_classes, rank=rank).double()
    with torch.no_grad():
        for parameter in criterion.parameters():
            parameter.normal_(std=scale)
    logits = scale * torch.randn(num_items, num_classes, dtype=torch.float64)
    features = torch.randn(num_items, num_features, dtype=torch.float64)
    target = torch.randint(num_classes, (num_items,))
    assert criterion.aux_head is not None
    target[::2] = criterion.aux_head(features).argmax(dim=1)[::2]  # every second item matches
    return Problem(criterion, logits.requires_grad_(), target, features.requires_grad_())


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def settings_of(criterion: LabelEmbeddingLoss) -> reference.Settings:
    return reference.Settings(
        criterion.hard_weight, criterion.soft_weight, criterion.temperature, criterion.cap, criterion.cap_weight
    )


def aux_head_of(criterion: LabelEmbeddingLoss) -> nn.Linear:
    assert criterion.aux_head is not None
    return criterion.aux_head


def expected_loss(
    task: Problem, target: Tensor, *, class_weight: Tensor | None = None, num_items: float | None = None
) -> tuple[reference.Loss, dict[str, Tensor]]:
    """The loss by loops, and its gradient in the logits and in each parameter."""
    criterion, logits, _, features = task
    state = {name: value.tolist() for name, value in criterion.state_dict().items()}
    aux_logits = reference.linear(features.tolist(), state["aux_head.weight"], state["aux_head.bias"])
    if "table.weight" in state:
        rows = state["table.weight"]
    else:
        decoder = state["table.decoder.weight"], state["table.decoder.bias"]
        hidden = reference.linear(state["table.rows.weight"], *decoder)
        rows = reference.relu(hidden)
    weights = None if class_weight is None else class_weight.tolist()
    expected = reference.loss(
        logits.tolist(), aux_logits, rows, target.tolist(), settings_of(criterion), weights, num_items
    )
    gradients = {"logits": expected.d_logits}
    d_weight, d_bias, _ = reference.linear_gradients(features.tolist(), state["aux_head.weight"], expected.d_aux_logits)
    gradients |= {"aux_head.weight": d_weight, "aux_head.bias": [d_bias]}
    if "table.weight" in state:
        gradients["table.weight"] = expected.d_rows
    else:
        masked = [
            [d if h > 0 else 0.0 for d, h in zip(*rows, strict=True)]
            for rows in zip(expected.d_rows, hidden, strict=True)
        ]
        d_weight, d_bias, d_codes = reference.linear_gradients(state["table.rows.weight"], decoder[0], masked)
        gradients |= {"table.decoder.weight": d_weight, "table.decoder.bias": [d_bias], "table.rows.weight": d_codes}
    return expected, {name: torch.tensor(value, dtype=torch.float64) for name, value in gradients.items()}


def assert_equals_the_loops(task: Problem, target: Tensor, num_items: float | None = None) -> None:
    criterion, logits, _, features = task
    class_weight = criterion.class_weight
    expected, gradients = expected_loss(task, target, class_weight=class_weight, num_items=num_items)
    divisor = None if num_items is None else torch.tensor(num_items, dtype=torch.float64)
    terms = criterion.terms(logits, target, features, num_items=divisor)
    got = torch.stack(terms)
    assert_close(got, torch.tensor([*expected.terms, expected.total], dtype=torch.float64))
    loss = criterion(logits, target, features, num_items=divisor)
    assert loss.item() == terms.total.item()
    found = {"logits": logits} | dict(criterion.named_parameters())
    for name, gradient in zip(found, torch.autograd.grad(loss, list(found.values())), strict=True):
        assert_close(gradient, gradients[name].view_as(gradient))


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize(("num_items", "num_classes"), [(9, 5), (1, 5), (1, 1), (6, 1), (7, 2), (13, 11)])
def test_loss_and_gradients_equal_the_loops(num_items: int, num_classes: int, rank: int | None) -> None:
    task = problem(num_items, num_classes=num_classes, rank=rank)
    assert_equals_the_loops(task, task.target)


@pytest.mark.parametrize("rank", RANKS)
def test_loss_and_gradients_equal_the_loops_with_every_setting_moved(rank: int | None) -> None:
    task = problem(12, rank=rank)
    for name, value in reference.Settings(0.3, 1.7, 3.0, 0.4, 7.0)._asdict().items():
        setattr(task.criterion, name, value)
    terms = task.criterion.terms(task.logits, task.target, task.features)
    assert all(term > 0 for term in terms)
    assert_equals_the_loops(task, task.target)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("num_items", [None, 40.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_ignored_items_weights_and_divisors_equal_the_loops(
    rank: int | None, num_items: float | None, weighted: bool
) -> None:
    task = problem(11, rank=rank)
    if weighted:
        task.criterion.class_weight = torch.tensor([0.1, 0.0, 2.0, 0.5, 1.0], dtype=torch.float64)
    target = task.target.clone()
    target[[0, 3, 10]] = -100
    assert_equals_the_loops(task, target, num_items)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("weighted", [False, True])
def test_mixed_distributions_equal_the_loops(rank: int | None, weighted: bool) -> None:
    task = problem(8, rank=rank)
    if weighted:
        task.criterion.class_weight = torch.tensor([0.1, 0.0, 2.0, 0.5, 1.0], dtype=torch.float64)
    target = torch.rand(8, 5, dtype=torch.float64).softmax(dim=1)
    target[2], target[5] = 0.0, torch.eye(5)[3]
    assert_equals_the_loops(task, target)


@pytest.mark.parametrize("rank", RANKS)
def test_single_items_equal_the_loops_without_reduction(rank: int | None) -> None:
    task = problem(7, rank=rank)
    task.criterion.reduction = "none"
    task.criterion.class_weight = torch.tensor([0.1, 0.7, 2.0, 0.5, 1.0], dtype=torch.float64)
    task.target[4] = -100
    expected, _ = expected_loss(task, task.target, class_weight=task.criterion.class_weight)
    terms = task.criterion.terms(task.logits, task.target, task.features)
    assert_close(torch.stack(terms[:5], dim=1), torch.tensor(expected.item_terms, dtype=torch.float64))
    assert_close(terms.total, torch.tensor(expected.item_totals, dtype=torch.float64))
    assert terms.total[4] == 0
    _, gradients = expected_loss(task, task.target, class_weight=task.criterion.class_weight, num_items=1.0)
    for name, parameter in {"logits": task.logits, **dict(task.criterion.named_parameters())}.items():
        (gradient,) = torch.autograd.grad(terms.total.sum(), [parameter], retain_graph=True)
        assert_close(gradient, gradients[name].view_as(gradient))


def test_sum_is_the_sum_of_single_items() -> None:
    task = problem(7)
    values = {}
    for reduction in ("sum", "none"):
        task.criterion.reduction = reduction
        values[reduction] = torch.stack(task.criterion.terms(task.logits, task.target, task.features))
    assert_close(values["sum"], values["none"].sum(dim=1))


def test_without_a_matched_item_the_match_is_0_and_the_table_rests() -> None:
    task = problem(6)
    aux_logits = aux_head_of(task.criterion)(task.features)
    target = aux_logits.argmin(dim=1)
    terms = task.criterion.terms(task.logits, target, task.features)
    assert terms.match == 0
    (gradient,) = torch.autograd.grad(terms.total, [task.criterion.table.weight])
    assert torch.equal(gradient, torch.zeros(5, 5, dtype=torch.float64))
    assert_equals_the_loops(task, target)


def test_ties_match() -> None:
    task = problem(3)
    for parameter in aux_head_of(task.criterion).parameters():
        nn.init.zeros_(parameter)
    terms = task.criterion.terms(task.logits, torch.tensor([0, 2, 4]), task.features)
    uniform_entropies = -task.criterion.table.weight.log_softmax(dim=1)[[0, 2, 4]].mean()
    assert_close(terms.match, uniform_entropies)
    assert_equals_the_loops(task, torch.tensor([0, 2, 4]))


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("kind", ["all ignored", "empty", "zero rows"])
def test_no_items_at_all_give_0_and_zero_gradients(rank: int | None, reduction: str, kind: str) -> None:
    criterion, logits, _, features = problem(4, rank=rank)
    criterion.reduction = reduction  # type: ignore[assignment]
    if kind == "empty":
        logits, features, target = logits[:0], features[:0], torch.zeros(0, dtype=torch.long)
    else:
        target = torch.full((4,), -100) if kind == "all ignored" else torch.zeros(4, 5)
    terms = criterion.terms(logits, target, features)
    assert torch.equal(torch.stack(terms), torch.zeros(6, dtype=torch.float64))
    for gradient in torch.autograd.grad(criterion(logits, target, features), [logits, *criterion.parameters()]):
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_values_stay_finite(rank: int | None, dtype: torch.dtype) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        criterion = LabelEmbeddingLoss(3, 4, rank=rank).to(dtype)
        with torch.no_grad():
            for parameter in criterion.parameters():
                parameter.copy_(1e4 * torch.randn(parameter.shape).sign())
        logits = (1e4 * torch.randn(6, 4).sign()).to(dtype).requires_grad_()
        features = torch.eye(3, dtype=dtype).repeat(2, 1)
        for target in (torch.randint(4, (6,)), torch.rand(6, 4, dtype=dtype).softmax(dim=1)):
            loss = criterion(logits, target, features)
            assert loss.isfinite()
            for gradient in torch.autograd.grad(loss, [logits, *criterion.parameters()]):
                assert gradient.isfinite().all()


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("as_distribution", [False, True])
def test_fact_1_the_three_groups_receive_disjoint_gradients(rank: int | None, as_distribution: bool) -> None:
    criterion, logits, target, features = problem(12, rank=rank)
    logits = logits + 0.0 * features.sum()  # a network: the features stand in the graph of the logits
    given = F.one_hot(target, 5).double() if as_distribution else target
    terms = criterion.terms(logits, given, features)
    groups: dict[str, list[Tensor]] = {
        "network": [logits],
        "aux_head": list(aux_head_of(criterion).parameters()),
        "table": list(criterion.table.parameters()),
    }
    trains = {"hard": "network", "soft": "network", "aux": "aux_head", "cap": "aux_head", "match": "table"}
    for term, trained in trains.items():
        for group, parameters in groups.items():
            gradients = torch.autograd.grad(getattr(terms, term), parameters, retain_graph=True, allow_unused=True)
            moved = [gradient is not None and bool(gradient.count_nonzero()) for gradient in gradients]
            assert all(moved) if group == trained else not any(moved), (term, group)
    for term in ("aux", "cap", "match"):
        (of_features,) = torch.autograd.grad(getattr(terms, term), [features], retain_graph=True, allow_unused=True)
        assert of_features is None or not of_features.count_nonzero()


def test_fact_2_hard_weight_1_and_soft_weight_0_are_plain_cross_entropy() -> None:
    criterion, logits, target, features = problem(10)
    criterion.hard_weight, criterion.soft_weight = 1.0, 0.0
    terms = criterion.terms(logits, target, features)
    expected = F.cross_entropy(logits, target)
    torch.testing.assert_close(terms.hard, expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(terms.total, logits), torch.autograd.grad(expected, logits), rtol=1e-12, atol=1e-16
    )


def test_fact_3_both_network_terms_share_one_log_sum_exp() -> None:
    criterion, logits, target, features = problem(1, num_classes=7)
    criterion.hard_weight, criterion.soft_weight = a, b = 0.3, 1.1
    terms = criterion.terms(logits, target, features)
    z, y = logits[0].tolist(), int(target)
    soft_label = reference.softmax(criterion.table.weight[y].tolist())
    log_sum_exp = math.log(sum(math.exp(value) for value in z))
    inner = sum(s * value for s, value in zip(soft_label, z, strict=True))
    assert (a * terms.hard + b * terms.soft).item() == pytest.approx(
        (a + b) * log_sum_exp - a * z[y] - b * inner, abs=1e-10
    )
    (gradient,) = torch.autograd.grad(terms.total, logits)
    expected = [(a + b) * p - b * s for p, s in zip(reference.softmax(z), soft_label, strict=True)]
    expected[y] -= a
    assert gradient[0].tolist() == pytest.approx(expected, abs=1e-10)


def test_fact_4_a_row_rests_at_the_mean_tempered_prediction_of_its_matched_items() -> None:
    criterion, logits, _, features = problem(30, num_classes=3)
    aux_logits = aux_head_of(criterion)(features)
    matched_label = int(aux_logits.argmax(dim=1).mode().values)
    target = torch.full((30,), matched_label)
    predictions = [reference.softmax(row, 2.0) for row in aux_logits.tolist() if max(row) == row[matched_label]]
    assert 0 < len(predictions) < 30
    mean = torch.tensor(predictions, dtype=torch.float64).mean(dim=0)
    table = criterion.table.weight
    (before,) = torch.autograd.grad(criterion(logits, target, features), [table])
    with torch.no_grad():
        table[matched_label] = mean.log() + 3.0  # a constant added to a row changes nothing
    (after,) = torch.autograd.grad(criterion(logits, target, features), [table])
    assert before[matched_label].abs().max() > 1e-3
    assert after.abs().max() < 1e-10


def gold_gradient(p: float, cap_weight: float) -> float:
    """The auxiliary head's gradient on the gold logit of a single item whose probability is p."""
    criterion = LabelEmbeddingLoss(1, 2, cap_weight=cap_weight).double()
    head = aux_head_of(criterion)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([math.log(p / (1 - p)), 0.0], dtype=torch.float64))
    inputs = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([0]), torch.zeros(1, 1, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(criterion(*inputs), [head.bias])
    return float(gradient[0])


@pytest.mark.parametrize("cap_weight", [0.0, 1.0, 1.05, 100.0])
def test_fact_5_the_gradient_on_the_gold_logit(cap_weight: float) -> None:
    for p in (0.01, 0.5, 0.89, 0.91, 0.96, 0.999):
        expected = -(1 - p) if p <= 0.9 else (1 - p) * (cap_weight * p - 1)
        assert gold_gradient(p, cap_weight) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("cap_weight", "settles_at"), [(0.5, 1.0), (1.0, 1.0), (1.05, 1 / 1.05), (1.2, 0.9), (100.0, 0.9)]
)
def test_fact_5_where_a_single_item_settles(cap_weight: float, settles_at: float) -> None:
    low, high = 0.5, 1 - 1e-9  # the gradient has one sign below the point where descent settles, the other above
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if gold_gradient(middle, cap_weight) < 0 else (low, middle)
    assert low == pytest.approx(settles_at, abs=1e-6)


@pytest.mark.parametrize(("num_classes", "diagonal"), [(10, 0.23), (100, 0.027)])
def test_fact_6_an_identity_table_is_nearly_uniform(num_classes: int, diagonal: float) -> None:
    soft_labels = LabelTable(num_classes).double().soft_labels()
    expected = math.e / (math.e + num_classes - 1)
    assert round(expected, 3 if num_classes == 100 else 2) == diagonal
    assert torch.allclose(soft_labels.diagonal(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12)


def test_fact_7_under_adam_the_relative_weights_of_the_groups_do_not_matter() -> None:
    def trained(network_scale: float, head_scale: float, table_scale: float) -> list[Tensor]:
        criterion, _, target, features = problem(16)
        features = features.detach()
        torch.manual_seed(0)
        network = nn.Linear(4, 5).double()
        parameters = [*network.parameters(), *criterion.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=1e-2, eps=1e-30)
        for _ in range(20):
            optimizer.zero_grad()
            hard, soft, aux, cap, match, _ = criterion.terms(network(features), target, features)
            loss = network_scale * (0.5 * hard + 0.5 * soft) + head_scale * (aux + 100.0 * cap) + table_scale * match
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return [parameter.detach() for parameter in parameters]

    plain = trained(1.0, 1.0, 1.0)
    for scales in [(1.0, 2.0, 64.0), (64.0, 1.0, 2.0), (2.0, 64.0, 1.0)]:
        torch.testing.assert_close(trained(*scales), plain, rtol=0, atol=1e-12)


def with_terms(criterion: LabelEmbeddingLoss) -> nn.Module:
    """The criterion with `terms` as its call, so that parameters can be passed in as arguments."""
    wrapper = nn.Module()
    wrapper.criterion = criterion
    wrapper.forward = lambda *inputs: criterion.terms(*inputs)
    return wrapper


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("term", ["hard", "soft", "aux", "cap", "match"])
@pytest.mark.parametrize("as_distribution", [False, True])
def test_gradcheck_of_each_term_in_what_it_trains(rank: int | None, term: str, as_distribution: bool) -> None:
    criterion, logits, target, features = problem(6, 3, 4, rank)
    criterion.cap = 0.3
    given = torch.rand(6, 4, dtype=torch.float64).softmax(dim=1) if as_distribution else target
    if term in ("hard", "soft"):
        assert torch.autograd.gradcheck(lambda z: getattr(criterion.terms(z, given, features), term), [logits])
        return
    group = "table." if term == "match" else "aux_head."
    names, values = zip(*[(n, p) for n, p in criterion.named_parameters() if n.startswith(group)], strict=True)

    def value(*parameters: Tensor) -> Tensor:
        replaced = {f"criterion.{name}": parameter for name, parameter in zip(names, parameters, strict=True)}
        terms = torch.func.functional_call(with_terms(criterion), replaced, (logits.detach(), given, features.detach()))
        result: Tensor = getattr(terms, term)
        return result

    assert value(*values) > 0
    assert torch.autograd.gradcheck(value, values)


@pytest.mark.parametrize(("hard_weight", "soft_weight"), [(0.5, 0.5), (0.3, 0.9)])
def test_the_pull_on_the_label_of_an_untrained_network(hard_weight: float, soft_weight: float) -> None:
    num_classes = 7
    criterion = LabelEmbeddingLoss(3, num_classes, hard_weight=hard_weight, soft_weight=soft_weight).double()
    logits = torch.zeros(1, num_classes, dtype=torch.float64, requires_grad=True)
    criterion(logits, torch.tensor([2]), torch.zeros(1, 3, dtype=torch.float64)).backward()
    share = criterion.table.soft_labels()[2, 2].item()
    assert logits.grad is not None
    assert logits.grad[0, 2].item() == pytest.approx(
        -(hard_weight * (1 - 1 / num_classes) + soft_weight * (share - 1 / num_classes)), rel=1e-12
    )


@pytest.mark.parametrize(("others", "expected"), [(9, 0.5), (99, 0.23), (8000, 0.03)])
def test_a_tempered_prediction_leaves_on_the_label_what_the_formula_says(others: int, expected: float) -> None:
    alpha, tau = 0.9, 2.0
    probs = torch.full((others + 1,), (1 - alpha) / others, dtype=torch.float64)
    probs[0] = alpha
    found = (probs.log() / tau).softmax(dim=0)[0].item()
    assert found == pytest.approx(1 / (1 + others ** (1 - 1 / tau) * ((1 - alpha) / alpha) ** (1 / tau)), rel=1e-12)
    assert found == pytest.approx(expected, abs=0.005)
