"""examples/ddp.py: what it says runs, and two ranks are one."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from examples.ddp import NetworkWithLoss
from tests.two_ranks import ROOT, outputs_of_two_ranks
from torch import Tensor

WORKER = """
from examples.ddp import NetworkWithLoss, divisor_of_this_rank, train
from torch.nn.parallel import DistributedDataParallel
torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
batch = torch.load({batch!r})
inputs, target = (tensor[:5] if rank == 0 else tensor[5:] for tensor in batch)  # 5 and 9 items, two ignored
model = DistributedDataParallel(NetworkWithLoss(hidden=8))
loss = model(inputs, target, divisor_of_this_rank(target))
loss.backward()
gradients = {{name: parameter.grad.clone() for name, parameter in model.module.named_parameters()}}
inputs, target = torch.randn(130, 64), torch.randint(10, (130,))
train(model, inputs, target, epochs=2)
learned = {{name: parameter.detach() for name, parameter in model.module.named_parameters()}}
torch.save((loss.detach(), gradients, learned), {results!r} + str(rank))
dist.destroy_process_group()
"""


def small_batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    target = torch.randint(10, (14,))
    target[[2, 7]] = -100
    return torch.randn(14, 64, dtype=torch.float64), target


def test_two_ranks_of_unequal_batches_have_the_loss_and_gradients_of_one_process(tmp_path: Path) -> None:
    batch = small_batch()
    torch.save(batch, tmp_path / "batch")
    script = WORKER.format(batch=str(tmp_path / "batch"), results=str(tmp_path / "results-"))
    outputs_of_two_ranks(script, tmp_path)
    one, other = (torch.load(tmp_path / f"results-{rank}") for rank in range(2))

    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    try:
        alone = NetworkWithLoss(hidden=8)
    finally:
        torch.set_default_dtype(torch.float32)
    loss = alone(*batch)
    loss.backward()
    torch.testing.assert_close((one[0] + other[0]) / 2, loss.detach(), rtol=1e-12, atol=1e-12)
    for name, parameter in alone.named_parameters():
        for _, gradients, _ in (one, other):
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-12, atol=1e-12)
    for name, learned in one[2].items():  # after six steps of different data on each rank
        assert torch.equal(learned, other[2][name]), name
        assert not torch.equal(learned, alone.get_parameter(name)), name


def test_the_example_trains_on_two_processes() -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, "--nproc-per-node", "2", "examples/ddp.py", "--epochs", "2"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    error = float(done.stdout.split("test error ")[1].split()[0])
    assert error < 30  # of ten digits; nine in ten are wrong untrained
    assert "training calls" not in done.stderr
