"""Where the data of each kind of task come from, and how they are divided."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from labelemb.settings.section import Count, Fraction, HeldOut, Section

Share = Annotated[float, Field(gt=0, lt=1)]

_PATH = "a file (.csv, .tsv, .json, .jsonl, .parquet), or a folder with train.* and maybe validation.* and test.*"
_LABEL = "the label column; null takes one that is called label, class, target or the like"
_VALIDATION = "share of each label held out for validation, each seed its own, where the data have no such part"
_TEST = "share of each label held out as the test set, the same for all runs, where the data have no such part"
_LIMIT = "use this many training examples at most, drawn of each label alike"
_NAMES = "a file of label names, a line each (--label-names): of labels 0, 1, ... in their order, else the order"


class ImageDataSettings(Section):
    source: str = Field(
        description="`digits`, a hub id that `--data` may replace by a local copy, or what your own are"
    )
    path: Path | None = Field(None, description="a folder of class folders or of parquet files, or a cache (--data)")
    image: str | None = Field(None, description="the image column; null takes the only one")
    label: str | None = Field(None, description="the label column; null takes the only one")
    validation: HeldOut = Field(
        0, description="training images held out: a number, the first ones; below 1 a share of each label, at random"
    )
    limit: Count | None = Field(
        None, description="use this many training images at most, the first after those held out by number"
    )
    test: Share | None = Field(None, description=_TEST + "; null where one has to be there")
    size: Count | None = Field(
        None, description="side of a square that images are cut and resized to where they differ or are larger"
    )
    label_names: Path | None = Field(None, description=_NAMES)


class TableDataSettings(Section):
    source: str = Field(description="what the data are")
    path: Path | None = Field(None, description=_PATH)
    label: str | None = Field(None, description=_LABEL)
    columns: tuple[str, ...] | None = Field(None, description="the numeric columns to learn from; null takes all")
    validation: Fraction = Field(0.1, description=_VALIDATION)
    test: Share = Field(0.2, description=_TEST)
    limit: Count | None = Field(None, description=_LIMIT)
    label_names: Path | None = Field(None, description=_NAMES)


class SentenceDataSettings(Section):
    source: str = Field(description="what the data are")
    path: Path | None = Field(None, description=_PATH)
    label: str | None = Field(None, description=_LABEL)
    text: str | None = Field(None, description="the text column; null takes the only one beside the label")
    validation: Fraction = Field(0.1, description=_VALIDATION)
    test: Share = Field(0.2, description=_TEST)
    limit: Count | None = Field(None, description=_LIMIT)
    label_names: Path | None = Field(None, description=_NAMES)


class TextDataSettings(Section):
    source: str = Field(description="what the corpus is and where it comes from")
    path: Path | None = Field(None, description="the folder that `labelemb preprocess` wrote (--data)")
