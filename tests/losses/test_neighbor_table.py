"""Counted rows that keep their largest shares: against loops, against rows in full, and as a table."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.decoupled_reference import Matrix, Row, item
from tests.small_batches import assert_exact
from tests.two_ranks import outputs_of_two_ranks
from torch import Tensor

from labelemb import LabelEmbeddingLoss, LabelTable
from labelemb.losses.counted_table import CountedTable
from labelemb.losses.decoupled import DecoupledLabelEmbeddingLoss
from labelemb.losses.low_rank_table import LowRankTable
from labelemb.losses.modes import load_table, make_criterion
from labelemb.losses.neighbor_table import NeighborTable

C = 30
NUM_FOUND = 8  # what each hit looks beyond the kept labels


def table_of(criterion: DecoupledLabelEmbeddingLoss) -> NeighborTable:
    assert isinstance(criterion.table, NeighborTable)
    return criterion.table


def made(neighbors: int = 2, **settings: Any) -> DecoupledLabelEmbeddingLoss:
    criterion = DecoupledLabelEmbeddingLoss(C, neighbors=neighbors, **settings).double()
    for shares in (table_of(criterion).neighbor_shares, table_of(criterion).candidate_shares):
        shares.fill_(1 / (C - 1))  # as float64 has it
    return criterion


def step_batch(seed: int, num_items: int = 40) -> tuple[Tensor, Tensor]:
    """Items of six labels of which most are hits; labels that are alike are predicted together."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(6, (num_items,), generator=generator)
    likeness = torch.randn(C, C, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    noise = torch.randn(num_items, C, generator=generator, dtype=torch.float64)
    logits = likeness[target] + noise + 4 * F.one_hot(target, C)
    return logits, target


class Loops:
    """The rows by the rule in words: a list of kept (label, share) for each label, the largest share first."""

    def __init__(self, neighbors: int, momentum: float) -> None:
        self.neighbors, self.momentum = neighbors, momentum
        self.kept = [[((y + i) % C, 1 / (C - 1)) for i in range(1, 3 * neighbors + 1)] for y in range(C)]
        self.counts = [0] * C

    def step(self, logits: Matrix, target: list[int]) -> None:
        items = [(y, item(row, [0.0] * C, y, 0.1, 1.0)) for row, y in zip(logits, target, strict=True)]
        for y in range(C):
            hits = [one.others for label, one in items if label == y and one.is_hit]
            if hits:
                self.counts[y] += len(hits)
                self.kept[y] = self.moved(y, hits)

    def moved(self, y: int, hits: Matrix) -> list[tuple[int, float]]:
        a = max(1 - self.momentum ** len(hits), len(hits) / self.counts[y])
        rest = (1 - sum(share for _, share in self.kept[y])) / (C - 1 - len(self.kept[y]))
        new = [(j, share + a * (sum(hit[j] for hit in hits) / len(hits) - share)) for j, share in self.kept[y]]
        found = dict[int, float]()
        for hit in hits:
            for j in sorted(range(C), key=lambda j: -hit[j])[:NUM_FOUND]:
                if j not in dict(self.kept[y]):
                    found[j] = found.get(j, 0.0) + hit[j] / len(hits)
        best = sorted(found.items(), key=lambda pair: -pair[1])[:NUM_FOUND]
        new += [(j, rest + a * (mean - rest)) for j, mean in best]
        return sorted(new, key=lambda pair: -pair[1])[: 3 * self.neighbors]

    def row(self, y: int) -> Row:
        kept = dict(self.kept[y][: self.neighbors])
        rest = (1 - sum(kept.values())) / (C - 1 - len(kept))
        return [0.0 if j == y else kept.get(j, rest) for j in range(C)]


@pytest.mark.parametrize("neighbors", [1, 3])
def test_rows_follow_the_rule_in_words(neighbors: int) -> None:
    criterion, loops = made(neighbors, momentum=0.9), Loops(neighbors, 0.9)
    for seed in range(12):
        logits, target = step_batch(seed)
        criterion(logits, target)
        loops.step(logits.tolist(), target.tolist())
    rows = criterion.table.soft_labels()
    table = table_of(criterion)
    assert table.counts.tolist() == loops.counts
    assert_exact(rows, torch.tensor([loops.row(y) for y in range(C)], dtype=torch.float64))
    assert_exact(rows.sum(dim=1), torch.ones(C, dtype=torch.float64))
    first = torch.arange(neighbors) + torch.arange(C)[:, None] + 1
    assert (table.neighbors != first % C).any()  # others took the place of the first ones


@pytest.mark.parametrize("neighbors", [C - 1, C, 1000])
def test_all_other_labels_as_neighbors_are_the_rows_of_a_counted_table(neighbors: int) -> None:
    criterion, dense = made(neighbors, momentum=0.9), DecoupledLabelEmbeddingLoss(C, momentum=0.9).double()
    dense.table.state_dict()["shares"].copy_((1 - torch.eye(C, dtype=torch.float64)) / (C - 1))
    for seed in range(5):
        logits, target = step_batch(seed)
        loss, expected = criterion(logits, target), dense(logits, target)
    assert_exact(loss, expected)
    torch.testing.assert_close(criterion.table.soft_labels(), dense.table.soft_labels(), rtol=1e-12, atol=1e-12)


def test_the_largest_shares_are_found_and_kept() -> None:
    """Candidates are counted before they are needed: next to nothing of what the best choice holds is lost."""
    criterion, dense = made(4), DecoupledLabelEmbeddingLoss(C).double()
    for seed in range(60):
        logits, target = step_batch(seed)
        criterion(logits, target)
        dense(logits, target)
    exact = dense.table.soft_labels()[:6]
    best = exact.topk(4, dim=1).values.sum(dim=1)
    found = exact.gather(1, table_of(criterion).neighbors[:6].long()).sum(dim=1)
    assert (found >= best - 0.01).all()
    share = criterion.table.soft_labels()[:6].gather(1, table_of(criterion).neighbors[:6].long())
    torch.testing.assert_close(share.sum(dim=1), found, rtol=0.02, atol=0)


def test_a_split_batch_gives_the_same_rows() -> None:
    whole, parts = made(momentum=0.9), made(momentum=0.9)
    parts.end_step()  # from now on steps end there alone
    for seed in range(6):
        logits, target = step_batch(seed)
        target[5] = -100
        whole(logits, target)
        whole.end_step()
        for part in (slice(0, 1), slice(1, 17), slice(17, 40)):
            parts(logits[part], target[part], num_items=39)
        parts.end_step()
    for name, value in whole.state_dict().items():
        assert_exact(parts.state_dict()[name], value)


def test_two_processes_are_one(tmp_path: Path) -> None:
    path = str(tmp_path / "rows-")
    script = f"""
from tests.losses.test_neighbor_table import made, step_batch
criterion = made(momentum=0.9)
for seed in range(4):
    logits, target = step_batch(seed)
    part = slice(0, 13) if rank == 0 else slice(13, None)
    if seed == 2 and rank == 0:
        target = target.fill_(-100)  # a process without a hit takes part
    criterion(logits[part], target[part])
    criterion.end_step()
torch.save(dict(criterion.state_dict()), {path!r} + str(rank))
"""
    outputs_of_two_ranks(script, tmp_path)
    criterion = made(momentum=0.9)
    for seed in range(4):
        logits, target = step_batch(seed)
        if seed == 2:
            target[:13] = -100
        criterion(logits, target)
        criterion.end_step()
    for rank in range(2):
        found = torch.load(f"{path}{rank}")
        for name, value in criterion.state_dict().items():
            assert_exact(found[name], value)


def test_the_loss_is_that_of_the_row_in_full() -> None:
    criterion = made(3, epsilon=0.2, shape_weight=0.7)
    for seed in range(4):
        criterion(*step_batch(seed))
    criterion.eval()
    rows = CountedTable(C)
    rows.double().shares.copy_(criterion.table.soft_labels())
    dense = DecoupledLabelEmbeddingLoss(C, epsilon=0.2, shape_weight=0.7).double().eval()
    dense.load_state_dict({f"table.{name}": value for name, value in rows.state_dict().items()})
    logits, target = step_batch(77)
    distributions = torch.rand(40, C, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).softmax(dim=1)
    for given in (target, distributions):
        for one, other in zip(criterion.terms(logits, given), dense.terms(logits, given), strict=True):
            assert_exact(one, other)
    assert criterion.terms(logits, target).match == 0


def test_distributions_of_weight_one_count_as_their_index() -> None:
    by_index, by_distribution = made(C - 1), made(C - 1)
    logits, target = step_batch(0)
    by_index(logits, target)
    by_distribution(logits, F.one_hot(target, C).double())
    assert_exact(by_distribution.table.soft_labels(), by_index.table.soft_labels())


def test_nothing_is_counted_in_evaluation_or_of_wrong_items() -> None:
    criterion, fresh = made(), made()
    logits, target = step_batch(0)
    criterion.eval()(logits, target)
    criterion.train()(logits, torch.full_like(target, -100))
    criterion(-logits, target)
    criterion.end_step()
    for name, value in fresh.state_dict().items():
        assert torch.equal(criterion.state_dict()[name], value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_shares_and_counts_stay_wide_in_half_precision(dtype: torch.dtype) -> None:
    criterion = DecoupledLabelEmbeddingLoss(C, neighbors=2).to(dtype)
    logits, target = step_batch(0)
    for _ in range(300):
        criterion(logits.to(dtype), target)
    table = table_of(criterion)
    assert {table.neighbor_shares.dtype, table.candidate_shares.dtype, table.counts.dtype} == {torch.float32}
    assert table.counts.sum() > 300 * 20  # bfloat16 stops at 256 for a label
    assert table.neighbors.dtype == torch.int32


def test_it_compiles() -> None:
    eager, compiled = made(), made()
    run = torch.compile(compiled, backend="aot_eager")
    for seed in range(3):
        logits, target = step_batch(seed)
        assert_exact(run(logits, target), eager(logits, target))
    assert_exact(compiled.table.soft_labels(), eager.table.soft_labels())


def test_one_and_two_labels() -> None:
    one = DecoupledLabelEmbeddingLoss(1, neighbors=3)
    assert one(torch.zeros(2, 1), torch.zeros(2, dtype=torch.long)).item() == 0
    assert one.table.soft_labels().tolist() == [[0.0]]
    assert DecoupledLabelEmbeddingLoss(2, neighbors=3).table.soft_labels().tolist() == [[0.0, 1.0], [1.0, 0.0]]


@pytest.mark.parametrize("neighbors", [2, C - 1])
def test_a_table_is_saved_read_and_used_again(neighbors: int, tmp_path: Path) -> None:
    criterion, path = made(neighbors).float(), tmp_path / "rows.safetensors"
    logits, target = step_batch(0)
    criterion(logits.float(), target)
    criterion.table.label_names = [f"label {y}" for y in range(C)]
    criterion.table.save(path)
    again = load_table(path, criterion.table.label_names)
    assert isinstance(again, NeighborTable)
    assert again.counts.any()  # what waited was settled
    for name, value in criterion.table.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    assert again.nearest(["label 3"], 2) == criterion.table.nearest([3], 2)
    for mode in ("decoupled-start", "decoupled-frozen"):
        used = make_criterion(mode, 4, C, table=again)
        for _ in range(2):
            used(logits, target)
        assert torch.equal(used.state_dict()["table.neighbor_shares"], again.neighbor_shares) == ("frozen" in mode)
    with pytest.raises(ValueError, match="other labels"):
        load_table(path, list("a" * C))
    LabelTable(3).save(path)
    with pytest.raises(ValueError, match="holds no sparse rows"):
        NeighborTable.load(path)


def test_rows_of_every_kind_are_cut_to_neighbors() -> None:
    torch.manual_seed(0)
    counted = CountedTable.from_soft_labels(torch.randn(C, C).softmax(dim=1))
    learned, trained = LabelTable(C, rank=3), LowRankTable(C, 3)
    torch.nn.init.normal_(trained.decoder_weight)
    for table in (counted, learned, trained):
        given = table.soft_labels().fill_diagonal_(0)
        given = given / given.sum(dim=1, keepdim=True)
        for mode in ("decoupled-start", "decoupled-frozen"):
            cut = make_criterion(mode, 4, C, table=table, neighbors=4)
            assert isinstance(cut, DecoupledLabelEmbeddingLoss)
            best = given.topk(4, dim=1)
            torch.testing.assert_close(table_of(cut).neighbor_shares, best.values, rtol=1e-5, atol=1e-7)
            rest = (1 - best.values.sum(dim=1, keepdim=True)) / (C - 5)
            expected = rest.expand(C, C).scatter(1, best.indices, best.values).fill_diagonal_(0)
            torch.testing.assert_close(cut.table.soft_labels(), expected, rtol=1e-5, atol=1e-7)
            assert list(cut.parameters()) == []


def test_label_embedding_starts_from_its_rows() -> None:
    table = made().table.float()
    soft = LabelEmbeddingLoss(4, C, table=table).table.soft_labels()
    torch.testing.assert_close(soft, 0.5 * table.soft_labels() + 0.5 * torch.eye(C), rtol=1e-5, atol=1e-7)


def test_bad_settings_are_refused() -> None:
    given: list[tuple[dict[str, Any], str]] = [
        ({"neighbors": 0}, "neighbors must be at least 1, got 0"),
        ({"neighbors": 2, "rank": 3}, "rank=3 and neighbors=2 are two kinds of rows: give one of them"),
        ({"neighbors": 2, "momentum": 1.0}, "momentum must lie in 0 to 1"),
        ({"neighbors": 3, "table": made().table}, "neighbors=3 contradicts the table's 2; leave it out"),
        ({"rank": 3, "table": made().table}, "rank=3 contradicts the table"),
    ]
    for settings, message in given:
        with pytest.raises(ValueError, match=message):
            DecoupledLabelEmbeddingLoss(C, **settings)
    many = DecoupledLabelEmbeddingLoss(20_001, neighbors=1)
    with pytest.raises(ValueError, match="above 20,000 labels give class indices"):
        many(torch.zeros(1, 20_001), torch.zeros(1, 20_001))
    with pytest.raises(ValueError, match=r"too large to be counted further in full.* neighbors=32"):
        DecoupledLabelEmbeddingLoss(20_001, table=LabelTable(20_001, rank=1))
    with pytest.raises(ValueError, match="20,001 labels are too many"):
        LabelEmbeddingLoss(4, 20_001, table=many.table)
