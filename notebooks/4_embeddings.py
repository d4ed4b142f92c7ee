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
# # 4 Inside the embeddings
#
# What does a model know about items after it has only seen who chose what? A map, nearest
# neighbours, the direction in which popularity lies, and what the length of a vector means.

# %%
import tempfile

import altair as alt
import numpy as np
import polars as pl
from sklearn.manifold import TSNE

import recjax
from recjax.data.synthetic import make_synthetic

pl.Config(tbl_hide_dataframe_shape=True, float_precision=3, fmt_str_lengths=80)
workdir = tempfile.TemporaryDirectory()

# %% [markdown]
# The world is planted: 300 items with one to three of eight categories, which explain nine tenths
# of a vector $v_i$ of **six** numbers. Users choose with probability
# $\propto \text{popularity}_i \, e^{\langle z, v_i \rangle}$, where their interest $z$ depends on
# what they are and on their last three items.

# %%
world = make_synthetic(
    users=3000,
    items=300,
    interactions_per_user=15,
    dim=6,
    categories=8,
    item_features=0.9,
    new_users=0.0,
    new_items=0.0,
    window=3,
)

# %% [markdown]
# The model is a softmax DNN: an item is a row of 16 numbers in its last matrix, and nothing tells
# it of categories.

# %%
config = recjax.load_config(
    "../configs/softmax.py",
    **{
        "examples.history_length": 3,
        "model.dim": 16,
        "model.query.features": ("history", "age", "country", "device"),
        "model.query.hidden": (64,),
        "optim.learning_rate": 1e-2,
        "train.epochs": 6.0,
        "eval.every": 10_000,  # one validation, at the end
        "log.tensorboard": False,
    },
)

# %%
run = recjax.train(config, workdir.name, world, quiet=True)
print(f"recall@10 {run.metrics['test/recall@10']:.3f}, ", end="")
print(f"of the truth itself {run.metrics['test/oracle/recall@10']:.3f}")

# %%
item_NxD, user_UxD = run.item_embeddings(), run.query_embeddings()
popularity_N = run.experiment.popularity_N  # training interactions of each item
log_popularity_N = np.log(popularity_N)
centred_NxD = item_NxD - item_NxD.mean(axis=0)
item_NxD.shape, user_UxD.shape

# %% [markdown]
# ## A map
#
# t-SNE draws items that are near each other in 16 dimensions near each other in two; distances
# between far ones mean little. Items of a single category are coloured by it, the others are grey.

# %%
bag = world.items.columns["categories"]
names_N = [list(bag.vocab[codes]) for codes in np.split(bag.codes, bag.offsets[1:-1])]
length_N = np.linalg.norm(item_NxD, axis=1)
tsne = TSNE(perplexity=20, method="exact", max_iter=500, random_state=0)
map_Nx2 = tsne.fit_transform(item_NxD / length_N[:, None])
items = pl.DataFrame(
    {
        "title": world.titles,
        "category": [names[0] if len(names) == 1 else "several" for names in names_N],
        "x": map_Nx2[:, 0],
        "y": map_Nx2[:, 1],
        "interactions": popularity_N,
    }
)

# %%
COLOURS = "#4c78a8 #f58518 #e45756 #72b7b2 #54a24b #eeca3b #b279a2 #9d755d".split()
colours = alt.Scale(domain=[*bag.vocab, "several"], range=[*COLOURS, "#d8d8d8"])
sizes = alt.Scale(range=[15, 300])
alt.Chart(items, title="Items by who chose them, coloured by category").mark_point(
    filled=True, opacity=0.9
).encode(
    x=alt.X("x:Q", title="first dimension of the map", axis=alt.Axis(grid=False)),
    y=alt.Y("y:Q", title="second dimension of the map", axis=alt.Axis(grid=False)),
    color=alt.Color("category:N", title="only category", scale=colours),
    size=alt.Size("interactions:Q", title="training interactions", scale=sizes),
    tooltip=["title:N", "interactions:Q"],
).properties(width=480, height=400)

# %% [markdown]
# ## How many dimensions are in use
#
# The principal components of the 300 vectors: six directions of interest were planted, and
# popularity may take one more.

# %%
variance_D = np.linalg.svd(centred_NxD, compute_uv=False) ** 2
share_D = variance_D / variance_D.sum()
shares = pl.DataFrame({"component": np.arange(1, 17), "share": share_D})
assert share_D[:7].sum() > 0.85
print(f"The first seven of 16 hold {share_D[:7].sum():.0%} of the variance.")

# %%
alt.Chart(shares, title="Variance of the item embeddings by principal component").mark_bar().encode(
    x=alt.X("component:O", title="principal component", axis=alt.Axis(labelAngle=0)),
    y=alt.Y("share:Q", title="share of the variance", axis=alt.Axis(format="%")),
    color=alt.condition("datum.component <= 7", alt.value("#4c78a8"), alt.value("#bbbbbb")),
).properties(width=420, height=200)

# %% [markdown]
# Are they the planted ones? A linear map from the embeddings should then give the true vectors
# $v_i$. It is fitted on four fifths of the items and tested on the others.


# %%
def explained(input_NxD, target_NxM):
    """Share of the targets' variance that a linear map explains, in five-fold cross-validation."""
    fold_N = np.random.default_rng(0).permutation(len(input_NxD)) % 5
    input_NxD = np.c_[input_NxD, np.ones(len(input_NxD))]
    error_NxM = np.zeros_like(target_NxM)
    for fold in range(5):
        train, test = fold_N != fold, fold_N == fold
        fitted = np.linalg.lstsq(input_NxD[train], target_NxM[train], rcond=None)[0]
        error_NxM[test] = target_NxM[test] - input_NxD[test] @ fitted
    return 1 - error_NxM.var(axis=0) / target_NxM.var(axis=0)


r2_M = explained(item_NxD, world.world.item_latent_NxD)
assert r2_M.min() > 0.6
print("explained of each true dimension:", ", ".join(f"{share:.0%}" for share in r2_M))

# %% [markdown]
# ## Nearest neighbours
#
# By the cosine, an item's neighbours are those that the same people choose at the same time. By
# the inner product the longest vectors are near everybody.


# %%
def nearest(score_NxN, k=5):
    """Positions of each item's k best others."""
    return np.argsort(-score_NxN - np.diag(np.full(len(score_NxN), -np.inf)), axis=1)[:, :k]


unit_NxD = item_NxD / length_N[:, None]
by_cosine, by_product = nearest(unit_NxD @ unit_NxD.T), nearest(item_NxD @ item_NxD.T)
asked = np.argsort(-popularity_N)[[5, 50, 150]]
pl.DataFrame(
    [(world.titles[i], ", ".join(world.titles[by_cosine[i, :3]])) for i in asked],
    schema=["item", "nearest by the cosine"],
    orient="row",
)

# %% [markdown]
# How alike are neighbours? The overlap of two items' categories is the number that they share over
# the number that either has. A hub is an item that is among the five nearest of many others.

# %%
has_NxC = np.array([[name in names for name in bag.vocab] for names in names_N])


def describe(near_NxK):
    """Mean overlap of categories with the neighbours, and how many have the greatest hub."""
    shared = (has_NxC[:, None] & has_NxC[near_NxK]).sum(axis=2)
    either = (has_NxC[:, None] | has_NxC[near_NxK]).sum(axis=2)
    return (shared / either).mean(), np.bincount(near_NxK.ravel()).max()


others = nearest(np.random.default_rng(0).random((300, 300)))
kinds = {"cosine": by_cosine, "inner product": by_product, "chance": others}
rows = [(name, *describe(near)) for name, near in kinds.items()]
neighbours = pl.DataFrame(rows, schema=["nearest by", "overlap", "greatest hub"], orient="row")
assert neighbours["overlap"][0] > 2 * neighbours["overlap"][2]
assert neighbours["greatest hub"][1] > 2 * neighbours["greatest hub"][0]
neighbours

# %% [markdown]
# ## The direction of popularity
#
# The mean of $s(q, i)$ over users is $\langle \bar\psi, \phi_i \rangle$ with the mean user
# $\bar\psi$, and has to be high for popular items: popularity must lie along some direction. Let
# $w$, of length 1, be the one that fits $\log \text{popularity}_i$ best by least squares.

# %%
w_D = np.linalg.lstsq(centred_NxD, log_popularity_N - log_popularity_N.mean(), rcond=None)[0]
w_D /= np.linalg.norm(w_D)
along_N = item_NxD @ w_D
mean_user_D = user_UxD.mean(axis=0)


def correlation(value_N):
    """With the log of popularity."""
    return np.corrcoef(value_N, log_popularity_N)[0, 1]


# %%
assert correlation(along_N) > 0.8 and correlation(item_NxD @ mean_user_D) > 0.7
r2 = explained(item_NxD, log_popularity_N[:, None])[0]
share = along_N.var() / centred_NxD.var(axis=0).sum()
print(f"all 16 dimensions explain {r2:.0%} of log popularity on items that the fit did not see")
print(f"its correlation with the position along w is {correlation(along_N):.2f},")
print(f"with the mean user's score {correlation(item_NxD @ mean_user_D):.2f}")
print(f"w holds {share:.0%} of the variance of the embeddings")

# %%
items = items.with_columns(along=along_N, length=length_N)
counts = alt.X("interactions:Q", title="training interactions").scale(type="log", domain=[5, 1000])
base = alt.Chart(items, title="One direction holds popularity").encode(
    x=counts,
    y=alt.Y("along:Q", title="position along w", scale=alt.Scale(zero=False)),
    tooltip=["title:N", "interactions:Q"],
)
dots = base.mark_point(filled=True, opacity=0.6)
line = base.transform_regression("interactions", "along", method="log").mark_line(color="#e45756")
(dots + line).properties(width=420, height=280)

# %% [markdown]
# Taken out of the item embeddings, it takes popularity out of the lists, as far as it is what
# lifts all users' scores. The mean user's own direction takes out more.


# %%
def mean_popularity(item_NxD):
    """Of the ten items that score highest for each user."""
    top_UxK = np.argsort(-(user_UxD @ item_NxD.T), axis=1)[:, :10]
    return popularity_N[top_UxK].mean()


def without(direction_D):
    """The item embeddings less what lies along a direction of length 1."""
    return item_NxD - np.outer(item_NxD @ direction_D, direction_D)


# %%
shared_D = mean_user_D / np.linalg.norm(mean_user_D)
kinds = {"all": item_NxD, "without w": without(w_D), "without the mean user": without(shared_D)}
found = {name: mean_popularity(changed_NxD) for name, changed_NxD in kinds.items()}
assert found["all"] > 1.2 * found["without w"] > 1.2 * found["without the mean user"]
rows = [*found.items(), ("(of all items)", popularity_N.mean())]
pl.DataFrame(rows, schema=["embeddings", "mean interactions of the first ten"], orient="row")

# %% [markdown]
# ## Length against popularity
#
# It is often said that popular items have long vectors. But their scores have to be high for the
# mean user and those of rare items low, and a vector can as well point away from the mean user as
# towards them.

# %%
assert abs(correlation(length_N)) < 0.5
print(f"correlation of log popularity with length {correlation(length_N):+.2f}, ", end="")
print(f"with the position along w {correlation(along_N):+.2f}")

# %%
alt.Chart(items, title="Length is not popularity").mark_point(filled=True, size=50).encode(
    x=counts,
    y=alt.Y("length:Q", title="length of the embedding", scale=alt.Scale(zero=False)),
    color=alt.Color("along:Q", title="along w", scale=alt.Scale(scheme="viridis")),
    tooltip=["title:N", "interactions:Q"],
).properties(width=420, height=280)

# %% [markdown]
# Both ends are long: rare items (dark) point away, popular ones (bright) towards. So where a vector
# points tells a popular item, and how long it is does not. Next:
# [what sampled negatives do to the gradient](5_estimators.ipynb).
