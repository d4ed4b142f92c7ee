"""Which items are ranked, and which of them a model can score."""

import numpy as np

from recjax.data.blocks import user_blocks
from recjax.data.dataset import Dataset
from recjax.models.retrieval import RetrievalModel


def corpus_mask(dataset: Dataset, name: str, train_mask_N: np.ndarray) -> np.ndarray:
    """bool [N]: the corpus of a name (`listed`, `rated` or `seen`)."""
    if name == "listed":
        return np.ones(dataset.items.size, bool)
    if name == "seen":
        return train_mask_N
    rated_N = np.zeros(dataset.items.size, bool)
    for _, rows in user_blocks(dataset.interactions.offsets):
        rated_N[dataset.interactions.item[rows]] = True
    return rated_N


def rankable_mask(model: RetrievalModel, train_mask_N: np.ndarray) -> np.ndarray:
    """A head, or a tower over the id alone, scores only items that training saw."""
    if any(spec.name not in ("item", "item_id") for spec in model.item.features):
        return np.ones(len(train_mask_N), bool)
    return train_mask_N
