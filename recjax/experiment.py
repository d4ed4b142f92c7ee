"""Builds everything that a config and a data set define, before the first step."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from recjax.allocator import prefer_huge_pages
from recjax.candidates import CandidateSource, make_source
from recjax.checks import check_config, check_tables, draws
from recjax.config import Config
from recjax.corpus import corpus_mask, rankable_mask
from recjax.data.blocks import count_by_user_and_item
from recjax.data.context import DERIVED, available_context
from recjax.data.dataset import Dataset
from recjax.data.encode import Encoder, make_encoder
from recjax.data.examples import HISTORY_OF, TrainExamples, make_train_examples
from recjax.data.loader import steps_per_epoch
from recjax.data.queries import EvalQueries, make_queries
from recjax.data.registry import load_dataset
from recjax.data.split import TRAIN, Split, make_split
from recjax.errors import ConfigError
from recjax.layout import model_devices
from recjax.losses import make_loss
from recjax.models.build import make_model
from recjax.models.retrieval import HEAD, RetrievalModel
from recjax.objective import Objective
from recjax.optim import make_optimizer, make_row_optimizer
from recjax.parallel import Parallel, make_parallel
from recjax.scoring import Scorer
from recjax.step import TrainState, TrainStep


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """A config made concrete: data, split, examples, model, step, devices.

    Attributes:
      config: what was asked for.
      dataset: the data.
      split: what is trained on, validated on and tested on.
      context: names of the context features that the query tower reads.
      examples: what the model is trained on.
      encoder: gathers inputs from ids.
      step: one training step.
      parallel: the devices.
      arrays: the encoder's arrays, on every device.
      train_mask_N: items with a training interaction.
      corpus_mask_N: items that are ranked.
      rankable_mask_N: items that this model can score.
    """

    config: Config
    dataset: Dataset
    split: Split
    context: tuple[str, ...]
    examples: TrainExamples
    encoder: Encoder
    step: TrainStep
    parallel: Parallel
    arrays: Any
    train_mask_N: np.ndarray
    corpus_mask_N: np.ndarray
    rankable_mask_N: np.ndarray

    @property
    def model(self) -> RetrievalModel:
        """The model that the step trains."""
        return self.step.model

    @property
    def history(self) -> str:
        """What a history holds: `past` or `profile`."""
        return history_policy(self.config.examples)

    @property
    def steps_per_epoch(self) -> int:
        """Steps that see every example once."""
        return steps_per_epoch(self.examples.size, self.config.train.batch_size)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return _total_steps(self.config, self.examples.size)

    @functools.cached_property
    def scorer(self) -> Scorer:
        """Encodes queries and the corpus, and ranks."""
        chunk = self.config.loss.corpus_chunk
        return Scorer(
            self.model,
            self.encoder,
            self.dataset.items.size,
            chunk,
            self.parallel,
            self.step.objective.sharded,
        )

    @functools.cached_property
    def popularity_N(self) -> np.ndarray:
        """Training interactions of every item."""
        return _train_counts(self.dataset, self.split)[1]

    @functools.cached_property
    def _queries(self) -> dict[tuple[str, int], EvalQueries]:
        return {}

    def queries(self, part: str, history_length: int = 0) -> EvalQueries:
        """The queries of `valid` or `test`, made once, with at least this much history."""
        examples = self.config.examples
        key = part, max(history_length, examples.history_length)
        if key not in self._queries:
            self._queries[key] = make_queries(
                self.dataset,
                self.split,
                part,
                history=self.history,
                history_length=key[1],
                context=self.context,
                max_queries=self.config.eval.max_queries,
            )
        return self._queries[key]

    def serves(self, queries: EvalQueries) -> np.ndarray:
        """bool [Q]: queries that the model can answer; one that reads ids alone needs the id."""
        if any(spec.name != "user_id" for spec in self.model.query.features):
            return np.ones(queries.size, bool)
        return queries.user_in_training_Q

    def init_state(self) -> TrainState:
        """The state before the first step, on the devices."""
        state = self._compiled_init(np.uint32(self.config.seed), self.arrays)
        prefer_huge_pages(state)
        return state

    def with_seed(self, seed: int) -> "Experiment":
        """The same experiment under another seed; all that is loaded or compiled is shared.

        Raises:
          ConfigError: a seed outside its legal values.
        """
        config = self.config.copy_and_resolve_references()
        config.seed = seed
        check_config(config)
        other = dataclasses.replace(self, config=config)
        for name in _SHARED:
            vars(other)[name] = getattr(self, name)
        return other

    @functools.cached_property
    def train_step(self) -> Callable[..., Any]:
        """`step` compiled for the devices, (state, batch, arrays) -> (state, metrics)."""
        return self.parallel.compile(self.step, self.state_specs)

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the state."""
        return self.parallel.abstract(self._shapes, self.state_specs)

    @functools.cached_property
    def state_specs(self) -> Any:
        """How the state is split over the devices."""
        return self.parallel.specs(self._shapes, self.step.objective.sharded)

    @functools.cached_property
    def _shapes(self) -> TrainState:
        return jax.eval_shape(self._new_state, np.uint32(0), self.arrays)

    @functools.cached_property
    def _compiled_init(self) -> Callable[..., TrainState]:
        # The seed is an argument: as a constant it would make every seed's program another one.
        return jax.jit(self._new_state, out_shardings=self.parallel.shardings(self.state_specs))

    def _new_state(self, seed: Any, arrays: Any) -> TrainState:
        batch = self.examples.batch(np.arange(2) % self.examples.size, seed=0, epoch=0)
        with jax.numpy_dtype_promotion("standard"):
            return self.step.init(seed, batch, arrays)


# What of an experiment is made once and is the same under every seed.
_SHARED = (
    "scorer",
    "popularity_N",
    "_queries",
    "train_step",
    "abstract_state",
    "state_specs",
    "_shapes",
    "_compiled_init",
)


def make_experiment(config: Config, dataset: Dataset | None = None) -> Experiment:
    """Builds an experiment; `dataset` is loaded as the config says where it is None.

    Raises:
      ConfigError: a key outside its legal values, or keys that do not go together.
      DataError: data that is missing or wrong.
    """
    check_config(config)
    batch_size = config.train.batch_size
    mapper, data, model = (config.parallel[name] for name in ("mapper", "data", "model"))
    parallel = make_parallel(mapper, data, model or 1, batch_size)
    if dataset is None:
        dataset = load_data(config.data)
    split = make_split(
        dataset,
        config.split.name,
        valid=config.split.valid,
        test=config.split.test,
        fold_in=config.split.fold_in,
        seed=config.split.seed,
        fit=config.split.fit,
    )
    context = _context_names(dataset, config)
    examples = make_train_examples(
        dataset,
        split,
        context=context,
        negatives=draws(config.loss, "explicit"),
        **{**config.examples.to_dict(), "history": history_policy(config.examples)},
    )
    _check_profile(config, _total_steps(config, examples.size))
    count_U, count_N = _train_counts(dataset, split)
    train_mask_N = count_N > 0
    encoder = _encoder(dataset, count_U, count_N, examples, context, config)
    step = _step(config, encoder, examples, train_mask_N, parallel)
    check_tables(config, step.model.tables)
    if parallel.model != (model := model_devices(config, step.objective)):
        parallel = make_parallel(mapper, data, model, batch_size)
        step = _step(config, encoder, examples, train_mask_N, parallel)
    if config.optim.clip_norm > 0 and parallel.model > 1:
        raise ConfigError(
            "optim.clip_norm needs the norm of whole tables; set it to 0.0 or parallel.model to 1"
        )
    arrays = {
        **encoder.arrays,
        "trainable_N": train_mask_N,
        "source": _source(config.loss, examples, train_mask_N),
    }
    if config.loss.log_prior:
        arrays["log_prior_N"] = config.loss.log_prior * _log_popularity(count_N)
    return Experiment(
        config=config,
        dataset=dataset,
        split=split,
        context=context,
        examples=examples,
        encoder=encoder,
        step=step,
        parallel=parallel,
        arrays=parallel.replicate(arrays),
        train_mask_N=train_mask_N,
        corpus_mask_N=corpus_mask(dataset, config.eval.corpus, train_mask_N),
        rankable_mask_N=rankable_mask(step.model, train_mask_N),
    )


def load_data(data: Config) -> Dataset:
    """The data set that a config's group `data` names.

    Raises:
      ConfigError: an unknown name, or a setting that the named data set cannot use.
      DataError: what is wrong with the files.
    """
    return load_dataset(
        data.name,
        data.dir,
        download=data.download,
        unknown_items=data.unknown_items,
        synthetic=data.synthetic.to_dict(),
    )


def history_policy(examples: Config) -> str:
    """The policy that a config's group `examples` means; `auto` is the one its labels go with."""
    return HISTORY_OF[examples.labels] if examples.history == "auto" else examples.history


def _context_names(dataset: Dataset, config: Config) -> tuple[str, ...]:
    asked = config.model.query.features
    available = available_context(dataset, config.examples.labels)
    return tuple(n for n in available if n in asked or ("all" in asked and n in DERIVED))


def _encoder(
    dataset: Dataset,
    count_U: np.ndarray,
    count_N: np.ndarray,
    examples: TrainExamples,
    context: tuple[str, ...],
    config: Config,
) -> Encoder:
    sample = np.unique(np.linspace(0, examples.size - 1, 20_000).astype(np.int64))
    batch = examples.batch(sample, seed=0, epoch=0) if context else {}
    item = config.model.item
    shared = HEAD if item.side == "softmax" else "item_id"
    return make_encoder(
        dataset,
        np.flatnonzero(count_U),
        np.flatnonzero(count_N),
        query_features=config.model.query.features,
        item_features=item.features if item.side == "tower" else None,
        context_sample={k: v for k, v in batch.items() if k.startswith("context/")},
        history_length=config.examples.history_length,
        history_table="history" if config.model.query.history_table == "own" else shared,
    )


def _step(
    config: Config,
    encoder: Encoder,
    examples: TrainExamples,
    train_mask_N: np.ndarray,
    parallel: Parallel,
) -> TrainStep:
    num_items, loss = len(train_mask_N), config.loss
    full = loss.candidates == "full"
    objective = Objective(
        model=make_model(config.model, config.tables, encoder, num_items, full=full),
        encoder=encoder,
        loss=make_loss(
            loss.name,
            negative_weight=loss.negative_weight,
            margin=loss.margin,
            positive_scale=loss.positive_scale,
            label_smoothing=loss.label_smoothing,
        ),
        full=full,
        num_items=num_items,
        correct_logq=loss.correct_logq,
        correct_positive=loss.correct_positive,
        corpus_chunk=loss.corpus_chunk,
        model_axis=parallel.model_axis,
        model_size=parallel.model,
    )
    total = _total_steps(config, examples.size)
    return TrainStep(
        objective,
        make_optimizer(config.optim, total),
        make_row_optimizer(config.optim, total),
        log_every=config.log.every,
    )


def _check_profile(config: Config, total: int) -> None:
    start, steps = config.profile.start, config.profile.steps
    if steps and start + steps > total:
        raise ConfigError(
            f"config.profile.start={start} with config.profile.steps={steps}: the run has {total} "
            "steps, and together they must be at most that"
        )


def _source(
    loss: Config, examples: TrainExamples, train_mask_N: np.ndarray
) -> CandidateSource | None:
    if loss.candidates == "full":
        return None
    return make_source(
        loss.candidates,
        examples.label_frequency_N,
        count=loss.num_sampled,
        power=loss.unigram_power,
        mask_N=train_mask_N,
        mixed=tuple(loss.mixed),
        frequency=loss.frequency,
        frequency_rate=loss.frequency_rate,
        frequency_buckets=loss.frequency_buckets,
        explicit_weight=loss.explicit_weight,
        hard_count=loss.hard_negatives,
        hard_refresh=loss.hard_refresh,
        memory=loss.memory,
    )


def _log_popularity(count_N: np.ndarray) -> np.ndarray:
    """Log of each item's share of the training interactions; 0 for those that have none."""
    return np.log(np.where(count_N, count_N / count_N.sum(), 1.0)).astype(np.float32)


def _train_counts(dataset: Dataset, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Training interactions of every user and of every item."""
    mask_M = split.part_M == TRAIN
    return count_by_user_and_item(dataset.interactions, mask_M, dataset.items.size)


def _total_steps(config: Config, num_examples: int) -> int:
    per_epoch = steps_per_epoch(num_examples, config.train.batch_size)
    return config.train.steps or max(1, round(config.train.epochs * per_epoch))
