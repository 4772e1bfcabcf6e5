"""A network of timm with label embedding: `python examples/with_timm.py` (pip install timm).

Not run where timm or torchvision cannot be imported; its test says so. Random images, random weights: it shows the
lines, not a result.
"""

import timm
import torch

from labelemb import LabelEmbeddingLoss


def main() -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=10)
    head = model.get_classifier()
    criterion = LabelEmbeddingLoss(head.in_features, num_classes=10)
    optimizer = torch.optim.AdamW(
        [{"params": model.parameters()}, {"params": criterion.parameters(), "weight_decay": 0.0}], lr=1e-3
    )
    criterion.watch(head)
    for _ in range(2):
        images, target = torch.randn(4, 3, 64, 64), torch.randint(10, (4,))
        loss = criterion(model(images), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"loss {loss.item():.3f}")


if __name__ == "__main__":
    main()
