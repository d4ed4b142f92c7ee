"""What one process compiles the next one reads, where it may, and a bad folder stops no run."""

import os
import pathlib
import platform
import re
import subprocess
import sys

import jax
import pytest

from recjax import compilation_cache
from recjax.compilation_cache import keep_compiled_programs, machine_kind
from tests.runs import ROOT, assert_same_run, flags_of, never_stopped, start_main

# Prints how many programs were read, and how many are kept.
PROGRAM = """
import sys
import jax
from recjax.compilation_cache import keep_compiled_programs

read = []
jax.monitoring.register_event_listener(lambda event, **_: read.append(event))
folder = keep_compiled_programs(*sys.argv[1:])
assert jax.jit(lambda x: 2 * x + 1)(20.5) == 42
kept = list(folder.glob("*-cache")) if folder else []
print(read.count("/jax/compilation_cache/cache_hits"), len(kept))
"""


@pytest.fixture
def no_variable(monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")


def run_program(*words, **variables):
    """What a new process prints: programs read, programs kept."""
    environment = {**os.environ, **variables}
    words = [sys.executable, "-c", PROGRAM, *words]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    if "cpu_aot_loader" in done.stderr:
        pytest.skip("JAX cannot read programs back on this processor: its issue 38445")
    return tuple(map(int, done.stdout.split()))


def test_the_next_process_reads_what_the_first_left_in_the_users_cache(tmp_path, no_variable):
    read, kept = run_program(XDG_CACHE_HOME=str(tmp_path))
    assert read == 0 < kept
    default = tmp_path / "recjax" / "compiled"
    assert run_program(str(default)) == (kept, kept)
    (folder,) = default.iterdir()
    assert folder.name.startswith(f"{platform.machine()}-jax{jax.__version__}-cpu-")


def test_nothing_is_changed_where_the_variable_is_set(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    assert before and keep_compiled_programs(str(tmp_path)) is None
    assert jax.config.jax_compilation_cache_dir == before
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_is_none_whatever_the_variable_says():
    before = jax.config.jax_compilation_cache_dir
    try:
        assert keep_compiled_programs("") is None
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_a_folder_that_cannot_be_written_is_one_warning(tmp_path, no_variable, caplog):
    (tmp_path / "file").write_text("")
    before = jax.config.jax_compilation_cache_dir
    assert keep_compiled_programs(str(tmp_path / "file")) is None
    assert jax.config.jax_compilation_cache_dir == before
    (record,) = caplog.records
    assert re.search("file/.* cannot be written .*: programs are compiled anew", record.message)


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [
        (compilation_cache, "_processor", lambda: "another model"),
        (compilation_cache, "describe_devices", lambda: "1 x TPU v9 (tpu)"),
        (os, "sched_getaffinity", lambda pid: range(1000)),
        (jax, "__version__", "99"),
    ],
)
def test_another_kind_of_machine_has_another_folder(monkeypatch, where, name, value):
    before = machine_kind()
    monkeypatch.setattr(where, name, value, raising=False)
    assert machine_kind() != before


def test_the_processor_is_named_by_what_code_depends_on():
    if not pathlib.Path("/proc/cpuinfo").exists():
        pytest.skip("another system than Linux")
    named = compilation_cache._processor()
    assert re.search("^(flags|Features):.", named, re.MULTILINE)
    assert "MHz" not in named and "processor" not in named


def test_what_was_read_longest_ago_goes_first(tmp_path):
    folder = tmp_path / "x86_64-jax1-cpu-0"
    folder.mkdir()
    for age, name in enumerate(("new-cache", "middle-cache", "old-cache", "other")):
        (folder / name).write_bytes(b"x" * 100)
        os.utime(folder / name, (1e9 - age, 0))
    compilation_cache._prune(tmp_path, 200)
    assert {file.name for file in folder.iterdir()} == {"new-cache", "middle-cache", "other"}


@pytest.mark.slow
def test_the_command_gives_the_same_result_from_what_it_compiled_before(tmp_path, no_variable):
    kept = []
    for number in range(2):
        workdir = tmp_path / str(number)
        words = [*flags_of("mf", workdir), f"--compilation_cache={tmp_path / 'cache'}"]
        process = start_main(*words)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0
        assert "cannot be written" not in errors
        assert_same_run(workdir, never_stopped("mf"))
        kept.append({file.name for file in (tmp_path / "cache").glob("*/*-cache")})
    assert kept[0] == kept[1] and any("train_step" in name for name in kept[0])
