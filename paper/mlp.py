"""The paper's script for the MLP on MNIST: `python paper/mlp.py --mode=emb`. Results in ./mlp_results."""

from image_options import train  # type: ignore[import-not-found]

train("mnist-mlp", "mlp_results")
