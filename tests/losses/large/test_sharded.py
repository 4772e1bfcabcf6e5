"""A criterion and its head split over ranks by class against the same whole, in one process."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.sharded_cases import CASES, Case, Whole, trained
from tests.two_ranks import outputs_of_ranks
from torch import Tensor

WORKER = """
from labelemb.losses.large.sharded import shard, unshard
from tests.sharded_cases import CASES, Whole, trained
torch.set_default_dtype(torch.float64)
results = {{}}
for name, case in CASES.items():
    module = Whole(case)
    module.criterion, module.head = shard(module.criterion, module.head)
    def terms(features, target):
        call = dict(num_items=case.num_items, chunk_size=case.chunk_size)
        return module.criterion.fused_terms(features, target, module.head, **call)
    results[name] = trained(module, case, terms)
    whole = unshard(module.criterion, module.head)
    if whole is not None:
        module.criterion, module.head = whole
        results[name]["learned"] = module.state_dict()
torch.save(results, {results!r} + str(rank))
"""


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(default)


@pytest.fixture(scope="module", params=[2, 3])
def parts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results of each rank, by case."""
    folder = tmp_path_factory.mktemp("ranks")
    outputs_of_ranks(request.param, WORKER.format(results=str(folder / "results-")), folder)
    return [torch.load(folder / f"results-{rank}") for rank in range(request.param)]


def of_one_process(case: Case) -> dict[str, Any]:
    """What the loss over all logits (N, C) gives."""
    module = Whole(case)

    def terms(features: Tensor, target: Tensor) -> Any:
        return module.criterion.terms(module.head(features), target, features, num_items=case.num_items)

    return trained(module, case, terms) | {"learned": module.state_dict()}


def whole_gradient(name: str, parts: list[dict[str, Any]]) -> Tensor:
    gradients: list[Tensor] = [part["gradients"][name] for part in parts]
    if name == "features" or name.startswith("body."):
        for other in gradients[1:]:
            assert torch.equal(gradients[0], other), name
        return gradients[0]
    return torch.cat(gradients, dim=1 if name == "criterion.table.weight" else 0)


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_loss_over_all_logits_in_one_process(parts: list[dict[str, Any]], name: str) -> None:
    """Terms, all gradients, and weights and counts after three steps."""
    expected, found = of_one_process(CASES[name]), [part[name] for part in parts]
    soft_is_skipped = "soft term off" in name
    for which in ("first terms", "last terms"):
        want = expected[which].clone()
        if soft_is_skipped:
            want[1] = 0
        for part in found:
            torch.testing.assert_close(part[which], want, rtol=0, atol=1e-10)
    for parameter, gradient in expected["gradients"].items():
        torch.testing.assert_close(whole_gradient(parameter, found), gradient, rtol=0, atol=1e-10, msg=parameter)
    assert found[0]["learned"].keys() == expected["learned"].keys()
    for key, value in expected["learned"].items():
        torch.testing.assert_close(found[0]["learned"][key], value, rtol=0, atol=1e-10, msg=key)
