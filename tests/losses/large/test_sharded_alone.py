"""Split classes in a group of one process: memory, what is communicated, types, files, and what is refused."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.sharded_cases import CASES, C, Whole
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils._python_dispatch import TorchDispatchMode

from labelemb import DecoupledLabelEmbeddingLoss, LabelEmbeddingLoss, LabelTable
from labelemb.losses.fixed import baseline
from labelemb.losses.large.sharded import shard, unshard
from labelemb.losses.maxsup import MaxSupLoss
from labelemb.losses.soft_label import SoftLabelLoss


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(default)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of this process."""
    hook = sys.excepthook
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    sys.excepthook = hook  # torch's own stays in its place otherwise


class LargestResult(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """How many numbers the largest tensor has that an operation makes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.numel = max(self.numel, result.numel())
        return result


@pytest.mark.parametrize(
    "make",
    [
        lambda: LabelEmbeddingLoss(4, 500, rank=2),
        lambda: DecoupledLabelEmbeddingLoss(500, rank=2),
        lambda: DecoupledLabelEmbeddingLoss(500, neighbors=2),
    ],
)
@pytest.mark.usefixtures("alone")
def test_no_tensor_is_larger_than_that_of_a_chunk(make: Callable[[], SoftLabelLoss]) -> None:
    own, head = shard(make(), nn.Linear(4, 500))
    features, target = torch.randn(300, 4, requires_grad=True), torch.randint(500, (300,))
    with LargestResult() as largest:
        torch.autograd.backward(own.fused(features, target, head, chunk_size=8))
    assert 8 * 500 <= largest.numel <= 2 * 8 * 500


FORMULAS = {
    "baseline": lambda n, u, h: 4 * n,
    "emb": lambda n, u, h: 8 * n + 4 * u + 3 * u * 4,
    "emb, dense": lambda n, u, h: 8 * n + 4 * u,
    "decoupled, counted": lambda n, u, h: 4 * n,
    "decoupled, low rank": lambda n, u, h: 4 * n + 2 * u + 3 * u * 3,
    "decoupled, neighbors": lambda n, u, h: 4 * n + 2 * n * 2 + 6 * h * 2 + 24 * h,
}


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.usefixtures("alone")
def test_what_is_communicated_is_what_the_docstring_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_default_dtype(torch.float32)
    module = Whole(CASES[name])
    criterion, head = shard(module.criterion, module.head)
    target = torch.arange(C).repeat(3)
    directions = nn.functional.normalize(module.head.weight.detach())
    features = directions[target].requires_grad_()  # hits, all of them
    with torch.no_grad():
        for linear in (head, getattr(criterion, "aux_head", head)):
            linear.weight.copy_(directions)
            linear.bias.zero_()
    criterion.fused(features, target, head)  # the first call looks whether the ranks agree
    num_bytes = 0
    all_reduce, all_gather = dist.all_reduce, dist.all_gather

    def reduced(tensor: Tensor, *arguments: Any, **options: Any) -> None:
        nonlocal num_bytes
        num_bytes += tensor.nbytes
        all_reduce(tensor, *arguments, **options)

    def gathered(tensors: list[Tensor], tensor: Tensor, *arguments: Any) -> None:
        nonlocal num_bytes
        num_bytes += tensor.nbytes
        all_gather(tensors, tensor, *arguments)

    monkeypatch.setattr(dist, "all_reduce", reduced)
    monkeypatch.setattr(dist, "all_gather", gathered)
    criterion.fused(features, target, head)
    one_number = 4  # the match term
    assert num_bytes == 4 * (features.numel() + FORMULAS[name](len(target), C, len(target))) + one_number


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.usefixtures("alone")
def test_half_precision_is_as_exact_as_whole(name: str, autocast: bool) -> None:
    torch.set_default_dtype(torch.float32)
    module, whole = Whole(CASES[name]), Whole(CASES[name])
    features = torch.randn(40, 6)
    if not autocast:
        module, whole, features = module.bfloat16(), whole.bfloat16(), features.bfloat16()
    module.criterion, module.head = shard(module.criterion, module.head)
    gradients = []
    for each in (module, whole):
        given = features.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = each.criterion.fused(given, torch.arange(40) % C, each.head)
        leaves = [given, *each.head.parameters(), *each.criterion.parameters()]
        gradients.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
    for one, other in zip(*gradients, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=0, atol=2**-8 * float(other.abs().max()))


@pytest.mark.usefixtures("alone")
def test_a_saved_table_is_split_and_gathered_again(tmp_path: Path) -> None:
    table = LabelTable(C, rank=3, label_names=[f"label {label}" for label in range(C)])
    table.save(tmp_path / "table")
    loaded = LabelTable.load(tmp_path / "table")
    criterion, head = shard(LabelEmbeddingLoss(4, C, table=loaded), nn.Linear(4, C))
    whole = unshard(criterion, head)
    assert whole is not None
    whole[0].table.save(tmp_path / "again")
    again = LabelTable.load(tmp_path / "again")
    assert all(torch.equal(value, table.state_dict()[name]) for name, value in again.state_dict().items())
    assert again.nearest(["label 3"], k=2) == table.nearest(["label 3"], k=2)
    features = torch.randn(5, 4)
    whole[0](whole[1](features), torch.arange(5), features)  # whole again in every way


@pytest.mark.usefixtures("alone")
def test_settings_of_the_part_are_those_that_count() -> None:
    whole, head = LabelEmbeddingLoss(4, C, rank=2, soft_weight=0.0), nn.Linear(4, C)
    criterion, own_head = shard(whole, head)
    features, target = torch.randn(5, 4), torch.arange(5)
    criterion.soft_weight = whole.soft_weight = 1.0
    found, expected = criterion.fused(features, target, own_head), whole(head(features), target, features)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("alone")
def test_what_a_part_cannot_do_is_refused_in_one_line() -> None:
    features, target = torch.randn(5, 4), torch.arange(5)
    whole, whole_head = LabelEmbeddingLoss(4, C, rank=2), nn.Linear(4, C)
    criterion, head = shard(whole, whole_head)
    with pytest.raises(ValueError, match="has its fused form alone"):
        criterion(head(features), target, features)
    for call in (
        lambda: criterion.table.nearest([0]),
        lambda: criterion.table.soft_labels(),
        lambda: criterion.table.row_logits(),
        lambda: criterion.table.save("nowhere"),
        lambda: criterion.table.copy(),
    ):
        with pytest.raises(ValueError, match="unshard"):
            call()
    with pytest.raises(ValueError, match=r"head must have the 13 classes of this rank, 0 to 12, got 14 rows"):
        criterion.fused(features, target, nn.Linear(4, C + 1))
    with pytest.raises(ValueError, match="target must lie in 0 to 12"):
        criterion.fused(features, target + C, head)
    own, head = shard(baseline(C), whole_head)
    with pytest.raises(ValueError, match=r"not \(indices, values\)"):
        own.fused(features, (target[:, None], torch.ones(5, 1)), head)


@pytest.mark.usefixtures("alone")
def test_what_cannot_be_split_is_refused_in_one_line() -> None:
    whole, head = LabelEmbeddingLoss(4, C, rank=2), nn.Linear(4, C)
    with pytest.raises(ValueError, match="got MaxSupLoss"):
        shard(MaxSupLoss(C), head)
    with pytest.raises(ValueError, match="is split over ranks already"):
        shard(*shard(whole, head))
    with pytest.raises(ValueError, match="this criterion is whole"):
        unshard(whole, head)
    with pytest.raises(ValueError, match="parametrization"):
        shard(whole, weight_norm(nn.Linear(4, C)))
    with pytest.raises(ValueError, match="13 outputs, one a label, got 14"):
        shard(whole, nn.Linear(4, C + 1))
    with torch.device("meta"):
        dense, sparse = LabelEmbeddingLoss(4, C), DecoupledLabelEmbeddingLoss(C, neighbors=2)
    for criterion in (dense, sparse):
        with pytest.raises(ValueError, match="may be on the meta device"):
            shard(criterion, head)
