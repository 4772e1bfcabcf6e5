"""Every option of `labelemb preprocess`: its type, its default and its sentence. No default lives anywhere else."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal


@dataclass(frozen=True)
class PreprocessOptions:
    """What to read, how to cut it into tokens, what to leave out. Paths may end in `.gz`."""

    save_data: Annotated[Path, "Folder to write the corpus to; replaced only if it holds one of the same settings."]
    train_src: Annotated[Path | None, "Training source, one sentence a line (.gz too)."] = None
    train_tgt: Annotated[Path | None, "Training target, line by line the source's."] = None
    valid_src: Annotated[Path | None, "Development source."] = None
    valid_tgt: Annotated[Path | None, "Development target."] = None
    test_src: Annotated[Path | None, "Test source; the test pair may be left out."] = None
    test_tgt: Annotated[Path | None, "Test target."] = None
    lcsts: Annotated[Path | None, "Folder of the LCSTS distribution, for the six files."] = None
    lower: Annotated[bool, "Lower-case the tokens; the raw development and test lines are kept as they are."] = False
    share: Annotated[bool, "One vocabulary, counted over both sides, and one embedding."] = False
    char: Annotated[bool, "Characters as tokens."] = False
    bpe: Annotated[int | None, "Subwords as tokens: size of the vocabulary, of both sides together with --share."] = (
        None
    )
    src_vocab_size: Annotated[int, "Most source entries, the 4 special symbols included; with --share of the one."] = (
        50000
    )
    tgt_vocab_size: Annotated[int, "Most target entries, the 4 special symbols included."] = 50000
    src_length: Annotated[int, "Longest training source, in tokens."] = 50
    tgt_length: Annotated[int, "Longest training target, in tokens."] = 50
    cut: Annotated[bool, "Shorten longer training sources instead of dropping pairs."] = False
    src_vocab: Annotated[Path | None, "An existing source vocabulary (JSON); with --share of both sides."] = None
    tgt_vocab: Annotated[Path | None, "An existing target vocabulary (JSON)."] = None
    allow_dropping: Annotated[bool, "Go on if length limits remove most training pairs."] = False

    @property
    def unit(self) -> Literal["word", "char", "bpe"]:
        """What a token is."""
        return "bpe" if self.bpe is not None else "char" if self.char else "word"

    def settings(self) -> dict[str, Any]:
        """All that decides what is written, for JSON."""
        values = {name: value for name, value in asdict(self).items() if name not in ("save_data", "allow_dropping")}
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
