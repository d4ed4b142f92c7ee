"""Sums and gathers over a named axis; nothing at all where the axis is missing or of size 1.

XLA keeps a collective over one device, and with it a copy of what it is given.
"""

from typing import Any

import jax

PyTree = Any


def sum_over(tree: PyTree, axis: str | None) -> PyTree:
    """The sum of every leaf over the devices of the axis."""
    return jax.lax.psum(tree, axis) if is_split(axis) else tree


def gather_over(tree: PyTree, axis: str | None) -> PyTree:
    """The rows of every leaf of all devices of the axis, in their order."""
    return jax.lax.all_gather(tree, axis, tiled=True) if is_split(axis) else tree


def is_split(axis: str | None) -> bool:
    """Whether several devices share the axis."""
    return axis is not None and jax.lax.axis_size(axis) > 1
