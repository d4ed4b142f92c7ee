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
# # 5 Estimators: bias and variance of negatives
#
# The softmax needs the scores of all items, and most training takes a few drawn ones in their
# place. How far is the gradient that comes out from the exact one, how does that change with the
# number of candidates, and what does logQ do?

# %%
import tempfile

import altair as alt
import numpy as np
import polars as pl
from scipy.special import logsumexp

import recjax
from recjax.data.synthetic import make_synthetic
from recjax.diagnostics import EstimatorError
from recjax.experiment import make_experiment

pl.Config(tbl_hide_dataframe_shape=True, float_precision=3, fmt_str_lengths=80)
workdir = tempfile.TemporaryDirectory()
COUNTS = (16, 128, 1024)

# %% [markdown]
# ## What is estimated
#
# With scores $s_j$ of the items for one query, the loss of the item $i$ that was chosen is
# $\log Z - s_i$, and only $Z = \sum_j e^{s_j}$ needs them all. Draw candidates $j_1 \dots j_C$ with
# replacement from a distribution $r$ and weigh each by how often it is expected, $q_j = C r_j$:
#
# $$ \hat Z = \sum_{c=1}^{C} e^{s_{j_c} - \log q_{j_c}}, \qquad \mathbb{E} \hat Z = Z, \qquad
#    \mathbb{E} \log \hat Z \approx \log Z - \frac{\operatorname{Var} \hat Z}{2 Z^2}. $$
#
# $\hat Z$ has no bias, but the loss takes its logarithm, and the gradient
# $\partial \log \hat Z = \partial \hat Z / \hat Z$ is a ratio: both have a bias that falls as
# $1 / C$, and a standard deviation that falls as $1 / \sqrt C$.

# %% [markdown]
# ## One query
#
# A model is trained on the exact softmax, on a planted world of 300 items.

# %%
COMMON = {
    "examples.history_length": 3,
    "model.dim": 16,
    "model.query.features": ("history", "age", "country", "device"),
    "model.query.hidden": (32,),
    "optim.learning_rate": 1e-2,
    "train.batch_size": 256,
    "train.epochs": 6.0,
    "eval.every": 10_000,  # one validation, at the end
    "eval.bootstrap": 0,
    "log.tensorboard": False,
}
world = make_synthetic(users=2000, items=300, interactions_per_user=15, window=3, new_items=0.0)


# %%
def train(name, **changes):
    """A model of the same kind, trained in another way."""
    config = recjax.load_config("../configs/softmax.py", **COMMON | changes)
    return recjax.train(config, f"{workdir.name}/{name}", world, quiet=True)


exact = train("exact")
popularity_N = exact.experiment.popularity_N
item_NxD = exact.item_embeddings().astype(np.float64)

# %% [markdown]
# For one user, 2,000 estimates of $\log Z$: with candidates drawn uniformly, and by popularity.

# %%
score_N = item_NxD @ exact.query_embeddings([1])[0]
log_z = logsumexp(score_N)
rng = np.random.default_rng(0)
SOURCES = {"uniform": np.full(300, 1 / 300), "by popularity": popularity_N / popularity_N.sum()}
draws = []
for source, share_N in SOURCES.items():
    for count in COUNTS:
        item_RxC = rng.choice(300, size=(2000, count), p=share_N)
        log_z_R = logsumexp(score_N[item_RxC] - np.log(count * share_N[item_RxC]), axis=1)
        drawn = pl.DataFrame({"source": source, "count": count, "error": log_z_R - log_z})
        draws.append(drawn)
draws = pl.concat(draws)

# %%
shown = draws.group_by("source", "count", maintain_order=True).head(500)
chart = alt.Chart(shown, title="500 estimates each of log Z for one query")
chart.mark_boxplot(extent="min-max", size=20).encode(
    x=alt.X("count:O", title="candidates", axis=alt.Axis(labelAngle=0)),
    xOffset=alt.XOffset("source:N", sort=list(SOURCES)),
    y=alt.Y("error:Q", title="log of the estimate, less log Z"),
    color=alt.Color("source:N", title="drawn", sort=list(SOURCES)),
).properties(width=420, height=260)

# %% [markdown]
# $\hat Z$ is right on average, its logarithm is too low, by about half the variance, and less so
# with more candidates.

# %%
ratio = pl.col("error").exp()
summary = draws.group_by("source", "count", maintain_order=True).agg(
    ratio.mean().alias("mean of estimate / Z"),
    pl.col("error").mean().alias("mean error of the log"),
    (-ratio.var() / 2).alias("- variance / 2"),
)
assert summary.filter(count=1024)["mean of estimate / Z"].is_between(0.95, 1.05).all()
summary

# %% [markdown]
# ## The gradient
#
# `EstimatorError` compares, at a given model, the gradient of the loss with drawn candidates with
# the exact $g^*$. With $g_r$ that of draw $r$ and $\bar g$ their mean over $R$ draws,
#
# $$ \text{bias} = \frac{\lVert \bar g - g^* \rVert}{\lVert g^* \rVert}, \qquad
#    \text{variance} = \frac{1}{R - 1} \sum_r
#    \frac{\lVert g_r - \bar g \rVert^2}{\lVert g^* \rVert^2}, $$
#
# where what chance leaves of the bias, $\sqrt{\text{variance} / R}$, is subtracted (as squares).
# Here it is the gradient with respect to the item embeddings, of 32 queries and 64 draws.


# %%
def estimator_error(source, count, correct_logq):
    """(bias, what chance leaves of it, variance) of one estimator at the exact model."""
    in_batch = source == "in_batch"
    size = {"train.batch_size" if in_batch else "loss.num_sampled": count}
    changes = {"loss.candidates": source, "loss.correct_logq": correct_logq, **size}
    config = recjax.load_config("../configs/softmax.py", **COMMON | changes)
    x = make_experiment(config, world)
    objective, batch_size = x.step.objective, config.train.batch_size
    settings = {"batch_size": batch_size, "queries": 32, "draws": 64}
    state = x.arrays["source"].init(config.model.dim)
    found = EstimatorError(objective, x.examples, x.arrays, **settings)(exact.variables, state, 0)
    return [found[f"items/{name}"] for name in ("bias", "bias_noise", "variance")]


# %% [markdown]
# In-batch candidates are the labels of the other examples in the batch, so they are drawn by
# popularity. `unigram` draws by popularity to the power of 0.75.

# %%
ESTIMATORS = {
    "uniform": ("uniform", True),
    "unigram": ("unigram", True),
    "in-batch": ("in_batch", True),
    "in-batch, no logQ": ("in_batch", False),
}
rows = [
    (name, count, *estimator_error(source, count, logq))
    for name, (source, logq) in ESTIMATORS.items()
    for count in COUNTS
]
columns = ["estimator", "count", "bias", "noise", "variance"]
errors = pl.DataFrame(rows, schema=columns, orient="row")
errors = errors.with_columns(error=(pl.col("bias") ** 2 + pl.col("variance")).sqrt())

# %% [markdown]
# The error of one draw is $\sqrt{\text{bias}^2 + \text{variance}}$. With logQ it falls as
# $1 / \sqrt C$, the dashed line, whatever the source: a better source is a lower line. Without
# logQ it stops falling.

# %%
start = errors.filter(estimator="in-batch")["error"][0]
ideal = pl.DataFrame({"count": COUNTS, "error": [start * (COUNTS[0] / c) ** 0.5 for c in COUNTS]})
x = alt.X("count:Q", title="candidates", axis=alt.Axis(values=COUNTS))
x = x.scale(type="log", domain=[12, 1600])
y = alt.Y("error:Q", title="error / length of the exact gradient")
y = y.scale(type="log", domain=[0.1, 2])
base = alt.Chart(errors, title="Error of the gradient against the number of candidates")
color = alt.Color("estimator:N", title=None, sort=list(ESTIMATORS))
lines = base.mark_line(point=True).encode(x=x, y=y, color=color)
dashes = alt.Chart(ideal).mark_line(strokeDash=[5, 4], color="black").encode(x=x, y=y)
name = alt.Chart(ideal.tail(1)).mark_text(align="left", dx=6, text="1 / √C").encode(x=x, y=y)
(lines + dashes + name).properties(width=420, height=320)

# %%
slopes = {
    name: np.polyfit(np.log(group["count"]), np.log(group["error"]), 1)[0]
    for (name,), group in errors.group_by("estimator", maintain_order=True)
}
assert slopes.pop("in-batch, no logQ") > -0.35
assert all(-0.6 < slope < -0.35 for slope in slopes.values())
print("slopes:", ", ".join(f"{name} {slope:.2f}" for name, slope in slopes.items()))

# %% [markdown]
# The two parts of the error tell why: with logQ the bias goes as candidates come; without it there
# is one that they do not take away.

# %%
alt.Chart(errors, title="Bias of the gradient").mark_line(point=True).encode(
    x=x,
    y=alt.Y("bias:Q", title="bias / length of the exact gradient"),
    color=color,
).properties(width=420, height=220)

# %% [markdown]
# With 1,024 candidates the bias with logQ is below what chance leaves of it (the column noise).

# %%
last = errors.filter(count=COUNTS[-1])
*corrected, uncorrected = last.iter_rows(named=True)
assert all(row["bias"] < row["noise"] for row in corrected)
assert uncorrected["bias"] > 5 * uncorrected["noise"]
last.select("estimator", "bias", "noise", "variance")

# %% [markdown]
# ## What is learned without logQ
#
# The loss without logQ is right for something else. Many candidates stand for
# $C \sum_j r_j e^{s_j}$ in place of $Z$, so it is minimal where
#
# $$ s(q, i) = \log p(i \mid q) - \log r_i + \text{const}(q). $$
#
# With in-batch candidates $r$ is popularity: popularity is divided out of what is recommended. So
# train with and without, and compare the mean score of each item over all users: the difference
# should grow with $\log \text{popularity}_i$, with the slope 1.

# %%
runs = {
    "exact": exact,
    "in-batch": train("with", **{"loss.candidates": "in_batch"}),
    "in-batch, no logQ": train(
        "without", **{"loss.candidates": "in_batch", "loss.correct_logq": False}
    ),
}
mean_score = {
    name: run.item_embeddings() @ run.query_embeddings().mean(axis=0) for name, run in runs.items()
}
difference_N = mean_score["in-batch"] - mean_score["in-batch, no logQ"]
slope = np.polyfit(np.log(popularity_N), difference_N, 1)[0]
assert 0.8 < slope < 1.2
print(f"slope {slope:.2f}, correlation {np.corrcoef(np.log(popularity_N), difference_N)[0, 1]:.2f}")

# %%
difference_N = difference_N - np.mean(difference_N - np.log(popularity_N))
points = pl.DataFrame({"interactions": popularity_N, "difference": difference_N})
theory = pl.DataFrame({"interactions": [2, 1000], "difference": np.log([2, 1000])})
x = alt.X("interactions:Q", title="training interactions", scale=alt.Scale(type="log", nice=False))
y = alt.Y("difference:Q", title="mean score with logQ less without, shifted")
title = "The missing logQ is popularity; the line has slope 1"
dots = alt.Chart(points, title=title).mark_point(filled=True, opacity=0.6).encode(x=x, y=y)
line = alt.Chart(theory).mark_line(color="#e45756").encode(x=x, y=y)
(dots + line).properties(width=420, height=260)

# %% [markdown]
# And that is what it costs. A popularity lift of 1 means that the lists are as popular as what
# users went on to choose.

# %%
names = ("recall@10", "popularity_lift@10", "coverage@10")
rows = [(name, *(run.metrics[f"test/{metric}"] for metric in names)) for name, run in runs.items()]
rows.append(("truth", *(exact.metrics[f"test/oracle/{metric}"] for metric in names)))
cost = pl.DataFrame(rows, schema=["trained with", *names], orient="row")
assert cost["recall@10"][2] < 0.8 * cost["recall@10"][1]
assert cost["popularity_lift@10"][2] < 0.6
cost
