"""The paper's script: `python predict.py -gpus 0 -config lcsts.yaml -unk -score emb -restore CHECKPOINT`."""

import argparse
import os
import sys
from pathlib import Path

from text_options import CORPORA, FOLDERS  # type: ignore[import-not-found]

from labelemb.__main__ import main

parser = argparse.ArgumentParser()
parser.add_argument("-config", required=True, choices=FOLDERS)
parser.add_argument("-restore", required=True, type=Path, help="FOLDER/NAME/best_..._checkpoint.pt, as train.py -log")
parser.add_argument("-gpus", nargs="+", default=[], help="the first is used; without it the CPU")
parser.add_argument("-unk", action="store_true", help="said at training time: a run keeps it")
parser.add_argument("-score", choices=("", "emb"), default="")
options, others = parser.parse_known_args()

os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(options.gpus)
# The configuration decides, as in train.py: the paper's README names one folder for both tasks.
runs = Path(FOLDERS[options.config]) / options.restore.parent.name
run = runs / ("emb" if options.score else "baseline") / "seed-00"
sys.argv = ["labelemb", "predict", str(run), f"--data={CORPORA[options.config]}"]
sys.argv += [f"--output={runs / 'candidate.txt'}"]
sys.argv += ["--checkpoint=best" if options.restore.name.startswith("best") else "--checkpoint=last"]
sys.argv += others  # labelemb's own, e.g. --beam 5
main()
