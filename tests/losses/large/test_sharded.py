"""A criterion and its head split over ranks by class against the same whole, in one process."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.sharded_cases import CASES, Whole, batch, trained_whole
from tests.two_ranks import outputs_of_ranks
from torch import Tensor

ON_MESH = ["emb", "decoupled, low rank", "decoupled, counted", "decoupled, neighbors"]
WORKER = """
import os
from torch.distributed.device_mesh import init_device_mesh
from tests.sharded_cases import *
torch.set_default_dtype(torch.float64)
three, two = dist.new_group([1, 2, 3]), dist.new_group([2, 3])
results = {{"3 ranks": {{}}, "2 ranks": {{}}, "mesh": {{}}}}
for name, case in CASES.items():
    for ranks, group in (("3 ranks", three), ("2 ranks", two)):
        if dist.get_rank(group) >= 0:
            results[ranks][name] = trained_in_parts(case, group)
if rank >= 2:
    results["gathered"] = gradients_of_gathered_items(CASES["emb"], two)
    results["new"] = parts_of_nothing(two)
    results["chunk size"] = chunk_size_of_a_part(two)
    results["refusal"] = refusal_of_other_items(two)
mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "classes"))
for name in {on_mesh!r}:
    results["mesh"][name] = trained_on_mesh(CASES[name], mesh)
torch.save(results, {results!r} + str(rank))
dist.barrier()
os._exit(0)  # to take four groups down takes as long again
"""


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(default)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Of four ranks: of which two, three and, as a mesh, all have split the classes."""
    folder = tmp_path_factory.mktemp("ranks")
    outputs_of_ranks(4, WORKER.format(results=str(folder / "results-"), on_mesh=ON_MESH), folder)
    return [torch.load(folder / f"results-{rank}") for rank in range(4)]


def whole_gradient(name: str, parts: list[dict[str, Any]]) -> Tensor:
    gradients: list[Tensor] = [part["gradients"][name] for part in parts]
    if name == "features" or name.startswith("body."):
        for other in gradients[1:]:
            assert torch.equal(gradients[0], other), name
        return gradients[0]
    return torch.cat(gradients, dim=1 if name == "criterion.table.weight" else 0)


@pytest.mark.parametrize("ranks", ["2 ranks", "3 ranks"])
@pytest.mark.parametrize("name", CASES)
def test_it_is_the_loss_over_all_logits_in_one_process(results: list[dict[str, Any]], name: str, ranks: str) -> None:
    """Terms, all gradients, and weights and counts after three steps."""
    expected, parts = trained_whole(CASES[name]), [result[ranks][name] for result in results if result[ranks]]
    assert len(parts) == int(ranks[0])
    for which in ("first terms", "last terms"):
        want = expected[which].clone()
        if "soft term off" in name:  # a term without weight costs nothing
            want[1] = 0
        for part in parts:
            torch.testing.assert_close(part[which], want, rtol=0, atol=1e-10)
    assert parts[0]["gradients"].keys() == expected["gradients"].keys()
    for parameter, gradient in expected["gradients"].items():
        torch.testing.assert_close(whole_gradient(parameter, parts), gradient, rtol=0, atol=1e-10, msg=parameter)
    assert parts[0]["learned"].keys() == expected["learned"].keys()
    for key, value in expected["learned"].items():
        torch.testing.assert_close(parts[0]["learned"][key], value, rtol=0, atol=1e-10, msg=key)


@pytest.mark.parametrize("name", ON_MESH)
def test_classes_and_batch_may_both_be_split(results: list[dict[str, Any]], name: str) -> None:
    """After three steps, each of both halves of a batch; counts are those of both."""
    learned = results[0]["mesh"][name]
    for key, value in trained_whole(CASES[name])["learned"].items():
        torch.testing.assert_close(learned[key], value, rtol=0, atol=1e-10, msg=key)


def test_each_rank_may_have_a_batch_of_its_own(results: list[dict[str, Any]]) -> None:
    case = CASES["emb"]
    module = Whole(case)
    inputs, target = batch(case, 0)
    features = module.body(inputs)
    loss = module.criterion(module.head(features), target, features)
    loss.backward()
    parts = results[2]["gathered"], results[3]["gathered"]
    for found, weight, bias, _ in parts:
        torch.testing.assert_close(found, loss.detach(), rtol=0, atol=1e-10)
        torch.testing.assert_close(weight, module.body.weight.grad, rtol=0, atol=1e-10)
        torch.testing.assert_close(bias, module.body.bias.grad, rtol=0, atol=1e-10)
    torch.testing.assert_close(torch.cat([part[3] for part in parts]), module.head.weight.grad, rtol=0, atol=1e-10)


def test_what_is_on_the_meta_device_begins_as_ever_and_differs_between_ranks(results: list[dict[str, Any]]) -> None:
    head, _, codes, decoder, *_ = one = results[2]["new"]
    assert [len(part) for part in one] == [51] * 7  # of 101
    for values, deviation in ((head, (3 * 40) ** -0.5), (codes, 1.0), (decoder, (3 * 30) ** -0.5)):
        assert abs(values.std() - deviation) < 0.1 * deviation
    for part, other in zip(one, results[3]["new"], strict=True):
        assert len(other) == 50
        assert (part[:50] == other).double().mean() < 0.01  # of one seed all but a few were the same


def test_all_ranks_take_chunks_of_the_same_size(results: list[dict[str, Any]]) -> None:
    """The ranks have seven and six classes; of chunks of their own they would ask different questions."""
    assert results[2]["chunk size"] == results[3]["chunk size"]


def test_ranks_that_hold_other_items_are_refused(results: list[dict[str, Any]]) -> None:
    assert all("must hold the same items" in result["refusal"] for result in results[2:])
