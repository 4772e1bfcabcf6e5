"""The paper's script: `python train.py -gpus 0 -config lcsts.yaml -unk -score emb -loss emb -log NAME`."""

import argparse
import os
import sys

from text_options import CORPORA, FOLDERS, RECIPES  # type: ignore[import-not-found]

from labelemb.__main__ import main

parser = argparse.ArgumentParser()
parser.add_argument("-config", required=True, choices=RECIPES)
parser.add_argument("-gpus", nargs="+", default=[], help="the first is used; without it the CPU")
parser.add_argument("-unk", action="store_true", help="replace unknown words by the most attended source word")
parser.add_argument("-score", choices=("", "emb"), default="", help="emb: with label embedding, as -loss emb")
parser.add_argument("-loss", choices=("", "emb"), default="")
parser.add_argument("-log", default="label_embedding", help="name of the run")
parser.add_argument("-restore", nargs="?", const=True, help="go on with a run that was stopped")
options, others = parser.parse_known_args()

os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(options.gpus)
mode = "emb" if "emb" in (options.score, options.loss) else "baseline"
sys.argv = ["labelemb", "train", RECIPES[options.config], f"--mode={mode}", f"--name={options.log}"]
sys.argv += [f"--output={FOLDERS[options.config]}", f"--data={CORPORA[options.config]}"]
sys.argv += [f"decode.replace_unknown={str(options.unk).lower()}"]
sys.argv += ["--resume"] if options.restore else []
sys.argv += others  # labelemb's own, e.g. epochs=2
main()
