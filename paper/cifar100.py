"""The paper's script for ResNet-18 on CIFAR-100: `python paper/cifar100.py --mode=emb`. Results in ./100_results."""

from image_options import train  # type: ignore[import-not-found]

train("cifar100", "100_results")
