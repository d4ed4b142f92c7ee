"""Tables as a log shows them."""

from recjax import slices, tables

ROWS = {
    "two_tower": {"recall@10": 0.25, "mean_popularity@10": 123.456, "gini@10": float("nan")},
    "popularity": {"recall@10": 0.1, "mean_popularity@10": 400.0},
    "oracle": {"recall@10": 0.5, "mean_popularity@10": 100.0, "gini@10": 0.5},
}


def test_metrics_stand_side_by_side_with_intervals():
    table = tables.metrics_table(ROWS, intervals={"two_tower": {"recall@10": (0.24, 0.262)}})
    lines = [line.split() for line in tables.table_text(table).splitlines()]
    assert lines[0] == ["metric", "two_tower", "popularity", "oracle", "of", "oracle"]
    assert lines[2:] == [
        ["recall@10", "0.2500", "±", "0.0110", "0.1000", "0.5000", "50.0%"],
        ["mean_popularity@10", "123.5", "400.0", "100.0"],
        ["gini@10", "-", "-", "0.5000"],
    ]


def test_text_has_no_escape_codes_and_fits_a_narrow_terminal():
    intervals = {name: {"recall@10": (0.2, 0.3)} for name in ("two_tower", "popularity")}
    text = tables.table_text(tables.metrics_table(ROWS, intervals=intervals))
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_chosen_metrics_without_an_oracle():
    table = tables.metrics_table({"mf": ROWS["two_tower"]}, metrics=["recall@10"], title="test")
    lines = tables.table_text(table).splitlines()
    assert lines[0].strip() == "test" and "of oracle" not in lines[1]
    assert [line.split()[0] for line in lines[3:]] == ["recall@10"]


def test_slices_say_what_is_not_scored():
    records = {
        "users/warm": {
            "queries": 9, "targets": 12, "not_scored": 0, "status": "scored", "recall@10": 0.5,
        },
        "users/cold": {
            "queries": 3, "targets": 3, "not_scored": 3, "status": slices.NOT_SCORED,
        },
        "items/tail": {"queries": 0, "targets": 0, "not_scored": 0, "status": "empty"},
    }  # fmt: skip
    text = tables.table_text(tables.slices_table(records, ["recall@10"]))
    lines = text.splitlines()
    assert lines[2].split() == ["users/warm", "9", "12", "0.5000"]
    assert slices.NOT_SCORED in lines[3]
    assert lines[4].split() == ["items/tail", "0", "0", "-"]
