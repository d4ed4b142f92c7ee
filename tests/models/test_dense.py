"""Layers whose operands are rounded, against float64."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax.models.dense import make_dense
from tests.ops.test_precision import exact, normal


def test_in_float32_it_is_flax_s_layer():
    assert make_dense(3, "float32", name="x") == nn.Dense(3, name="x")


@pytest.mark.parametrize("shape", [(16, 24), (4, 5, 24)])
def test_products_and_gradients_are_of_rounded_operands(shape):
    layer, x, grad = make_dense(7, "bfloat16", name="x"), normal(*shape), normal(*shape[:-1], 7)
    variables = layer.init(jax.random.key(0), jnp.asarray(x))
    kernel = np.asarray(variables["params"]["kernel"])
    np.testing.assert_array_equal(
        kernel, nn.Dense(7, name="x").init(jax.random.key(0), jnp.asarray(x))["params"]["kernel"]
    )
    found, pull_back = jax.vjp(jax.jit(layer.apply), variables, jnp.asarray(x))
    d_variables, d_x = pull_back(jnp.asarray(grad))
    expected = {
        "output": (found, exact(x) @ exact(kernel)),
        "input": (d_x, exact(grad) @ exact(kernel).T),
        "kernel": (
            d_variables["params"]["kernel"],
            exact(x).reshape(-1, 24).T @ exact(grad).reshape(-1, 7),
        ),
        "bias": (d_variables["params"]["bias"], grad.reshape(-1, 7).sum(0, dtype=np.float64)),
    }
    for name, (array, reference) in expected.items():
        assert array.dtype == jnp.float32, name
        np.testing.assert_allclose(array, reference, rtol=1e-5, atol=1e-5, err_msg=name)
