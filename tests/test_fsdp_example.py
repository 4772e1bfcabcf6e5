"""examples/fsdp.py: what is split over two processes trains as one process does, and comes out whole."""

from pathlib import Path
from typing import Any

import torch
from examples.fsdp import NetworkWithLoss
from tests.two_ranks import outputs_of_two_ranks

NUM_EPOCHS = 2

WORKER = """
from examples.fsdp import NetworkWithLoss, split, train, whole
from torch.distributed.device_mesh import init_device_mesh
torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
inputs, target = torch.load({data!r})
model = NetworkWithLoss(hidden=9)
split(model, init_device_mesh("cpu", (2,)))
assert all(parameter.to_local().numel() < parameter.numel() for parameter in model.parameters())
train(model, inputs, target, epochs={epochs})
state = whole(model)
if rank == 0:
    torch.save(state, {results!r})
dist.destroy_process_group()
"""


def test_two_processes_with_half_of_everything_train_as_one(tmp_path: Path) -> None:
    torch.manual_seed(1)
    inputs, target = torch.randn(75, 64, dtype=torch.float64), torch.randint(10, (75,))
    target[::7] = -100
    torch.save((inputs, target), tmp_path / "data")
    names = {"data": str(tmp_path / "data"), "results": str(tmp_path / "results"), "epochs": NUM_EPOCHS}
    outputs_of_two_ranks(WORKER.format(**names), tmp_path)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    try:
        alone = NetworkWithLoss(hidden=9)
    finally:
        torch.set_default_dtype(torch.float32)
    network = [*alone.body.parameters(), *alone.head.parameters()]
    groups: list[dict[str, Any]] = [
        {"params": network},
        {"params": alone.criterion.parameters(), "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    for epoch in range(NUM_EPOCHS):
        for batch in torch.split(torch.randperm(75, generator=torch.Generator().manual_seed(epoch)), 64):
            optimizer.zero_grad()
            alone(inputs[batch], target[batch]).backward()
            optimizer.step()
    found = torch.load(tmp_path / "results", weights_only=True)
    for name, expected in alone.state_dict().items():
        torch.testing.assert_close(found[name], expected, rtol=1e-10, atol=1e-10, msg=name)
