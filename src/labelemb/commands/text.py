"""The command of text data: `preprocess`."""

from typing import Any

from labelemb.commands.options import options_of, with_parameters
from labelemb.settings.preprocess import PreprocessOptions


@with_parameters(options_of(PreprocessOptions))
def preprocess(**options: Any) -> None:
    """Encode parallel text, or LCSTS, as a corpus to train on."""
    from labelemb.text.corpus.preprocess import preprocess as write_corpus

    print(write_corpus(PreprocessOptions(**options)))
