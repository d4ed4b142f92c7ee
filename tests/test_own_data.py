"""Your own CSV files: from the command to the test metrics, and an edited schema."""

import json

import numpy as np
import pytest

from recjax.data.registry import load_dataset
from tests.runs import lines_of, start_main

USERS, ITEMS, EACH = 40, 30, 8
SMALL = ("train.steps=10", "eval.bootstrap=0", "parallel.data=1", "train.batch_size=32")
PROFILE = ("examples.labels=multi_hot", "examples.history=profile", "split.name=random")


def write_tables(directory, timed):
    """Interactions, with or without times, and items with a bag and a price that may be missing."""
    rng = np.random.default_rng(0)
    rows = ["user_id,item_id,timestamp" if timed else "user_id,item_id"]
    for user in range(USERS):
        for step, item in enumerate(rng.choice(ITEMS, EACH, replace=False)):
            rows.append(f"u{user},i{item}" + f",{1_700_000_000 + 60 * step}" * timed)
    items = ["item_id,title,genres,price"]
    for item in range(ITEMS):
        price = "" if item % 4 == 0 else f"{item + 0.5}"
        items.append(f"i{item},Item {item},{'abc'[item % 3]}|{'de'[item % 2]},{price}")
    (directory / "interactions.csv").write_text("\n".join(rows) + "\n")
    (directory / "items.csv").write_text("\n".join(items) + "\n")


@pytest.mark.parametrize(("timed", "changes"), [(True, ()), (False, PROFILE)])
def test_csv_files_are_trained_on_and_their_schema_may_be_edited(tmp_path, timed, changes):
    write_tables(tmp_path, timed)
    words = ["--config=configs/two_tower.py:table", f"--config.data.dir={tmp_path}"]
    words += [f"--workdir={tmp_path}/run", *(f"--config.{word}" for word in SMALL + changes)]
    process = start_main(*words)
    _, errors = process.communicate(timeout=240)
    assert (process.returncode, errors) == (0, "")
    assert 0 <= lines_of(tmp_path / "run")[-1]["test/recall@10"] <= 1

    path = tmp_path / "schema.json"
    schema = json.loads(path.read_text())
    assert schema["time"] == ("timestamp" if timed else None)
    kinds = {feature["name"]: feature["kind"] for feature in schema["features"]}
    assert kinds == {"genres": "bag", "price": "dense"}
    next(f for f in schema["features"] if f["name"] == "price")["transform"] = "bucket"
    path.write_text(json.dumps(schema))
    data = load_dataset("table", tmp_path)
    assert {f.name: f.transform for f in data.schema.features}["price"] == "bucket"
    assert np.isnan(data.items.columns["price"].values).sum() == len(range(0, ITEMS, 4))
