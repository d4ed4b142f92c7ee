"""What a result is measured under."""

import json

import pytest

from recjax.measure import protocol_of
from tests.runs import small_experiment


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"split__name": "leave_one_out"}, "split_hash"),
        ({"eval__corpus": "rated"}, "corpus"),
        ({"eval__seen": "train"}, "seen"),
        ({"eval__metric": "ndcg@5"}, "selection_metric"),
    ],
)
def test_what_changes_a_result_changes_its_protocol_and_the_model_does_not(changes, key):
    protocol = protocol_of(small_experiment("mf"))
    assert protocol_of(small_experiment("mf", **changes))[key] != protocol[key]
    assert protocol_of(small_experiment("softmax")) == protocol
    assert json.loads(json.dumps(protocol))["dataset"] == "synthetic"
