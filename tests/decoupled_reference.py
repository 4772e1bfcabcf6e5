"""The decoupled loss and its gradients written from the formulas: float64, plain loops, an item and a label at a time.

No line of it comes from the package, and nothing is differentiated by a machine: the tests compare both with this.
"""

import math
from typing import NamedTuple

Row = list[float]
Matrix = list[Row]


class Item(NamedTuple):
    """One item: hard, certainty, shape, match; the gradients of certainty + shape_weight*shape, and of match; p~."""

    terms: Row
    d_logits: Row
    d_row_logits: Row
    others: Row
    is_hit: bool


def softmax_of_others(row: Row, label: int) -> Row:
    """Softmax over the labels other than one, which has 0."""
    largest = max(value for j, value in enumerate(row) if j != label)
    powers = [0.0 if j == label else math.exp(value - largest) for j, value in enumerate(row)]
    return [power / math.fsum(powers) for power in powers]


def item(logits: Row, shares: Row, label: int, epsilon: float, shape_weight: float) -> Item:
    """An item whose label has the row `shares`, 0 on the label."""
    others = softmax_of_others(logits, label)
    wrong = [j for j in range(len(logits)) if j != label]
    p = 1 / (1 + math.fsum(math.exp(logits[j] - logits[label]) for j in wrong))
    hit = logits[label] == max(logits)
    rest = math.fsum(math.exp(logits[j]) for j in wrong) / math.fsum(math.exp(z) for z in logits)
    terms = [
        -math.log(p),
        -(1 - epsilon) * math.log(p) - epsilon * math.log(rest),
        -math.fsum(shares[j] * math.log(others[j]) for j in wrong if shares[j]),
        -hit * math.fsum(others[j] * math.log(shares[j]) for j in wrong if shares[j]),
    ]
    d_logits = [
        p - (1 - epsilon) if j == label else others[j] * ((1 - p) - epsilon) + shape_weight * (others[j] - shares[j])
        for j in range(len(logits))
    ]
    d_row_logits = [hit * (share - other) for share, other in zip(shares, others, strict=True)]
    return Item(terms, d_logits, d_row_logits, others, hit)


def low_rank_row(code: Row, weight: Matrix, bias: Row, label: int) -> Row:
    """r = softmax over the other labels of (B a + c)."""
    logits = [math.fsum(b * a for b, a in zip(row, code, strict=True)) + c for row, c in zip(weight, bias, strict=True)]
    return softmax_of_others(logits, label)


def counted(shares: Row, counts: float, others: Matrix, momentum: float) -> Row:
    """A row after a step whose hits predict `others`, of which there were `counts` before."""
    n = len(others)
    a = max(1 - momentum**n, n / (counts + n))
    return [share + a * (math.fsum(row[j] for row in others) / n - share) for j, share in enumerate(shares)]
