"""A corpus of items cut into chunks, and how large a tile of logits may be."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from recjax.ops.precision import product

# Measured on two cores of an AMD EPYC (Zen 4), d = 64, B = 512: row tiles of 128 rows and more are
# the fastest while they stay in the cache, about 16 MiB; beyond, tiles of 2 to 4 MiB in two passes
# are as fast or faster, although they cost a fourth product. Candidates (W1: 4,096) were fastest in
# tiles of 8 MiB. An accelerator needs larger tiles to be busy; its figure is a guess.
_MIN_ROWS, _MAX_ROWS = 128, 512
_ROW_TILE_BYTES, _CHUNK_TILE_BYTES, _ACCELERATOR_TILE_BYTES = 2**24, 2**22, 2**28
_CANDIDATE_TILE_BYTES, _FEWEST_ROWS = 2**23, 8


def choose_tile(num_rows: int, num_items: int) -> tuple[int, int]:
    """The logits to be held at once: rows by all items where enough rows fit, else by a chunk."""
    rows = _tile_bytes(_ROW_TILE_BYTES) // (4 * num_items)
    if rows >= min(_MIN_ROWS, num_rows):
        return _even(num_rows, rows), num_items
    return choose_chunk(num_rows, num_items)


def choose_rows(num_rows: int, numbers: int) -> int:
    """Rows of a tile that holds so many numbers of each: the scores of all candidates, say."""
    rows = _tile_bytes(_CANDIDATE_TILE_BYTES) // (4 * numbers)
    return _even(num_rows, max(rows, _FEWEST_ROWS))


def choose_chunk(num_rows: int, num_items: int) -> tuple[int, int]:
    """Rows by a chunk of the items."""
    rows = _even(num_rows, _MAX_ROWS)
    return rows, _even(num_items, _tile_bytes(_CHUNK_TILE_BYTES) // (4 * rows))


class Chunk(NamedTuple):
    """Consecutive items, of which those before row `fresh` of the corpus do not count.

    Attributes:
        start: row of the corpus where the chunk begins.
        fresh: row of the corpus where its own items begin.
        item_CxD: the items.
        shift_C: added to their scores; -inf where an item does not count.
    """

    start: Array | int
    fresh: Array | int
    item_CxD: Array
    shift_C: Array | None

    def logits(self, query_TxD: Float[Array, "T D"], scale: Array) -> Float[Array, "T C"]:
        """The scores of the items, in float32."""
        logits_TxC = scale * product("td,cd->tc", query_TxD, self.item_CxD)
        return logits_TxC if self.shift_C is None else logits_TxC + self.shift_C[None, :]

    def columns(self, label_TxP: Int[Array, "T P"]) -> Int[Array, "T P"]:
        """Where rows of the corpus stand in the chunk; its length for those that do not."""
        size = len(self.item_CxD)
        inside_TxP = (label_TxP >= self.fresh) & (label_TxP < self.start + size)
        return jnp.where(inside_TxP, label_TxP - self.start, size)

    def add_to(self, sum_Nx: Array, part_Cx: Array) -> Array:
        """An array over the corpus with the chunk's part added."""
        if len(part_Cx) == len(sum_Nx):
            return sum_Nx + part_Cx
        old_Cx = jax.lax.dynamic_slice_in_dim(sum_Nx, self.start, len(part_Cx))
        return jax.lax.dynamic_update_slice_in_dim(sum_Nx, old_Cx + part_Cx, self.start, 0)


class Corpus(NamedTuple):
    """Items in chunks of one size.

    The last chunk begins early enough to be as long as the others: filling up the corpus to a
    whole number of chunks would copy it.

    Attributes:
        item_NxD: the items.
        shift_N: added to their scores; -inf where an item does not count.
        size: items of a chunk, at most N.
    """

    item_NxD: Array
    shift_N: Array | None
    size: int

    @property
    def is_whole(self) -> bool:
        """Whether one chunk is the corpus."""
        return self.size == len(self.item_NxD)

    def chunk(self, index: Array | int) -> Chunk:
        """The chunk of this number."""
        if self.is_whole:
            return Chunk(0, 0, self.item_NxD, self.shift_N)
        num_items, size, shift_C = len(self.item_NxD), self.size, None
        fresh = size * index
        start = jnp.minimum(fresh, num_items - size)
        if self.shift_N is not None:
            shift_C = jax.lax.dynamic_slice_in_dim(self.shift_N, start, size)
        if num_items % size:
            shift_C = jnp.float32(0) if shift_C is None else shift_C
            shift_C = jnp.where(jnp.arange(size) >= fresh - start, shift_C, -jnp.inf)
        item_CxD = jax.lax.dynamic_slice_in_dim(self.item_NxD, start, size)
        return Chunk(start, fresh, item_CxD, shift_C)

    def fold(self, add: Callable[[Chunk, Any], Any], start: Any) -> Any:
        """`add(chunk, sums)` over all chunks, from `start` on."""
        if self.is_whole:
            return add(self.chunk(0), start)
        count = math.ceil(len(self.item_NxD) / self.size)
        return jax.lax.fori_loop(0, count, lambda i, sums: add(self.chunk(i), sums), start)


def _tile_bytes(on_cpu: int) -> int:
    return on_cpu if jax.default_backend() == "cpu" else _ACCELERATOR_TILE_BYTES


def _even(total: int, at_most: int) -> int:
    """The size of equal parts, of this size at most."""
    return math.ceil(total / math.ceil(total / min(max(at_most, 1), total)))
