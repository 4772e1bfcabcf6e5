"""The kinds of task, by the name that recipes give: which settings each has, and what a run of it is.

How each is made and predicts is in labelemb.experiments.tasks, under the same names.
"""

from typing import NamedTuple

from labelemb.settings.config import ClassifySettings, SentenceSettings, Settings, TableSettings, TextSettings


class Kind(NamedTuple):
    """One kind of task."""

    settings: type[Settings]
    makes_sequences: bool = False
    """Its labels are the words of a vocabulary: the loss is the fused one, a development text decides which of a
    run's networks is the result, and no share of the training data need be held out."""


KINDS = {
    "classify": Kind(ClassifySettings),
    "tables": Kind(TableSettings),
    "text-classes": Kind(SentenceSettings),
    "text": Kind(TextSettings, makes_sequences=True),
}
