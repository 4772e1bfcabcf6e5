"""The paper's script for the CNN on MNIST: `python paper/cnn.py --mode=emb`. Results in ./cnn_results."""

from image_options import train  # type: ignore[import-not-found]

train("mnist-cnn", "cnn_results")
