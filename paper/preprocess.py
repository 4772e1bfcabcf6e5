"""The paper's script: `python preprocess.py -train_src FILE ... -save_data FOLDER -lower -share`; see docs/text.md."""

import argparse
import sys

from labelemb.__main__ import main

parser = argparse.ArgumentParser()
for name in ("train_src", "train_tgt", "valid_src", "valid_tgt", "test_src", "test_tgt", "save_data"):
    parser.add_argument(f"-{name}", required=True)
for name in ("src_vocab_size", "tgt_vocab_size", "src_length", "tgt_length", "src_vocab", "tgt_vocab"):
    parser.add_argument(f"-{name}")
for name in ("lower", "share", "char"):
    parser.add_argument(f"-{name}", action="store_true")
for name in ("shuffle", "seed", "report_every"):
    parser.add_argument(f"-{name}", help="has no counterpart: batches are drawn anew in every epoch")
options, others = parser.parse_known_args()

sys.argv = ["labelemb", "preprocess", "--allow-dropping"]  # the paper's code dropped long pairs without a word
for name, value in vars(options).items():
    if name not in ("shuffle", "seed", "report_every") and value not in (None, False):
        sys.argv += [f"--{name.replace('_', '-')}", *([] if value is True else [value])]
sys.argv += others  # labelemb's own, e.g. --cut
main()
