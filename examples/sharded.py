"""Head and label table split over processes: `torchrun --nproc-per-node 2 examples/sharded.py`.

Each process has the rows of some labels, and all have the same batch: maxima, sums and soft labels are combined. The
labels here come in pairs that are alike, 0 and 1, 2 and 3, and so on, which the table finds out. On GPUs where there
are enough, otherwise on the CPU; with one process it is the same training, but for rounding.
"""

import argparse

import torch
import torch.distributed as dist
from torch import Tensor, nn

from labelemb import DecoupledLabelEmbeddingLoss
from labelemb.losses.large.sharded import shard, unshard

INPUTS, HIDDEN = 32, 64


def batch(num_labels: int, num_items: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs (N, INPUTS) and labels (N,), the same in all processes."""
    of_pairs = torch.randn((num_labels + 1) // 2, INPUTS, generator=torch.Generator().manual_seed(1))
    of_labels = torch.randn(num_labels, INPUTS, generator=torch.Generator().manual_seed(2))
    target = torch.randint(num_labels, (num_items,), generator=generator)
    noise = torch.randn(num_items, INPUTS, generator=generator)
    return of_pairs[target // 2] + 0.4 * of_labels[target] + 0.2 * noise, target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--labels", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--table", help="where to save what was learned")
    arguments = parser.parse_args()
    dist.init_process_group()  # gloo for tensors on the CPU, nccl for those on GPUs
    gpus = torch.cuda.device_count() >= dist.get_world_size()
    device = torch.device("cuda", dist.get_rank()) if gpus else torch.device("cpu")

    torch.manual_seed(0)  # of all processes: what is not split must begin the same
    body = nn.Sequential(nn.Linear(INPUTS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN)).to(device)
    whole_head = nn.Linear(HIDDEN, arguments.labels)
    whole_criterion = DecoupledLabelEmbeddingLoss(arguments.labels, neighbors=8)
    criterion, head = shard(whole_criterion, whole_head, device=device)
    del whole_criterion, whole_head
    optimizer = torch.optim.Adam([*body.parameters(), *head.parameters(), *criterion.parameters()], lr=5e-3)
    generator = torch.Generator().manual_seed(3)
    for _ in range(arguments.steps):
        inputs, target = (part.to(device) for part in batch(arguments.labels, arguments.batch_size, generator))
        terms = criterion.fused_terms(body(inputs), target, head)
        optimizer.zero_grad()
        torch.autograd.backward(terms.total)
        optimizer.step()

    criterion.end_step()
    whole = unshard(criterion, head)  # all processes call it, the first has it
    if whole is not None:
        print(f"cross entropy of the last batch {terms.hard:.4f}")
        print("like label 0:", whole[0].table.nearest([0], k=2)[0])
        if arguments.table:
            whole[0].table.save(arguments.table)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
