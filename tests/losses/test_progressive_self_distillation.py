"""Progressive self-distillation against its formula, over epochs, whatever the order, and saved whole."""

import math
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.reference import Matrix, Row, softmax
from tests.small_batches import assert_exact, batch, log_softmax
from tests.small_runs import small_run, small_settings
from tests.two_ranks import outputs_of_two_ranks
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from labelemb.errors import InputError
from labelemb.losses.progressive_self_distillation import ProgressiveSelfDistillationLoss
from labelemb.training.checkpoint import load_newest

N, C, EPOCHS = 9, 5, 4


def criterion_of(**options: Any) -> ProgressiveSelfDistillationLoss:
    return ProgressiveSelfDistillationLoss(C, N, EPOCHS, **options).double()


def epoch_of(number: int) -> tuple[Tensor, Tensor]:
    """The logits of all examples in an epoch, and their labels, which do not change."""
    return batch(N, C, seed=number)[0], batch(N, C)[1]


def in_half_precision(row: Row) -> Row:
    return [struct.unpack("e", struct.pack("e", value))[0] for value in row]


def expected_loss(row: Row, target: Row, earlier: Row | None, weight: float) -> float:
    """H((1 - a)*target + a*earlier, p), where what the earlier prediction lacks of the sum 1 is the target's."""
    if earlier is None:
        mixed = target
    else:
        lacks = 1 - math.fsum(earlier)
        mixed = [
            (1 - weight) * t + weight * (e * math.fsum(target) + lacks * t)
            for t, e in zip(target, earlier, strict=True)
        ]
    return -math.fsum(share * value for share, value in zip(mixed, log_softmax(row), strict=True))


def targets(labels: Tensor, kind: str) -> tuple[Tensor, Matrix]:
    """The target of a call and its rows: labels, or distributions that do not sum to 1."""
    if kind == "indices":
        return labels, F.one_hot(labels, C).double().tolist()
    rows = torch.rand(N, C, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return rows, rows.tolist()


@pytest.mark.parametrize("kind", ["indices", "distributions"])
@pytest.mark.parametrize("weighted", [False, True])
def test_progressive_self_distillation_is_its_formula_over_the_epochs(kind: str, weighted: bool) -> None:
    class_weight = [1.0, 2.0, 0.5, 3.0, 1.5] if weighted else [1.0] * C
    criterion = criterion_of(end=0.6, class_weight=class_weight if weighted else None)
    earlier: list[Row | None] = [None] * N
    for epoch in range(1, EPOCHS + 2):  # one more than was said: its weight is the last one's
        logits, labels = epoch_of(epoch)
        order = torch.randperm(N, generator=torch.Generator().manual_seed(epoch))
        target, rows = targets(labels, kind)
        weight = 0.6 * min(epoch, EPOCHS) / EPOCHS
        for part in (order[:4], order[4:8], order[8:]):
            losses, divisor = [], 0.0
            for i in part.tolist():
                shares = [t * w for t, w in zip(rows[i], class_weight, strict=True)]
                losses.append(expected_loss(logits[i].tolist(), shares, earlier[i], weight))
                divisor += math.fsum(shares) if weighted else 1.0
            found = criterion(logits[part], target[part], index=part)
            assert found.item() == pytest.approx(math.fsum(losses) / divisor, rel=1e-12)
        earlier = [in_half_precision(softmax(row)) for row in logits.tolist()]
        criterion.end_epoch()


def test_the_first_epoch_is_cross_entropy_to_the_bit() -> None:
    logits, target = epoch_of(0)
    terms = criterion_of().terms(logits, target, index=torch.arange(N))
    for found in (terms.hard, terms.soft, terms.total):
        assert torch.equal(found, criterion_of(end=0).terms(logits, target, index=torch.arange(N)).hard)
    assert_exact(terms.total, F.cross_entropy(logits, target))


def after_an_epoch(**options: Any) -> ProgressiveSelfDistillationLoss:
    """A criterion in its second epoch."""
    criterion = criterion_of(**options)
    logits, target = epoch_of(7)
    criterion(logits, target, index=torch.arange(N))
    criterion.end_epoch()
    return criterion


def test_an_item_has_its_own_prediction_wherever_it_stands() -> None:
    logits, target = epoch_of(1)
    whole = after_an_epoch(reduction="none")(logits, target, index=torch.arange(N))
    order = torch.randperm(N, generator=torch.Generator().manual_seed(5))
    assert_exact(after_an_epoch(reduction="none")(logits[order], target[order], index=order), whole[order])
    other = after_an_epoch(reduction="none")(logits, target, index=order)
    assert (other - whole).abs().max() > 0.01


def test_the_terms_are_cross_entropies_with_the_label_and_with_the_earlier_prediction() -> None:
    logits, target = epoch_of(1)
    criterion = after_an_epoch()
    terms = criterion.terms(logits, target, index=torch.arange(N))
    assert_exact(terms.hard, F.cross_entropy(logits, target))
    earlier = epoch_of(7)[0].softmax(dim=1)
    torch.testing.assert_close(terms.soft, F.cross_entropy(logits, earlier), rtol=1e-3, atol=0)
    weight = 0.8 * 2 / EPOCHS
    assert criterion.factors[:2] == pytest.approx((1 - weight, weight))
    assert_exact(terms.total, (1 - weight) * terms.hard + weight * terms.soft)
    assert torch.equal(criterion(logits, target, index=torch.arange(N)), terms.total)  # a second call sees the same


@pytest.mark.parametrize("kind", ["indices", "distributions"])
def test_gradcheck_of_the_loss_with_earlier_predictions(kind: str) -> None:
    logits, labels = epoch_of(1)
    criterion, target = after_an_epoch().eval(), targets(labels, kind)[0]
    torch.autograd.gradcheck(lambda z: criterion(z, target, index=torch.arange(N)), logits.requires_grad_())


def test_the_gradient_is_the_prediction_less_the_mixed_target() -> None:
    logits, target = epoch_of(1)
    logits.requires_grad_()
    criterion = after_an_epoch(reduction="sum")
    criterion(logits, target, index=torch.arange(N)).backward()
    earlier = criterion.earlier.double()
    onehot = F.one_hot(target, C).double()
    earlier = earlier + (1 - earlier.sum(dim=1, keepdim=True)) * onehot
    assert logits.grad is not None
    assert_exact(logits.grad, logits.detach().softmax(dim=1) - 0.6 * onehot - 0.4 * earlier)


def test_ignored_examples_and_those_not_seen_keep_what_they_had() -> None:
    criterion = after_an_epoch()
    before = criterion.earlier.clone()
    logits, target = epoch_of(1)
    target[3] = -100
    criterion(logits[:6], target[:6], index=torch.arange(6))
    criterion.end_epoch()
    kept = torch.tensor([3, 6, 7, 8])
    assert torch.equal(criterion.earlier[kept], before[kept])
    seen = torch.tensor([0, 1, 2, 4, 5])
    assert torch.equal(criterion.earlier[seen], logits[seen].softmax(dim=1).half())


def test_an_example_that_comes_later_begins_with_cross_entropy() -> None:
    criterion = criterion_of(reduction="none")
    logits, target = epoch_of(0)
    criterion(logits[:5], target[:5], index=torch.arange(5))
    criterion.end_epoch()
    found = criterion(logits, target, index=torch.arange(N))
    plain = F.cross_entropy(logits, target, reduction="none")
    assert_exact(found[5:], plain[5:])
    assert (found[:5] - plain[:5]).abs().min() > 1e-3


def test_nothing_is_gathered_in_evaluation_or_without_gradients() -> None:
    criterion = criterion_of()
    logits, target = epoch_of(0)
    with torch.no_grad():
        criterion(logits, target, index=torch.arange(N))
    criterion.eval()(logits, target, index=torch.arange(N))
    assert not criterion.gathered.any()


def test_in_evaluation_the_index_may_be_left_out_and_the_loss_is_cross_entropy() -> None:
    logits, target = epoch_of(1)
    assert_exact(after_an_epoch().eval()(logits, target), F.cross_entropy(logits, target))


def test_a_masked_label_that_had_no_probability_counts_for_nothing() -> None:
    logits, target = epoch_of(1)
    target[target == 4] = 0
    logits[:, 4] = -math.inf
    criterion = criterion_of()
    for _ in range(2):
        assert criterion(logits, target, index=torch.arange(N)).isfinite()
        criterion.end_epoch()


def test_the_state_is_saved_whole() -> None:
    criterion = after_an_epoch()
    logits, target = epoch_of(1)
    criterion(logits[:4], target[:4], index=torch.arange(4))
    assert set(criterion.state_dict()) == {"earlier", "gathered", "epoch"}
    again = criterion_of()
    again.load_state_dict(criterion.state_dict())
    for one in (criterion, again):
        one(logits[4:], target[4:], index=torch.arange(4, N))
        one.end_epoch()
    assert torch.equal(criterion.earlier, again.earlier)
    loss = criterion(logits, target, index=torch.arange(N))
    assert torch.equal(loss, again(logits, target, index=torch.arange(N)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_predictions_stay_in_float16_to_the_bit_whatever_the_module_s_type(dtype: torch.dtype) -> None:
    criterion = ProgressiveSelfDistillationLoss(C, N, EPOCHS)
    logits, target = epoch_of(0)
    criterion(logits.float(), target, index=torch.arange(N))
    criterion.end_epoch()
    before = criterion.earlier.clone()
    after = criterion.to(dtype).earlier
    assert after.dtype == torch.float16
    assert torch.equal(after, before)
    assert criterion.to("meta").earlier.device.type == "meta"


def test_a_compiled_criterion_stays_one_program_over_the_epochs() -> None:
    logits, target = epoch_of(0)
    compiled_of, plain = criterion_of(), criterion_of()
    programs = CompileCounter()
    compiled = torch.compile(compiled_of, backend=programs, fullgraph=True, dynamic=False)
    for _ in range(3):
        assert_exact(compiled(logits, target, index=torch.arange(N)), plain(logits, target, index=torch.arange(N)))
        for one in (compiled_of, plain):
            one.end_epoch()
    assert programs.frame_count == 1
    assert torch.equal(compiled_of.earlier, plain.earlier)


def test_a_missing_index_says_what_it_is_and_how_to_give_it() -> None:
    logits, target = epoch_of(0)
    with pytest.raises(ValueError, match=r"index is missing: \(N,\) integers in 0 to 8 .*index=index"):
        criterion_of()(logits, target)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (torch.arange(N).float(), r"index must be \(9,\) integers, got \(9,\) of torch.float32"),
        (torch.arange(N)[:4], r"index must be \(9,\) integers, got \(4,\)"),
        (torch.arange(N) + 1, r"index must lie in 0 to 8, got 9"),
        (torch.arange(N) - 1, r"index must lie in 0 to 8, got -1"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(index: Tensor, message: str) -> None:
    logits, target = epoch_of(0)
    with pytest.raises(ValueError, match=message):
        criterion_of()(logits, target, index=index)


def test_sizes_that_would_surprise_are_refused_with_their_bytes() -> None:
    with pytest.raises(ValueError, match=r"1,281,167 examples over 1,000 labels .* take 5,124,668,000 bytes"):
        ProgressiveSelfDistillationLoss(1000, 1_281_167, 90)
    ProgressiveSelfDistillationLoss(1000, 10, 90)
    for sizes in [(5, 0, 3), (5, 3, 0)]:
        with pytest.raises(ValueError, match="num_examples and num_epochs must be at least 1"):
            ProgressiveSelfDistillationLoss(*sizes)
    with pytest.raises(ValueError, match=r"end must lie in 0 to 1, got 1\.5"):
        criterion_of(end=1.5)


RANKS = """
from labelemb.losses.progressive_self_distillation import ProgressiveSelfDistillationLoss
criterion = ProgressiveSelfDistillationLoss(3, 4, 2)
for epoch in range(2):  # example 2 comes to both, as where a sampler fills up; the second epoch deals them out anew
    logits = 3 * (torch.arange(12.0) + epoch).reshape(4, 3).sin()
    own = torch.tensor([[0, 1, 2], [3, 2]][(rank + epoch) % 2])
    criterion(logits[own], own % 3, index=own)
    criterion.end_epoch()
    print(torch.equal(criterion.earlier, logits.softmax(dim=1).half()), flush=True)
dist.destroy_process_group()
"""


def test_predictions_of_all_processes_are_everybody_s_after_an_epoch(tmp_path: Path) -> None:
    assert [output.split() for output in outputs_of_two_ranks(RANKS, tmp_path)] == [["True", "True"]] * 2


def test_a_run_goes_by_its_predictions_of_the_epoch_before(tmp_path: Path) -> None:
    folder = small_run(tmp_path, mode="pskd")
    state = load_newest(folder.checkpoints)
    assert state is not None
    earlier = state["module"]["criterion.earlier"]
    assert earlier.shape == (64, 10)
    torch.testing.assert_close(earlier.float().sum(dim=1), torch.ones(64), rtol=0, atol=1e-2)
    assert state["module"]["criterion.epoch"] == 3
    first, *later = folder.metrics
    assert first["train_soft"] == first["train_hard"] == first["train_loss"]
    assert all(row["train_soft"] != row["train_hard"] for row in later)


@pytest.mark.parametrize("blend", ["mixup", "cutmix"])
def test_blended_images_are_refused_in_one_line(blend: str) -> None:
    with pytest.raises(
        InputError, match=r"pskd goes by its earlier prediction for each single image, .* set them to 0"
    ):
        small_settings(f"augment.{blend}=0.2", mode="pskd")
