"""Label embedding on several processes: `torchrun --nproc-per-node 2 examples/ddp.py`.

DDP averages the gradients of the module that it is given, so that module must hold the criterion as well as the
network: then both are the same on all ranks. Handwritten digits from scikit-learn; on GPUs where there are enough.
"""

import argparse
from typing import Any

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from labelemb import LabelEmbeddingLoss


class NetworkWithLoss(nn.Module):
    """Network and criterion in one module, which DDP sees as a whole.

    Args:
        hidden: D, the width of the features.
        num_classes: C.
    """

    def __init__(self, hidden: int = 256, num_classes: int = 10) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, hidden), nn.ReLU())
        self.head = nn.Linear(hidden, num_classes)
        self.criterion = LabelEmbeddingLoss(hidden, num_classes)

    def forward(self, inputs: Tensor, target: Tensor, num_items: Tensor | None = None) -> Tensor:
        """The loss, 0-d, of inputs (N, 64) and class indices (N,)."""
        features = self.body(inputs)  # (N, D)
        loss: Tensor = self.criterion(self.head(features), target, features, num_items=num_items)
        return loss


def divisor_of_this_rank(target: Tensor, ignore_index: int = -100) -> Tensor:
    """The items of all ranks' batches over the number of ranks, 0-d: DDP averages over ranks what should be summed.

    Where every rank has as many items as the others, none of them ignored, that is what the loss divides by anyway.
    """
    num_items = (target != ignore_index).sum().float()
    dist.all_reduce(num_items)
    return num_items / dist.get_world_size()


def train(model: DistributedDataParallel, inputs: Tensor, target: Tensor, epochs: int) -> None:
    """Train on this rank's share of each batch of 64 items."""
    module: NetworkWithLoss = model.module
    network = [*module.body.parameters(), *module.head.parameters()]
    groups: list[dict[str, Any]] = [{"params": network}, {"params": module.criterion.parameters(), "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    for epoch in range(epochs):
        order = torch.randperm(len(target), generator=torch.Generator().manual_seed(epoch))  # the same on all ranks
        for batch in torch.split(order, 64):
            mine = batch[dist.get_rank() :: dist.get_world_size()].to(target.device)
            optimizer.zero_grad()
            model(inputs[mine], target[mine], divisor_of_this_rank(target[mine])).backward()
            optimizer.step()


@torch.no_grad()
def error_percent(module: NetworkWithLoss, inputs: Tensor, target: Tensor) -> float:
    predicted = module.head(module.body(inputs)).argmax(dim=1)
    return 100 * float((predicted != target).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    epochs = parser.parse_args().epochs
    dist.init_process_group()  # gloo for tensors on the CPU, nccl for those on GPUs
    gpus = torch.cuda.device_count() >= dist.get_world_size()
    device = torch.device("cuda", dist.get_rank()) if gpus else torch.device("cpu")
    images, labels = load_digits(return_X_y=True)
    inputs = torch.tensor(images, dtype=torch.float32, device=device) / 16
    target = torch.tensor(labels, device=device)
    torch.manual_seed(0)
    model = DistributedDataParallel(NetworkWithLoss().to(device))
    train(model, inputs[:1000], target[:1000], epochs)
    if dist.get_rank() == 0:
        print(f"test error {error_percent(model.module, inputs[1000:], target[1000:]):.2f} %")
        print("like a 3:", model.module.criterion.table.nearest([3], k=3)[0])
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
