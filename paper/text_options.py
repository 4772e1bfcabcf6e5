"""What the paper's configuration files are in labelemb; docs/text.md has the table."""

RECIPES = {"lcsts.yaml": "lcsts", "iwslt.yaml": "iwslt15"}
FOLDERS = {"lcsts.yaml": "data/lcsts", "iwslt.yaml": "data/iwslt15"}  # where the paper keeps corpus and runs
CORPORA = {"lcsts.yaml": "data/lcsts/lcsts.low.share.train.pt", "iwslt.yaml": "data/iwslt15/iwslt.low.train.pt"}
