"""Rows over the other labels that are trained and of low rank: against loops, and as a table."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.decoupled_reference import item, low_rank_row
from tests.small_batches import assert_exact, batch
from torch import Tensor

from labelemb import LabelEmbeddingLoss, LabelTable
from labelemb.losses import decoupled
from labelemb.losses.counted_table import CountedTable
from labelemb.losses.decoupled import DecoupledLabelEmbeddingLoss
from labelemb.losses.low_rank_table import LowRankTable
from labelemb.losses.modes import load_table, make_criterion

C, R = 5, 3


def made(**settings: Any) -> DecoupledLabelEmbeddingLoss:
    """Rows other than the uniform one, in float64."""
    torch.manual_seed(1)
    criterion = DecoupledLabelEmbeddingLoss(C, **{"rank": R, **settings}).double()
    with torch.no_grad():
        for parameter in criterion.parameters():
            parameter.normal_()
    return criterion


def table_of(criterion: DecoupledLabelEmbeddingLoss) -> LowRankTable:
    assert isinstance(criterion.table, LowRankTable)
    return criterion.table


def items_of(criterion: DecoupledLabelEmbeddingLoss, logits: Tensor, target: Tensor) -> list[Any]:
    table = table_of(criterion)
    codes, weight, bias = (part.tolist() for part in (table.codes, table.decoder_weight, table.decoder_bias))
    return [
        item(row, low_rank_row(codes[y], weight, bias, y), y, criterion.epsilon, criterion.shape_weight)
        for row, y in zip(logits.tolist(), target.tolist(), strict=True)
    ]


@pytest.mark.parametrize(("epsilon", "shape_weight"), [(0.1, 1.0), (0.3, 0.6), (0.1, 0.0)])
@pytest.mark.parametrize("traced", [False, True])
def test_loss_and_gradients_are_those_of_the_loops(
    epsilon: float, shape_weight: float, traced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In closed form, and as compilers see it."""
    monkeypatch.setattr(decoupled, "is_traced", lambda: traced)
    criterion = made(epsilon=epsilon, shape_weight=shape_weight, reduction="sum")
    logits, target = batch(num_items=20)
    table, loops = table_of(criterion), items_of(criterion, logits, target)
    assert 0 < sum(one.is_hit for one in loops) < 20
    d_rows = torch.tensor([one.d_row_logits for one in loops], dtype=torch.float64)  # (N, C)
    terms = criterion.terms(logits.requires_grad_(), target)
    for found, column in zip(terms[:4], zip(*(one.terms for one in loops), strict=True), strict=True):
        assert_exact(found, torch.tensor(sum(column), dtype=torch.float64))
    assert_exact(terms.total, terms.certainty + shape_weight * terms.shape + terms.match)
    gradients = torch.autograd.grad(terms.total, [logits, *table.parameters()])
    assert_exact(gradients[0], torch.tensor([one.d_logits for one in loops], dtype=torch.float64))
    of_codes = torch.zeros_like(table.codes).index_add(0, target, d_rows @ table.decoder_weight.detach())
    assert_exact(gradients[1], of_codes)
    assert_exact(gradients[2], d_rows.T @ table.codes.detach()[target])
    assert_exact(gradients[3], d_rows.sum(dim=0))


def test_the_terms_train_what_they_should() -> None:
    criterion = made()
    logits, target = batch()
    terms = criterion.terms(logits.requires_grad_(), target)
    of_rows = list(criterion.parameters())
    for term in (terms.hard, terms.certainty, terms.shape):
        for gradient in torch.autograd.grad(term, of_rows, retain_graph=True, allow_unused=True):
            assert gradient is None or not gradient.any()
    (of_network,) = torch.autograd.grad(terms.match, logits, retain_graph=True, allow_unused=True)
    assert of_network is None or not of_network.any()


def test_gradcheck_of_the_match_term_in_the_table() -> None:
    criterion, (logits, target) = made(shape_weight=0.0), batch()  # the rest of the loss does not depend on the rows
    names = [f"table.{name}" for name, _ in table_of(criterion).named_parameters()]

    def match(*values: Tensor) -> Tensor:
        state = dict(zip(names, values, strict=True))
        found = torch.func.functional_call(criterion, state, (logits, target))
        assert isinstance(found, Tensor)
        return found

    assert torch.autograd.gradcheck(match, tuple(p.detach().clone().requires_grad_() for p in criterion.parameters()))


def test_distributions_are_the_expectation_over_their_labels() -> None:
    criterion, (logits, _) = made(reduction="none"), batch(num_items=9)
    target = torch.rand(9, C, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).softmax(dim=1)
    singles = [torch.stack(criterion.terms(logits, torch.full((9,), c))) for c in range(C)]
    expected = torch.stack(singles, dim=2)  # (5, N, C)
    found = torch.stack(criterion.terms(logits, target))
    assert_exact(found, (expected * target).sum(dim=2))
    assert found[3].any()
    parameters = list(criterion.parameters())
    gradients = torch.autograd.grad(found[3].sum(), parameters)
    for got, want in zip(gradients, torch.autograd.grad((expected * target)[3].sum(), parameters), strict=True):
        assert_exact(got, want)


def test_rows_start_uniform_and_the_first_gradient_reaches_the_decoder() -> None:
    criterion = DecoupledLabelEmbeddingLoss(C, rank=R).double()
    assert_exact(criterion.table.soft_labels(), (1 - torch.eye(C, dtype=torch.float64)) / (C - 1))
    logits, target = batch()
    criterion(logits, target).backward()
    table = table_of(criterion)
    assert table.codes.grad is not None
    assert not table.codes.grad.any()
    assert table.decoder_weight.grad is not None
    assert table.decoder_weight.grad.abs().max() > 0


def test_rows_learn_the_mean_prediction_of_the_hits() -> None:
    """Full rank, full batch: the match term is at its least where a row is the mean p~ of its label's hits."""
    torch.manual_seed(0)
    criterion = DecoupledLabelEmbeddingLoss(C, rank=C).double()
    logits, target = batch(num_items=60)
    optimizer = torch.optim.Adam(criterion.parameters(), 0.05)
    for _ in range(1500):
        optimizer.zero_grad()
        criterion(logits, target).backward()
        optimizer.step()
    counted = DecoupledLabelEmbeddingLoss(C).double()
    counted(logits, target)
    counted.end_step()
    hit = counted.table.state_dict()["counts"] > 0
    assert hit.any()
    torch.testing.assert_close(
        criterion.table.soft_labels()[hit], counted.table.soft_labels()[hit], rtol=0, atol=1e-3, check_dtype=False
    )


def test_one_label_has_no_loss() -> None:
    criterion = DecoupledLabelEmbeddingLoss(1, rank=2)
    logits = torch.randn(4, 1, requires_grad=True)
    assert criterion(logits, torch.zeros(4, dtype=torch.long)).item() == 0
    assert criterion.table.soft_labels().tolist() == [[0.0]]


def test_a_frozen_table_has_no_parameters_and_no_match_term() -> None:
    criterion = made()
    frozen = DecoupledLabelEmbeddingLoss(C, table=criterion.table, freeze_table=True)
    logits, target = batch()
    assert not list(frozen.parameters())
    assert frozen.terms(logits, target).match == 0
    assert_exact(frozen.terms(logits, target).shape, criterion.terms(logits, target).shape)
    start = DecoupledLabelEmbeddingLoss(C, table=criterion.table)
    assert [p.shape for p in start.parameters()] == [(C, R), (C, R), (C,)]
    assert_exact(start.terms(logits, target).match, criterion.terms(logits, target).match)


def test_it_compiles_into_one_graph() -> None:
    logits, target = batch()
    criterion = made()
    run = torch.compile(criterion, backend="aot_eager", fullgraph=True)
    assert_exact(run(logits.requires_grad_(), target), criterion(logits, target))


def test_a_table_is_saved_read_and_used_again(tmp_path: Path) -> None:
    criterion, path = made(), tmp_path / "rows.safetensors"
    criterion.table.label_names = list("abcde")
    criterion.table.save(path)
    again = load_table(path, list("abcde"))
    assert isinstance(again, LowRankTable)
    for name, value in criterion.table.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    assert again.nearest(["a"], 2) == criterion.table.nearest(["a"], 2)
    logits, target = batch()
    for mode in ("decoupled-start", "decoupled-frozen"):
        used = make_criterion(mode, 4, C, table=again)
        assert isinstance(used, DecoupledLabelEmbeddingLoss)
        assert_exact(used.terms(logits, target).shape, criterion.terms(logits, target).shape)
    with pytest.raises(ValueError, match="other labels"):
        load_table(path, list("abcdf"))
    for other in (CountedTable, LabelTable):
        with pytest.raises(ValueError, match=r"holds no counted rows|neither a dense nor a low-rank"):
            other.load(path)
    LabelTable(3).save(path)
    with pytest.raises(ValueError, match="no trained rows over the other labels"):
        LowRankTable.load(path)


def test_label_embedding_starts_from_its_rows_with_half_of_the_share() -> None:
    criterion = made()
    start = LabelEmbeddingLoss(4, C, table=criterion.table)
    soft = start.table.soft_labels()
    torch.testing.assert_close(soft.diagonal(), torch.full((C,), 0.5))
    shares = F.normalize(soft * (1 - torch.eye(C)), p=1, dim=1)
    torch.testing.assert_close(shares, criterion.table.soft_labels().float(), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="20,001 labels are too many"):
        LabelEmbeddingLoss(4, 20_001, table=LowRankTable(20_001, 1))


def test_bad_settings_are_refused() -> None:
    table = made().table
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        DecoupledLabelEmbeddingLoss(C, rank=0)
    with pytest.raises(ValueError, match=r"rank=2 contradicts the table, .*; leave it out"):
        DecoupledLabelEmbeddingLoss(C, rank=2, table=table)
    with pytest.raises(ValueError, match=r"rank=2 contradicts the table, .*; leave it out"):
        DecoupledLabelEmbeddingLoss(C, rank=2, table=CountedTable(C))
    many = DecoupledLabelEmbeddingLoss(20_001, rank=1)
    with pytest.raises(ValueError, match="above 20,000 labels give class indices"):
        many(torch.zeros(1, 20_001), torch.zeros(1, 20_001))
