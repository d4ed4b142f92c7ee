"""Operations that the maths of W1 to W5 needs: the textbook count, the same for every program.

A product of [M, K] and [K, N] is 2 M K N operations, and a layer or a loss that is trained takes
three: forward, and the gradient of either factor. d is 64. Lookups, pooling, exponentials, biases
and the optimizer are not counted: they cost memory, not arithmetic (`gemm.py` measures both). What
a program computes beyond it (logits again in the backward pass, say) is not counted either.

| unit | operations |
|---|---|
| W1, example | 6 B d + 6 (weights of both towers): each query against the B items of its batch |
| W2, example | 6 n d + 6 (weights of the query tower) |
| W3, example | 6 (K + 1) d + 6 (weights of the query tower): K shared negatives and the label |
| W5, query | 2 n d |

W4 has no such count: its cost is that of reading and writing rows.
"""

from itertools import pairwise

from experiments.benchmarks.workload import (
    DIM,
    FEATURE_DIM,
    HIDDEN,
    ITEM_CATEGORIES,
    ITEM_NUMBERS,
    USER_CATEGORIES,
    USER_NUMBERS,
)

# An id, categories and a list, each embedded, and numbers.
QUERY_WIDTH = FEATURE_DIM * (2 + len(USER_CATEGORIES)) + USER_NUMBERS
ITEM_WIDTH = FEATURE_DIM * (2 + len(ITEM_CATEGORIES)) + ITEM_NUMBERS


def two_tower(batch_size: int) -> float:
    """W1, of an example: two towers, and the scores of a batch against itself."""
    return 6.0 * (batch_size * DIM + _weights(QUERY_WIDTH) + _weights(ITEM_WIDTH))


def softmax(candidates: int) -> float:
    """W2 and W3, of an example: the query tower, and a score for each candidate."""
    return 6.0 * (candidates * DIM + _weights(QUERY_WIDTH))


def ranking(items: int) -> float:
    """W5, of a query: a score for each item."""
    return 2.0 * items * DIM


def _weights(width: int) -> int:
    return sum(a * b for a, b in pairwise((width, *HIDDEN, DIM)))
