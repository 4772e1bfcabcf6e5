"""The paper's script for ResNet-8 on CIFAR-10: `python paper/cifar10.py --mode=emb`. Results in ./10_results."""

from image_options import train  # type: ignore[import-not-found]

train("cifar10", "10_results")
