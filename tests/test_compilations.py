"""A program is compiled once: no later step, save, validation or resume compiles it again."""

import collections

import jax
import pytest

from recjax.data.queries import EvalQueries
from recjax.experiment import make_experiment
from recjax.measure import evaluate_model
from recjax.train import train_experiment
from tests.runs import small_config, stopper
from tests.tiny import variables_of

pytestmark = pytest.mark.usefixtures("quick_compilation")

COMPILED = "/jax/core/compile/backend_compile_duration"  # read from a cache on disk or not
# 6 steps an epoch, the last batch of each filled up.
SETTINGS = {"train.batch_size": 160, "log.tensorboard": False}
# By devices: changes of the config, and what JAX calls the programs that train and rank.
DEVICES = {
    "one device": ({}, ("train_step", "embed", "rank")),
    "a mesh": ({"parallel.data": 2, "parallel.model": 2}, ("train_step", "_embed", "_rank")),
    "pmap": ({"parallel.data": 2, "parallel.mapper": "pmap"}, ("_fun", "_embed", "_rank")),
}


@pytest.fixture
def compiled():
    """The names of the programs that are compiled in a test, as they are."""
    names = []

    def note(event, seconds, **about):
        if event == COMPILED:
            names.append(str(about["fun_name"]).partition("(")[2].rstrip(")"))

    jax.monitoring.register_event_duration_secs_listener(note)
    yield names
    jax.monitoring.unregister_event_duration_listener(note)


def noting_steps(compiled, steps, found):
    """A `should_stop` after so many steps, that moves to `found` what each step compiled."""
    stop = stopper(steps)

    def on_step():
        found.append(tuple(compiled))
        compiled.clear()
        return stop()

    return on_step


def test_each_shape_and_static_argument_counts(compiled):
    double = jax.jit(lambda x, n: n * x, static_argnames="n")
    for n, shape in ((2, 3), (2, 3), (2, 4), (3, 4), (3, 4)):
        double(jax.numpy.ones(shape), n=n)
    assert compiled.count("<lambda>") == 3


@pytest.mark.parametrize("devices", DEVICES)
def test_training_compiles_nothing_twice(tmp_path, compiled, devices):
    changes, programs = DEVICES[devices]
    experiment = make_experiment(small_config("mf", **SETTINGS, **changes))
    assert experiment.steps_per_epoch == 6 and experiment.examples.size % 160
    first, second = [], []
    compiled.clear()
    assert not train_experiment(
        experiment, tmp_path, should_stop=noting_steps(compiled, 8, first), quiet=True
    )
    # Before step 1, in it, and in what the first save (3) and the first validation (7) need.
    assert [i for i, names in enumerate(first) if names] in ([0, 1, 3, 7], [0, 1, 7])
    counts = collections.Counter(name for names in first for name in names)
    assert [counts[program] for program in ("_new_state", *programs)] == [1, 1, 1, 1]
    # Step 9 to 20: three more epochs, two more validations, and saves.
    assert train_experiment(
        experiment, tmp_path, should_stop=noting_steps(compiled, 20, second), quiet=True
    )
    assert len(second) == 12
    assert not any(second)
    assert not {"_new_state", "_all_finite", *programs} & set(compiled)  # nor testing


def test_evaluation_compiles_once_for_each_width_of_what_was_seen(compiled, monkeypatch):
    experiment = make_experiment(small_config("mf", **SETTINGS))
    variables = variables_of(experiment.init_state())
    widths, seen = [], EvalQueries.seen

    def noting(self, rows, policy):
        found = seen(self, rows, policy)
        widths.append(found.shape[1])
        return found

    monkeypatch.setattr(EvalQueries, "seen", noting)
    compiled.clear()
    for part, policy in (("valid", "known"), ("test", "none"), ("test", "known")) * 2:
        evaluate_model(experiment, variables, part, seen=policy, samples=0)
    assert len(widths) == 12 and len(set(widths)) == 2
    assert compiled.count("rank") == 2
    assert compiled.count("embed") == 1
