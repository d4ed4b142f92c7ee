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
# # 1 Quickstart: from a data frame of your own to recommendations
#
# A public library knows who borrowed which book when, and a little about its members and books.
# What should it suggest to each member next? This notebook makes up such a library, trains a
# two-tower model on its three frames, and asks it.

# %%
import datetime
import tempfile

import altair as alt
import numpy as np
import polars as pl

import recjax

pl.Config(tbl_hide_dataframe_shape=True, float_precision=3)
rng = np.random.default_rng(0)
MEMBERS, NEW = 1000, 40

# %% [markdown]
# ## The frames
#
# They stand for tables of your own. **Books** have a genre and a number of pages. Those that end
# in the same word are a series of ten, which no column says.

# %%
SERIES = {
    "crime": ("Alibi", "Witness", "Verdict"),
    "romance": ("Promise", "Letter", "Wedding"),
    "science fiction": ("Orbit", "Colony", "Signal"),
    "history": ("Empire", "Treaty", "Siege"),
}
WORDS = "Silent Last Lost Hidden Second Broken Distant Golden Winter Northern".split()
rows = [(genre, f"The {w} {s}") for genre, series in SERIES.items() for s in series for w in WORDS]
books = pl.DataFrame(rows, schema=["genre", "title"], orient="row").with_columns(
    book=pl.format("b{}", pl.int_range(pl.len())), pages=pl.Series(rng.integers(120, 700, 120))
)
books.head(3)

# %% [markdown]
# **Members** have an age (a float: whole numbers of few values count as categories) and a district.
# Which genre they like depends on their age, more or less. The last forty have just joined.

# %%
age = rng.integers(12, 88, MEMBERS + NEW)
district = rng.choice(["Old Town", "Harbour", "Hill", "Station"], MEMBERS + NEW)
members = pl.DataFrame({"age": age.astype(float), "district": district}).with_columns(
    member=pl.format("m{}", pl.int_range(pl.len()))
)
usual = (age - 12) // 19  # the genre of an age: 0, 1, 2 or 3
likes = np.where(rng.random(len(age)) < 0.8, usual, rng.integers(0, 4, len(age)))
members.head(3)

# %% [markdown]
# **Loans** follow the genre that a member likes and, more so, the series of the loan before. Some
# books are far better known than others, and nobody borrows a book twice.

# %%
genre, series = np.arange(120) // 30, np.arange(120) // 10
fame = rng.lognormal(0, 0.7, 120)


def borrow(liked, count):
    """The books that one member borrows, one after the other."""
    taken = []
    for _ in range(count):
        weight = 0.1 + (genre == liked) + (6 * (series == series[taken[-1]]) if taken else 0)
        weight = fame * weight
        weight[taken] = 0
        taken.append(rng.choice(120, p=weight / weight.sum()))
    return taken


# %%
start = datetime.date(2025, 1, 2)
rows = [
    (f"m{m}", f"b{book}", start + datetime.timedelta(days=int(9 * place + rng.integers(9))))
    for m in range(MEMBERS)
    for place, book in enumerate(borrow(likes[m], rng.integers(5, 16)))
]
loans = pl.DataFrame(rows, schema=["member", "book", "date"], orient="row")
loans.head(3)

# %% [markdown]
# ## From frames to recommendations
#
# `Dataset.from_frames` knows the columns of users, items and times by their names, and the kind
# of each feature by its type; pass a `Schema` where it guesses wrong. Pandas frames are taken as
# they are, if pyarrow is installed.

# %%
dataset = recjax.Dataset.from_frames(loans, members, books, name="library")
features = [(feature.side, feature.name, feature.kind) for feature in dataset.schema.features]
pl.DataFrame(features, schema=["side", "feature", "kind"], orient="row")

# %% [markdown]
# A config says what is trained. `configs/two_tower.py` lists every key with its legal values; the
# word after the colon says that the data are a table of your own. Here the query tower reads who
# asks and what they borrowed last: the last book by itself, and the mean of the last five.

# %%
config = recjax.load_config(
    "../configs/two_tower.py:table",
    **{
        "model.query.features": ("history", "age", "district"),
        "model.query.pooling": ("last", "mean"),
        "examples.history_length": 5,
        "model.dim": 32,
    },
)

# %% [markdown]
# Each member's last loan is the test and the one before it chooses the best step: training sees
# neither. All that a run leaves behind lies in its workdir.

# %%
workdir = tempfile.TemporaryDirectory()  # yours would be a folder that stays
run = recjax.train(config, workdir.name, dataset, quiet=True)

# %% [markdown]
# That is all. Ask for anybody's next books; what they have borrowed already is left out.

# %%
run.recommend(["m1", "m3"], k=4)

# %% [markdown]
# These are the last loans of the two:

# %%
latest = loans.filter(pl.col("member").is_in(["m1", "m3"])).group_by("member").tail(4)
latest.join(books, on="book").sort("member", "date").select("member", "date", "title", "genre")

# %% [markdown]
# ## Is it any good?
#
# To suggest the most borrowed books to everybody costs nothing, and a model has to beat that.
# Recall@k is the share of members whose last loan is among the first k of all books, less those
# that they had borrowed before.

# %%
found = run.evaluate("test")
rows = []
for k in config.eval.ks:
    low, high = found.intervals[f"recall@{k}"]
    rows.append((f"{k}", "two-tower", found.metrics[f"recall@{k}"], low, high))
    rows.append((f"{k}", "popularity", run.metrics[f"test/popularity/recall@{k}"], None, None))
recall = pl.DataFrame(rows, schema=["k", "ranker", "recall", "low", "high"], orient="row")
assert all(recall.filter(ranker="two-tower")["low"] > recall.filter(ranker="popularity")["recall"])

# %%
base = alt.Chart(recall, title="Each member's last loan found, with 95 % intervals").encode(
    x=alt.X("k:N", title="k, books suggested", sort=None, axis=alt.Axis(labelAngle=0)),
    xOffset=alt.XOffset("ranker:N", sort=None),
)
bars = base.mark_bar().encode(
    y=alt.Y("recall:Q", title="recall@k"), color=alt.Color("ranker:N", title=None, sort=None)
)
ends = base.mark_rule(strokeWidth=1.5).encode(y=alt.Y("low:Q", title="recall@k"), y2="high:Q")
(bars + ends).properties(width=360, height=220)

# %% [markdown]
# ## Somebody new
#
# The query tower reads features, so it can be asked about the forty members without a loan, of
# whom it knows age and district. It suggests what people of that age like:

# %%
new = members.tail(NEW)
first = run.recommend(new["member"].to_list(), k=3).join(books, left_on="item", right_on="book")
first = first.join(new, left_on="user", right_on="member").sort("user", "rank")
first.group_by("user", "age", maintain_order=True).agg(pl.col("genre").str.join(", ")).head(5)

# %%
by_age = pl.Series(list(SERIES)).gather(((first["age"] - 12) // 19).cast(int))
share = (first["genre"] == by_age).mean()
assert share > 0.5
print(f"{share:.0%} of the suggestions are of the genre of the member's age; by chance, 25%.")

# %% [markdown]
# ## Later
#
# A run is opened again from its workdir. Frames in memory do not lie there, so they are passed
# along; other data than the run's own are refused.

# %%
again = recjax.load_run(workdir.name, dataset)
assert again.recommend(["m1"]).equals(run.recommend(["m1"]))
sorted(path.name for path in again.workdir.iterdir())

# %% [markdown]
# Next: [how the three models differ](2_textbook.ipynb).
