"""The shape of the house: imports run downward, and only parallel.py knows of devices."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "recjax").rglob("*.py"))

# From the top down. A module may import what stands below it or beside it; a folder stands for
# all its modules, and the package for its __init__.
LAYERS = (
    {"recjax.main", "recjax.sweep", "recjax.report", "recjax.prepare"},
    {"recjax"},
    {"recjax.sweeps", "recjax.reports", "recjax.seeds"},
    {"recjax.run"},
    {"recjax.loop", "recjax.summary", "recjax.train"},
    {"recjax.cost", "recjax.measure", "recjax.profiling", "recjax.projector"},
    {"recjax.experiment"},
    {"recjax.step", "recjax.evaluate", "recjax.scoring", "recjax.diagnostics", "recjax.checks"},
    {"recjax.scoring_sharded", "recjax.layout", "recjax.ranking"},
    {"recjax.objective"},
    {"recjax.corpus"},
    {"recjax.models", "recjax.losses", "recjax.optim", "recjax.baselines", "recjax.tables"},
    {
        "recjax.data",
        "recjax.ops",
        "recjax.candidates",
        "recjax.distributions",
        "recjax.frequency",
        "recjax.checkpoint",
        "recjax.collectives",
        "recjax.compilation_cache",
        "recjax.config",
        "recjax.embedding",
        "recjax.extras",
        "recjax.files",
        "recjax.flags",
        "recjax.hashing",
        "recjax.hparams",
        "recjax.metrics",
        "recjax.parallel",
        "recjax.processes",
        "recjax.progress",
        "recjax.rounding",
        "recjax.signals",
        "recjax.slices",
        "recjax.source",
        "recjax.writer",
    },
    {"recjax.errors", "recjax.allocator"},
)
# Dataset.from_frames, for whoever holds a Dataset, calls what builds one.
UPWARD = {("recjax.data.dataset", "recjax.data.table")}
DEVICE_NAMES = {
    "Mesh",
    "NamedSharding",
    "SingleDeviceSharding",
    "device_count",
    "devices",
    "local_device_count",
    "local_devices",
    "make_mesh",
    "pmap",
    "set_mesh",
    "shard_map",
}


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in FILES}


def imports_of(path):
    """The dotted names that a file imports, but for those that only annotations need."""
    found = set()
    pending = [ast.parse(path.read_text())]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        pending.extend(ast.iter_child_nodes(node))
    return found


def dependencies(path):
    """The modules of recjax that a file imports."""
    names = {name for name in imports_of(path) if name.partition(".")[0] == "recjax"}
    return {name if name in MODULES else name.rpartition(".")[0] for name in names} & MODULES


GRAPH = {module_of(path): dependencies(path) for path in FILES}


def layer_of(module):
    for depth, layer in enumerate(LAYERS):
        if module in layer or any(module.startswith(f"{name}.") for name in layer - {"recjax"}):
            return depth
    raise AssertionError(f"{module} has no place in LAYERS of tests/test_architecture.py")


@pytest.mark.parametrize("module", sorted(GRAPH))
def test_a_module_imports_nothing_above_it(module):
    above = [name for name in GRAPH[module] if layer_of(name) < layer_of(module)]
    assert not above


def test_imports_have_no_circle():
    assert GRAPH["recjax.checkpoint"] == {"recjax.errors", "recjax.processes"}
    graph = {
        module: {name for name in names if (module, name) not in UPWARD}
        for module, names in GRAPH.items()
    }
    assert list(graphlib.TopologicalSorter(graph).static_order())


def test_configs_import_nothing_from_recjax():
    configs = sorted((ROOT / "configs").glob("*.py"))
    assert configs
    for path in configs:
        assert not dependencies(path), path


def names_of_jax(path):
    """The last word of every name of jax that a file uses: `jax.sharding.Mesh` is Mesh."""
    used = {name for name in imports_of(path) if name.partition(".")[0] == "jax"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("jax."):
            used.add(ast.unparse(node))
    return {name.rpartition(".")[2] for name in used}


def test_only_parallel_names_devices_meshes_and_mappers():
    parallel = ROOT / "recjax" / "parallel.py"
    assert {"Mesh", "shard_map", "pmap"} <= names_of_jax(parallel)
    for path in FILES:
        if path != parallel:
            assert not names_of_jax(path) & DEVICE_NAMES, path


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_no_file_is_longer_than_400_lines(path):
    assert len(path.read_text().splitlines()) <= 400
