"""What is known of a request beside the user and the history: computed from the past only."""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Float32, Int

from recjax.data.dataset import Categorical, Column, Dataset, Dense, Interactions
from recjax.errors import DataError

DERIVED = ("time_since_last", "hour", "day", "user_count", "last_watch_time")
WATCH_TIME = "watch_time"
_WATCHED = 5
_DAY = 86_400.0
_THURSDAY = 3.0  # 1970-01-01, where Monday is 0


def available_context(dataset: Dataset, labels: str = "next_item") -> tuple[str, ...]:
    """The context features that this data can give.

    First the derived ones, then the dense and categorical columns of the schema's context side.
    A column is read at the request itself, so a model may use it only if it is known before the
    answer (a device, say, not a rating); `watch_time`, an answer, is never among them.

    Args:
      dataset: the data.
      labels: `multi_hot` has none, because its examples have no moment.
    """
    if labels == "multi_hot" or dataset.interactions.time is None:
        return ()
    columns = dataset.interactions.columns
    derived = [n for n in DERIVED if n != "last_watch_time" or _has_watch_time(dataset)]
    return (
        *derived,
        *(f.name for f in dataset.schema.of_side("context") if _readable(f.name, columns)),
    )


def check_context(dataset: Dataset, names: Sequence[str]) -> None:
    """Raises DataError for the first name that this data cannot give, saying what would help."""
    legal = available_context(dataset)
    for name in names:
        if name in legal:
            continue
        if name in DERIVED and dataset.interactions.time is None:
            raise DataError(
                f"{dataset.name}: the context feature {name!r} needs the time of interactions, "
                "which this data does not have; name the schema's time column, or leave it out"
            )
        if name == "last_watch_time":
            raise DataError(
                f"{dataset.name}: the context feature {name!r} needs a dense context column named "
                f"{WATCH_TIME!r}, which this data does not have; add it, or leave it out"
            )
        near = difflib.get_close_matches(name, legal, n=3) or list(legal)
        raise DataError(f"{dataset.name}: no context feature {name!r}; did you mean one of {near}?")


@dataclasses.dataclass(frozen=True)
class ContextReader:
    """Computes context features of requests.

    Attributes:
      names: the features.
      time_M: float64, times of the known interactions, sorted within a user; None without names.
      watch_time_M: float32, their watch times, NaN where missing; None if not asked for.
      columns: the context columns, by rows of the interactions that requests are rows of.
    """

    names: tuple[str, ...] = ()
    time_M: np.ndarray | None = None
    watch_time_M: np.ndarray | None = None
    columns: Mapping[str, Column] = dataclasses.field(default_factory=dict)

    @classmethod
    def build(
        cls, names: Sequence[str], known: Interactions, requests: Interactions
    ) -> "ContextReader":
        """A reader whose past is `known` and whose requests are rows of `requests`."""
        watch_time = known.columns[WATCH_TIME] if "last_watch_time" in names else None
        return cls(
            names=tuple(names),
            time_M=known.time,
            watch_time_M=watch_time.values if isinstance(watch_time, Dense) else None,
            columns={n: requests.columns[n] for n in names if n not in DERIVED},
        )

    def read(
        self,
        row_B: Int[np.ndarray, "B"],
        time_B: Float[np.ndarray, "B"],
        start_B: Int[np.ndarray, "B"],
        end_B: Int[np.ndarray, "B"],
    ) -> dict[str, Float32[np.ndarray, "B"]]:
        """{`context/name`: float32 [B]} in seconds, hours, days or counts; NaN where missing.

        Args:
          row_B: rows of the requests; -1 for one that is no row.
          time_B: unix seconds of the requests; NaN where there is none.
          start_B: position of the user's first known interaction.
          end_B: one past the user's last known interaction before the request.
        """
        read = {
            "time_since_last": lambda: self._time_since_last(time_B, start_B, end_B),
            "hour": lambda: _modulo(np.floor(time_B / 3600.0), 24.0),
            "day": lambda: _modulo(np.floor(time_B / _DAY) + _THURSDAY, 7.0),
            "user_count": lambda: end_B - start_B,
            "last_watch_time": lambda: self._last_watch_time(start_B, end_B),
        }
        return {
            f"context/{name}": (
                read[name]().astype(np.float32) if name in read else _at(self.columns[name], row_B)
            )
            for name in self.names
        }

    def _time_since_last(
        self, time_B: np.ndarray, start_B: np.ndarray, end_B: np.ndarray
    ) -> np.ndarray:
        assert self.time_M is not None
        if not self.time_M.size:
            return np.full(len(time_B), np.nan)
        last_B = self.time_M.take(end_B - 1, mode="clip")
        return np.where(end_B > start_B, time_B - last_B, np.nan)

    def _last_watch_time(self, start_B: np.ndarray, end_B: np.ndarray) -> np.ndarray:
        assert self.watch_time_M is not None
        if not self.watch_time_M.size:
            return np.full(len(end_B), np.nan)
        row_Bx5 = end_B[:, None] + np.arange(-_WATCHED, 0)[None, :]
        value_Bx5 = self.watch_time_M.take(row_Bx5, mode="clip").astype(np.float64)
        there_Bx5 = (row_Bx5 >= start_B[:, None]) & ~np.isnan(value_Bx5)
        count_B = there_Bx5.sum(axis=1)
        total_B = np.where(there_Bx5, value_Bx5, 0.0).sum(axis=1)
        return np.where(count_B > 0, total_B / np.maximum(count_B, 1), np.nan)


def _modulo(values: np.ndarray, cycle: float) -> np.ndarray:
    return values - cycle * np.floor(values / cycle)


def _has_watch_time(dataset: Dataset) -> bool:
    return isinstance(dataset.interactions.columns.get(WATCH_TIME), Dense)


def _readable(name: str, columns: Mapping) -> bool:
    named_otherwise = name == WATCH_TIME or name in DERIVED
    return not named_otherwise and isinstance(columns.get(name), Dense | Categorical)


def _at(column: Column, row_B: np.ndarray) -> np.ndarray:
    """The numbers or codes of a column, float32; NaN where missing or where the row is -1."""
    assert isinstance(column, Categorical | Dense)
    values = column.codes if isinstance(column, Categorical) else column.values
    if not values.size:
        return np.full(len(row_B), np.nan, np.float32)
    value_B = values.take(row_B, mode="clip").astype(np.float32)
    missing_B = row_B < 0
    if isinstance(column, Categorical):
        missing_B = missing_B | (value_B < 0)
    return np.where(missing_B, np.float32(np.nan), value_B)
