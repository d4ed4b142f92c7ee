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
# # 2 Softmax DNN, matrix factorisation and two-tower
#
# The textbook chapter, measured. The three classic retrieval models are one bilinear score
# between two functions, and differ in what these functions may read. What follows from that is
# shown on data drawn from a distribution that we know.

# %%
import tempfile

import altair as alt
import jax
import polars as pl

import recjax
from recjax.baselines import oracle_ranker, popularity_ranker, random_ranker
from recjax.data.synthetic import make_synthetic
from recjax.measure import evaluate_ranker
from recjax.metrics import bootstrap_interval, paired_bootstrap

pl.Config(tbl_hide_dataframe_shape=True, float_precision=3, fmt_str_lengths=80)
workdir = tempfile.TemporaryDirectory()

# %% [markdown]
# ## One score
#
# A query $q$ is a user and the moment of the request, with features $x_q$; an item $i$ has features
# $x_i$. Both are mapped to vectors of $d$ numbers, and their inner product is the score:
#
# $$ s(q, i) = \langle \psi(x_q), \phi(x_i) \rangle, \qquad
#    p(i \mid q) = \frac{e^{s(q, i)}}{Z(q)}, \qquad Z(q) = \sum_{j=1}^{N} e^{s(q, j)}. $$
#
# Training takes examples $(q_b, i_b)$, what somebody chose and when, and minimises the
# cross-entropy
#
# $$ L = -\frac{1}{B} \sum_b \log p(i_b \mid q_b), \qquad
#    \frac{\partial L}{\partial s(q_b, j)} =
#    \frac{1}{B} \bigl( p(j \mid q_b) - [\,j = i_b\,] \bigr). $$
#
# Each example pulls its item towards its query, and pushes every other item away in proportion to
# the probability that the model wrongly gives it.

# %% [markdown]
# | model | $\psi(x_q)$ | $\phi(x_i)$ | can be asked about |
# |---|---|---|---|
# | matrix factorisation | a row $U_u$ per user | a row $V_i$ per item | what training saw |
# | softmax DNN | a network over features, history | a row $V_i$ per item | any user |
# | two-tower | a network over features, history | a network over features | any user and item |
#
# The textbook's matrix factorisation minimises squared errors,
# $\sum_{(u, i) \in \text{obs}} (1 - \langle U_u, V_i \rangle)^2 +
# w_0 \sum_{(u, i) \notin \text{obs}} \langle U_u, V_i \rangle^2$. Here all three minimise the same
# $L$, so that only the functions differ.

# %% [markdown]
# ## A world whose truth is known
#
# Users choose with probability $p(i \mid u, h) \propto \text{popularity}_i \,
# e^{\langle z, v_i \rangle}$. Six tenths of the interest $z$ are a function of age, country and
# device, three tenths are a function of the last three items, and one tenth is a taste that only
# the user's id can tell. Nine tenths of an item's vector $v_i$ are a function of its categories. Of
# the users 15 % and of the items 15 % appear in the test only.


# %%
def make_world(user_features):
    """2,000 users and 300 items; history explains 0.3 of the interest."""
    return make_synthetic(
        users=2000,
        items=300,
        interactions_per_user=12,
        window=3,
        user_features=user_features,
        history=0.3,
        item_features=0.9,
        new_users=0.15,
        new_items=0.15,
    )


world = make_world(user_features=0.6)
world.users.size, world.items.size, world.interactions.size

# %% [markdown]
# ## Three configs of one program
#
# What the three share, and in what each differs. Matrix factorisation has the settings that were
# best for it when `tests/test_textbook.py` was written: more dimensions, a lower learning rate.

# %%
COMMON = {
    "examples.history_length": 3,
    "model.dim": 16,
    "model.feature_dim": 16,
    "model.query.features": ("history", "age", "country", "device"),
    "model.query.hidden": (64,),
    "optim.learning_rate": 1e-2,
    "train.epochs": 8.0,
    "eval.every": 10_000,  # one validation, at the end
    "eval.ks": (10,),
    "eval.bootstrap": 0,
    "log.tensorboard": False,
}

# %%
ID_ALONE = {"model.query.features": ("user_id",), "model.query.hidden": ()}
MODELS = {
    "MF": ("mf", {**ID_ALONE, "model.dim": 64, "optim.learning_rate": 5e-3}),
    "softmax DNN": ("softmax", {}),
    "two-tower": ("two_tower", {"model.item.features": ("all",), "model.item.hidden": (64,)}),
    "softmax DNN, history alone": ("softmax", {"model.query.features": ("history",)}),
}


def train(name, world, folder):
    """The trained model and its test, one row per query."""
    file, own = MODELS[name]
    config = recjax.load_config(f"../configs/{file}.py", **COMMON | own)
    run = recjax.train(config, f"{workdir.name}/{folder}/{name}", world, quiet=True)
    return run, run.evaluate("test")


# %%
trained = {name: train(name, world, "features") for name in MODELS}
runs = {name: run for name, (run, _) in trained.items()}
found = {name: test for name, (_, test) in trained.items()}

# %% [markdown]
# Beside them stand three rankers that learn nothing: the most popular items for everyone, items by
# chance, and the truth itself, which no model can beat in expectation.

# %%
x = runs["two-tower"].experiment
rankers = {
    "popularity": popularity_ranker(x.popularity_N, x.corpus_mask_N),
    "chance": random_ranker(x.corpus_mask_N, seed=0),
    "truth": oracle_ranker(world.world, x.corpus_mask_N),
}
for name, ranker in rankers.items():
    found[name] = evaluate_ranker(x, ranker, "test", samples=0)

# %% [markdown]
# Every test query has one item to be found among all 300, less those that the user knows. A query
# or an item that a model cannot score is a miss. First the overall figures and the number of
# parameters: that of matrix factorisation grows with the users.

# %%
numbers = [sum(leaf.size for leaf in jax.tree.leaves(run.variables)) for run in runs.values()]
recall = [test.metrics["recall@10"] for test in found.values()]
parameters = numbers + [None] * len(rankers)
pl.DataFrame({"ranker": list(found), "recall@10": recall, "parameters": parameters})

# %% [markdown]
# ## Who can be served
#
# The same test, in three parts: users and items that training saw, new users (who have up to three
# interactions of their own, but none that was trained on), and new items. A model that cannot be
# asked stands at zero.

# %%
COLD_USER, COLD_ITEM = pl.col("cold_user"), pl.col("targets_cold") > 0
PARTS = {
    "known users, known items": ~COLD_USER & ~COLD_ITEM,
    "new users": COLD_USER & ~COLD_ITEM,
    "new items": COLD_ITEM,
}
rows = []
for part, chosen in PARTS.items():
    for name in ("MF", "softmax DNN", "two-tower", "popularity", "chance", "truth"):
        recall_Q = found[name].per_query.filter(chosen)["recall@10"].to_numpy()
        kind = "model" if name in MODELS else "beside them"
        rows.append((part, name, kind, recall_Q.mean(), *bootstrap_interval(recall_Q)))
columns = ["part", "ranker", "kind", "recall", "low", "high"]
by_part = pl.DataFrame(rows, schema=columns, orient="row")

# %%
base = alt.Chart(by_part).encode(
    y=alt.Y("ranker:N", title=None, sort=None),
    color=alt.Color("kind:N", title=None, sort=None, scale=alt.Scale(range=["#4c78a8", "#999999"])),
)
x = alt.X("recall:Q", title="recall@10", axis=alt.Axis(tickCount=5))
points = base.mark_point(filled=True, size=70, opacity=1).encode(x=x)
ends = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title="recall@10"), x2="high:Q")
alt.layer(points, ends).properties(width=190, height=150).facet(
    column=alt.Column("part:N", title=None, sort=list(PARTS)),
    title="Recall@10 by what training saw of user and item, with 95 % intervals over queries",
)

# %% [markdown]
# ## What the textbook says
#
# Each claim is a difference of recall@10 over the same queries, with its 95 % interval (the
# bootstrap draws queries with replacement, both models' results of a query together). All
# figures are of one training run each: what another seed would change is
# [the next notebook's](3_sweep.ipynb) subject.


# %%
def gain(a, b, chosen):
    """Recall@10 of a less that of b over the chosen queries: (difference, low, high)."""
    a_Q, b_Q = (test.per_query.filter(chosen)["recall@10"].to_numpy() for test in (a, b))
    return paired_bootstrap(a_Q, b_Q, samples=2000)


claims = {}


def claim(text, a, b, chosen):
    """Notes the difference and says it."""
    difference, low, high = claims[text] = gain(a, b, chosen)
    print(f"{text}: {difference:+.3f} ({low:+.3f} to {high:+.3f})")


# %% [markdown]
# **1. Side features and history help where they matter.** Matrix factorisation has to learn a
# user's row from that user's own examples. The network learns one mapping from all of them, and
# follows the last items, which a row cannot.

# %%
known = PARTS["known users, known items"]
claim("softmax DNN over MF, known users", found["softmax DNN"], found["MF"], known)
assert claims["softmax DNN over MF, known users"][1] > 0.03

# %% [markdown]
# **2. A new user needs no training.** There is no row for a new user, so matrix factorisation
# serves none of them (a row could be fitted afterwards: folding in). The network reads their
# features and first items.

# %%
new = PARTS["new users"]
assert found["MF"].per_query.filter(new)["served"].sum() == 0
claim("softmax DNN over popularity, new users", found["softmax DNN"], found["popularity"], new)
assert claims["softmax DNN over popularity, new users"][1] > 0.03

# %% [markdown]
# **3. A new item needs an item tower.** In the softmax DNN an item is a row of the last matrix,
# learned from its own occurrences. The item tower reads the categories, so a new item stands where
# items of its kind stand.

# %%
new = PARTS["new items"]
assert found["softmax DNN"].per_query.filter(new)["recall@10"].sum() == 0
claim("two-tower over chance, new items", found["two-tower"], found["chance"], new)
assert claims["two-tower over chance, new items"][1] > 0.1

# %% [markdown]
# That is not free: a tower over categories and length knows nothing of an item beyond them, while
# each row of a matrix is its own. (`model.item.features = ("all", "item_id")`, the config's
# default, lets the tower read the id as well.)

# %%
claim("two-tower over softmax DNN, known users", found["two-tower"], found["softmax DNN"], known)

# %% [markdown]
# **4. Features help as far as they explain interest.** The same model with and without the user's
# features, in this world and in a control where they explain nothing: there they are only more to
# overfit.

# %%
on, off = "softmax DNN", "softmax DNN, history alone"
claim("user features, where they explain most", found[on], found[off], pl.lit(True))
control = make_world(user_features=0.0)
without = {name: train(name, control, "control")[1] for name in (on, off)}
claim("user features, where they explain nothing", without[on], without[off], pl.lit(True))
assert claims["user features, where they explain most"][1] > 0.01
assert claims["user features, where they explain nothing"][2] < 0.015

# %% [markdown]
# All of it in one figure. An interval that holds zero does not show that there is no difference,
# only that these queries do not tell.

# %%
rows = [(text, *interval) for text, interval in claims.items()]
drawn = pl.DataFrame(rows, schema=["claim", "difference", "low", "high"], orient="row")
title = "difference of recall@10"
ticks = alt.Axis(values=[-0.1, 0, 0.1, 0.2, 0.3, 0.4], format="+.1f")
base = alt.Chart(drawn, title="The claims, with 95 % intervals over queries").encode(
    y=alt.Y("claim:N", title=None, sort=None, axis=alt.Axis(labelLimit=300))
)
zero = alt.Chart(pl.DataFrame({"zero": [0.0]})).mark_rule(strokeDash=[4, 4]).encode(x="zero:Q")
points = base.mark_point(filled=True, size=70, opacity=1).encode(
    x=alt.X("difference:Q", title=title, axis=ticks)
)
ends = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title=title, axis=ticks), x2="high:Q")
(zero + ends + points).properties(width=420, height=170)

# %% [markdown]
# ## Which one, then?
#
# | | matrix factorisation | softmax DNN | two-tower |
# |---|---|---|---|
# | query features, history | no | yes | yes |
# | new users | after folding in | yes | yes |
# | new items | no | no | yes |
# | cost of a request, before the search | a lookup | the network | the network |
# | cost before serving | none | none | the item tower over all items |
#
# All three serve by the same search for the largest inner products among $N$ vectors. Next: [how to
# tell a difference from noise](3_sweep.ipynb).
