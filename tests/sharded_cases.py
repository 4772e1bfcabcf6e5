"""What tests/losses/large/test_sharded.py trains, whole in one process, and split over the ranks of several."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.parallel import DistributedDataParallel

from labelemb import DecoupledLabelEmbeddingLoss, LabelEmbeddingLoss, LabelTable, LowRankTable
from labelemb.losses.fixed import baseline, smoothing, teacher_free
from labelemb.losses.large.fused_call import default_chunk_size
from labelemb.losses.large.fused_pass import Inputs
from labelemb.losses.large.sharded import gathered_items, shard, unshard
from labelemb.losses.soft_label import SoftLabelLoss

N, C, D, INPUTS = 23, 13, 6, 5
WEIGHT = [0.5 + 0.1 * label for label in range(C)]


class Case(NamedTuple):
    """A criterion, and what is special about its calls."""

    criterion: Callable[[], SoftLabelLoss]
    bias: bool = True
    chunk_size: int | None = None
    num_items: int | None = None
    labels: str = "random"


def emb(rank: int | None = 4, **options: Any) -> LabelEmbeddingLoss:
    return LabelEmbeddingLoss(D, C, rank=rank, **{"cap": 0.3, "cap_weight": 3.0, **options})


def decoupled(**options: Any) -> DecoupledLabelEmbeddingLoss:
    return DecoupledLabelEmbeddingLoss(C, **options)


def noisy(table: nn.Module) -> Any:
    with torch.no_grad():
        for parameter in table.parameters():
            parameter.add_(torch.randn_like(parameter))
    return table


CASES = {
    "baseline": Case(lambda: baseline(C)),
    "baseline, no bias, num_items, chunks of 3": Case(lambda: baseline(C), bias=False, num_items=50, chunk_size=3),
    "smoothing, class weights": Case(lambda: smoothing(C, 0.2, class_weight=WEIGHT), chunk_size=7),
    "tfkd": Case(lambda: teacher_free(C)),
    "emb": Case(emb),
    "emb, chunks of 2, class weights": Case(lambda: emb(class_weight=WEIGHT), chunk_size=2),
    "emb, no bias, num_items, sum of the soft term off": Case(lambda: emb(soft_weight=0.0), bias=False, num_items=11),
    "emb, labels of the first rank alone": Case(emb, labels="first", chunk_size=5),
    "emb, labels of the last rank alone": Case(lambda: emb(temperature=1.3), labels="last", chunk_size=5),
    "emb, all ignored": Case(emb, labels="none"),
    "emb, sum": Case(lambda: emb(reduction="sum"), chunk_size=8),
    "emb, dense": Case(lambda: emb(None, temperature=1.5), chunk_size=6),
    "emb, frozen": Case(lambda: emb(None, table=noisy(LabelTable(C, rank=3)), freeze_table=True), chunk_size=6),
    "decoupled, low rank": Case(lambda: decoupled(rank=3)),
    "decoupled, low rank, no bias, class weights": Case(
        lambda: decoupled(table=noisy(LowRankTable(C, 3)), class_weight=WEIGHT), bias=False, chunk_size=4, num_items=33
    ),
    "decoupled, low rank, frozen": Case(
        lambda: decoupled(table=noisy(LowRankTable(C, 3)), freeze_table=True), chunk_size=4
    ),
    "decoupled, low rank, labels of the last rank alone": Case(lambda: decoupled(rank=3), labels="last"),
    "decoupled, counted": Case(decoupled),
    "decoupled, counted, chunks of 4, class weights": Case(lambda: decoupled(class_weight=WEIGHT), chunk_size=4),
    "decoupled, counted, all ignored": Case(decoupled, labels="none"),
    "decoupled, neighbors": Case(lambda: decoupled(neighbors=2)),
    "decoupled, neighbors, chunks of 4, class weights": Case(
        lambda: decoupled(neighbors=1, class_weight=WEIGHT, epsilon=0.0), chunk_size=4, num_items=40
    ),
    "decoupled, neighbors, all kept": Case(lambda: decoupled(neighbors=9), labels="first"),
}


class Whole(nn.Module):
    """The network before the head, the head and the criterion of a case, the same every time."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Linear(INPUTS, D)
        self.head = nn.Linear(D, C, bias=case.bias)
        self.criterion = case.criterion()
        with torch.no_grad():
            self.head.weight.mul_(3)
            for parameter in self.criterion.parameters():
                parameter.add_(0.5 * torch.randn_like(parameter))


def batch(case: Case, step: int) -> tuple[Tensor, Tensor]:
    """Inputs (N, INPUTS) and target (N,), which the network can learn, some ignored."""
    generator = torch.Generator().manual_seed(100 + step)
    inputs = torch.randn(N, INPUTS, generator=generator)
    target = torch.randint(C, (N,), generator=generator)
    first, last = {"first": (0, 4), "last": (C - 4, C)}.get(case.labels, (0, C))
    target = first + target % (last - first)
    inputs = inputs + torch.randn(C, INPUTS, generator=torch.Generator().manual_seed(1))[target]
    target[generator.initial_seed() % 5 :: 7] = -100
    return inputs, torch.full_like(target, -100) if case.labels == "none" else target


Terms = Callable[[Tensor, Tensor], Any]


def trained(module: Whole, case: Case, terms: Terms, num_steps: int = 2) -> dict[str, Any]:
    """The terms of the first step, its gradients, and the terms after more steps of Adam, which train the module."""
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    results: dict[str, Any] = {}
    for step in range(num_steps + 1):
        inputs, target = batch(case, step)
        features = module.body(inputs)
        features.retain_grad()
        found = terms(features, target)
        optimizer.zero_grad()
        found.total.backward()
        results["first terms" if step == 0 else "last terms"] = torch.stack([term.detach() for term in found])
        if step == 0:
            gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
            results["gradients"] = {"features": features.grad} | {
                name: gradient.clone() for name, gradient in gradients.items() if gradient is not None
            }
        optimizer.step()
    return results


def trained_whole(case: Case) -> dict[str, Any]:
    """By the loss over all logits (N, C), with what was learned."""
    module = Whole(case)

    def terms(features: Tensor, target: Tensor) -> Any:
        return module.criterion.terms(module.head(features), target, features, num_items=case.num_items)

    return trained(module, case, terms) | {"learned": module.state_dict()}


def trained_in_parts(case: Case, group: dist.ProcessGroup) -> dict[str, Any]:
    """The same on a rank of a group; only the first has what was learned."""
    module = Whole(case)
    module.criterion, module.head = shard(module.criterion, module.head, group)

    def terms(features: Tensor, target: Tensor) -> Any:
        return module.criterion.fused_terms(
            features, target, module.head, num_items=case.num_items, chunk_size=case.chunk_size
        )

    results = trained(module, case, terms)
    if (whole := unshard(module.criterion, module.head)) is not None:
        module.criterion, module.head = whole
        results["learned"] = module.state_dict()
    return results


class Step(nn.Module):
    """Network and loss in one module, for DDP."""

    def __init__(self, module: Whole) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: Tensor, target: Tensor, num_items: float) -> Tensor:
        """The loss of the parts."""
        features = self.module.body(inputs)
        loss: Tensor = self.module.criterion.fused_terms(
            features, target, self.module.head, num_items=torch.tensor(num_items)
        ).total
        return loss


def trained_on_mesh(case: Case, mesh: DeviceMesh, num_steps: int = 3) -> dict[str, Tensor] | None:
    """What is learned where half of each batch is on either half of the mesh, and the classes split within each."""
    module = Whole(case)
    classes, data = mesh.get_group("classes"), mesh.get_group("data")
    module.criterion, module.head = shard(module.criterion, module.head, classes, replicas=data)
    step = DistributedDataParallel(Step(module), process_group=data)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    for number in range(num_steps):
        inputs, target = batch(case, number)
        num_items = float((target != -100).sum()) / 2  # DDP averages what should be summed
        mine = slice(0, 12) if dist.get_rank(data) == 0 else slice(12, None)
        optimizer.zero_grad()
        step(inputs[mine], target[mine], num_items).backward()
        optimizer.step()
    module.criterion.end_step()
    whole = unshard(module.criterion, module.head)
    if whole is None:
        return None
    module.criterion, module.head = whole
    return module.state_dict()


def gradients_of_gathered_items(case: Case, group: dist.ProcessGroup) -> list[Tensor]:
    """The loss and the gradients of network and head's part, where each rank has some of the batch's items."""
    module = Whole(case)
    module.criterion, module.head = shard(module.criterion, module.head, group)
    inputs, target = (part.tensor_split([20])[dist.get_rank(group)] for part in batch(case, 0))
    features, target = gathered_items(module.body(inputs), target, group)
    loss = module.criterion.fused(features, target, module.head)
    torch.autograd.backward(loss)
    for parameter in module.body.parameters():
        assert parameter.grad is not None
        dist.all_reduce(parameter.grad, group=group)
    gradients = [*(parameter.grad for parameter in module.body.parameters()), module.head.weight.grad]
    return [loss.detach(), *(gradient for gradient in gradients if gradient is not None)]


def parts_of_nothing(group: dist.ProcessGroup) -> list[Tensor]:
    """Initial values of head, auxiliary head, codes and decoder that were never whole."""
    with torch.device("meta"):
        whole = LabelEmbeddingLoss(40, 101, rank=30), nn.Linear(40, 101)
    criterion, head = shard(*whole, group, device="cpu")
    assert criterion.fused(torch.randn(3, 40).fill_(1), torch.tensor([0, 50, 100]), head).isfinite()
    return [parameter.detach() for parameter in (*head.parameters(), *criterion.parameters())]


def chunk_size_of_a_part(group: dist.ProcessGroup) -> int:
    """How many items a chunk has where nobody says it."""
    head = nn.Linear(D, C)
    criterion, head = shard(emb(), head, group)
    return default_chunk_size(Inputs(torch.ones(2, D), head.weight, head.bias), 16, criterion.classes)


def refusal_of_other_items(group: dist.ProcessGroup) -> str:
    """What is said where the ranks have items of their own."""
    module = Whole(CASES["baseline"])
    criterion, head = shard(module.criterion, module.head, group)
    try:
        criterion.fused(torch.ones(3, D), torch.tensor([0, 1, dist.get_rank(group)]), head)
    except ValueError as error:
        return str(error)
    return "nothing"
