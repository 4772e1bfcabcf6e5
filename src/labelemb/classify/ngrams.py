"""A text as the words, pairs of words and parts of words that are in it, each as the number of a bucket.

There is no vocabulary to learn or keep: the number is a checksum. Two that share a bucket share a vector, which costs
little where there are several buckets for each frequent one (Weinberger et al. 2009, arXiv 0902.2206; the parts of
words as in fastText, arXiv 1607.04606).
"""

import re
from collections.abc import Iterator
from zlib import crc32

SHORTEST, LONGEST = 2, 4  # characters of a part of a word, its ends marked
MOST = 2000  # of a text: what comes after about two hundred words has no part
_WORD = re.compile(r"\w+|[^\w\s]")


def buckets_of(text: str, num_buckets: int) -> list[int]:
    """Numbers 1 to `num_buckets`, in the order of the text; 0 is left for padding."""
    numbers = [1 + crc32(each.encode()) % num_buckets for each in _pieces(text.lower())]
    return numbers[:MOST]


def _pieces(text: str) -> Iterator[str]:
    before = ""
    for word in _WORD.findall(text):
        yield word
        yield f"{before} {word}"
        marked = f"<{word}>"
        for length in range(SHORTEST, LONGEST + 1):
            yield from (f"#{marked[start : start + length]}" for start in range(len(marked) - length + 1))
        before = word
