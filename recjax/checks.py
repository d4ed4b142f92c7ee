"""Checks of a config before it trains: legal values, and choices that go together."""

import math
from collections.abc import Sequence

from recjax.candidates import FREQUENCIES, SOURCES
from recjax.config import Config, check_choices, flatten_config
from recjax.data.queries import SEEN_POLICIES
from recjax.data.split import FITS, SPLITS
from recjax.embedding import TableSpec
from recjax.errors import ConfigError
from recjax.losses import LOSSES
from recjax.metrics import PER_QUERY
from recjax.models.features import POOLINGS
from recjax.models.towers import ACTIVATIONS
from recjax.ops.precision import COMPUTE_DTYPES
from recjax.optim import OPTIMIZERS, SCHEDULES
from recjax.rounding import BYTES

CHOICES = {
    "data.unknown_items": ("error", "drop"),
    "split.name": tuple(SPLITS),
    "split.fit": FITS,
    "examples.labels": ("next_item", "multi_hot"),
    "examples.history": ("auto", "past", "profile"),
    "model.compute_dtype": COMPUTE_DTYPES,
    "model.query.output": ("linear", "none"),
    "model.query.activation": tuple(ACTIVATIONS),
    "model.query.normalization": ("none", "layer"),
    "model.query.pooling": POOLINGS,
    "model.query.history_table": ("own", "item"),
    "model.item.side": ("tower", "softmax"),
    "model.item.output": ("linear", "none"),
    "model.item.activation": tuple(ACTIVATIONS),
    "model.item.normalization": ("none", "layer"),
    "tables.mode": ("auto", "dense", "rows"),
    "tables.dtype": tuple(BYTES),
    "loss.name": tuple(LOSSES),
    "loss.candidates": ("full", *SOURCES),
    "loss.frequency": FREQUENCIES,
    "optim.name": tuple(OPTIMIZERS),
    "optim.schedule": tuple(SCHEDULES),
    "optim.moments_dtype": tuple(BYTES),
    "eval.corpus": ("listed", "rated", "seen"),
    "eval.seen": SEEN_POLICIES,
    "parallel.mapper": ("shard_map", "pmap"),
}
_POSITIVE = (
    "model.dim",
    "model.feature_dim",
    "model.temperature",
    "tables.init",
    "loss.num_sampled",
    "loss.hard_negatives",
    "loss.hard_refresh",
    "loss.memory",
    "loss.explicit_weight",
    "loss.frequency_rate",
    "loss.positive_scale",
    "loss.corpus_chunk",
    "diagnostics.queries",
    "diagnostics.draws",
    "optim.learning_rate",
    "train.batch_size",
    "eval.batch_size",
    "checkpoint.keep",
    "log.every",
)
_NOT_NEGATIVE = (
    "examples.min_history",
    "examples.weight_power",
    "loss.unigram_power",
    "loss.negative_weight",
    "loss.frequency_buckets",
    "optim.clip_norm",
    "optim.eps",
    "optim.initial_accumulator",
    "optim.warmup_steps",
    "optim.weight_decay",
    "train.steps",
    "train.prefetch",
    "diagnostics.every",
    "profile.steps",
    "profile.start",
    "eval.every",
    "eval.max_queries",
    "eval.patience",
    "eval.bootstrap",
    "checkpoint.every",
    "parallel.data",
    "parallel.model",
    "parallel.table_gib",
)
_BELOW_ONE = (
    "model.query.dropout",
    "model.query.embedding_dropout",
    "model.query.id_dropout",
    "model.item.dropout",
    "model.item.embedding_dropout",
    "model.item.id_dropout",
    "loss.label_smoothing",
    "optim.b1",
    "optim.b2",
)
_SEEDS = ("seed", "split.seed")
_OF_ROWS = ("tables.dtype", "optim.moments_dtype")
_NOT_DENSE = (
    "a step reads and writes all of a dense table, in float32 and beside a gradient of its size, "
    "so that little would be saved"
)


def check_config(config: Config) -> None:
    """Checks values and combinations that need no data.

    Raises:
      ConfigError: naming the key, its value and what would be legal.
    """
    check_choices(config, CHOICES)
    flat = flatten_config(config)

    def check(key: str, holds: bool, rule: str) -> None:
        if not holds:
            raise ConfigError(f"config.{key}={flat[key]}: it {rule}")

    for key, value in flat.items():
        check(key, not isinstance(value, float) or math.isfinite(value), "must be finite")
    for key in _POSITIVE:
        check(key, flat[key] > 0, "must be above 0")
    for key in _NOT_NEGATIVE:
        check(key, flat[key] >= 0, "must not be negative")
    for key in _BELOW_ONE:
        check(key, 0.0 <= flat[key] < 1.0, "must be in [0, 1)")
    for key in _SEEDS:
        check(key, 0 <= flat[key] < 2**32, "must be in 0..2**32-1")
    for key in ("model.query.hidden", "model.item.hidden"):
        sizes_are_legal = all(isinstance(size, int) and size >= 1 for size in flat[key])
        check(key, sizes_are_legal, "must hold whole numbers, from 1 on")
    pooling = "model.query.pooling"
    check(pooling, flat[pooling] != (), f"needs at least one of {POOLINGS}")
    check("eval.ks", min(flat["eval.ks"], default=0) >= 1, "needs at least one k, from 1 on")
    legal = [f"{name}@{k}" for name in PER_QUERY for k in config.eval.ks]
    check_choices(config, {"eval.metric": legal})
    if config.train.steps == 0:
        check("train.epochs", config.train.epochs > 0, "must be above 0 where train.steps is 0")
    for broken, message in (*_loss_rules(config), *_model_rules(config), *_run_rules(config)):
        if broken:
            raise ConfigError(f"config.{message}")


def check_tables(config: Config, tables: Sequence[TableSpec]) -> None:
    """Checks that what a config says of tables in mode `rows` has one to act on.

    Raises:
      ConfigError: naming the key.
    """
    flat = flatten_config(config)
    for key in _OF_ROWS:
        if flat[key] != "float32" and all(spec.mode == "dense" for spec in tables):
            raise ConfigError(
                f"config.{key}={flat[key]}: all tables of this model are dense, and {_NOT_DENSE}; "
                "set it to float32, or tables.mode to rows (loss.candidates=full keeps those of "
                "the item side dense)"
            )


def _loss_rules(config: Config) -> tuple[tuple[bool, str], ...]:
    """Choices within the loss that make no sense together, each with the reason."""
    loss, model = config.loss, config.model
    full = loss.candidates == "full"
    candidates = f"loss.candidates={loss.candidates}"
    no_log_q = {
        "full": "the full corpus is not drawn, so there is no log q",
        "explicit": "these negatives are each example's own, so there is no log q",
        "hard": "these negatives are each example's own, so there is no log q",
    }.get(loss.candidates, "")
    return (
        (
            bool(no_log_q) and loss.correct_positive,
            f"loss.correct_positive=True with {candidates}: {no_log_q} to correct; set it to False "
            "or choose drawn candidates",
        ),
        (
            loss.correct_positive and not loss.correct_logq,
            "loss.correct_positive=True with loss.correct_logq=False: the label alone would be "
            "corrected; set the latter to True or the former to False",
        ),
        (
            bool(no_log_q) and not loss.correct_logq,
            f"loss.correct_logq=False with {candidates}: {no_log_q} to leave out; set it to True "
            "or choose drawn candidates",
        ),
        (
            loss.correct_positive and loss.name != "softmax",
            f"loss.correct_positive=True with loss.name={loss.name}: only the softmax counts the "
            "label among the candidates; set it to False",
        ),
        (
            loss.frequency == "streaming" and not draws(loss, "in_batch", "memory"),
            f"loss.frequency=streaming with {candidates}: only in_batch and memory candidates come "
            "at a rate that has to be estimated; set it to exact",
        ),
        (
            loss.frequency == "streaming" and not loss.correct_logq,
            "loss.frequency=streaming with loss.correct_logq=False: log q alone reads the "
            "estimated frequencies; set the latter to True or the former to exact",
        ),
        (
            loss.frequency_buckets > 0 and loss.frequency != "streaming",
            f"loss.frequency_buckets={loss.frequency_buckets} with "
            f"loss.frequency={loss.frequency}: only streaming frequencies are hashed; set it to 0 "
            "or loss.frequency to streaming",
        ),
        (
            loss.explicit_weight != 1.0 and not draws(loss, "explicit"),
            f"loss.explicit_weight={loss.explicit_weight} with {candidates}: no explicit negatives "
            "are drawn that it could weigh; set it to 1.0 or draw them",
        ),
        (
            loss.label_smoothing > 0 and loss.name != "softmax",
            f"loss.label_smoothing={loss.label_smoothing} with loss.name={loss.name}: it moves "
            "label mass within a softmax, and the other losses have no label distribution; set "
            "it to 0.0 or loss.name to softmax",
        ),
        (
            loss.name == "ccl" and not (model.normalize and model.temperature == 1.0),
            "loss.name=ccl is on cosines: it needs model.normalize=True and model.temperature=1.0",
        ),
        (
            loss.name == "ccl" and model.learn_temperature,
            "loss.name=ccl with model.learn_temperature=True: it is on cosines, which a "
            "temperature would stretch; set it to False",
        ),
        (
            loss.name == "ccl" and (model.item.bias or loss.log_prior != 0.0),
            "loss.name=ccl is on cosines, to which model.item.bias and loss.log_prior would add; "
            "set them to False and 0.0",
        ),
        (
            full and loss.name != "softmax" and config.parallel.model > 1,
            f"loss.name={loss.name} with loss.candidates=full and parallel.model > 1: only the "
            "softmax is summed over a corpus that is split; set parallel.model to 1",
        ),
    )


def _model_rules(config: Config) -> tuple[tuple[bool, str], ...]:
    """Settings of one side of the model that would act on nothing there."""
    query, item = config.model.query, config.model.item
    tower = item.side == "tower"
    in_towers = "with model.item.side=softmax: it acts in towers; set it to 0.0"
    no_layer = "it acts after hidden layers, of which there are none; set it to 0.0"
    of_item = ("dropout", "embedding_dropout", "id_dropout")
    return (
        *(
            (not tower and item[name] > 0, f"model.item.{name}={item[name]} {in_towers}")
            for name in of_item
        ),
        (
            tower and item.bias,
            "model.item.bias=True with model.item.side=tower: it is a number for each item of a "
            "softmax head; set it to False or the side to softmax",
        ),
        (
            query.dropout > 0 and not query.hidden,
            f"model.query.dropout={query.dropout} with model.query.hidden=(): {no_layer}",
        ),
        (
            tower and item.dropout > 0 and not item.hidden,
            f"model.item.dropout={item.dropout} with model.item.hidden=(): {no_layer}",
        ),
    )


def _run_rules(config: Config) -> tuple[tuple[bool, str], ...]:
    """Choices of data, training and diagnostics that make no sense beside others."""
    loss, every = config.loss, config.diagnostics.every
    flat = flatten_config(config)
    return (
        *(
            (
                flat[key] != "float32" and config.tables.mode == "dense",
                f"{key}={flat[key]} with tables.mode=dense: {_NOT_DENSE}; set it to float32 or "
                "tables.mode to rows",
            )
            for key in _OF_ROWS
        ),
        (
            config.optim.moments_dtype != "float32" and config.optim.name == "sgd",
            f"optim.moments_dtype={config.optim.moments_dtype} with optim.name=sgd: it keeps "
            "none; set it to float32 or choose another optimizer",
        ),
        (
            every > 0 and loss.candidates == "full",
            "diagnostics.every > 0 with loss.candidates=full: that is the exact gradient itself; "
            "set it to 0 or choose drawn candidates",
        ),
        (
            every > 0 and loss.name != "softmax",
            f"diagnostics.every > 0 with loss.name={loss.name}: estimators are compared with the "
            "exact softmax; set it to 0",
        ),
        (
            config.examples.weight_power > 0 and config.examples.labels == "next_item",
            "examples.weight_power with examples.labels=next_item: an example there is one "
            "interaction, so active users count by their activity already; set it to 0.0",
        ),
        (
            config.eval.patience > 0 and config.split.fit == "train_and_valid",
            f"eval.patience={config.eval.patience} with split.fit=train_and_valid: nothing "
            "validates, so nothing could stop the run; set it to 0 and train.steps to the step "
            "that validation chose",
        ),
    )


def draws(loss: Config, *names: str) -> bool:
    """Whether one of these sources is drawn, by itself or in a mixture."""
    parts = tuple(loss.mixed) if loss.candidates == "mixed" else (loss.candidates,)
    return bool(set(parts) & set(names))
