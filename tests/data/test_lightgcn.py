import numpy as np
import pytest

from recjax.data.lightgcn import load_lightgcn
from recjax.data.split import TEST, TRAIN, VALID
from recjax.errors import DataError
from tests.real_data import real_data


def write(directory, **files):
    for name, text in files.items():
        (directory / f"{name}.txt").write_text(text)
    return directory


def pairs(data, part):
    rows = data.interactions
    mask = rows.part == part
    users, items = data.users.ids[rows.user[mask]], data.items.ids[rows.item[mask]]
    return sorted(zip(users.tolist(), items.tolist(), strict=True))


def test_parts_are_those_of_the_files(tmp_path):
    write(tmp_path, train="0 1 2 3\n2 3\n1\n", test="0 4\n1 2\n", valid="0 2\n")
    data = load_lightgcn("tiny", tmp_path)
    assert pairs(data, TRAIN) == [(0, 1), (0, 3), (2, 3)]
    assert pairs(data, VALID) == [(0, 2)]
    assert pairs(data, TEST) == [(0, 4), (1, 2)]
    assert data.interactions.time is None
    assert data.interactions.offsets.tolist() == [0, 4, 5, 6]


def test_a_user_without_items_keeps_its_row(tmp_path):
    data = load_lightgcn("tiny", write(tmp_path, train="0 5\n7\n", test="0 6\n7\n"))
    assert data.users.ids.tolist() == [0, 7]
    assert np.diff(data.interactions.offsets).tolist() == [2, 0]


def test_a_valid_file_apart_from_train_is_added(tmp_path):
    data = load_lightgcn("tiny", write(tmp_path, train="0 1\n", valid="0 2\n", test="0 3\n"))
    assert (pairs(data, TRAIN), pairs(data, VALID)) == ([(0, 1)], [(0, 2)])


def test_spaces_at_line_ends_and_blank_lines_do_not_matter(tmp_path):
    data = load_lightgcn("tiny", write(tmp_path, train="0 1  2 \r\n\n1 2\r\n", test="0 3\n"))
    assert pairs(data, TRAIN) == [(0, 1), (0, 2), (1, 2)]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train": "0 1\n"}, r"test\.txt: no such file.*holds \['train\.txt'\]"),
        ({"train": "0 1\n1 x\n", "test": "0 2\n"}, r"train\.txt, line 2: 'x' is no id"),
        ({"train": "0 1\n\n1 -4\n", "test": "0 2\n"}, r"train\.txt, line 3: '-4' is no id"),
        ({"train": "0,1,2\n", "test": "0 2\n"}, r"train\.txt, line 1: '0,1,2' is no id.*spaces"),
        ({"train": "", "test": ""}, r"train\.txt: no interactions"),
        ({"train": "0 1\n", "test": "0 1 2\n"}, r"test\.txt: 1 of its 2 pairs are also in train"),
        (
            {"train": "0 1\n", "test": "0 2\n", "valid": "0 1 3\n"},
            r"valid\.txt: 1 of its 2 pairs are not in train\.txt",
        ),
    ],
)
def test_bad_files_are_named(tmp_path, files, message):
    with pytest.raises(DataError, match=message):
        load_lightgcn("tiny", write(tmp_path, **files))


def test_real_gowalla():
    data = load_lightgcn("gowalla", real_data("gowalla"))
    assert (data.users.size, data.items.size) == (29_858, 40_981)
    counts = np.bincount(data.interactions.part)
    assert counts[[TRAIN, VALID, TEST]].tolist() == [810_128 - 91_047, 91_047, 217_242]
