"""What a sweep file asks for, each mistake one message that names the arm."""

import shlex
from pathlib import Path

import pytest

from recjax.config import load_config
from recjax.errors import ConfigError
from recjax.flags import split_overrides
from recjax.sweeps.trials import load_sweep
from tests.sweeps.files import HEAD, write_arms, write_sweep

DIMS = "for dim in (8, 16):\n    add(f'd = {dim}', **{'model.dim': dim})"


def config_of(line):
    """The config that `recjax.main` would build from a command line."""
    python, m, main, *words = shlex.split(line)
    assert (python, m, main) == ("python", "-m", "recjax.main")
    overrides, rest = split_overrides(words)
    given = dict(word.removeprefix("--").split("=", 1) for word in rest)
    return load_config(given["config"], **overrides), given


def test_a_trial_is_an_arm_with_a_seed(tmp_path):
    sweep = load_sweep(write_sweep(tmp_path, DIMS), **{"optim.learning_rate": 1})
    assert (sweep.title, sweep.about) == ("What does it do?", "And why.")
    found = [(trial.arm, trial.seed, trial.overrides) for trial in sweep.trials]
    arms = [("d = 8", {"model.dim": 8}), ("d = 16", {"model.dim": 16})]
    assert found == [(name, seed, overrides) for seed in (0, 1, 2) for name, overrides in arms]
    trial = sweep.trials[3]
    assert trial.name.startswith("d-16-seed1-")
    assert (trial.config.seed, trial.config.model.dim) == (1, 16)
    assert trial.config.optim.learning_rate == 1.0


def test_the_command_of_a_trial_builds_its_config_exactly(tmp_path):
    body = """
add("it's odd: $HOME; (a, b)", **{
    "model.query.hidden": [], "model.query.output": "none", "optim.learning_rate": 1e-7,
    "eval.ks": (10,), "data.dir": "a 'b' = c ", "model.item.bias": True,
})
add("as it is")
"""
    sweep = load_sweep(write_sweep(tmp_path, body) + ":synthetic", seeds=[7], smoke=True)
    for trial in sweep.trials:
        config, given = config_of(trial.command("a dir", "cpu"))
        assert config == trial.config
        assert given["workdir"] == f"a dir/{trial.name}"
        assert given["accelerator"] == "cpu"


def test_the_name_is_that_of_the_whole_config(tmp_path):
    path = write_sweep(tmp_path, DIMS)
    names = [trial.name for trial in load_sweep(path).trials]
    assert len(set(names)) == 6
    assert [trial.name for trial in load_sweep(path).trials] == names
    other = [trial.name for trial in load_sweep(path, **{"eval.bootstrap": 999}).trials]
    assert not set(names) & set(other)


def test_seeds_are_those_of_the_user_or_else_of_the_arm(tmp_path):
    path = write_sweep(tmp_path, "add('a', seeds=(5,))\nadd('b', **{'model.dim': 9})")
    found = [(trial.arm, trial.seed) for trial in load_sweep(path).trials]
    assert found == [("a", 5), ("b", 0), ("b", 1), ("b", 2)]
    assert [trial.seed for trial in load_sweep(path, seeds=range(2)).trials] == [0, 0, 1, 1]
    assert [trial.seed for trial in load_sweep(path, smoke=True).trials] == [5, 0]


def test_a_sweep_knows_the_flags_that_ask_for_it(tmp_path):
    path = write_sweep(tmp_path, "add('a')")
    assert load_sweep(path).words == (f"--sweep={path}",)
    asked = load_sweep(path, seeds=(4, 2), smoke=True, **{"model.dim": 9, "data.dir": "a b"})
    words = ("--config.model.dim=9", "--config.data.dir=a b", "--seeds=4,2", "--smoke")
    assert asked.words == (f"--sweep={path}", *words)


def test_smoke_mode_is_as_small_as_the_user_and_the_arm_allow(tmp_path):
    body = "add('a')\nadd('b', **{'train.batch_size': 64, 'train.steps': 3})"
    sweep = load_sweep(write_sweep(tmp_path, body), smoke=True, **{"eval.bootstrap": 7})
    a, b = (trial.config for trial in sweep.trials)
    assert (a.train.steps, a.train.batch_size, a.data.synthetic.users) == (2, 32, 120)
    assert (b.train.steps, b.train.batch_size, b.eval.bootstrap) == (3, 64, 7)
    assert not a.log.tensorboard


def test_a_sweep_imports_the_project_it_lies_in_or_runs_in(tmp_path, monkeypatch):
    project = tmp_path / "project"
    folder = project / "experiments" / "ablations"
    folder.mkdir(parents=True)
    (project / "configs").mkdir()
    source = (Path(__file__).parents[2] / "configs" / "two_tower.py").read_text()
    (project / "configs" / "mf.py").write_text(source.replace("c.seed = 0", "c.seed = 12345"))
    write_arms(folder, "a")
    (folder / "own2.py").write_text(
        "from experiments.ablations import own\nget_config, sweep = own.get_config, own.sweep\n"
    )
    for file in ("own.py", "own2.py"):
        (arm,) = load_sweep(str(folder / file)).arms
        assert arm.config.seed == 12345
    moved = tmp_path / "elsewhere" / "own.py"
    moved.parent.mkdir()
    (folder / "own.py").rename(moved)
    monkeypatch.chdir(project)
    assert load_sweep(str(moved)).arms[0].config.seed == 12345


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("pass", "adds no arm"),
        ("add('a')\nadd('a', **{'model.dim': 8})", "two arms are named 'a'"),
        ("add('a')\nadd('b', **{'model.dim': 64})", "arms 'a' and 'b' have the same config"),
        ("add('a', **{'model.dmi': 8})", "arm 'a': unknown config key 'model.dmi'.*'model.dim'"),
        ("add('a', **{'model.dim': 8.5})", "arm 'a': config key 'model.dim' must be int"),
        ("add('a', **{'loss.candidates': 'al'})", "arm 'a': config.loss.candidates='al'"),
        ("add('a', **{'seed': 1})", "arm 'a': it sets seed, .*seeds="),
        ("add('a', **{'optim.eps': 1e-3})", "arm 'a': it sets optim.eps itself, so --config"),
        ("add('a', seeds=(1, 1))", r"arm 'a': seeds=\(1, 1\): a seed stands there twice"),
        ("add('a', seeds=(-1,))", "arm 'a': .*expected whole numbers from 0"),
        ("add('a', seeds=())", "arm 'a': .*expected whole numbers from 0"),
        ("add('')", "the name of an arm is a text, not ''"),
        ("raise ValueError('not so')", "own.py: not so"),
    ],
)
def test_a_wrong_arm_is_one_message(tmp_path, body, message):
    path = write_sweep(tmp_path, body)
    with pytest.raises(ConfigError, match=message):
        load_sweep(path, **{"optim.eps": 1e-7})


def test_the_users_seed_key_and_a_file_without_arms_are_refused(tmp_path):
    path = write_sweep(tmp_path, "add('a')")
    with pytest.raises(ConfigError, match="config.seed differs from trial to trial: set --seeds"):
        load_sweep(path, seed=3)
    for key in ("model.dmi", "path"):
        with pytest.raises(ConfigError, match=f"unknown config key '{key}'"):
            load_sweep(path, **{key: 3})
    (tmp_path / "none.py").write_text(HEAD)
    with pytest.raises(ConfigError, match=r"none.py has no function sweep\(add\)"):
        load_sweep(str(tmp_path / "none.py"))


def test_arms_may_depend_on_the_config_that_they_change(tmp_path):
    body = 'add("twice", **{"model.dim": 2 * config.model.dim})\nconfig.model.dim = 1'
    path = Path(write_sweep(tmp_path, body))
    path.write_text(path.read_text().replace("def sweep(add)", "def sweep(add, config)"))
    (arm,) = load_sweep(str(path), **{"model.temperature": 2.0}).arms
    assert (arm.config.model.dim, arm.config.model.temperature) == (128, 2.0)
