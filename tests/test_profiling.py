"""A trace holds whole steps, and its table says what the trace says."""

import pathlib
import re

import jax
import pytest
from jax.profiler import ProfileData

from recjax import train, train_seeds
from recjax.errors import CheckpointError, ConfigError
from recjax.profiling import StepProfiler, describe_trace, read_operations, waiting_seconds
from recjax.run import train_until
from tests.runs import small_config, stopper

pytestmark = pytest.mark.usefixtures("quick_compilation")

PROFILED = {"profile.steps": 3, "profile.start": 4}


def plane_text(name, *lines):
    """A plane of a trace, in the text form of its protocol buffer; each line a thread.

    An event is (name, start, duration) in ns: one of a program 'p', unless it is a wait.
    """
    names = sorted({event[0] for line in lines for event in line})
    ids = {each: i + 1 for i, each in enumerate(names)}
    text = [f'name: "{name}"']
    for key, value in ((1, "hlo_op"), (2, "hlo_module")):
        text.append(f'stat_metadata {{ key: {key} value {{ id: {key} name: "{value}" }} }}')
    for each, key in ids.items():
        text.append(f'event_metadata {{ key: {key} value {{ id: {key} name: "{each}" }} }}')
    for number, line in enumerate(lines):
        events = []
        for each, start, duration in line:
            stats = f'stats {{ metadata_id: 1 str_value: "{each}" }}'
            stats += ' stats { metadata_id: 2 str_value: "p" }'
            events.append(
                f"events {{ metadata_id: {ids[each]} offset_ps: {start}000 "
                f"duration_ps: {duration}000 {'' if each.startswith('wait') else stats} }}"
            )
        text.append(f'lines {{ id: {number + 1} name: "thread" {" ".join(events)} }}')
    return f"planes {{ {' '.join(text)} }}"


def trace_of(*planes):
    text = " ".join(plane_text(*plane) for plane in planes)
    return ProfileData.from_serialized_xspace(ProfileData.text_proto_to_serialized_xspace(text))


# A loop of 100 with 30 + 20 in it, of which the 20 hold 5; then 40, and 10 on another thread.
LOOP = ("while", 0, 100), ("dot", 10, 30), ("call", 50, 20), ("add", 55, 5), ("dot", 100, 40)
HOST = "/host:CPU", LOOP, (("add", 20, 10),), (("wait for a batch", 0, 7), ("wait for rain", 7, 9))


def test_an_operation_counts_without_those_within_it_on_its_thread():
    found = {(each.name, each.program): each.seconds for each in read_operations(trace_of(HOST))}
    expected = {"dot": 70, "while": 50, "call": 15, "add": 15}
    assert found == pytest.approx({(name, "p"): 1e-9 * ns for name, ns in expected.items()})
    assert [each.name for each in read_operations(trace_of(HOST))] == [
        "dot",
        "while",
        "add",
        "call",
    ]
    assert waiting_seconds(trace_of(HOST)) == pytest.approx(7e-9)


def test_what_accelerators_ran_goes_before_what_the_host_names():
    device = "/device:GPU:0", (("kernel", 0, 8), ("kernel", 10, 4))
    (only,) = read_operations(trace_of(HOST, device))
    assert (only.name, only.seconds) == ("kernel", pytest.approx(12e-9))


def test_the_table_is_of_a_step_and_sums_what_it_does_not_show():
    small = tuple((f"add.{i}", i, 1) for i in range(40))
    host = "/host:CPU", ((("dot", 100, 60)), *small), (("wait for a batch", 0, 20),)
    lines = describe_trace(trace_of(host), range(11, 13), 1e-6 * 300).splitlines()
    assert (
        lines[0]
        == "steps 11 to 12: 0.150 ms a step, of which the loop waited 0.000 ms for its batch"
    )
    assert re.fullmatch(r" dot +p +0\.000 +60\.0%", lines[5])
    assert re.fullmatch(r" 16 others +0\.000 +16\.0%", lines[-1])
    assert "names no operation" in describe_trace(trace_of(("/host:CPU",)), [1], 1.0)


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    """The workdir of a run that was profiled."""
    workdir = tmp_path_factory.mktemp("profiled")
    train(small_config("mf", **PROFILED), workdir, quiet=True)
    return workdir


def traced(workdir):
    (file,) = (workdir / "profile" / "plugins" / "profile").glob("*/*.xplane.pb")
    return ProfileData.from_file(str(file))


def test_a_run_traces_its_steps_and_no_others(profiled):
    events = [e for p in traced(profiled).planes for line in p.lines for e in line.events]
    numbers = [dict(event.stats)["step_num"] for event in events if event.name == "train"]
    assert sorted(numbers) == [4, 5, 6]
    text = (profiled / "profile" / "profile.txt").read_text()
    assert re.match(r"steps 5 to 7: \d+\.\d{3} ms a step", text)
    assert re.search(r"^ \S+ +jit_train_step +\d+\.\d{3} +\d+\.\d%$", text, re.MULTILINE)
    shares = [float(share) for share in re.findall(r"([\d.]+)%$", text, re.MULTILINE)]
    assert sum(shares) == pytest.approx(100, abs=2)


def test_a_run_that_ends_within_its_trace_leaves_the_steps_it_took(tmp_path, caplog):
    config = small_config("mf", **PROFILED)
    assert train_until(stopper(6), config, tmp_path, quiet=True) is None
    assert "steps 5 to 6:" in (tmp_path / "profile" / "profile.txt").read_text()
    assert train_until(stopper(1), config, tmp_path, quiet=True) is None  # 4 is past
    assert "Nothing is traced" not in caplog.text
    (tmp_path / "profile" / "profile.txt").unlink()
    assert train_until(stopper(1), config, tmp_path, quiet=True) is None
    assert (
        "Nothing is traced: the run goes on at step 7, past config.profile.start=4" in caplog.text
    )


def test_the_last_step_is_finished_when_the_trace_ends(tmp_path, monkeypatch):
    order = []
    state = object()
    monkeypatch.setattr(jax, "block_until_ready", lambda x: order.append(x))
    monkeypatch.setattr(jax.profiler, "start_trace", lambda *_, **__: order.append("start"))
    monkeypatch.setattr(StepProfiler, "close", lambda self: order.append("close"))
    profiler = StepProfiler(tmp_path, start=1, steps=2)
    for step in range(4):
        profiler.before(step, state)
        order.append(step)
        if profiler.after(step + 1, state):
            break
    assert order == [0, state, "start", 1, 2, state, "close"]


def test_a_folder_that_cannot_be_written_is_one_message(tmp_path):
    (tmp_path / "file").write_text("")
    profiler = StepProfiler(pathlib.Path(tmp_path / "file"), start=0, steps=1)
    profiler.before(0, ())
    with pytest.raises(CheckpointError, match="file cannot be written"):
        profiler.after(1, ())


def test_steps_that_are_not_taken_are_refused(tmp_path):
    with pytest.raises(
        ConfigError, match="start=18 with config.profile.steps=3: the run has 20 st"
    ):
        train(small_config("mf", **PROFILED | {"profile.start": 18}), tmp_path, quiet=True)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="profile.steps=3 with seeds side by side"):
        train_seeds(small_config("mf", **PROFILED), [0, 1], tmp_path, mode="vmap", quiet=True)
