"""The options of the paper's image scripts, translated into a labelemb command; docs/paper.md has the table."""

import argparse
import sys

from labelemb.__main__ import main


def train(recipe: str, results: str) -> None:
    """Call `labelemb train RECIPE --output RESULTS` with what the paper's options say."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--mode", choices=("baseline", "emb"), default="baseline")
    parser.add_argument("--lr", type=float, default=0.001, help="learning rate of all parameters")
    parser.add_argument("--tau", type=float, default=2.0, help="temperature of the auxiliary predictions")
    parser.add_argument("--alpha", type=float, default=0.9, help="cap on the auxiliary head's confidence")
    parser.add_argument("--beta", type=float, default=0.5, help="weight of the hard labels; the soft ones get the rest")
    parser.add_argument("--data", help="folder of train-*.parquet and test-*.parquet, as labelemb's --data")
    parser.add_argument("--num", type=int, default=0, help="number of the run, its seed")
    parser.add_argument("--resume", "-r", action="store_true", help="go on with a run that was stopped")
    options, settings = parser.parse_known_args()
    sys.argv = ["labelemb", "train", recipe, f"--mode={options.mode}", f"--seed={options.num}", f"--output={results}"]
    sys.argv += [f"optimizer.lr={options.lr}", f"optimizer.criterion_lr={options.lr}"]
    if options.mode == "emb":
        sys.argv += [f"emb.temperature={options.tau}", f"emb.cap={options.alpha}"]
        sys.argv += [f"emb.hard_weight={options.beta}", f"emb.soft_weight={1 - options.beta:.12g}"]
    sys.argv += [f"--data={options.data}"] if options.data is not None else []
    sys.argv += ["--resume"] if options.resume else []
    sys.argv += settings  # labelemb's own: epochs=2, --device cuda
    main()
