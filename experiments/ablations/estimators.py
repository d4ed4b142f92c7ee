"""How far does each estimator of the softmax gradient lie from the exact one, and does it matter?

    python experiments/ablations/estimators.py --out=experiments/ablations/estimators.md

Trains one model on the planted data with every candidate source and number of candidates. At half
of the steps each run compares its own gradient with the exact one (`diagnostics.every`): bias, what
chance leaves of it, variance and cosine w.r.t. the item embeddings, relative to the exact
gradient's length (see `recjax.diagnostics.EstimatorError`; `bias (query)` is w.r.t. the query
embeddings). A batch of in-batch candidates is as large as the number of candidates, in as many
epochs. The explicit negatives are items shown and not chosen, a column that the other runs' data
has not, so its recall is of another world.
"""

import json
import pathlib
import platform
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import app, flags

import recjax
from recjax.files import write_file
from recjax.tables import markdown_table

_OUT = flags.DEFINE_string("out", "", "Markdown file that the table is written to.")
_SMOKE = flags.DEFINE_bool("smoke", False, "A few steps of some on little data: does it run?")
_CONFIG = flags.DEFINE_string("config", "configs/softmax.py", "The model and its data.")

COUNTS = (64, 256, 1024)
DRAWN = {
    "uniform": {"loss.candidates": "uniform"},
    "log_uniform": {"loss.candidates": "log_uniform"},
    "unigram": {"loss.candidates": "unigram"},
    "unigram, no logQ": {"loss.candidates": "unigram", "loss.correct_logq": False},
    "hard, of a pool of 1,024": {"loss.candidates": "hard"},
}
FROM_BATCH = {
    "in_batch": {"loss.candidates": "in_batch"},
    "in_batch, streaming frequency": {
        "loss.candidates": "in_batch",
        "loss.frequency": "streaming",
    },
    "in_batch, no logQ": {"loss.candidates": "in_batch", "loss.correct_logq": False},
    "in_batch, logQ of the label too": {
        "loss.candidates": "in_batch",
        "loss.correct_positive": True,
    },
}
COMPARED = {"diagnostics.queries": 32, "diagnostics.draws": 64}
SMALL = {"data.synthetic.users": 400, "data.synthetic.items": 200, "train.steps": 20}
SMOKED = ("exact", "hard", "explicit")


def arms(counts: tuple[int, ...]) -> Iterator[tuple[str, int | str, dict[str, Any]]]:
    """(estimator, candidates, what it changes in the config)."""
    yield "exact", "all", {}
    for count in counts:
        for name, changes in DRAWN.items():
            if name.startswith("hard") and count >= 1024:
                continue  # the whole pool
            drawn = "loss.hard_negatives" if name.startswith("hard") else "loss.num_sampled"
            yield name, count, {**changes, drawn: count}
        for name, changes in FROM_BATCH.items():
            yield name, count, {**changes, "train.batch_size": count}
        half = {"train.batch_size": count // 2, "loss.num_sampled": count // 2}
        yield "mixed, half in_batch, half uniform", count, {**half, "loss.candidates": "mixed"}
        memory = {"train.batch_size": count // 2, "loss.memory": count // 2}
        yield "memory, half of it", count, {**memory, "loss.candidates": "memory"}
        explicit = {"loss.candidates": "explicit", "examples.max_negatives": count}
        if count == counts[0]:
            yield "explicit (other data)", count, {**explicit, "data.synthetic.impressions": count}


def measure(changes: dict[str, Any]) -> dict[str, float]:
    """Trains one arm; what its row shows."""
    config = recjax.load_config(_CONFIG.value, **{"log.tensorboard": False, **COMPARED, **changes})
    steps = recjax.run.make_experiment(config).total_steps
    if config.loss.candidates != "full":
        config.diagnostics.every = max(steps // 2, 1)
    with tempfile.TemporaryDirectory() as folder:
        metrics = recjax.train(config, folder, quiet=True).metrics
        lines = (pathlib.Path(folder) / "metrics.jsonl").read_text().splitlines()
        timings = (pathlib.Path(folder) / "timings.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    errors = next((line for line in found if "diagnostics/items/bias" in line), {})
    name = "train/examples_per_second"
    rates = [line[name] for line in map(json.loads, timings) if name in line]
    row = {
        "bias": errors.get("diagnostics/items/bias", 0.0),
        "noise": errors.get("diagnostics/items/bias_noise", 0.0),
        "variance": errors.get("diagnostics/items/variance", 0.0),
        "cosine": errors.get("diagnostics/items/cosine", 1.0),
        "bias (query)": errors.get("diagnostics/query/bias", 0.0),
        "ms a step": 1000 * config.train.batch_size / float(np.median(rates[1:] or rates)),
        "recall@20": metrics["test/recall@20"],
    }
    return row


def main(argv: list[str]) -> None:
    """Trains all arms and prints the table."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}")
    counts = (8,) if _SMOKE.value else COUNTS
    rows = []
    for name, count, changes in arms(counts):
        if _SMOKE.value and not name.startswith(SMOKED):
            continue
        small = SMALL if _SMOKE.value else {}
        pool = {"loss.num_sampled": 32} if _SMOKE.value and name.startswith("hard") else {}
        row = {"estimator": name, "candidates": count, **measure({**small, **changes, **pool})}
        rows.append(row)
        print(" ".join(f"{k}={v}" for k, v in row.items()), flush=True)
    where = f"{platform.processor() or platform.machine()}, {jax.devices()[0].device_kind}"
    text = markdown_table(rows)
    print(text)
    if _OUT.value:
        about = f"`python experiments/ablations/estimators.py`, JAX {jax.__version__}, {where}.\n\n"
        write_file(pathlib.Path(_OUT.value), about + text)


if __name__ == "__main__":
    app.run(main)
