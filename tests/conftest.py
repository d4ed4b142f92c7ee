"""Every test runs on eight fake CPU devices, with strict shapes and dtypes."""

import atexit
import os
import shutil
import tempfile

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # else what tests start would write in the home
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="recjax-compiled-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax  # noqa: E402
import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
# Optax's Adam and cosine schedules mix int32 counts with floats, so whoever calls them does it
# under `jax.numpy_dtype_promotion("standard")`.
jax.config.update("jax_numpy_dtype_promotion", "strict")

install_import_hook("recjax", "beartype.beartype")


@pytest.fixture(scope="module")
def quick_compilation():
    """Compiles a module's programs in half the time; see `tests.tiny.quickly_compiled`."""
    from tests.tiny import quickly_compiled  # not above: recjax comes after the hook

    with quickly_compiled():
        yield
