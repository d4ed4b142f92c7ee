"""The programs that `run.py` runs: recjax's and the peers', for each case of each workload."""

import dataclasses
from collections.abc import Callable

from experiments.benchmarks import flops
from experiments.benchmarks.workload import Sizes

# W4: seconds of training until this share of pairs is ranked rightly, of interactions that were
# trained on (`accuracy`) and of others (`held_out`), where least squares gets no further than 0.81.
TARGETS = {"accuracy": 0.9, "held_out": 0.8}


@dataclasses.dataclass(frozen=True)
class Program:
    """One program on one case.

    Attributes:
      label: what the table calls it.
      module: of `experiments.benchmarks`, run with `python -m`.
      words: its arguments.
      env: the peers' environment that it needs; empty for recjax.
      smoke: whether a quick try runs it.
    """

    label: str
    module: str
    words: tuple[str, ...] = ()
    env: str = ""
    smoke: bool = True

    @property
    def is_peer(self) -> bool:
        """Whether it is not recjax's."""
        return bool(self.env)


@dataclasses.dataclass(frozen=True)
class Case:
    """What programs are compared on.

    Attributes:
      workload: w1 to w5.
      name: what sets it apart within its workload.
      programs: recjax's first.
      words: arguments of all of them.
      smoke: whether a quick try runs it.
      flops: what its maths needs for a unit (`flops.py`), by sizes and examples of a step.
    """

    workload: str
    name: str
    programs: tuple[Program, ...]
    words: tuple[str, ...] = ()
    smoke: bool = True
    flops: Callable[[Sizes, int], float] | None = None


def _torch(workload: str, *words: str, smoke: bool = False) -> Program:
    label = " ".join(["torch", *(word.removeprefix("--") for word in words if word[0] == "-")])
    module = "peers.torch_train"
    return Program(label, module, (workload, *words), "torch", smoke)


def _tf(workload: str, label: str, *words: str, smoke: bool = False) -> Program:
    return Program(label, "peers.tf_train", (workload, *words), "tf", smoke)


def _rank(library: str, env: str = "torch", *, smoke: bool = False) -> Program:
    return Program(library, "peers.rank", (library,), env, smoke)


def _w2(items: str) -> tuple[Program, ...]:
    return (
        Program("recjax", "w2_softmax"),
        _torch("w2", smoke=True),
        _torch("w2", "--compile"),
        _tf("w2", "tf.keras"),
        _tf("w2", "tf.keras jit", "--jit"),
    )


def _w3() -> tuple[Program, ...]:
    return (
        Program("recjax", "w3_sampled"),
        _torch("w3", "--sparse", smoke=True),
        _tf("w3", "tf.keras", smoke=True),
    )


CASES = (
    Case(
        "w1",
        "two-tower, in-batch",
        (
            Program("recjax", "w1_two_tower"),
            Program("recjax, own past", "w1_two_tower", ("--history=past",), smoke=False),
            _torch("w1", smoke=True),
            _torch("w1", "--sparse"),
            _torch("w1", "--compile"),
            _tf("w1", "TFRS", smoke=True),
            Program("Keras-RS", "peers.keras_rs_train", (), "keras_rs"),
        ),
        ("--steps=40",),
        flops=lambda sizes, batch_size: flops.two_tower(batch_size),
    ),
    Case(
        "w2",
        "softmax, 50 k items",
        _w2("small"),
        ("--steps=30",),
        flops=lambda sizes, _: flops.softmax(sizes.items),
    ),
    Case(
        "w2",
        "softmax, 500 k items",
        _w2("big"),
        ("--items=big", "--warmup=4", "--steps=15"),
        smoke=False,
        flops=lambda sizes, _: flops.softmax(sizes.big),
    ),
    Case(
        "w3",
        "sampled, 1,024 negatives",
        _w3(),
        ("--negatives=1024", "--steps=100"),
        flops=lambda sizes, _: flops.softmax(1024 + 1),
    ),
    Case(
        "w3",
        "sampled, 8,192 negatives",
        _w3(),
        ("--negatives=8192", "--steps=40"),
        smoke=False,
        flops=lambda sizes, _: flops.softmax(8192 + 1),
    ),
    Case(
        "w4",
        "MF, BPR",
        (
            Program("recjax", "w4_mf"),
            _torch("w4", "--sparse", smoke=True),
            Program("implicit ALS", "peers.implicit_train", ("--model=als",), "torch"),
            Program("implicit BPR", "peers.implicit_train", ("--model=bpr",), "torch", smoke=False),
        ),
    ),
    Case(
        "w5",
        "top 100 of 100 k",
        (
            Program("recjax", "w5_topk"),
            _rank("scann", smoke=True),
            _rank("torch", smoke=True),
            _rank("implicit", smoke=True),
            _rank("faiss", smoke=True),
            _rank("numpy"),
            _rank("tfrs", "tf"),
        ),
        flops=lambda sizes, _: flops.ranking(sizes.corpus),
    ),
)
