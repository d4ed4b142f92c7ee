import jax.numpy as jnp
import numpy as np
import pytest

from recjax.ops.chunks import Corpus, choose_tile


@pytest.mark.parametrize("items, size", [(10, 5), (11, 4), (3, 3), (7, 6)])
def test_every_item_counts_once_in_the_chunks(items, size):
    rows = jnp.arange(items)

    def add(chunk, count):
        shift = jnp.zeros(size) if chunk.shift_C is None else chunk.shift_C
        at = chunk.columns(rows[None, :])
        assert at.shape == (1, items)
        seen = jnp.zeros(items).at[rows].add((at[0] < size).astype(jnp.float32))
        return chunk.add_to(count[0], jnp.exp(shift)), count[1] + seen

    corpus = Corpus(jnp.zeros((items, 2)), None, size)
    for count in corpus.fold(add, (jnp.zeros(items), jnp.zeros(items))):
        np.testing.assert_array_equal(count, 1)


def test_a_tile_holds_all_items_while_it_is_modest_and_parts_are_even():
    assert choose_tile(512, 1000) == (512, 1000)
    assert choose_tile(512, 20_000) == (171, 20_000)
    assert choose_tile(3, 100_000) == (3, 100_000)
    rows, items = choose_tile(513, 10**6)
    assert rows == 257 and rows * items * 4 <= 2**22
