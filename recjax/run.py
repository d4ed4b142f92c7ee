"""The library's face: load a config or a data set, train, load a run, ask it for items."""

import contextlib
import dataclasses
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import polars as pl

from recjax.checkpoint import Checkpointer
from recjax.config import Config, config_from_json
from recjax.cost import COST
from recjax.data.dataset import Dataset
from recjax.data.queries import EvalQueries, serving_queries
from recjax.errors import CheckpointError, ConfigError, DataError
from recjax.evaluate import Evaluation
from recjax.experiment import Experiment, load_data, make_experiment
from recjax.loop import restore_best, variables_of
from recjax.measure import evaluate_model, protocol_of, rank_all
from recjax.processes import check_shared, is_first
from recjax.summary import describe, report
from recjax.train import check_workdir, train_experiment
from recjax.writer import Sink

PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A trained model in its workdir, at the checkpoint with the best validation.

    Attributes:
      workdir: where the run lies.
      experiment: its data, split, model and devices.
      variables: what `experiment.model.apply` takes.
      step: the step of the checkpoint.
    """

    workdir: pathlib.Path
    experiment: Experiment = dataclasses.field(repr=False)
    variables: PyTree = dataclasses.field(repr=False)
    step: int

    @property
    def config(self) -> Config:
        """The config that the run was trained under."""
        return self.experiment.config

    @property
    def metrics(self) -> dict[str, float]:
        """The last value of every scalar in metrics.jsonl, such as `test/recall@10`."""
        latest: dict[str, float] = {}
        with open(self.workdir / "metrics.jsonl") as lines:
            for line in lines:
                latest |= json.loads(line)
        latest.pop("step", None)
        return latest

    def evaluate(self, part: str = "test", **settings: Any) -> Evaluation:
        """Ranks and measures again.

        Args:
          part: `valid` or `test`.
          **settings: in place of the config's: `ks`, `seen`, `batch_size`, `samples` (of the
            bootstrap).
        """
        return evaluate_model(self.experiment, self.variables, part, **settings)

    def recommend(
        self, user_ids: Sequence[Any] | np.ndarray, k: int = 10, *, seen: str = "known"
    ) -> pl.DataFrame:
        """The k best items for each user now, every interaction of the data known.

        Args:
          user_ids: as the data writes them.
          k: items a user.
          seen: `known` leaves out what the user interacted with; `none` does not.

        Returns:
          Columns user, rank (from 1), item, score, and title where items have one. A user whom the
          model cannot serve (matrix factorisation and an unknown user) has no rows.

        Raises:
          DataError: ids that the data does not hold.
        """
        dataset = self.experiment.dataset
        user_Q = self._users(user_ids)
        queries = self._queries(user_Q)
        served = np.flatnonzero(self.experiment.serves(queries))
        lists = rank_all(self.experiment, self.variables, queries, served, k, seen)
        item_M, score_M = lists.ids_BxK.reshape(-1), lists.scores_BxK.reshape(-1)
        there = item_M >= 0
        columns = {
            "user": np.repeat(dataset.users.ids[user_Q[served]], k)[there],
            "rank": np.tile(np.arange(1, k + 1), len(served))[there],
            "item": dataset.items.ids[item_M[there]],
            "score": score_M[there],
        }
        if dataset.titles is not None:
            columns["title"] = dataset.titles[item_M[there]]
        return pl.DataFrame(columns)

    def query_embeddings(self, user_ids: Sequence[Any] | np.ndarray | None = None) -> np.ndarray:
        """psi(x) of users now, float32 [Q, D]; of every user in the table where None."""
        users = self.experiment.dataset.users
        user_Q = np.arange(users.size) if user_ids is None else self._users(user_ids)
        queries = self._queries(user_Q)
        size = self.config.eval.batch_size
        embed = self.experiment.scorer.embed_queries
        parts = [np.zeros((0, self.config.model.dim), np.float32)]
        for start in range(0, queries.size, size):
            rows = np.arange(start, min(start + size, queries.size))
            batch = queries.batch(np.resize(rows, size))
            embedded = embed(self.variables, self.experiment.arrays, batch)
            parts.append(np.asarray(embedded)[: len(rows)])
        return np.concatenate(parts)

    def item_embeddings(self) -> np.ndarray:
        """phi(x_i) of every item in the table, float32 [N, D]."""
        scorer = self.experiment.scorer
        return np.asarray(scorer.embed_corpus(self.variables, self.experiment.arrays))

    def _users(self, user_ids: Sequence[Any] | np.ndarray) -> np.ndarray:
        dataset, ids = self.experiment.dataset, np.atleast_1d(user_ids)
        positions = dataset.users.index_of(ids)
        if (positions < 0).any():
            unknown = ids[positions < 0]
            raise DataError(
                f"{dataset.name}: {len(unknown)} of {len(ids)} user ids are not in the data, the "
                f"first {unknown[:5].tolist()}; ids are such as {dataset.users.ids[:1].tolist()}"
            )
        return positions

    def _queries(self, user_Q: np.ndarray) -> EvalQueries:
        return serving_queries(
            self.experiment.dataset,
            self.experiment.split,
            user_Q,
            history=self.experiment.history,
            history_length=self.config.examples.history_length,
            context=self.experiment.context,
        )


def train(
    config: Config,
    workdir: str | os.PathLike[str] = "",
    dataset: Dataset | None = None,
    *,
    quiet: bool = False,
    sinks: Sequence[Sink] = (),
) -> Run:
    """Trains what a config says, or goes on with what the workdir holds, and tests it.

    Args:
      config: as `load_config` returns it.
      workdir: where everything is left; a new folder in the system's temporary one where empty.
      dataset: in place of the one that `config.data` names.
      quiet: print nothing.
      sinks: that get every metric and timing too (`recjax.writer.Sink`); closed when training ends.

    Raises:
      ConfigError: a key outside its legal values, or keys that do not go together.
      DataError: data that is missing or wrong.
      CheckpointError: the workdir holds another run, or cannot be written.
      DivergenceError: the loss became NaN or infinite.
    """
    run = train_until(lambda: False, config, workdir, dataset, quiet=quiet, sinks=sinks)
    assert run is not None
    return run


def train_until(
    should_stop: Callable[[], bool],
    config: Config,
    workdir: str | os.PathLike[str] = "",
    dataset: Dataset | None = None,
    *,
    quiet: bool = False,
    sinks: Sequence[Sink] = (),
) -> Run | None:
    """As `train`, but asks `should_stop` before every step: if true, saves and returns None."""
    if workdir:
        check_workdir(config, pathlib.Path(workdir))
    check_shared(workdir)
    quiet = quiet or not is_first()
    experiment = make_experiment(config, dataset)
    path = pathlib.Path(workdir or tempfile.mkdtemp(prefix="recjax-"))

    def show(text: str) -> None:
        if not quiet:
            print(text, flush=True)

    show(describe(experiment, path))
    finished = train_experiment(experiment, path, should_stop=should_stop, quiet=quiet, sinks=sinks)
    if not finished:
        return None
    run = open_run(experiment, path)
    if is_first():  # who wrote what is read here
        show(report(experiment, path))
    return run


def is_finished(workdir: str | os.PathLike[str]) -> bool:
    """Whether the workdir holds a run that was trained to its end and tested."""
    return (pathlib.Path(workdir) / COST).exists()


def load_run(workdir: str | os.PathLike[str], dataset: Dataset | None = None) -> Run:
    """A finished (or at least validated) run, on one device.

    Args:
      workdir: where it lies.
      dataset: what it was trained on, where that was passed in and not loaded by the config.

    Raises:
      CheckpointError: no run there, no validation yet, or data that is not the run's.
    """
    path = pathlib.Path(workdir)
    config_file, protocol_file = path / "config.json", path / "protocol.json"
    for file in (config_file, protocol_file):
        if not file.exists():
            raise CheckpointError(f"{path} holds no run: there is no {file}")
    config: Config = config_from_json(config_file.read_text(), str(config_file))
    config.parallel.mapper, config.parallel.data, config.parallel.model = "shard_map", 1, 1
    known = json.loads(protocol_file.read_text())
    name = f"{known['dataset']!r}, hash {known['dataset_hash']}"
    if dataset is None:
        try:
            dataset = load_data(config.data)
        except (ConfigError, DataError) as error:
            raise CheckpointError(
                f"{path}: its data ({name}) cannot be loaded as its config says ({error}); pass "
                "the data that it was trained on as dataset="
            ) from error
    if dataset.hash != known["dataset_hash"]:
        raise CheckpointError(
            f"{path} was trained on other data ({name}) than this ({dataset.name!r}, hash "
            f"{dataset.hash}); pass the data that it was trained on as dataset="
        )
    experiment = make_experiment(config, dataset)
    if protocol_of(experiment)["split_hash"] != known["split_hash"]:
        raise CheckpointError(f"{path}: its config no longer gives the split in {protocol_file}")
    return open_run(experiment, path)


def open_run(experiment: Experiment, workdir: pathlib.Path) -> Run:
    """The run that an experiment left in a workdir, at its best checkpoint."""
    checkpointer = Checkpointer(workdir / "checkpoints", read_only=True)
    with contextlib.closing(checkpointer):
        step, state = restore_best(experiment, checkpointer)
    return Run(workdir, experiment, variables_of(state), step)
