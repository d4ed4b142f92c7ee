"""recjax: deep retrieval models in JAX.

Every model is one bilinear score, score(q, i) = <psi(x_q), phi(x_i)> / temperature, and
log p(i | q) = score(q, i) - log Z(q). Letters in array names: B batch, N items, D embedding,
K top-k, L history length, P positives of an example, C candidates, Q queries, M interactions,
U users, R rows of a table, T rows of a tile.
"""

from recjax.config import load_config
from recjax.data.dataset import Dataset
from recjax.data.prepare import prepare_dataset
from recjax.data.registry import load_dataset
from recjax.data.schema import Feature, Schema
from recjax.reports.collect import load_results
from recjax.reports.compare import compare
from recjax.reports.write import write_report
from recjax.run import Run, load_run, train
from recjax.seeds import train_seeds
from recjax.sweeps.launch import run_sweep
from recjax.sweeps.trials import load_sweep
from recjax.writer import Sink

__all__ = [
    "Dataset",
    "Feature",
    "Run",
    "Schema",
    "Sink",
    "compare",
    "load_config",
    "load_dataset",
    "load_results",
    "load_run",
    "load_sweep",
    "prepare_dataset",
    "run_sweep",
    "train",
    "train_seeds",
    "write_report",
]
