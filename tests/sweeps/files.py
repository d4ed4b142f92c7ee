"""Sweep files for tests, and a stand-in for `recjax.main` that trains nothing."""

import sys

HEAD = '''"""What does it do?

And why.
"""

from configs import mf


def get_config(data="synthetic"):
    return mf.get_config(data)

'''
# As `python -c FAKE --config=... --workdir=FOLDER`: does what the folder's name says, and marks
# that it began and that it ended.
FAKE = """
import math, os, pathlib, signal, sys, time
folder = pathlib.Path(next(w for w in sys.argv if w.startswith("--workdir=")).partition("=")[2])
what = folder.name.partition("-seed")[0].rstrip("-0123456789")
with open(folder / "marks", "a") as marks:
    marks.write("began\\n")
attempt = (folder / "marks").read_text().count("began")
if what == "diverges":
    print("error: the loss became NaN")
    sys.exit(3)
if what == "dies" or what == "dies-once" and attempt == 1:
    os.kill(os.getpid(), signal.SIGKILL)
if what == "crashes" or what == "crashes-once" and attempt == 1:
    raise RuntimeError(f"attempt {attempt}")
if what.startswith("slow"):
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    (folder / "ready").touch()
    time.sleep(60 if what.endswith("long") else 0.5)
with open(folder / "marks", "a") as marks:
    marks.write("ended\\n")
words = dict(w.removeprefix("--config.").partition("=")[::2] for w in sys.argv)
rate = float(words.get("optim.learning_rate", 1.0))
valid = 1 / (1 + math.log10(rate / 0.01) ** 2)
(folder / "words").write_text(" ".join(sys.argv))
(folder / "metrics.jsonl").write_text('{"step": 1, "valid/recall@10": %r}\\n' % valid)
(folder / "cores").write_text(str(list(os.sched_getaffinity(0))))
(folder / "cost.json").write_text("{}")
"""


def write_sweep(folder, body, name="own.py"):
    """A sweep file whose `sweep(add)` has this body, on the config of configs/mf.py."""
    path = folder / name
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    path.write_text(f"{HEAD}\ndef sweep(add):\n{lines}")
    return str(path)


def write_arms(folder, *names, seeds=(0,)):
    """A sweep file with arms of these names, which differ in model.dim."""
    adds = [
        f"add({name!r}, seeds={seeds}, **{{'model.dim': {dim}}})"
        for dim, name in enumerate(names, 8)
    ]
    return write_sweep(folder, "\n".join(adds))


def fake_main(monkeypatch):
    """Puts FAKE in the place of `python -m recjax.main`."""
    monkeypatch.setattr("recjax.sweeps.local.MAIN", (sys.executable, "-c", FAKE))
