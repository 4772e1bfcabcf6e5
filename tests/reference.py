"""The loss and its gradients written from the formulas: float64, plain loops, an item and a label at a time.

No line of it comes from the package, and nothing is differentiated by a machine: the tests compare both with this.
"""

import math
from typing import NamedTuple

Row = list[float]
Matrix = list[Row]


class Settings(NamedTuple):
    hard_weight: float = 0.5
    soft_weight: float = 0.5
    temperature: float = 2.0
    cap: float = 0.9
    cap_weight: float = 100.0


class Item(NamedTuple):
    """The terms of one item for one label, and the gradients of their weighted sum."""

    terms: Row  # hard, soft, aux, cap, match
    d_logits: Row
    d_aux_logits: Row
    d_row: Row


class Loss(NamedTuple):
    """The terms and their weighted sum over all items, those of single items, and the gradients of the sum."""

    terms: Row
    total: float
    item_terms: Matrix  # N x 5, not divided
    item_totals: Row
    d_logits: Matrix
    d_aux_logits: Matrix
    d_rows: Matrix  # C x C


def softmax(row: Row, temperature: float = 1.0) -> Row:
    largest = max(row)
    powers = [math.exp((value - largest) / temperature) for value in row]
    return [power / math.fsum(powers) for power in powers]


def cross_entropy(weights: Row, row: Row) -> float:
    """H(weights, softmax(row))."""
    largest = max(row)
    log_sum = largest + math.log(math.fsum(math.exp(value - largest) for value in row))
    return math.fsum(weight * (log_sum - value) for weight, value in zip(weights, row, strict=True))


def item(logits: Row, aux_logits: Row, row: Row, label: int, settings: Settings) -> Item:
    a, b, temperature, cap, cap_weight = settings
    labels = range(len(logits))
    onehot = [1.0 if j == label else 0.0 for j in labels]
    probs, aux_probs, soft_label = softmax(logits), softmax(aux_logits), softmax(row)
    tempered = softmax(aux_logits, temperature)
    p = aux_probs[label]
    match = 1.0 if aux_logits[label] == max(aux_logits) else 0.0
    terms = [
        cross_entropy(onehot, logits),
        cross_entropy(soft_label, logits),
        cross_entropy(onehot, aux_logits),
        max(p - cap, 0.0),
        match * cross_entropy(tempered, row),
    ]
    above = cap_weight * p if p > cap else 0.0
    return Item(
        terms,
        [(a + b) * probs[j] - a * onehot[j] - b * soft_label[j] for j in labels],
        [aux_probs[j] - onehot[j] + above * (onehot[j] - aux_probs[j]) for j in labels],
        [match * (soft_label[j] - tempered[j]) for j in labels],
    )


def weighted_sum(terms: Row, settings: Settings) -> float:
    hard, soft, aux, cap, match = terms
    return settings.hard_weight * hard + settings.soft_weight * soft + aux + settings.cap_weight * cap + match


def loss(
    logits: Matrix,
    aux_logits: Matrix,
    rows: Matrix,
    target: list[int] | Matrix,
    settings: Settings,
    class_weight: Row | None = None,
    num_items: float | None = None,
    ignore_index: int = -100,
) -> Loss:
    """The whole loss for indices or distributions; the divisor is the number of items, or the sum of the weights."""
    num_classes = len(rows)
    item_terms: Matrix = []
    d_logits, d_aux_logits = _zeros(len(logits), num_classes), _zeros(len(logits), num_classes)
    d_rows = _zeros(num_classes, num_classes)
    divisor = 0.0
    for i, of_item in enumerate(target):
        if isinstance(of_item, list):
            expectation = of_item
            is_item = any(t != 0 for t in of_item)
        else:
            expectation = [1.0 if label == of_item else 0.0 for label in range(num_classes)]
            is_item = of_item != ignore_index
        item_terms.append([0.0] * 5)
        if not is_item:
            continue
        divisor += 1.0 if class_weight is None else 0.0
        for label, probability in enumerate(expectation):
            factor = probability * (1.0 if class_weight is None else class_weight[label])
            divisor += 0.0 if class_weight is None else factor
            part = item(logits[i], aux_logits[i], rows[label], label, settings)
            _add(item_terms[i], part.terms, factor)
            _add(d_logits[i], part.d_logits, factor)
            _add(d_aux_logits[i], part.d_aux_logits, factor)
            _add(d_rows[label], part.d_row, factor)
    scale = 1.0 / (num_items or divisor or 1.0)
    terms = [scale * math.fsum(of_item[k] for of_item in item_terms) for k in range(5)]
    totals = [weighted_sum(of_item, settings) for of_item in item_terms]
    gradients = [[[scale * value for value in row] for row in matrix] for matrix in (d_logits, d_aux_logits, d_rows)]
    return Loss(terms, weighted_sum(terms, settings), item_terms, totals, *gradients)


def linear(inputs: Matrix, weight: Matrix, bias: Row) -> Matrix:
    return [
        [
            math.fsum(x * w for x, w in zip(row, weights, strict=True)) + b
            for weights, b in zip(weight, bias, strict=True)
        ]
        for row in inputs
    ]


def linear_gradients(inputs: Matrix, weight: Matrix, d_outputs: Matrix) -> tuple[Matrix, Row, Matrix]:
    """The gradients in the weight, the bias and the inputs of `linear`."""
    items, outputs, width = range(len(inputs)), range(len(weight)), range(len(weight[0]))
    d_weight = [[math.fsum(d_outputs[i][o] * inputs[i][k] for i in items) for k in width] for o in outputs]
    d_bias = [math.fsum(d_outputs[i][o] for i in items) for o in outputs]
    d_inputs = [[math.fsum(d_outputs[i][o] * weight[o][k] for o in outputs) for k in width] for i in items]
    return d_weight, d_bias, d_inputs


def relu(matrix: Matrix) -> Matrix:
    return [[max(value, 0.0) for value in row] for row in matrix]


def nearest(rows: Matrix, label: int, k: int) -> list[tuple[int, float]]:
    """The k other labels with the largest soft label values, descending, ties by index."""
    pairs = [(j, value) for j, value in enumerate(softmax(rows[label])) if j != label]
    return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))[:k]


def _zeros(num_rows: int, num_columns: int) -> Matrix:
    return [[0.0] * num_columns for _ in range(num_rows)]


def _add(row: Row, other: Row, factor: float) -> None:
    for j, value in enumerate(other):
        row[j] += factor * value
