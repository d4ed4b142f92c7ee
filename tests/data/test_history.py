import numpy as np

from recjax.data.history import Histories, distinct_rows, drop_items


def test_a_history_is_the_latest_of_its_own_range():
    histories = Histories.build(np.arange(10, 16, dtype=np.int32), 3)
    got = histories.before(np.array([0, 0, 1, 4, 2]), np.array([0, 2, 5, 6, 6]))
    np.testing.assert_array_equal(
        got, [[-1, -1, -1], [-1, 10, 11], [12, 13, 14], [-1, 14, 15], [13, 14, 15]]
    )


def test_fewer_items_than_a_history_is_long_are_no_obstacle():
    histories = Histories.build(np.arange(2, dtype=np.int32), 4)
    got = histories.before(np.array([0, 0, 1]), np.array([0, 2, 2]))
    np.testing.assert_array_equal(got, [[-1] * 4, [-1, -1, 0, 1], [-1, -1, -1, 1]])
    nothing = Histories.build(np.zeros(0, np.int32), 2)
    np.testing.assert_array_equal(nothing.before(np.array([0]), np.array([0])), [[-1, -1]])


def test_reading_a_history_does_not_write_to_the_items():
    item = np.arange(5, dtype=np.int32)
    histories = Histories.build(item, 4)
    histories.before(np.array([3]), np.array([4]))
    np.testing.assert_array_equal(histories.before(np.array([0]), np.array([4])), [[0, 1, 2, 3]])
    np.testing.assert_array_equal(item, np.arange(5))


def test_dropped_items_leave_no_gap():
    history = np.array([[-1, 1, 2, 3], [4, 5, 6, 7]], np.int32)
    uniform = np.array([[0.9, 0.9, 0.1, 0.9], [0.1, 0.1, 0.1, 0.1]])
    np.testing.assert_array_equal(
        drop_items(history, uniform, 0.5), [[-1, -1, 1, 3], [-1, -1, -1, -1]]
    )


def test_one_row_of_each_pair_is_kept():
    user, item = np.array([0, 0, 0, 1, 1]), np.array([2, 3, 2, 2, 2])
    first = distinct_rows(user, item, keep="first")
    last = distinct_rows(user, item, keep="last")
    np.testing.assert_array_equal(first, [True, True, False, True, False])
    np.testing.assert_array_equal(last, [False, True, True, False, True])
