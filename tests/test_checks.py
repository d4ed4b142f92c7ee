"""What a config cannot ask for, without any data: values, and choices that do not go together."""

import pytest

from configs.two_tower import DATA
from recjax.checks import check_config
from recjax.config import load_config
from recjax.errors import ConfigError
from tests.runs import ROOT, small_config

STREAMING = {"loss.frequency": "streaming"}
CCL = {"loss.name": "ccl"}
COSINES = {"model.normalize": True, "model.temperature": 1.0, "model.item.bias": False}
TOWER = {"model.item.side": "tower", "model.item.bias": False}
LAST_FIT = {"split.fit": "train_and_valid"}
IN_BATCH, HARD = {"loss.candidates": "in_batch"}, {"loss.candidates": "hard"}
POSITIVE, SMOOTHED = {"loss.correct_positive": True}, {"loss.label_smoothing": 0.1}
UNCORRECTED, EXPLICIT = {"loss.correct_logq": False}, {"loss.candidates": "explicit"}
BPR, DIAGNOSED, SPLIT = {"loss.name": "bpr"}, {"diagnostics.every": 5}, {"parallel.model": 2}
MOMENTS = {"optim.moments_dtype": "bfloat16"}
DROPPED, WEIGHED = {"model.item.id_dropout": 0.5}, {"examples.weight_power": 0.5}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval.metric": "recall@7"}, "eval.metric='recall@7'.*'recall@5'"),
        ({"eval.metric": "coverage@5"}, "eval.metric='coverage@5' is none of"),
        ({"eval.ks": (0, 10)}, r"eval.ks=\(0, 10\)"),
        ({"optim.learning_rate": float("inf")}, "optim.learning_rate=inf.*finite"),
        ({"train.batch_size": 0}, "train.batch_size=0: it must be above 0"),
        ({"eval.patience": -1}, "eval.patience=-1"),
        ({"split.name": "leave_on_out"}, "did you mean 'leave_one_out'"),
        ({"train.steps": 0, "train.epochs": 0.0}, "train.epochs=0.0: it must be above 0"),
        ({"model.query.dropout": 1.0}, r"model.query.dropout=1.0: it must be in \[0, 1\)"),
        ({"model.item.hidden": (8, 0)}, r"model.item.hidden=\(8, 0\).*from 1 on"),
        ({"model.query.hidden": (0.5,)}, r"model.query.hidden=\(0.5,\).*whole numbers"),
        ({"model.query.pooling": ()}, r"model.query.pooling=\(\).*at least one of .*'mean'"),
        ({"examples.min_history": -1}, "examples.min_history=-1: it must not be negative"),
        ({"seed": -1}, r"config.seed=-1: it must be in 0..2\*\*32-1"),
        ({"split.seed": 2**32}, "split.seed=4294967296: it must be in 0.."),
        ({"train.epochs": float("nan")}, "train.epochs=nan: it must be finite"),
        ({"train.epochs": float("inf")}, "train.epochs=inf: it must be finite"),
        ({"optim.weight_decay": float("nan")}, "optim.weight_decay=nan: it must be finite"),
        ({"optim.weight_decay": -0.1}, "optim.weight_decay=-0.1: it must not be negative"),
        ({"optim.clip_norm": -1.0}, "optim.clip_norm=-1.0: it must not be negative"),
        ({"optim.eps": -1e-8}, "optim.eps=-1e-08: it must not be negative"),
        ({"optim.initial_accumulator": -0.1}, "optim.initial_accumulator=-0.1: it must not"),
        ({"optim.warmup_steps": -1}, "optim.warmup_steps=-1: it must not be negative"),
        ({"optim.b1": 1.0}, r"optim.b1=1.0: it must be in \[0, 1\)"),
        ({"optim.b2": -0.1}, r"optim.b2=-0.1: it must be in \[0, 1\)"),
        ({"loss.hard_refresh": 0}, "loss.hard_refresh=0: it must be above 0"),
        ({"model.query.id_dropout": 1.0}, r"model.query.id_dropout=1.0: it must be in \[0, 1\)"),
        ({"diagnostics.every": -1}, "diagnostics.every=-1: it must not be negative"),
        ({"profile.steps": -1}, "profile.steps=-1: it must not be negative"),
        ({"profile.start": -1}, "profile.start=-1: it must not be negative"),
        ({"loss.name": "sofmax"}, "loss.name='sofmax'.* 'bpr'.*did you mean 'softmax'"),
        ({"loss.candidates": "in_bach"}, "'in_bach'.*'uniform'.*did you mean 'in_batch'"),
        ({"tables.dtype": "float16"}, "tables.dtype='float16' is none of .*'bfloat16'"),
        ({"split.fit": "all"}, "split.fit='all' is none of .*'train_and_valid'"),
    ],
)
def test_a_value_that_cannot_be_names_the_key(changes, message):
    with pytest.raises(ConfigError, match=message):
        check_config(small_config("mf", **changes))


@pytest.mark.parametrize(
    ("broken", "message", "fixed"),
    [
        (POSITIVE, "loss.correct_positive=True with loss.candidates=full.*no log q", IN_BATCH),
        (
            POSITIVE | IN_BATCH | {"loss.correct_logq": False},
            "loss.correct_positive=True with loss.correct_logq=False",
            {"loss.correct_logq": True},
        ),
        (POSITIVE | HARD, "loss.correct_positive=True with loss.candidates=hard", IN_BATCH),
        (
            POSITIVE | IN_BATCH | BPR,
            "loss.correct_positive=True with loss.name=bpr",
            {"loss.name": "softmax"},
        ),
        (STREAMING, "loss.frequency=streaming with loss.candidates=full", IN_BATCH),
        (
            STREAMING | {"loss.candidates": "mixed", "loss.mixed": ("uniform", "explicit")},
            "loss.frequency=streaming with loss.candidates=mixed",
            {"loss.mixed": ("uniform", "memory")},
        ),
        (UNCORRECTED, "loss.correct_logq=False with loss.candidates=full: .*not drawn", IN_BATCH),
        (UNCORRECTED | HARD, "loss.correct_logq=False with .*=hard: .* own, so", IN_BATCH),
        (UNCORRECTED | EXPLICIT, "loss.correct_logq=False with .*=explicit: .* own, so", IN_BATCH),
        (
            STREAMING | IN_BATCH | UNCORRECTED,
            "loss.frequency=streaming with loss.correct_logq=False: log q alone reads",
            {"loss.correct_logq": True},
        ),
        (
            {"loss.frequency_buckets": 8} | IN_BATCH,
            "loss.frequency_buckets=8 with loss.frequency=exact: only streaming",
            STREAMING,
        ),
        (
            {"loss.explicit_weight": 2.0} | IN_BATCH,
            "loss.explicit_weight=2.0 with loss.candidates=in_batch: no explicit",
            {"loss.candidates": "mixed", "loss.mixed": ("in_batch", "explicit")},
        ),
        (SMOOTHED | BPR, "loss.label_smoothing=0.1 with loss.name=bpr", {"loss.name": "softmax"}),
        (CCL, "loss.name=ccl is on cosines: it needs model.normalize=True", COSINES),
        (
            {**CCL, **COSINES, "loss.log_prior": 1.0},
            "loss.name=ccl is on cosines, to which",
            {"loss.log_prior": 0.0},
        ),
        (
            CCL | COSINES | {"model.learn_temperature": True},
            "loss.name=ccl with model.learn_temperature=True",
            {"model.learn_temperature": False},
        ),
        (BPR | SPLIT, "loss.name=bpr with loss.candidates=full and parallel.model > 1", IN_BATCH),
        (DIAGNOSED, "diagnostics.every > 0 with loss.candidates=full.*exact", IN_BATCH),
        (
            DIAGNOSED | IN_BATCH | BPR,
            "diagnostics.every > 0 with loss.name=bpr",
            {"loss.name": "softmax"},
        ),
        (DROPPED, "model.item.id_dropout=0.5 with model.item.side=softmax: it acts in to", TOWER),
        ({"model.item.dropout": 0.5}, "model.item.dropout=0.5 with model.item.side=soft", TOWER),
        (
            TOWER | {"model.item.dropout": 0.5, "model.item.hidden": ()},
            r"model.item.dropout=0.5 with model.item.hidden=\(\): it acts after",
            {"model.item.hidden": (8,)},
        ),
        (
            {"model.query.dropout": 0.2},
            r"model.query.dropout=0.2 with model.query.hidden=\(\): it acts after",
            {"model.query.hidden": (8,)},
        ),
        (
            TOWER | {"model.item.bias": True},
            "model.item.bias=True with model.item.side=tower: it is a number for each item",
            {"model.item.bias": False},
        ),
        (
            {"tables.dtype": "bfloat16", "tables.mode": "dense"},
            "tables.dtype=bfloat16 with tables.mode=dense: .* a gradient of its size",
            {"tables.mode": "auto"},
        ),
        (
            MOMENTS | {"tables.mode": "dense"},
            "optim.moments_dtype=bfloat16 with tables.mode=dense",
            {"tables.mode": "rows"},
        ),
        (
            MOMENTS | {"optim.name": "sgd"},
            "optim.moments_dtype=bfloat16 with optim.name=sgd: it keeps none",
            {"optim.name": "row_adagrad"},
        ),
        (
            LAST_FIT | {"eval.patience": 3},
            "eval.patience=3 with split.fit=train_and_valid: nothing validates",
            {"eval.patience": 0},
        ),
        (WEIGHED, "weight_power with .*next_item", {"examples.labels": "multi_hot"}),
    ],
)
def test_choices_that_make_no_sense_together_say_why(broken, message, fixed):
    with pytest.raises(ConfigError, match=f"config.*{message}"):
        check_config(small_config("mf", **broken))
    check_config(small_config("mf", **broken | fixed))


@pytest.mark.parametrize("name", ["mf", "softmax", "two_tower"])
def test_every_shipped_config_can_be_on_all_data(name):
    for data in DATA:
        check_config(load_config(f"{ROOT}/configs/{name}.py:{data}"))
