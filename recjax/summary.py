"""What a run says of itself: what it will do, and what came out."""

import json
import pathlib
from typing import Any

from recjax.candidates import why_biased
from recjax.config import Config
from recjax.cost import count_parameters
from recjax.data.split import TEST, TRAIN, VALID
from recjax.experiment import Experiment
from recjax.models.retrieval import RetrievalModel, SoftmaxHead
from recjax.parallel import describe_devices
from recjax.slices import NOT_SCORED
from recjax.tables import metrics_table, slices_table, table_text

_PARTS = {"train": TRAIN, "valid": VALID, "test": TEST}


def describe(experiment: Experiment, workdir: pathlib.Path) -> str:
    """The plan, a line each: data, split, examples, model, sizes, loss, devices, workdir."""
    config, dataset, split = experiment.config, experiment.dataset, experiment.split
    parts = {name: int((split.part_M == code).sum()) for name, code in _PARTS.items()}
    counts = ", ".join(f"{count:,} {name}" for name, count in parts.items())
    model = experiment.model
    rows = [
        (
            "data",
            f"{dataset.name}: {dataset.users.size:,} users, {dataset.items.size:,} items, "
            f"{dataset.interactions.size:,} interactions",
        ),
        ("split", f"{split.name}: {counts}"),
        ("examples", experiment.examples.describe()),
        ("query side", _tower(model.query)),
        ("item side", _item_side(model, dataset.items.size)),
        ("parameters", f"{count_parameters(experiment):,}; {_tables(model)}"),
        ("loss", _loss(experiment)),
        (
            "optimizer",
            f"{config.optim.name}, learning rate {config.optim.learning_rate:g}, "
            f"{experiment.total_steps:,} steps of {config.train.batch_size:,} examples "
            f"({experiment.steps_per_epoch:,} an epoch)",
        ),
        (
            "ranking",
            f"{int(experiment.corpus_mask_N.sum()):,} items ({config.eval.corpus}), "
            f"without the user's {config.eval.seen} ones; {_chosen(experiment)}",
        ),
        (
            "devices",
            f"{describe_devices()}, {config.parallel.mapper}, "
            f"data {experiment.parallel.data} x model {experiment.parallel.model}",
        ),
        ("workdir", str(workdir)),
    ]
    lines = [f"{name:<11} {text}" for name, text in rows]
    return "\n".join(lines + [f"note: {note}" for note in _notes(experiment)])


def report(experiment: Experiment, workdir: pathlib.Path) -> str:
    """The final tables, from `eval/test.json`, and where everything lies."""
    record: dict[str, Any] = json.loads((workdir / "eval" / "test.json").read_text())
    rankers = record["rankers"]
    by_name = {name: one["metrics"] for name, one in rankers.items()}
    intervals = {"model": {k: tuple(v) for k, v in rankers["model"]["intervals"].items()}}
    slices = {k: v for k, v in rankers["model"]["slices"].items() if v["queries"]}
    k = experiment.config.eval.metric.rpartition("@")[2]
    lines = [
        table_text(
            metrics_table(
                by_name,
                intervals=intervals,
                metrics=_shown(k, max(experiment.config.eval.ks)),
                title=f"test, {record['queries']:,} queries, the model of step {record['step']:,}",
            )
        ),
        table_text(
            slices_table(slices, (f"recall@{k}", f"ndcg@{k}"), title="where the model is good")
        ),
    ]
    lines += [
        f"{name}: {NOT_SCORED} ({one['not_scored']:,})"
        for name, one in slices.items()
        if one["status"] == NOT_SCORED
    ]
    lines.append(
        f"Everything lies in {workdir}: metrics.jsonl, protocol.json, config.json, checkpoints/, "
        "tensorboard/, eval/test.parquet (per query), eval/test.json, cost.json (size and speed)"
    )
    return "\n".join(lines)


def _shown(k: str, largest: int) -> list[str]:
    """The metrics of the final table; `eval/test.json` holds all."""
    ks = dict.fromkeys((k, str(largest)))
    of_ranks = [f"{name}@{each}" for name in ("recall", "ndcg", "mrr") for each in ks]
    catalogue = ("hit_rate", "coverage", "gini", "popularity_lift", "novelty")
    return of_ranks + [f"{name}@{k}" for name in catalogue]


def _tower(tower: Any) -> str:
    layers = "-".join(map(str, tower.hidden)) or "no"
    last = f"-> {tower.dim}" if tower.output == "linear" else "as it is"
    return f"{', '.join(spec.name for spec in tower.features)}; hidden {layers}, {last}"


def _item_side(model: RetrievalModel, num_items: int) -> str:
    if isinstance(model.item, SoftmaxHead):
        bias = " with a bias each" if model.item.use_bias else ""
        return f"softmax head over {num_items:,} items{bias}"
    return f"tower: {_tower(model.item)}"


def _tables(model: RetrievalModel) -> str:
    large = sorted(model.tables, key=lambda spec: -spec.rows * spec.dim)[:4]
    shown = ", ".join(
        f"{s.name} {s.rows:,} x {s.dim} ({s.mode}{', bfloat16' * (s.dtype == 'bfloat16')})"
        for s in large
    )
    more = len(model.tables) - len(large)
    return f"tables {shown}" + (f" and {more} smaller" if more > 0 else "")


def _chosen(experiment: Experiment) -> str:
    if experiment.split.trains_on_valid:
        return "the last step, trained on the validation data too"
    return f"chosen by valid/{experiment.config.eval.metric}"


def _loss(experiment: Experiment) -> str:
    loss = experiment.config.loss
    if loss.candidates == "full":
        against = "every item that training knows"
    else:
        parts = loss.mixed if loss.candidates == "mixed" else (loss.candidates,)
        against = " and ".join(_candidates(experiment.config, part) for part in parts)
    terms = [f"{_LOSSES[loss.name]} against {against}"]
    if loss.candidates not in ("full", "explicit", "hard"):
        terms.append(_correction(loss))
    if loss.frequency == "streaming":
        terms.append("frequencies estimated on the way")
    if loss.label_smoothing:
        terms.append(f"label smoothing {loss.label_smoothing:g}")
    if loss.log_prior:
        terms.append(f"{loss.log_prior:g} x log popularity added to training logits")
    return ", ".join(terms)


def _correction(loss: Config) -> str:
    if not loss.correct_logq:
        return "without logQ (biased)"
    if loss.correct_positive:
        return "corrected by logQ, the label too (biased)"
    return "corrected by logQ"


_LOSSES = {
    "softmax": "softmax cross-entropy",
    "bpr": "pairwise (BPR) loss",
    "bce": "binary cross-entropy",
    "ccl": "cosine-contrastive (SimpleX) loss",
    "bsl": "bilateral softmax loss",
}


def _candidates(config: Config, source: str) -> str:
    loss, batch = config.loss, f"the batch's {config.train.batch_size:,} items"
    known = {
        "in_batch": batch,
        "memory": f"{batch} and {loss.memory:,} of earlier batches",
        "explicit": "negatives of each example's own",
        "hard": f"the hardest {loss.hard_negatives:,} of {loss.num_sampled:,} draws",
    }
    return known.get(source, f"{loss.num_sampled:,} {source} draws")


def _notes(experiment: Experiment) -> list[str]:
    """What a reader of the results might otherwise miss."""
    config, model, notes = experiment.config, experiment.model, []
    if all(spec.name == "item_id" for spec in model.item.features):
        notes.append(
            "the item tower reads the item id alone, so it cannot rank items that training never "
            "saw"
        )
    if experiment.dataset.interactions.part is not None and config.split.name != "predefined":
        notes.append(
            f"the data brings a split of its own, which split.name={config.split.name} does not "
            "use; split.name=predefined does"
        )
    loss = config.loss
    if loss.candidates != "full":
        biased = why_biased(loss.candidates, loss.mixed, loss.explicit_weight)
        if biased:
            notes.append(f"the estimator of the gradient is biased: {biased}")
    queries = experiment.queries("test")
    seen = int(queries.seen_targets(config.eval.seen).sum())
    if seen:
        notes.append(
            f"{seen:,} of {len(queries.target_items):,} test targets are items that the user knew "
            f"already: eval.seen={config.eval.seen} removes them, so they are misses for any "
            "model; eval.seen=none ranks them"
        )
    return notes
