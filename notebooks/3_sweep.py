# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     notebook_metadata_filter: jupytext,-jupytext.text_representation.jupytext_version,kernelspec
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3 Reading a sweep: seeds, intervals, paired tests
#
# One model has a recall of 0.52 and another of 0.51. Is the first better? This notebook runs a
# small sweep in which one arm differs from the baseline in nothing, and asks what could tell.

# %%
import pathlib
import tempfile

import altair as alt
import jax
import numpy as np
import polars as pl

import recjax
from recjax.reports.statistics import holm, mean_interval, paired_t

pl.Config(tbl_hide_dataframe_shape=True, float_precision=4, fmt_str_lengths=80)
workdir = tempfile.TemporaryDirectory()
rng = np.random.default_rng(0)

# %% [markdown]
# ## A sweep is a Python file
#
# It has a `get_config`, as any config file has, and a `sweep` that adds arms: a name, seeds, and
# what the arm changes. The files in `experiments/ablations` are such sweeps. In this one the arm
# *the same again* changes how often a line is logged: it is the baseline, with other seeds.

# %%
SWEEP = '''"""Do six dimensions do?"""
import recjax


def get_config():
    return recjax.load_config("../configs/softmax.py", **{"model.dim": 16})


def sweep(add):
    add("16 dimensions", seeds=range(4))
    add("the same again", seeds=range(4, 8), **{"log.every": 51})
    add("6 dimensions", seeds=range(4), **{"model.dim": 6})
'''
file = pathlib.Path(workdir.name, "size.py")
file.write_text(SWEEP)

# %% [markdown]
# Keys may also be set for all arms at once. These make it small: a planted world of 1,500 users
# and 300 items, and candidates from the batch.

# %%
SMALL = {
    "data.synthetic.users": 1500,
    "data.synthetic.items": 300,
    "data.synthetic.interactions_per_user": 12,
    "data.synthetic.window": 3,
    "examples.history_length": 3,
    "model.query.features": ("history", "age", "country", "device"),
    "model.query.hidden": (32,),
    "loss.candidates": "in_batch",
    "optim.learning_rate": 1e-2,
    "train.batch_size": 256,
    "eval.every": 10_000,  # one validation, at the end
    "log.tensorboard": False,
}

# %%
sweep = recjax.load_sweep(str(file), **SMALL)
[f"{arm.name}: seeds {arm.seeds}" for arm in sweep.arms]

# %% [markdown]
# A trial is one arm with one seed, which decides the first parameters, the order of the examples
# and every other draw. With `workers=0` the trials run in this process, one after another, and
# what one has compiled is kept for the next.

# %%
jax.config.update("jax_compilation_cache_dir", f"{workdir.name}/compiled")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
trials = recjax.run_sweep(sweep, f"{workdir.name}/size", workers=0, quiet=True)
pl.Series("state", [trial.state for trial in trials]).value_counts()

# %% [markdown]
# `load_results` gathers what the runs left behind. It refuses to put runs of different protocols
# (other data, another split, another way of ranking) beside each other.

# %%
METRIC = "recall@10"
results = recjax.load_results([f"{workdir.name}/size"])
results.frame().pivot("arm", index="seed", values=METRIC).sort("seed")

# %% [markdown]
# ## What an interval covers
#
# There is luck of two kinds in each of these numbers. **Queries**: other test users would have
# given the same trained model another recall. The bootstrap over queries, which every run has in
# its `eval/test.json`, covers that alone. **Seeds**: the same method would have trained another
# model. The $t$ interval of the mean over seeds covers that alone, for these test users.

# %%
rows = []
for arm in results.arms:
    for run in arm.results:
        interval = run.metrics[METRIC], *run.intervals[METRIC]
        rows.append((arm.name, f"seed {run.seed}", "one run, over queries", *interval))
    interval = mean_interval([run.metrics[METRIC] for run in arm.results])
    rows.append((arm.name, "mean", "mean of four, over seeds", *interval))
columns = ["arm", "label", "interval", "recall", "low", "high"]
intervals = pl.DataFrame(rows, schema=columns, orient="row")

# %%
base = alt.Chart(intervals).encode(
    y=alt.Y("label:N", title=None, sort=None),
    color=alt.Color("interval:N", title="95 % interval", sort=None),
)
x = alt.X("recall:Q", title="recall@10", scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=6))
dots = base.mark_point(filled=True, size=60, opacity=1).encode(x=x)
ends = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title="recall@10"), x2="high:Q")
alt.layer(dots, ends).properties(width=380, height=110).facet(
    row=alt.Row("arm:N", title=None, sort=[arm.name for arm in results.arms]),
    title="The two intervals of each arm",
).resolve_scale(y="independent")

# %% [markdown]
# Neither says anything of other data, of hyperparameters that were tuned longer for one arm than
# for the other, or of a test set that was looked at more than once.
#
# ## Why one seed is not enough
#
# Take one run of the baseline and one of *the same again*, and test over queries whether they
# differ. There is nothing to be found, so of the 16 pairs about one should be called different at
# 5 %.


# %%
def recall(arm):
    """Recall@10 of each of an arm's seeds and each query."""
    return np.stack([run.per_query[METRIC].to_numpy() for run in arm.results]).astype(float)


recall_SxQ = {arm.name: recall(arm) for arm in results.arms}
baseline_SxQ, again_SxQ = recall_SxQ["16 dimensions"], recall_SxQ["the same again"]
rows = []
for i, run in enumerate(results.arms[0].results):
    for j, again in enumerate(results.arms[1].results):
        test = paired_t(again_SxQ[[j]], baseline_SxQ[[i]])
        text = f"{test.p:.3f}{'*' if test.p < 0.05 else ''}"
        rows.append((run.seed, again.seed, test.difference, test.p, text))
pairs = pl.DataFrame(rows, schema=["seed", "again", "difference", "p", "text"], orient="row")

# %%
largest = float(pairs["difference"].abs().max())
shade = alt.Scale(scheme="purpleorange", domain=[-largest, largest])
title = "The same model twice: p of each pair of runs, * below 5 %"
base = alt.Chart(pairs, title=title).encode(
    x=alt.X("seed:O", title="seed of the baseline", axis=alt.Axis(labelAngle=0)),
    y=alt.Y("again:O", title="seed of the same again"),
)
cells = base.mark_rect().encode(color=alt.Color("difference:Q", title="difference", scale=shade))
(cells + base.mark_text().encode(text="text:N")).properties(width=380, height=200)

# %%
false_alarms = (pairs["p"] < 0.05).sum()
assert false_alarms > 0.05 * 16
print(f"{false_alarms} of 16 pairs of the same model are called different.")

# %% [markdown]
# The test is not wrong: those two *trained models* do differ. But another seed would have given
# another model, and the test over queries cannot know how different.
#
# ## What pairing gains
#
# Some users are easy for every model and some hopeless for all. When each query's two results are
# subtracted, that cancels. With the mean over seeds $a_q$ and $b_q$ of query $q$,
#
# $$ \operatorname{Var}(\bar a - \bar b) = \frac{1}{Q} \bigl( \operatorname{Var} a_q +
#    \operatorname{Var} b_q - 2 \operatorname{Cov}(a_q, b_q) \bigr), $$
#
# and a test that forgets who is who leaves out the covariance.

# %%
small_Q, large_Q = recall_SxQ["6 dimensions"].mean(axis=0), baseline_SxQ.mean(axis=0)
difference = (small_Q - large_Q).mean()
paired = (small_Q - large_Q).std() / len(small_Q) ** 0.5
unpaired = ((small_Q.var() + large_Q.var()) / len(small_Q)) ** 0.5
rows = [
    (name, difference, difference - 1.96 * error, difference + 1.96 * error)
    for name, error in (("paired", paired), ("unpaired", unpaired))
]
gain = pl.DataFrame(rows, schema=["test", "difference", "low", "high"], orient="row")
assert unpaired > 2 * paired
print(f"The correlation of the two over queries is {np.corrcoef(small_Q, large_Q)[0, 1]:.2f}.")
print(f"Unpaired, it takes {(unpaired / paired) ** 2:.0f} times as many queries.")

# %%
title = "recall@10 of 6 dimensions, less that of 16"
base = alt.Chart(gain, title="The same results, paired by query and not").encode(
    y=alt.Y("test:N", title=None)
)
zero = alt.Chart(pl.DataFrame({"zero": [0.0]})).mark_rule(strokeDash=[4, 4]).encode(x="zero:Q")
dots = base.mark_point(filled=True, size=70, opacity=1).encode(x=alt.X("difference:Q", title=title))
ends = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title=title), x2="high:Q")
(zero + ends + dots).properties(width=420, height=80)

# %% [markdown]
# Seeds are not paired: seed 3 of one arm and seed 3 of another have nothing in common but a
# number.
#
# ## Both kinds of luck in one test
#
# `compare` takes the value of query $q$ under seed $s$ as $\mu + u_q + v_s + e_{qs}$ and adds what
# seeds bring to what paired queries leave. The $p$ value answers: would other seeds *and* other
# users have shown a difference as large, were there none?

# %%
comparison = recjax.compare(results, baseline="16 dimensions")
table = comparison.frame()
table.select("arm", "difference", "low", "high", "p", "p_holm", "different")

# %%
again, small = comparison.differences
assert small.different and small.high < 0
print(f"6 dimensions lose {-small.difference:.3f} ({-small.high:.3f} to {-small.low:.3f}).")
what = "a false alarm, one of the twenty" if again.different else "no difference shown"
print(f"The same again: {what}; {again.low:+.3f} to {again.high:+.3f}.")

# %% [markdown]
# "No difference shown" is not "equal": the interval says how large a difference may have gone
# unnoticed.
#
# ## Why Holm
#
# Each test at 5 % gives a false alarm once in twenty. With $m$ arms that are all like the
# baseline, one of them at least is called different with a probability of $1 - 0.95^m$, if the
# tests are independent. Holm's adjustment multiplies the smallest $p$ by $m$, the next by $m - 1$
# and so on, and keeps the probability of any false alarm at 5 % or less, whatever $m$ is.

# %%
rows = []
for m in (1, 2, 5, 10, 20):
    p_RxM = rng.random((2000, m))  # of arms that do not differ, p is uniform
    rows.append((m, "none", (p_RxM.min(axis=1) < 0.05).mean()))
    rows.append((m, "Holm", np.mean([min(holm(p_M)) < 0.05 for p_M in p_RxM])))
alarms = pl.DataFrame(rows, schema=["m", "adjustment", "share"], orient="row")
assert alarms.filter(adjustment="Holm")["share"].max() < 0.07

# %%
alt.Chart(alarms, title="Chance of any false alarm among m comparisons").mark_line(
    point=True
).encode(
    x=alt.X("m:Q", title="comparisons m"),
    y=alt.Y("share:Q", title="share of 2,000 sweeps", axis=alt.Axis(format="%")),
    color=alt.Color("adjustment:N", title="adjustment", sort=None),
).properties(width=380, height=220)

# %% [markdown]
# ## What to report
#
# Three seeds or more per arm, the same budget for each, one protocol; the difference to a baseline
# named beforehand, with its interval; paired over queries, adjusted for the number of arms; and
# how large the difference is, not only whether there is one. `python -m recjax.report WORKDIR`
# writes that as tables and a page. Next: [inside the embeddings](4_embeddings.ipynb).
