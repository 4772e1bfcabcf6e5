"""Seeds with a purpose: a run's network, order and augmentation are the same whatever else is drawn."""

import hashlib


def derived_seed(seed: int, purpose: str, *numbers: int) -> int:
    """A seed in [0, 2**63) for one purpose, e.g. the order of epoch 3, unrelated to that of any other."""
    text = ":".join([str(seed), purpose, *(str(number) for number in numbers)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
