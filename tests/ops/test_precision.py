"""Products of bfloat16 operands, against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax.ops.precision import product, rounded


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def exact(x):
    """The nearest bfloat16 numbers, in float64."""
    return np.asarray(x).astype(jnp.bfloat16).astype(np.float64)


@pytest.mark.parametrize("subscripts", ["td,cd->tc", "td,tc->dc"])
def test_bfloat16_operands_are_summed_in_float32(subscripts):
    a, b = normal(64, 48), normal(64, 48, seed=1)

    @jax.jit  # where XLA might leave out the conversions to bfloat16
    def of_float32(a, b):
        return product(subscripts, a.astype(jnp.bfloat16), b.astype(jnp.bfloat16))

    found, expected = of_float32(a, b), np.einsum(subscripts, exact(a), exact(b))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(np.einsum(subscripts, a, b) - expected).max() > 1e-2


def test_an_accelerator_multiplies_bfloat16():
    a = jax.ShapeDtypeStruct((8, 4), jnp.bfloat16)
    traced = jax.jit(lambda a, b: product("td,cd->tc", a, b)).trace(a, a)
    products = [
        line
        for line in traced.lower(lowering_platforms=("cuda",)).as_text().splitlines()
        if "dot_general" in line
    ]
    assert len(products) == 1
    assert "(tensor<8x4xbf16>, tensor<8x4xbf16>) -> tensor<8x8xf32>" in products[0]


def test_rounding_keeps_the_type_and_passes_gradients_through():
    x = jnp.asarray(normal(100))
    np.testing.assert_array_equal(rounded(x, "bfloat16"), exact(x))
    assert rounded(x, "float32") is x
    pull_back = jax.vjp(lambda x: rounded(x, "bfloat16"), x)[1]
    np.testing.assert_array_equal(pull_back(2 * x)[0], exact(2 * x))
