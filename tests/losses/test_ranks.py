"""The warning about a criterion that differs between the ranks of a process group."""

import copy
import json
import pickle
from typing import Any

import pytest
from tests.two_ranks import outputs_of_two_ranks

from labelemb import LabelEmbeddingLoss

SCRIPT = """
import json
import warnings
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from labelemb import FusedLabelEmbeddingLoss, LabelEmbeddingLoss

class Whole(nn.Module):
    def __init__(self, network, criterion):
        super().__init__()
        self.network, self.criterion = network, criterion

    def forward(self, inputs, target):
        return self.criterion(self.network(inputs), target, inputs)

def calls(loss_of, modules, num_calls=12, gradients=True):
    # Every rank has batches of its own. A rank with fewer calls ends earlier.
    optimizer = torch.optim.Adam([p for module in modules for p in module.parameters()], lr=0.01)
    generator = torch.Generator().manual_seed(rank)
    with warnings.catch_warnings(record=True) as caught, torch.set_grad_enabled(gradients):
        warnings.simplefilter("always")
        for _ in range(num_calls):
            inputs, target = torch.randn(8, 3, generator=generator), torch.randint(4, (8,), generator=generator)
            optimizer.zero_grad()
            loss = loss_of(inputs, target)
            if gradients:
                loss.backward()
                optimizer.step()
    return [(str(w.message), w.filename) for w in caught]

def fresh(seed=0):
    torch.manual_seed(seed)
    return nn.Linear(3, 4), LabelEmbeddingLoss(3, 4)

results = {}

network, criterion = fresh()
model = DDP(network)
results["beside"] = calls(lambda x, y: criterion(model(x), y, x), [model, criterion])
table = criterion.table.weight.detach().clone()
gathered = [torch.empty_like(table) for _ in range(2)]
dist.all_gather(gathered, table)
results["drift"] = float((gathered[0] - gathered[1]).abs().max())

network, criterion = fresh()
model = DDP(network)
results["beside, by terms"] = calls(lambda x, y: criterion.terms(model(x), y, x).total, [model, criterion])

network, criterion = fresh()
model = DDP(nn.Linear(3, 3))
def fused(x, y):
    return criterion.fused(model(x), y, network)
for parameter in network.parameters():
    parameter.register_hook(lambda gradient: (dist.all_reduce(gradient), gradient)[1])
results["beside, by fused"] = calls(fused, [model, network, criterion])

network, criterion = fresh()
model = DDP(network)
results["evaluated beside"] = calls(lambda x, y: criterion(model(x), y, x), [model, criterion], gradients=False)

network, criterion = fresh()
whole = DDP(Whole(network, criterion))
results["inside"] = calls(whole, [whole], 205)

network, criterion = fresh()
model, wrapped = DDP(network), DDP(criterion)
results["wrapped"] = calls(lambda x, y: wrapped(model(x), y, x), [model, wrapped])

torch.manual_seed(0)
joined = DDP(FusedLabelEmbeddingLoss(LabelEmbeddingLoss(3, 4), nn.Linear(3, 4)))
results["fused module"] = calls(joined, [joined])

network, criterion = fresh()
results["runs of their own"] = calls(lambda x, y: criterion(network(x), y, x), [network, criterion])

network, criterion = fresh(seed=rank)
results["called by one rank"] = []
if rank == 0:
    results["called by one rank"] = calls(lambda x, y: criterion(network(x), y, x), [network, criterion])

network, criterion = fresh()
whole = DDP(Whole(network, criterion))
with whole.join():
    results["uneven"] = calls(whole, [whole], 8 + 5 * rank)
results["uneven"] += calls(whole, [whole], 6)

network, criterion = fresh()
model, watched = DDP(network), torch.compile(criterion, backend="eager")
results["compiled"] = calls(lambda x, y: watched(model(x), y, x), [model, criterion])

dist.barrier()
dist.destroy_process_group()
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    outputs = outputs_of_two_ranks(SCRIPT, tmp_path_factory.mktemp("ranks"))
    return [json.loads(output.splitlines()[-1]) for output in outputs]


@pytest.mark.parametrize("way", ["beside", "beside, by terms", "beside, by fused"])
def test_a_criterion_beside_a_ddp_network_is_warned_of_once_on_each_rank(ranks: list[dict[str, Any]], way: str) -> None:
    assert ranks[0]["drift"] > 0.001  # the fault is there
    for results in ranks:
        ((message, filename),) = results[way]
        assert "LabelEmbeddingLoss" in message
        assert "DistributedDataParallel(criterion)" in message
        assert filename == "<string>"  # the script's own line


@pytest.mark.parametrize("way", ["inside", "wrapped", "fused module"])
def test_nothing_is_said_where_ddp_has_the_criterion(ranks: list[dict[str, Any]], way: str) -> None:
    assert [results[way] for results in ranks] == [[], []]


def test_nothing_is_said_of_runs_that_only_share_a_process_group(ranks: list[dict[str, Any]]) -> None:
    assert [results["runs of their own"] for results in ranks] == [[], []]


@pytest.mark.parametrize("way", ["called by one rank", "uneven"])
def test_no_rank_waits_for_another_whose_calls_are_fewer(ranks: list[dict[str, Any]], way: str) -> None:
    assert [results[way] for results in ranks] == [[], []]


@pytest.mark.parametrize("way", ["evaluated beside", "compiled"])
def test_evaluation_and_compiled_calls_are_left_alone(ranks: list[dict[str, Any]], way: str) -> None:
    assert [results[way] for results in ranks] == [[], []]


def test_a_copy_of_a_criterion_is_watched_for_itself() -> None:
    criterion = LabelEmbeddingLoss(3, 4)
    criterion.ranks._number = 7
    assert copy.deepcopy(criterion).ranks._number is None
    assert pickle.loads(pickle.dumps(criterion)).ranks._number is None
