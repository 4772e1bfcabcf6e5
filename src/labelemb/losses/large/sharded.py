"""A criterion and its head split over ranks by class: for label sets that no single device holds.

Each rank has some classes' rows of the head, of the auxiliary head and of the label table, and all ranks of the group
hold the *same* N items (tensor parallelism over the classes). The fused loss then is that of the whole, on every rank:
maxima, log-sum-exps, the labels' own logits and the scores that soft labels expect are combined by collectives, no rank
makes an (N, L) tensor of its L classes, and the gradients that reach its rows are whole. So is the gradient of the
features, summed over the group; the network before them, the same on all ranks, needs nothing more.

Bytes that a rank hands to all-reduces in a step, at most, for N items of U labels, D features, in float32:

    cross entropy, smoothing       4*(N*D + 4*N)
    label embedding, dense table   4*(N*D + 8*N + 4*U)        of rank R  4*(N*D + 8*N + 4*U + 3*U*R)
    decoupled, all rows            4*(N*D + 4*N)              of rank R  4*(N*D + 4*N + 2*U + 3*U*R)
    decoupled, K neighbours        4*(N*D + 4*N + 2*N*K + 6*H*K), and to gathers 96*H, H the items that are right

and 4 more for the match term. None depends on C. N*D is the gradient of the features, at the end of a step; the others
are, for a chunk, those of its items and labels.
"""

import copy
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from labelemb.losses.arguments import check_plain_linear
from labelemb.losses.counting import CountingTable
from labelemb.losses.decoupled import DecoupledLabelEmbeddingLoss
from labelemb.losses.fixed import FixedSoftLabelLoss
from labelemb.losses.forgotten import ForgottenParameters
from labelemb.losses.label_embedding import LabelEmbeddingLoss
from labelemb.losses.large.class_shard import ClassShard
from labelemb.losses.large.table_shards import AXES, SHARDS, TableShard
from labelemb.losses.low_rank_table import LowRankTable
from labelemb.losses.soft_label import SoftLabelLoss
from labelemb.losses.soft_rows import SoftRows

Rows = TypeVar("Rows", bound=SoftRows)
Criterion = TypeVar("Criterion", bound=SoftLabelLoss)


def shard(
    criterion: Criterion,
    head: nn.Linear,
    group: dist.ProcessGroup | None = None,
    *,
    replicas: dist.ProcessGroup | None = None,
    device: torch.device | str | None = None,
) -> tuple[Criterion, nn.Linear]:
    """This rank's part of a criterion and its head, for `criterion.fused(features, target, head)`.

    All ranks of the group give the same criterion and head, and call everything together: `fused` and `fused_terms`
    with the same items (and dropout, `num_items`, `chunk_size`), with and without gradients, and `unshard`. The loss is
    the same on all. Give the parts' parameters to an optimiser on each rank; one that treats each number for itself,
    such as Adam or SGD, then does what it does to the whole. A clip of the gradient norm needs the squares summed over
    the group.

    With data parallelism, a device mesh of ("data", "classes"): `group` is the mesh's group of "classes", whose ranks
    have one batch, and `replicas` that of "data", whose ranks have the same classes and batches of their own. Gradients
    of all parameters are averaged over "data" alone, e.g. by DDP with that group around `FusedLabelEmbeddingLoss`, and
    `num_items` is what it is under DDP. Where each rank of the group has a batch of its own, see `gathered_items`.

    Args:
        criterion: LabelEmbeddingLoss, DecoupledLabelEmbeddingLoss or a mode of fixed soft labels (baseline, smoothing,
            tfkd), with any table, new or learned. Settings that are changed later are changed on the part returned.
        head: the classifier (D, C), a plain nn.Linear. Its rows are copied: they are tied to nothing.
        group: the ranks to split over, as evenly as can be, in the order of their ranks; None for all.
        replicas: of rows that are counted: the ranks that hold the same part and see other items, whose hits are
            counted together. None for no others.
        device: of the parts; None for where they are. What is on the meta device (head, auxiliary head and tables of
            low rank may be) is never made whole: its parts get initial values, from a seed of their own on each rank.

    Returns:
        The criterion's part and the head's, new modules of the same types. `state_dict` has this rank's part.

    Raises:
        ValueError: a criterion without a fused form, or that is split already; a head that is no plain nn.Linear, is
            parametrised, or is of other classes; fewer classes than ranks; a table on the meta device that is none of
            low rank.
    """
    _check(criterion, head)
    classes = ClassShard(criterion.num_classes, group)

    def part(tensor: Tensor, axis: int | None) -> Tensor:
        kept = tensor.detach() if axis is None else tensor.detach().narrow(axis, classes.first, classes.size)
        if kept.is_meta:
            return torch.empty(kept.shape, dtype=kept.dtype, device=device)
        place = kept.device if device is None else device
        return kept.to(place, copy=True, memory_format=torch.contiguous_format)

    are_new = [_is_meta(module) for module in _modules(criterion, head)]
    own, own_head = _copied(criterion, head, part)
    own.classes = classes
    if (table := _table_of(own)) is not None:
        table = _as(SHARDS[type(table)], table)
        table.classes, table.replicas = classes, replicas
    _begin([module for module, is_new in zip(_modules(own, own_head), are_new, strict=True) if is_new], classes.rank)
    return own, own_head


def unshard(criterion: Criterion, head: nn.Linear) -> tuple[Criterion, nn.Linear] | None:
    """The whole criterion and head on the first rank of the group, on the CPU; None on the others. All must call it.

    Their table is saved as ever: `criterion.table.save(path)`.

    Raises:
        ValueError: the criterion is whole already.
    """
    classes = criterion.classes
    if not isinstance(classes, ClassShard):
        raise ValueError("this criterion is whole: give those that `shard` returned")

    def whole(tensor: Tensor, axis: int | None) -> Tensor:
        part = tensor.detach()
        return part.to("cpu", copy=True) if axis is None else _gathered(part, axis, classes)

    own, own_head = _copied(criterion, head, whole)
    if classes.rank:
        return None
    del own.classes  # what is left is the class attribute: all are here
    if isinstance(table := _table_of(own), TableShard):
        del table.classes, table.replicas
        _as(_kind(table), table)
    return own, own_head


def gathered_items(
    features: Tensor, target: Tensor, group: dist.ProcessGroup | None = None, *, gradient_factor: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The items of all ranks of a group, in the order of their ranks, where each has a batch of its own.

    `criterion.fused(*gathered_items(features, target), head)` is the loss of all of them, and this rank's features get
    their own gradients of it. Those of the network are to be summed over the group then; DDP averages them, for which
    `gradient_factor` is the number of ranks.

    Args:
        features: (N', D); N' may differ between ranks.
        target: (N',) class indices.
        group: the ranks that share the classes; None for all.
        gradient_factor: what the gradient of the features is multiplied by.

    Returns:
        Features (N, D), differentiable, and target (N,).
    """
    num_ranks = dist.get_world_size(group)
    size = torch.tensor([len(target)], device=target.device)
    sizes = [torch.empty_like(size) for _ in range(num_ranks)]
    dist.all_gather(sizes, size, group)
    lengths = torch.cat(sizes).tolist()
    apply: Callable[..., Tensor] = _GatheredFeatures.apply
    all_features = apply(features, lengths, group, gradient_factor)
    return all_features, _side_by_side(target, lengths, group)


class _GatheredFeatures(torch.autograd.Function):
    """The backward pass needs no collective: every rank has the whole gradient, and takes its items'."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, lengths: list[int], group: dist.ProcessGroup | None, factor: float
    ) -> Tensor:
        rank = dist.get_rank(group)
        ctx.items, ctx.factor = slice(sum(lengths[:rank]), sum(lengths[: rank + 1])), factor
        return _side_by_side(features, lengths, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient[ctx.items] * ctx.factor, None, None, None


def _side_by_side(values: Tensor, lengths: list[int], group: dist.ProcessGroup | None) -> Tensor:
    """The values (N', ...) of all ranks, one after another."""
    padded = values.new_zeros(max(lengths), *values.shape[1:])
    padded[: len(values)] = values.detach()
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded, group)
    return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])


def _gathered(tensor: Tensor, axis: int, classes: ClassShard) -> Tensor:
    """The parts of all ranks side by side, on the CPU of the first, one at a time; elsewhere the part."""
    if classes.rank:
        dist.send(tensor.contiguous(), group=classes.group, group_dst=0)
        return tensor
    parts = [tensor.cpu()]
    for rank in range(1, classes.num_ranks):
        first, stop = classes.bounds(rank)
        shape = [*tensor.shape[:axis], stop - first, *tensor.shape[axis + 1 :]]
        parts.append(tensor.new_empty(shape))
        dist.recv(parts[-1], group=classes.group, group_src=rank)
        parts[-1] = parts[-1].cpu()
    return torch.cat(parts, dim=axis)


def _copied(
    criterion: Criterion, head: nn.Linear, changed: Callable[[Tensor, int | None], Tensor]
) -> tuple[Criterion, nn.Linear]:
    """Copies whose tensors are `changed` ones, from each and the axis that it is split along, None for not at all."""
    table = _table_of(criterion)
    axes: dict[str, int | None] = {"class_weight": None}
    memo: dict[int, Any] = {id(criterion.classes): criterion.classes}
    if table is not None:
        axes |= {f"table.{name}": axis for name, axis in AXES[_kind(table)].items()}
    if isinstance(table, CountingTable) and table.waits:
        table.end_step()  # what waits has the shape of the old one's rows
    if isinstance(table, TableShard):
        memo[id(table.replicas)] = table.replicas  # a group is no thing to copy
    for whole in (criterion, head):
        for name, tensor in [*whole.named_parameters(), *whole.named_buffers()]:
            new = changed(tensor, axes.get(name, 0))
            memo[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new
    own, own_head = copy.deepcopy((criterion, head), memo)
    own.forgotten = ForgottenParameters()
    for module in _modules(own, own_head):
        if isinstance(module, nn.Linear):
            module.out_features = len(module.weight)
        elif isinstance(module, nn.Embedding):
            module.num_embeddings = len(module.weight)
    return own, own_head


def _begin(modules: list[nn.Module], rank: int) -> None:
    """Give modules their initial values, other ones on each rank."""
    if not modules:
        return
    devices = {tensor.device for module in modules for tensor in module.parameters() if tensor.device.type != "cpu"}
    seed = int(torch.randint(2**62, ())) + rank
    with torch.random.fork_rng([device.index for device in devices]):
        torch.manual_seed(seed)
        for module in modules:
            cast(nn.Linear, module).reset_parameters()


def _modules(criterion: SoftLabelLoss, head: nn.Linear) -> list[nn.Module]:
    return [*criterion.modules(), head]


def _table_of(criterion: SoftLabelLoss) -> SoftRows | None:
    table = getattr(criterion, "table", None)
    return cast(SoftRows | None, table)


def _kind(table: SoftRows) -> type[SoftRows]:
    """The kind of a table, or of that whose part it is."""
    return next(kind for kind, part in SHARDS.items() if type(table) in (kind, part))


def _as(kind: type[Rows], table: SoftRows) -> Rows:
    """The same object as one of another kind, whose tensors it has by now."""
    table.__class__ = kind
    return cast(Rows, table)


def _is_meta(module: nn.Module) -> bool:
    return any(tensor.is_meta for tensor in module.parameters(recurse=False))


def _check(criterion: SoftLabelLoss, head: nn.Linear) -> None:
    """Raise ValueError for what cannot be split."""
    if type(criterion) not in (LabelEmbeddingLoss, DecoupledLabelEmbeddingLoss, FixedSoftLabelLoss):
        raise ValueError(
            "LabelEmbeddingLoss, DecoupledLabelEmbeddingLoss, baseline, smoothing and tfkd can be split over ranks, "
            f"got {type(criterion).__name__}"
        )
    if isinstance(criterion.classes, ClassShard):
        raise ValueError("this criterion is split over ranks already: give the whole one")
    check_plain_linear(head)
    if is_parametrized(head):
        raise ValueError("a head with a parametrization, such as weight norm, cannot be split over ranks")
    if head.out_features != criterion.num_classes:
        raise ValueError(f"head must have {criterion.num_classes} outputs, one a label, got {head.out_features}")
    for module in _modules(criterion, head):
        can_begin = isinstance(module, nn.Linear | nn.Embedding | LowRankTable)
        if (_is_meta(module) and not can_begin) or any(tensor.is_meta for tensor in module.buffers(recurse=False)):
            raise ValueError(
                f"only heads and tables of low rank may be on the meta device, to be made there part by part; "
                f"make {type(module).__name__} elsewhere"
            )
