"""The command: its words, its messages and exit codes, and signals."""

import re
import signal
import subprocess
import sys
import time

import pytest

from recjax.run import train_until
from tests.runs import (
    ROOT,
    assert_same_run,
    flags_of,
    lines_of,
    main_on_a_full_disk,
    never_stopped,
    slow_main,
    small_config,
    start,
    start_main,
    stopper,
)

MF = "--config=configs/mf.py"
WRONG = {
    "an unknown key": (
        [MF, "--config.model.dmi=3"],
        "unknown config key 'model.dmi': did you mean 'model.dim'",
    ),
    "no data": ([f"{MF}:table", "--config.data.dir=/no/such"], "/no/such"),
    "no such platform": ([MF, "--accelerator=gpu"], "--accelerator=gpu: .*pip install .*gpu"),
    "devices that do not divide": (
        [MF, "--config.train.batch_size=100"],
        "batch_size=100 is not divisible by the 8 devices .*: 96",
    ),
    "a word that is no option": ([MF, "steps=3"], "what is 'steps=3'"),
}


@pytest.fixture(scope="module")
def refused():
    """What the command said to each of WRONG, all of them run side by side."""
    processes = {what: start_main(*words) for what, (words, _) in WRONG.items()}
    said = {what: process.communicate(timeout=240) for what, process in processes.items()}
    return {what: (processes[what].returncode, *said[what]) for what in WRONG}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_one_message_and_exit_code_2(refused, what):
    code, out, errors = refused[what]
    assert (code, out) == (2, "")
    assert re.fullmatch(f"error: .*{WRONG[what][1]}.*\n", errors)


def test_a_diverging_run_is_one_message_and_exit_code_3(tmp_path):
    changes = {"optim.name": "sgd", "optim.learning_rate": 1e30, "eval.every": 20}
    process = start_main(*flags_of("mf", tmp_path, **changes))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 3
    assert re.fullmatch("error: the loss became NaN or infinite at step 2; .* Try .*\n", errors)


def test_a_signal_saves_and_exits_0_and_the_same_command_goes_on_to_the_same_end(tmp_path):
    words = flags_of("mf", tmp_path)
    process = start(slow_main, 0.2, words=words)
    while process.poll() is None and not (tmp_path / "metrics.jsonl").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")
    stopped = re.search(r"stopped after step (\d+); the same command goes on there\n$", out)
    assert stopped and 4 <= int(stopped[1]) < 20
    process = start_main(*words)
    out, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")
    assert f"resumed at step {stopped[1]} of 20\n" in out
    assert_same_run(tmp_path, never_stopped("mf"))
    assert_is_a_readable_log(out)


def assert_is_a_readable_log(out):
    assert "\x1b" not in out and "\r" not in out
    for line in (
        r"data        synthetic: 120 users, 60 items, [\d,]+ interactions",
        r"query side  user_id; hidden no, as it is",
        r"step 14: valid/recall@10 0\.\d{4}( \(best so far\))?",
        r"step 20 of 20, loss \d\.\d{4}, [\d,]+ examples/s, 0:00:00 left",
        r" metric +model +popularity +random +oracle +of oracle",
        r" recall@10 +0\.\d{4} ± 0\.\d{4} .*%",
        r"users/cold: not scored by this model \(\d+\)",
        r"Everything lies in .*",
    ):
        assert re.search(f"^{line}$", out, re.MULTILINE), line


@pytest.mark.slow
def test_a_full_disk_is_one_message_and_the_checkpoint_before_is_intact(tmp_path):
    wide = {"model.dim": 256, "checkpoint.every": 2, "eval.every": 20}
    assert train_until(stopper(3), small_config("mf", **wide), tmp_path, quiet=True) is None
    process = start(main_on_a_full_disk, 50_000, words=flags_of("mf", tmp_path, **wide))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    failed = f"error: the checkpoint of step 4 could not be written in {tmp_path}.*: File too large"
    assert re.fullmatch(f"{failed}; {tmp_path}.*/3 is intact: .*\n", errors)
    stopped = train_until(stopper(2), small_config("mf", **wide), tmp_path, quiet=True)
    assert stopped is None
    assert lines_of(tmp_path)[-1]["step"] == 4


def test_importing_it_starts_no_backend():
    code = (
        "import recjax.main, jax\n"
        "jax.config.update('jax_platforms', 'no_such_platform')\n"
        "try: jax.devices()\n"
        "except RuntimeError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "no_such_platform" in done.stdout


def test_the_library_installs_no_signal_handler(tmp_path):
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    never_stopped("mf")
    assert [signal.getsignal(number) for number in numbers] == before
