"""How a run is laid over the devices: how many of them split its tables."""

from recjax.config import Config
from recjax.embedding import TableSpec
from recjax.objective import Objective
from recjax.optim import slots
from recjax.parallel import choose_model
from recjax.rounding import BYTES


def model_devices(config: Config, objective: Objective) -> int:
    """What `parallel.model` is; where that is 0, the fewest devices that hold the tables.

    Args:
      config: of the run.
      objective: knows the tables that can be split; made for any layout.
    """
    parallel, loss = config.parallel, config.loss
    if parallel.model:
        return parallel.model
    if config.optim.clip_norm or (loss.candidates == "full" and loss.name != "softmax"):
        return 1  # these need whole tables
    size = split_bytes(objective, config.optim)
    return choose_model(size, parallel.mapper, parallel.data, parallel.table_gib)


def split_bytes(objective: Objective, optim: Config) -> int:
    """Bytes of the tables that can be split: rows, optimizer state and, of dense ones, gradient."""
    return sum(
        spec.rows * _row_bytes(spec, optim)
        for spec in objective.model.tables
        if spec.name in objective.sharded
    )


def _row_bytes(spec: TableSpec, optim: Config) -> int:
    if spec.mode == "dense":
        return 4 * (2 * spec.dim + slots(optim, spec.dim))
    return BYTES[spec.dtype] * spec.dim + BYTES[optim.moments_dtype] * slots(optim, spec.dim)
