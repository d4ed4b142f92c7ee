import numpy as np
import pytest

from recjax.data.context import available_context, check_context
from recjax.data.examples import make_train_examples
from recjax.errors import DataError
from tests.data.small import dataset_of, split_of

HOUR, DAY = 3600.0, 86400.0
NAN = float("nan")


def test_context_features_equal_a_table_computed_by_hand():
    # User 0 from Thursday 1970-01-01 00:30 UTC on; user 1 on Monday 1970-01-05 23:59:59 UTC.
    rows = [
        # user, time, watch, device -> since last, hour, day, count, last watch, device
        (0, 0.5 * HOUR, 10.0, 0, NAN, 0, 3, 0, NAN, 0),
        (0, 0.5 * HOUR, NAN, 1, 0.0, 0, 3, 1, 10.0, 1),
        (0, 2.0 * HOUR, 20.0, -1, 1.5 * HOUR, 2, 3, 2, 10.0, NAN),
        (0, 1.0 * DAY, 30.0, 0, 22.0 * HOUR, 0, 4, 3, 15.0, 0),
        (0, 3.0 * DAY, 60.0, 0, 2.0 * DAY, 0, 6, 4, 20.0, 0),
        (0, 3.5 * DAY, 50.0, 0, 0.5 * DAY, 12, 6, 5, 30.0, 0),
        (0, 4.0 * DAY, 99.0, 1, 0.5 * DAY, 0, 0, 6, 40.0, 1),
        (1, 5.0 * DAY - 1.0, NAN, 0, NAN, 23, 0, 0, NAN, 0),
        (1, 5.0 * DAY, 5.0, 0, 1.0, 0, 1, 1, NAN, 0),
    ]
    table = np.array(rows)
    user = table[:, 0].astype(int)
    data = dataset_of(user, np.arange(len(rows)), table[:, 1], table[:, 2], table[:, 3].astype(int))
    names = available_context(data)
    assert names == (
        "time_since_last",
        "hour",
        "day",
        "user_count",
        "last_watch_time",
        "device",
    )
    examples = make_train_examples(
        data,
        split_of(np.zeros(len(rows))),
        labels="next_item",
        history="past",
        history_length=2,
        context=names,
        min_history=0,
    )
    batch = examples.batch(np.arange(len(rows)), seed=0, epoch=0)
    for name, expected in zip(names, table[:, 4:].T, strict=True):
        assert batch[f"context/{name}"].dtype == np.float32
        np.testing.assert_allclose(batch[f"context/{name}"], expected, err_msg=name, rtol=1e-6)


def test_what_the_data_cannot_give_is_not_available_and_refused_by_name():
    timeless = dataset_of([0, 0], [0, 1], device=[0, 1])
    assert available_context(timeless) == ()
    with pytest.raises(DataError, match="'hour' needs the time of interactions"):
        check_context(timeless, ["hour"])
    unwatched = dataset_of([0, 0], [0, 1], [1.0, 2.0])
    assert "last_watch_time" not in available_context(unwatched)
    with pytest.raises(
        DataError, match="'last_watch_time' needs a dense context column named 'watch_"
    ):
        check_context(unwatched, ["last_watch_time"])
    with pytest.raises(DataError, match="'hours'; did you mean one of \\['hour'"):
        check_context(unwatched, ["hours"])


def test_the_watch_time_of_the_label_itself_is_refused():
    watched = dataset_of([0, 0], [0, 1], [1.0, 2.0], [3.0, 4.0])
    assert "watch_time" not in available_context(watched)
    with pytest.raises(DataError, match="no context feature 'watch_time'"):
        check_context(watched, ["watch_time"])


def test_multi_hot_labels_have_no_context():
    assert available_context(dataset_of([0, 0], [0, 1], [1.0, 2.0]), "multi_hot") == ()
