"""Vocabularies of words, characters or subwords: a line of raw text to ids, and back."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from labelemb.errors import InputError
from labelemb.files import write_atomically

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Unit = Literal["word", "char", "bpe"]

PAD, UNK, BOS, EOS = range(4)
SPECIAL_SYMBOLS = ("<pad>", "<unk>", "<s>", "</s>")

FORMAT = "labelemb.vocabulary"
VERSION = 1
SPACE_MARK = "\N{LOWER ONE EIGHTH BLOCK}"  # what a subword writes in a space's place
_TEXTS_OWN_MARK = "\n"  # and in the place of that character in the text: no line has a line feed


class Vocabulary:
    """Ids of the tokens of one language, with the rule that cuts raw text into them.

    The rule belongs to the vocabulary, so that new text is cut exactly as the training text was. Text is never
    normalised: it is lower-cased where `lower` says so, and

    * `word`: cut at white space, joined again with single spaces;
    * `char`: every character is a token, a run of white space is one space;
    * `bpe`: subwords over the stripped line, spaces kept, so that joining gives the raw line back. A token has U+2581
      for a space, and a line feed for U+2581.

    Ids 0 to 3 are `<pad>`, `<unk>`, `<s>`, `</s>`. Raw text that happens to contain these strings never becomes
    `<pad>`, `<s>` or `</s>`.

    Args:
        tokens: every token in order of its id, the four special symbols first.
        unit: `word`, `char` or `bpe`.
        lower: whether text is lower-cased first.
        tokenizer: for `bpe`, the trained `tokenizers.Tokenizer`.

    Raises:
        InputError: tokens do not begin with the special symbols, or one stands there twice.
    """

    def __init__(self, tokens: Sequence[str], *, unit: Unit, lower: bool, tokenizer: "Tokenizer | None" = None) -> None:
        assert (tokenizer is not None) == (unit == "bpe")
        if tuple(tokens[:4]) != SPECIAL_SYMBOLS:
            raise InputError(f"a vocabulary begins with {' '.join(SPECIAL_SYMBOLS)}, this one with {list(tokens[:4])}")
        self.tokens = tuple(tokens)
        self.unit: Unit = unit
        self.lower = lower
        self._tokenizer = tokenizer
        self.ids = {token: index for index, token in enumerate(self.tokens)}
        if len(self.ids) != len(self.tokens):
            twice = Counter(self.tokens).most_common(1)[0][0]
            raise InputError(f"the token {twice!r} stands in the vocabulary twice")

    @classmethod
    def build(cls, lines: Iterable[str], *, unit: Unit, lower: bool, size: int) -> "Vocabulary":
        """The vocabulary of a stream of raw lines, most frequent tokens first, ties in order of first appearance.

        Args:
            lines: raw text, read once; never held in memory.
            unit: what a token is.
            lower: whether text is lower-cased first.
            size: the most entries, the four special symbols included.
        """
        if size <= len(SPECIAL_SYMBOLS):
            raise InputError(f"a vocabulary of {size} has no room beside its 4 special symbols; give a larger size")
        lines = (clean_line(line, unit=unit, lower=lower) for line in lines)
        if unit == "bpe":
            return cls._from_tokenizer(_train_bpe(lines, size), lower=lower)
        counts: Counter[str] = Counter()
        for line in lines:
            counts.update(line if unit == "char" else line.split())
        for symbol in SPECIAL_SYMBOLS:
            counts.pop(symbol, None)
        kept = (token for token, _ in counts.most_common(size - len(SPECIAL_SYMBOLS)))
        return cls([*SPECIAL_SYMBOLS, *kept], unit=unit, lower=lower)

    @classmethod
    def _from_tokenizer(cls, tokenizer: "Tokenizer", *, lower: bool) -> "Vocabulary":
        # Without this a literal "<s>" in raw text would become id 2. It is not part of the tokenizer's own JSON.
        tokenizer.encode_special_tokens = True
        tokens: list[str] = [str(tokenizer.id_to_token(index)) for index in range(tokenizer.get_vocab_size())]
        return cls(tokens, unit="bpe", lower=lower, tokenizer=tokenizer)

    def __len__(self) -> int:
        return len(self.tokens)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self._content() == other._content()

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def encode(self, line: str) -> list[int]:
        """The ids of one raw line, `<s>` and `</s>` not among them; as many as `split` gives tokens."""
        ids, _ = self.encode_lines([line])
        return [int(index) for index in ids]

    def encode_lines(self, lines: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """The ids of many raw lines, one after another.

        Returns:
            All ids, (sum of lengths,) int32, and the number of ids of each line, (len(lines),) int64.
        """
        clean = [clean_line(line, unit=self.unit, lower=self.lower) for line in lines]
        if self.unit == "char":
            codes = np.frombuffer("".join(clean).encode("utf-32-le", "surrogatepass"), dtype="<u4")
            return self._id_of_character[codes], np.fromiter(map(len, clean), np.int64, len(clean))
        rows: list[list[int]]
        if self._tokenizer is not None:
            rows = [encoding.ids for encoding in self._tokenizer.encode_batch(clean, add_special_tokens=False)]
        else:
            find = self._id_of_word.get
            rows = [[find(word, UNK) for word in line.split()] for line in clean]
        return np.fromiter(chain.from_iterable(rows), np.int32), np.fromiter(map(len, rows), np.int64, len(rows))

    def split(self, line: str) -> list[str]:
        """The tokens of one raw line as they stand in it, unknown ones too; aligned with `encode(line)`."""
        line = clean_line(line, unit=self.unit, lower=self.lower)
        if self._tokenizer is None:
            return list(line) if self.unit == "char" else line.split()
        encoding = self._tokenizer.encode(line, add_special_tokens=False)
        parts = zip(encoding.ids, encoding.tokens, encoding.offsets, strict=True)
        return [line[start:end] if index == UNK else token for index, token, (start, end) in parts]

    def join(self, tokens: Iterable[str]) -> str:
        """The text that tokens stand for: the inverse of `split`."""
        text = (" " if self.unit == "word" else "").join(tokens)
        if self.unit == "bpe":
            text = text.replace(SPACE_MARK, " ").removeprefix(" ")
        return text.replace(_TEXTS_OWN_MARK, SPACE_MARK)  # in all: a token may be copied from a source of subwords

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; `<pad>`, `<s>`, `</s>` are left out, an unknown token reads `<unk>`."""
        return self.join(self.tokens[index] for index in ids if index not in (PAD, BOS, EOS))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the content: equal for two vocabularies that give the same ids to every text."""
        return hashlib.sha256(self._content().encode()).hexdigest()

    def save(self, path: Path | str) -> None:
        """Write the vocabulary as JSON: all of it, or nothing."""
        write_atomically(Path(path), self._content().encode())

    @classmethod
    def load(cls, path: Path | str) -> "Vocabulary":
        """Read what `save` wrote.

        Raises:
            InputError: there is no such file, or it is something else.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"{path}: no such vocabulary file; `labelemb preprocess` writes one") from None
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(
                f"{path}: expected a vocabulary in JSON, as `labelemb preprocess` writes: {error}"
            ) from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise InputError(f"{path}: expected a vocabulary with format {FORMAT!r}, as `labelemb preprocess` writes")
        if content.get("version") != VERSION or content.get("unit") not in get_args(Unit):
            raise InputError(f"{path}: expected version {VERSION} and a unit of {', '.join(get_args(Unit))}")
        return cls._from_content(content, path)

    @classmethod
    def _from_content(cls, content: dict[str, Any], path: Path | str) -> "Vocabulary":
        try:
            if not isinstance(content["lower"], bool):
                raise TypeError(f"lower: expected true or false, got {content['lower']!r}")
            if content["unit"] != "bpe":
                _check_tokens(content["tokens"], of_characters=content["unit"] == "char")
                return cls(content["tokens"], unit=content["unit"], lower=content["lower"])
            from tokenizers import Tokenizer

            return cls._from_tokenizer(Tokenizer.from_str(json.dumps(content["tokenizer"])), lower=content["lower"])
        except KeyError as error:
            raise InputError(f"{path}: the vocabulary has no {error}; write it again") from None
        except (TypeError, ValueError) as error:
            raise InputError(f"{path}: the vocabulary is damaged; write it again: {error}") from None

    def _content(self) -> str:
        content: dict[str, Any] = {"format": FORMAT, "version": VERSION, "unit": self.unit, "lower": self.lower}
        if self._tokenizer is None:
            content["tokens"] = self.tokens
        else:
            content["tokenizer"] = json.loads(self._tokenizer.to_str())
        return json.dumps(content, ensure_ascii=False, indent=0) + "\n"

    @cached_property
    def _id_of_word(self) -> dict[str, int]:
        return {word: index for word, index in self.ids.items() if index not in (PAD, BOS, EOS)}

    @cached_property
    def _id_of_character(self) -> NDArray[np.int32]:
        """Ids by code point, (0x110000,) int32: one gather encodes a whole block of text."""
        ids = np.full(0x110000, UNK, np.int32)
        for index, token in enumerate(self.tokens[len(SPECIAL_SYMBOLS) :], len(SPECIAL_SYMBOLS)):
            ids[ord(token)] = index
        return ids


def clean_line(line: str, *, unit: Unit, lower: bool) -> str:
    """A raw line as its unit cuts it: lower-cased if asked, without the white space that carries no token.

    For `bpe` the text's own U+2581 is out of the way of the one that stands for a space.
    """
    line = " ".join(line.split()) if unit == "char" else line.strip()
    if unit == "bpe":
        line = line.replace(SPACE_MARK, _TEXTS_OWN_MARK)
    return line.lower() if lower else line


def _check_tokens(tokens: object, *, of_characters: bool) -> None:
    """Raise TypeError for what is no list of words, or of single characters."""
    if not (isinstance(tokens, list) and all(isinstance(token, str) for token in tokens)):
        raise TypeError("tokens: expected a list of words")
    if of_characters and any(len(token) != 1 for token in tokens[len(SPECIAL_SYMBOLS) :]):
        raise TypeError("tokens: expected single characters")


def _train_bpe(lines: Iterator[str], size: int) -> "Tokenizer":
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL_SYMBOLS[UNK]))
    # Metaspace keeps the spaces; punctuation stands alone, so that no subword joins a word to its comma.
    spaces = pre_tokenizers.Metaspace(replacement=SPACE_MARK, prepend_scheme="always")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([spaces, pre_tokenizers.Punctuation("isolated")])
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL_SYMBOLS),
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    if tokenizer.get_vocab_size() > size:
        # The trainer could leave out the rarest characters, but among equally rare ones it picks at random.
        raise InputError(f"{size} subwords are fewer than the text's characters; give a larger size or use characters")
    return tokenizer
