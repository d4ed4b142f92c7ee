"""Does every combination of candidates, item side and label kind train?

    python experiments/ablations/combinations.py --out=experiments/ablations/combinations.md

{full, in_batch, sampled, mixed} x {softmax head, item tower} x {next_item, multi_hot} on planted
data, each from `configs/two_tower.py` with one field changed per choice, beside popularity. A
multi_hot run has one example a user and so few steps an epoch: it takes 40 epochs, a next_item run,
with one example an interaction, 4.
"""

import argparse
import itertools
import pathlib
import platform
import tempfile
import time
from typing import Any

import jax

import recjax
from recjax.files import write_file
from recjax.tables import markdown_table

CANDIDATES = ("full", "in_batch", "uniform", "mixed")
ITEM_SIDES = ("softmax", "tower")
LABELS = ("next_item", "multi_hot")
EPOCHS = {"next_item": 4.0, "multi_hot": 40.0}
SMALL = {"data.synthetic.users": 400, "data.synthetic.items": 200, "train.steps": 20}


def train(candidates: str, side: str, labels: str, **changes: Any) -> dict[str, object]:
    """Trains one combination; its row of the table."""
    config = recjax.load_config(
        "configs/two_tower.py",
        **{
            "loss.candidates": candidates,
            "model.item.side": side,
            "examples.labels": labels,
            "train.epochs": EPOCHS[labels],
            "log.tensorboard": False,
            **changes,
        },
    )
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        metrics = recjax.train(config, folder, quiet=True).metrics
    return {
        "candidates": candidates,
        "item side": side,
        "labels": labels,
        "recall@10": metrics["test/recall@10"],
        "popularity": metrics["test/popularity/recall@10"],
        "seconds": f"{time.perf_counter() - began:.0f}",
    }


def main() -> None:
    """Trains all and prints the table."""
    parser = argparse.ArgumentParser(description="Trains every combination.")
    parser.add_argument("--out", default="", help="Markdown file that the table is written to")
    smoke = "a few steps of some on little data: does it run?"
    parser.add_argument("--smoke", action="store_true", help=smoke)
    asked = parser.parse_args()
    rows, choices = [], list(itertools.product(CANDIDATES, ITEM_SIDES, LABELS))
    for choice in choices[::15] if asked.smoke else choices:
        rows.append(train(*choice, **(SMALL if asked.smoke else {})))
        print(" ".join(f"{name}={value}" for name, value in rows[-1].items()), flush=True)
    text = markdown_table(rows)
    print(text)
    if asked.out:
        where = f"{platform.machine()}, {jax.devices()[0].device_kind}"
        about = f"`python experiments/ablations/combinations.py`, JAX {jax.__version__}, {where}."
        write_file(pathlib.Path(asked.out), f"{about}\n\n{text}")


if __name__ == "__main__":
    main()
