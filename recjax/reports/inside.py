"""Inside one model: what it recommends to whom, which items it holds to be near, and a map."""

import dataclasses
from html import escape
from typing import Any

import numpy as np
import polars as pl

from recjax.data.dataset import Bag, Categorical, Dataset, Dense
from recjax.data.queries import EvalQueries
from recjax.errors import CheckpointError, ConfigError, DataError
from recjax.extras import require
from recjax.measure import rank_all
from recjax.reports.collect import Result
from recjax.reports.drawing import GREY, Figure, Spec
from recjax.run import Run, load_run
from recjax.slices import ITEM_CLASSES, item_class

MAX_ITEMS = 4000
USERS = 12
SHOWN = 10
_CATEGORIES = 7
_OTHER = "other"


@dataclasses.dataclass(frozen=True, eq=False)
class Inside:
    """What a page shows of one model.

    Attributes:
      users: HTML, a card for each of some users; why there is nothing, where that is so.
      figures: the map of items.
      neighbours: HTML, the place where the page's script shows neighbours.
      near: the data that it shows, or None.
    """

    users: str
    figures: tuple[Figure, ...] = ()
    neighbours: str = ""
    near: dict[str, Any] | None = None


def look_inside(result: Result, dataset: Dataset | None = None) -> Inside:
    """Sample users, nearest neighbours and a map of the items of a run.

    Args:
      result: the run.
      dataset: what it was trained on, where its config cannot load it.

    Raises:
      ConfigError: the extra `report` is not installed.
    """
    try:
        run = load_run(result.workdir, dataset)
    except (CheckpointError, ConfigError, DataError) as error:
        return Inside(f'<p class="none">The model cannot be shown: {escape(str(error))}</p>')
    items = _shown_items(run)
    embedding_NxD = run.item_embeddings()[items].astype(np.float64)
    norm_N = np.linalg.norm(embedding_NxD, axis=1, keepdims=True)
    unit_NxD = embedding_NxD / np.maximum(norm_N, 1e-12)
    titles = item_names(run.experiment.dataset)[items]
    count_N = run.experiment.popularity_N[items]
    ids, cosines = nearest(unit_NxD, min(SHOWN, len(items) - 1))
    return Inside(
        users=_users(run),
        figures=(_map(run, items, unit_NxD),),
        neighbours=_NEIGHBOURS,
        near={
            "k": ids.shape[1],
            "titles": titles.tolist(),
            "counts": count_N.astype(int).tolist(),
            "ids": ids.reshape(-1).tolist(),
            "similarities": np.rint(1000 * cosines).astype(int).reshape(-1).tolist(),
        },
    )


def nearest(unit_NxD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k other items of the highest cosine: positions and cosines [N, K], nearest first."""
    ids, cosines = [], []
    for start in range(0, len(unit_NxD), 1024):
        block = unit_NxD[start : start + 1024] @ unit_NxD.T
        rows = np.arange(len(block))
        block[rows, start + rows] = -np.inf
        top = np.argsort(-block, axis=1, kind="stable")[:, :k]
        ids.append(top)
        cosines.append(np.take_along_axis(block, top, axis=1))
    return np.concatenate(ids), np.concatenate(cosines)


def place_items(unit_NxD: np.ndarray) -> tuple[np.ndarray, str]:
    """Two coordinates [N, 2] of every item, always the same, and the name of the method.

    t-SNE of cosine distances, begun at the principal components (van der Maaten and Hinton, 2008;
    Kobak and Berens, 2019); of fewer than 30 items, or of one dimension, the principal components
    themselves.
    """
    if len(unit_NxD) < 30 or unit_NxD.shape[1] < 2:
        centred = unit_NxD - unit_NxD.mean(axis=0)
        left, scale, _ = np.linalg.svd(centred, full_matrices=False)
        return np.pad(left * scale, ((0, 0), (0, 2)))[:, :2], "Principal components"
    manifold = require("sklearn.manifold", "report")
    tsne = manifold.TSNE(
        init="pca",
        metric="cosine",
        perplexity=min(30, len(unit_NxD) / 4),
        max_iter=600,
        random_state=0,
    )
    # Threads add in any order, so with two of them the map would differ from time to time.
    with require("threadpoolctl", "report").threadpool_limits(1):
        return tsne.fit_transform(unit_NxD.astype(np.float32)), "t-SNE"


def item_names(dataset: Dataset) -> np.ndarray:
    """Each item's title, or its id where there is none: str [N]."""
    ids = dataset.items.ids.astype(str)
    return ids if dataset.titles is None else np.where(dataset.titles == "", ids, dataset.titles)


def categories(dataset: Dataset, items: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of each categorical column of the items: one value an item, and all of them as text.

    The one value is, of an item's that are among the most frequent, the rarest: what tells it from
    the others best. An item without any is `other`.
    """
    found = {}
    for name, column in dataset.items.columns.items():
        if isinstance(column, Categorical):
            of_item = [[code] if code >= 0 else [] for code in column.codes[items]]
        elif isinstance(column, Bag):
            taken = column.take(items)
            of_item = np.split(taken.codes, taken.offsets[1:-1])
        else:
            continue
        counts = np.bincount(np.concatenate([*of_item, []]).astype(int), minlength=1)
        common = np.argsort(-counts, kind="stable")[:_CATEGORIES]
        common = common[counts[common] > 0].tolist()
        if not common:
            continue
        words = column.vocab.astype(str)
        one = [
            max((common.index(c) for c in codes if c in common), default=-1) for codes in of_item
        ]
        labels = [*(words[code] for code in common), _OTHER]
        found[name] = (
            np.array(labels)[one],
            np.array([", ".join(words[list(codes)]) for codes in of_item]),
        )
    return found


def _shown_items(run: Run) -> np.ndarray:
    """The most popular of the items that the model ranks."""
    experiment = run.experiment
    ranked = np.flatnonzero(experiment.corpus_mask_N & experiment.rankable_mask_N)
    order = np.argsort(-experiment.popularity_N[ranked], kind="stable")
    return ranked[order[:MAX_ITEMS]]


def _map(run: Run, items: np.ndarray, unit_NxD: np.ndarray) -> Figure:
    experiment = run.experiment
    place_Nx2, method = place_items(unit_NxD)
    columns: dict[str, Any] = {
        "item": np.arange(len(items)),
        "x": place_Nx2[:, 0].astype(np.float64),
        "y": place_Nx2[:, 1].astype(np.float64),
        "title": item_names(experiment.dataset)[items],
        "interactions": experiment.popularity_N[items].astype(np.int64),
    }
    # Fields have names of their own: a column of the data may be called `x`, or `it's`.
    groups: dict[str, tuple[str, ...]] = {}
    fields, told = {}, []
    found = categories(experiment.dataset, items)
    for i, (name, (one, every)) in enumerate(found.items()):
        values, counts = np.unique(one[one != _OTHER], return_counts=True)
        labels = values[np.argsort(-counts, kind="stable")].tolist()
        fields[f"by {name}"] = f"group{i}"
        groups[f"by {name}"] = (*labels, *([_OTHER] if (one == _OTHER).any() else []))
        columns |= {f"group{i}": one, f"every{i}": every}
        told.append((f"every{i}", name))
    classes = np.array(ITEM_CLASSES)[item_class(experiment.popularity_N)[items]]
    groups["by popularity"] = tuple(name for name in ITEM_CLASSES if name in classes)
    fields["by popularity"], columns["class"] = "class", classes
    rows = pl.DataFrame(columns)
    some = f"the {len(items):,} most popular" if len(items) == MAX_ITEMS else f"all {len(items):,}"
    return Figure(
        "map",
        "Map of item embeddings",
        f"{method} of the directions of the embeddings of {some} ranked items. Near items tend to "
        "be recommended to the same users; distances between far ones, and the axes, mean "
        "nothing. An item of several categories has the colour of its rarest among the most "
        "frequent. Ringed: the chosen item and its nearest.",
        rows,
        {name: _map_spec(rows, name, fields[name], groups[name], told) for name in groups},
        groups=groups,
        renderer="canvas",
    )


def _map_spec(
    rows: pl.DataFrame,
    label: str,
    field: str,
    names: tuple[str, ...],
    told: list[tuple[str, str]],
) -> Spec:
    alt = require("altair", "report")

    def axis(name: str) -> Any:
        low, high = rows[name].min(), rows[name].max()
        return {"scale": alt.Scale(domain=[low, high], nice=False, padding=10), "axis": None}

    x, y = alt.X("x:Q", **axis("x")), alt.Y("y:Q", **axis("y"))
    tips = [
        alt.Tooltip("title:N"),
        *(alt.Tooltip(f"{of_item}:N", title=name) for of_item, name in told),
        alt.Tooltip("interactions:Q", title="training interactions", format=",d"),
    ]
    base = alt.Chart(alt.NamedData("rows"))
    base = base.transform_filter(f"indexof(hidden, datum.{field}) < 0")
    domain = [name for name in names if name != _OTHER]
    color = alt.Color(f"{field}:N", scale=alt.Scale(domain=domain), title=None)
    near = base.transform_filter("indexof(focus, datum.item) >= 0")
    chosen = base.transform_filter("indexof(focus, datum.item) == 0")
    points = base.mark_circle(size=24, opacity=0.75)
    chart = alt.layer(
        points.transform_filter(f"datum.{field} == '{_OTHER}'").encode(
            x=x, y=y, color=alt.value(GREY), opacity=alt.value(0.4), tooltip=tips
        ),
        points.transform_filter(f"datum.{field} != '{_OTHER}'").encode(
            x=x, y=y, color=color, tooltip=tips
        ),
        near.mark_point(size=110, strokeWidth=2, color=GREY, opacity=1).encode(x=x, y=y),
        chosen.mark_text(dy=-13, fontSize=12, fontWeight=600).encode(x=x, y=y, text="title:N"),
    )
    params = [alt.param(name="hidden", value=[]), alt.param(name="focus", value=[])]
    title = f"embeddings of {len(rows):,} items, {label}"
    return chart.add_params(*params).properties(width=720, height=540, title=title).to_dict()


def _users(run: Run) -> str:
    """A card for each of some users, drawn at random: history, recommendations, held out."""
    experiment = run.experiment
    queries = experiment.queries("test")
    served = np.flatnonzero(experiment.serves(queries))
    rng = np.random.default_rng(0)
    rows = np.sort(rng.choice(served, min(USERS, len(served)), replace=False))
    if not len(rows):
        return '<p class="none">The model can serve no test user.</p>'
    top_QxK = _ranked(run, queries, rows)
    names = item_names(experiment.dataset)
    cards = "".join(
        _card(run, queries, int(row), top_K[top_K >= 0], names)
        for row, top_K in zip(rows, top_QxK, strict=True)
    )
    return (
        f"<h3>Some users</h3><p>{len(rows)} of the {len(served):,} test users that the model can "
        f"serve, drawn at random, as they were tested. What was held out is marked <b "
        f'class="hit">✓</b> where it is among the first {SHOWN}.</p>'
        f'<div class="users">{cards}</div>'
    )


def _ranked(run: Run, queries: EvalQueries, rows: np.ndarray) -> np.ndarray:
    """The lists [Q, K] that the test measured, to its largest k."""
    config = run.config.eval
    lists = rank_all(run.experiment, run.variables, queries, rows, max(config.ks), config.seen)
    return lists.ids_BxK


def _card(run: Run, queries: EvalQueries, row: int, top_K: np.ndarray, names: np.ndarray) -> str:
    dataset = run.experiment.dataset
    user = int(queries.user_Q[row])
    start, end = queries.known.offsets[user], queries.known.offsets[user + 1]
    if run.experiment.history == "past":
        end = max(start, queries.past_end_Q[row])
    known = queries.known.item[start:end][::-1].tolist()
    start, end = queries.target_offsets[row], queries.target_offsets[row + 1]
    targets = queries.target_items[start:end].tolist()
    rank = {item: place for place, item in enumerate(top_K.tolist(), 1)}
    hits = {item for item in targets if rank.get(item, SHOWN + 1) <= SHOWN}

    def entry(item: int, note: str = "") -> str:
        title = escape(str(names[item]))
        marked = f'<b class="hit">✓ {title}</b>' if item in hits else title
        return f"<li>{marked}{f' <small>{note}</small>' if note else ''}</li>"

    recommended = "".join(entry(item) for item in top_K[:SHOWN].tolist())
    held_out = "".join(
        entry(item, f"rank {rank[item]}" if item in rank else f"not in the first {len(top_K)}")
        for item in targets[:SHOWN]
    )
    history = "".join(f"<li>{escape(str(names[item]))}</li>" for item in known[:SHOWN])
    more = f"<li><small>and {len(known) - SHOWN:,} before</small></li>" * (len(known) > SHOWN)
    rest = f"<li><small>and {len(targets) - SHOWN:,} more</small></li>" * (len(targets) > SHOWN)
    return (
        f'<article class="user" data-row><h3>User {escape(str(dataset.users.ids[user]))}'
        f" <small>{escape(_described(dataset, user))}</small></h3>"
        f'<div class="lists"><div><h4>Recommended</h4><ol>{recommended}</ol></div>'
        f"<div><h4>Held out</h4><ul>{held_out}{rest}</ul>"
        f"<h4>History, the latest first</h4><ul>{history}{more}</ul>"
        "</div></div></article>"
    )


def _described(dataset: Dataset, user: int) -> str:
    """A user's features in words."""
    words = []
    for name, column in dataset.users.columns.items():
        if isinstance(column, Categorical) and column.codes[user] >= 0:
            words.append(f"{name} {column.vocab[column.codes[user]]}")
        elif isinstance(column, Dense) and np.isfinite(column.values[user]):
            words.append(f"{name} {column.values[user]:g}")
    return ", ".join(words)


_NEIGHBOURS = """<h3>Nearest neighbours</h3>
<div class="near"><div><label class="field"><span>An item</span>
<input id="item" type="search" placeholder="part of a title" autocomplete="off"></label>
<ul id="items" aria-label="Items found"></ul></div>
<div class="scroll"><table><caption>Nearest to <b id="near-title"></b>, by cosine of the embeddings
</caption><thead><tr><th scope="col">Item</th><th scope="col">Cosine</th>
<th scope="col">Training interactions</th></tr></thead><tbody id="near-rows" aria-live="polite">
</tbody></table></div></div>"""
