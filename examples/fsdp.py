"""Label embedding with parameters, gradients and optimiser state split over processes (FSDP2).

`torchrun --nproc-per-node 2 examples/fsdp.py`. As with DDP the module that is wrapped must hold the criterion as well
as the network: its parameters are whole only while that module's `forward` runs. Handwritten digits from scikit-learn;
on GPUs where there are enough, and on the CPU.
"""

import argparse
from typing import Any

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

from labelemb import LabelEmbeddingLoss


class NetworkWithLoss(nn.Module):
    """Network and criterion in one module.

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


def split(model: NetworkWithLoss, mesh: DeviceMesh) -> None:
    """Split the layers, then what is left, criterion and all; before the optimiser is made."""
    fully_shard(model.body, mesh=mesh)
    fully_shard(model, mesh=mesh)


def train(model: NetworkWithLoss, inputs: Tensor, target: Tensor, epochs: int) -> None:
    """Train on this process's share of each batch of 64 items."""
    network = [*model.body.parameters(), *model.head.parameters()]
    groups: list[dict[str, Any]] = [{"params": network}, {"params": model.criterion.parameters(), "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    for epoch in range(epochs):
        order = torch.randperm(len(target), generator=torch.Generator().manual_seed(epoch))  # the same on all
        for batch in torch.split(order, 64):
            mine = batch[dist.get_rank() :: dist.get_world_size()].to(target.device)
            # Gradients are averaged, where the parts of one mean are to be added up: hence the size in the divisor.
            num_items = model.criterion.num_items(target[batch.to(target.device)]) / dist.get_world_size()
            optimizer.zero_grad()
            model(inputs[mine], target[mine], num_items).backward()
            optimizer.step()


def whole(model: nn.Module) -> dict[str, Any]:
    """All parameters and buffers on the CPU of the first process, under their usual names, to save or to use."""
    state: dict[str, Any] = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    return state


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
    model = NetworkWithLoss().to(device)
    split(model, init_device_mesh(device.type, (dist.get_world_size(),)))
    train(model, inputs[:1000], target[:1000], epochs)
    state = whole(model)
    if dist.get_rank() == 0:
        trained = NetworkWithLoss()
        trained.load_state_dict(state)
        predicted = trained.head(trained.body(inputs[1000:].cpu())).argmax(dim=1)
        print(f"test error {100 * float((predicted != target[1000:].cpu()).float().mean()):.2f} %")
        print("like a 3:", trained.criterion.table.nearest([3], k=3)[0])
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
