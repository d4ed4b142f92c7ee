"""The sections of a page as HTML: what was compared, and the tables beside the figures."""

import importlib.metadata
import itertools
import json
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from recjax.config import flatten_config
from recjax.reports import frames, markup
from recjax.reports.collect import Results
from recjax.reports.compare import Comparison
from recjax.reports.drawing import Figure
from recjax.reports.markup import Cell, Column, Row, number, text
from recjax.reports.tables import config_differences

_SPLITS = {
    "leave_one_out": "each user's last interaction is tested, the one before it validates",
    "random": "each interaction by itself, whatever its time",
    "global_time": "the latest interactions are tested, those just before them validate",
    "strong_generalisation": "users that training never saw, of whom a first part is known",
    "predefined": "as the data came divided",
}
_HISTORIES = {
    "past": "a query reads what its user did before the first target",
    "profile": "a query reads all that is known of its user, in no order",
}
_CORPORA = {
    "rated": "all that anyone interacted with",
    "listed": "all of the item table",
    "seen": "all that training saw",
}
_SEEN = {
    "known": "what a user is known to have chosen is not recommended again",
    "train": "what a user chose in training is not recommended again",
    "none": "anything may be recommended, also what the user knows",
}
_COSTS = {
    "parameters": ("Parameters", ",.0f"),
    "steps": ("Steps", ",.0f"),
    "examples": ("Examples", ",.0f"),
    "train_seconds": ("Training (s)", ",.1f"),
    "step_ms": ("Step (ms)", ",.2f"),
    "examples_per_second": ("Examples/s", ",.0f"),
    "query_ms": ("Query (ms)", ",.3f"),
}
_ARMS_AS_ROWS = 6


class Sections:
    """Sections of one page, figures and tables numbered as they come."""

    def __init__(self, results: Results, comparison: Comparison):
        self.results, self.compared = results, comparison
        self.arms = [arm.name for arm in results.arms]
        self.metrics = frames.shown_metrics(results)
        self.links: list[tuple[str, str]] = []
        self._figure, self._table = itertools.count(1), itertools.count(1)

    def section(
        self, name: str, title: str, before: str, figures: Sequence[Figure] = (), after: str = ""
    ) -> str:
        """A heading, HTML, figures, HTML; nothing where there is none of it."""
        shown = "".join(markup.figure(one, next(self._figure)) for one in figures)
        inner = f"{before}{shown}{after}"
        if not inner:
            return ""
        self.links.append((name, title))
        return f'<section id="{name}"><h2>{escape(title)}</h2>{inner}</section>'

    def header(self) -> str:
        """Title, question, and under which protocol on what hardware."""
        results, protocol = self.results, self.results.protocol
        commands = escape("\n".join(_commands(results)))
        seeds = sorted({run.seed for run in results.runs})
        split = [_SPLITS.get(protocol["split"], "")]
        split += [f"{key} {value}" for key, value in protocol["split_params"].items()]
        chosen = protocol["selection_metric"]
        runs = [_count(len(self.arms), "arm")] if len(self.arms) > 1 else []
        runs += [
            _count(len(results.runs), "run"),
            f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}",
        ]
        words = {
            "Data": f"{escape(protocol['dataset'])} {_hash(protocol['dataset_hash'])}",
            "Split": f"{escape(protocol['split'].replace('_', ' '))}: "
            f"{escape(', '.join(filter(None, split)))} {_hash(protocol['split_hash'])}",
            "History": escape(_HISTORIES.get(protocol["history"], protocol["history"])),
            "Ranked": escape(
                f"{protocol['candidates']:,} items, "
                f"{_CORPORA.get(protocol['corpus'], protocol['corpus'])}; "
                f"{_SEEN.get(protocol['seen'], protocol['seen'])}; ties: {protocol['ties']}"
            ),
            "Measured": escape(
                f"on {protocol['part']}, {self.compared.queries:,} queries; "
                f"{protocol['not_scored']}"
            ),
            "Checkpoint": escape(
                f"of the best {chosen}" if chosen.startswith("valid/") else chosen
            ),
            "Runs": escape(", ".join(runs)),
            "Ran on": escape(
                f"{_distinct(run.cost.get('devices') for run in results.runs)}; {_version()}, "
                f"JAX {_distinct(run.cost.get('jax') for run in results.runs)}"
            ),
            "Commands": f"<pre>{commands}</pre>",
        }
        metrics = [
            Row([text(name), text(divisor, "wrap")])
            for name, divisor in protocol.get("denominators", {}).items()
        ]
        columns = [Column("Metric", text=True), Column("Divided by", text=True)]
        return (
            f"<header><h1>{escape(results.title)}</h1>{_prose(results.about)}"
            f"{markup.facts(words)}</header>"
            f"{markup.details('How metrics are defined', markup.table('', columns, metrics))}"
        )

    def comparison(self) -> str:
        """Test metrics, differences, what it cost, and what a reader must know of it all."""
        single = len(self.results.runs) == 1
        notes = [*self.results.notes, *self.compared.notes]
        listed = "".join(f"<li>{escape(note)}</li>" for note in notes)
        parts = [self._single()] if single else [self._arms(name) for name in self.compared.metrics]
        parts.append(f'<ul class="notes">{listed}</ul>' if notes else "")
        if not single:
            parts.append(markup.details("Every metric", self._every_metric()))
        return "".join([*parts, self._costs()])

    def slices(self) -> str:
        """The numbers of the figures, folded away."""
        groups = {
            group: frames.slices_frame(self.results, group, self.metrics)[0]
            for group in ("history", "items", "users")
        }
        present = {name for rows in groups.values() for name in rows["metric"]}
        metrics = [name for name in self.metrics if name in present]
        if not metrics:
            return ""
        rows = []
        for group, long in groups.items():
            found: dict[tuple[str, str, int], dict[str, float]] = {}
            for one in long.iter_rows(named=True):
                key = one["slice"], one["arm"], one["size"]
                found.setdefault(key, {})[one["metric"]] = one["value"]
            for (label, arm, size), values in found.items():
                cells = [self._arm(arm), text(f"{group} {label}"), number(size, ",d")]
                cells += [number(values.get(name)) for name in metrics]
                rows.append(Row(cells, arm))
        columns = [Column("Arm", text=True), Column("Slice", text=True), Column("n")]
        columns += [Column(escape(name)) for name in metrics]
        caption = self._caption(
            "Metrics by slice.",
            "Means over seeds; n counts queries, or targets where the slice is one of items.",
        )
        return markup.details("The numbers", markup.table(caption, columns, rows))

    def configs(self) -> str:
        """What differs between arms, marked where it is not the baseline's; and all the rest."""
        differ = config_differences(self.results)
        shared = {
            key: repr(value)
            for key, value in flatten_config(self.results.runs[0].config).items()
            if key not in differ
        }
        rows = [Row([text(key), text(value, "wrap")]) for key, value in shared.items()]
        columns = [Column("Key", text=True), Column("Value", text=True)]
        several = len(self.arms) > 1
        rest = markup.details(
            f"{'What all arms share' if several else 'Every key'}: {_count(len(rows), 'key')}",
            markup.table(self._caption("Settings."), columns, rows),
        )
        if not several:
            return rest
        if not differ:
            return f'<p class="none">All arms have the same settings.</p>{rest}'
        return self._differing(differ) + rest

    def _differing(self, differ: Mapping[str, Mapping[str, str]]) -> str:
        baseline = self.compared.baseline
        caption = self._caption(
            "Settings that differ between arms.", f"Marked: not as in {baseline}, the baseline."
        )

        def cell(key: str, arm: str, of_arm: str = "") -> Cell:
            value = escape(differ[key].get(arm, ""))
            as_baseline = differ[key].get(arm) == differ[key].get(baseline)
            return Cell(value if as_baseline else f"<mark>{value}</mark>", None, "text", of_arm)

        if len(differ) <= _ARMS_AS_ROWS:
            rows = [
                Row([self._arm(arm), *(cell(key, arm) for key in differ)], arm, " ".join(differ))
                for arm in self.arms
            ]
            columns = [Column("Arm", text=True), *(Column(escape(k), text=True) for k in differ)]
            return markup.table(caption, columns, rows, name="config-differences")
        rows = [Row([text(key), *(cell(key, arm, arm) for arm in self.arms)]) for key in differ]
        columns = [Column("Key", text=True)]
        columns += [Column(self._arm(arm).html, text=True, arm=arm) for arm in self.arms]
        return markup.table(caption, columns, rows, name="config-differences", by_arm=True)

    def _arms(self, metric: str) -> str:
        compared, first = self.compared, self.compared.baseline
        values = frames.values_frame(self.results, (metric,))
        means = {
            row["arm"]: row
            for row in values.iter_rows(named=True)
            if row["seed"] in (frames.MEAN, frames.BASELINE)
        }
        best = max(means[arm]["value"] for arm in self.arms)
        rows = []
        for arm in self.results.arms:
            mean, one = means[arm.name], compared.get(arm.name, metric)
            form = "<b>{}</b>" if mean["value"] == best and len(self.arms) > 1 else "{}"
            half = None if mean["high"] is None else mean["high"] - mean["value"]
            cells = [self._arm(arm.name), number(len(arm.results), "d")]
            cells += [number(mean["value"], html=form), number(half, html="<small>± {}</small>")]
            if one is None:
                label = "baseline" if arm.name == first and compared.differences else ""
                cells += [Cell(f"<small>{label}</small>", 0.0), *[Cell("", math.nan)] * 5]
            else:
                strong = "<b>{}</b>" if one.different else "{}"
                cells += [
                    number(one.difference, "+.4f", strong),
                    number(one.relative, "+.1%"),
                    Cell(f"{_signed(one.low)} to {_signed(one.high)}", one.low),
                    _p_value(one.p_holm, strong),
                    number(one.effect_size, "+.2f"),
                    Cell(f"{one.better:.0%} / {one.worse:.0%}", one.better - one.worse),
                ]
            rows.append(Row(cells, arm.name))
        for name in self.results.runs[0].baselines:
            cells = [text(name), Cell("", math.nan), number(means[name]["value"])]
            rows.append(Row([*cells, *[Cell("", math.nan)] * 7], words="ranker", classes="aside"))
        heads = (escape(metric), "± 95 %", "Difference", "Relative", "95 % interval", "p (Holm)")
        columns = [Column("Arm", text=True), Column("Seeds"), *map(Column, heads)]
        columns += [Column("Effect d<sub>z</sub>"), Column("Better / worse")]
        caption = self._caption(
            f"Test {metric}.",
            f"Mean over seeds ± half its 95 % interval. Differences are to {first}, by a paired t "
            f"test over {compared.queries:,} queries that counts the noise between seeds, p values "
            f"by Holm over {_count(len(compared.differences), 'comparison')}; bold differences "
            "hold at 5 %. d<sub>z</sub> is the mean difference of a query over its standard "
            "deviation; the last column, the share of queries that are better and worse.",
            escaped=True,
        )
        if not compared.differences:
            columns, rows = columns[:4], [row._replace(cells=row.cells[:4]) for row in rows]
            caption = self._caption(f"Test {metric}.", "Mean over seeds ± half its 95 % interval.")
        return markup.table(caption, columns, rows, name=f"test-{_slug(metric)}")

    def _every_metric(self) -> str:
        metrics = self.results.metrics
        values = frames.values_frame(self.results, metrics)
        of_arm: dict[tuple[str, bool], dict[str, float]] = {}
        for one in values.iter_rows(named=True):
            if one["seed"] in (frames.MEAN, frames.BASELINE):
                key = one["arm"], one["seed"] == frames.MEAN
                of_arm.setdefault(key, {})[one["metric"]] = one["value"]
        rows = []
        for (name, is_arm), found in of_arm.items():
            head = self._arm(name) if is_arm else text(name)
            cells = [head, *(number(found[metric], ".4g") for metric in metrics)]
            rows.append(Row(cells, name if is_arm else "", "", "" if is_arm else "aside"))
        columns = [Column("Arm", text=True), *(Column(escape(name)) for name in metrics)]
        caption = self._caption("Every test metric.", "Means over seeds.")
        return markup.table(caption, columns, rows, name="every-metric")

    def _single(self) -> str:
        run = self.results.runs[0]
        rows = []
        for name in self.results.metrics:
            low, high = run.intervals.get(name, (math.nan, math.nan))
            span = Cell(f"{low:.4f} to {high:.4f}", low) if low == low else number(None)
            others = [number(found.get(name), ".4g") for found in run.baselines.values()]
            classes = "first" if name in self.metrics else ""
            cells = [text(name), number(run.metrics[name], ".4g"), span, *others]
            rows.append(Row(cells, classes=classes))
        columns = [Column("Metric", text=True), Column("Model"), Column("95 % interval")]
        columns += [Column(escape(name)) for name in run.baselines]
        caption = self._caption(
            f"Test metrics of the model of step {run.step:,}.",
            "Intervals by bootstrap over queries: another sample of users, not another training.",
        )
        return markup.table(caption, columns, rows, name="test")

    def _costs(self) -> str:
        costs = frames.costs_frame(self.results, list(_COSTS))
        searched = any(run.search_trials for run in self.results.runs)
        trials = {arm.name: arm.results[0].search_trials for arm in self.results.arms}
        rows = []
        for one in costs.filter(costs["seed"] == frames.MEAN).iter_rows(named=True):
            cells = [self._arm(one["arm"])]
            cells += [number(one[key], form) for key, (_, form) in _COSTS.items()]
            cells += [number(trials[one["arm"]], ",d")] if searched else []
            rows.append(Row(cells, one["arm"]))
        columns = [Column("Arm", text=True), *(Column(head) for head, _ in _COSTS.values())]
        columns += [Column("Search trials")] if searched else []
        caption = self._caption(
            "Budget and cost.",
            "Means over seeds. Training counts every step, compilation included, and no "
            "validation; a query's time is its share of a batch, encoded and ranked.",
        )
        return markup.table(caption, columns, rows, name="costs")

    def _arm(self, name: str) -> Cell:
        swatch = f'<span class="swatch c{self.arms.index(name)}"></span>'
        return Cell((swatch if len(self.arms) > 1 else "") + escape(name), classes="text")

    def _caption(self, title: str, words: str = "", escaped: bool = False) -> str:
        body = words if escaped else escape(words)
        return f"<b>Table {next(self._table)}. {escape(title)}</b> {body}"


def _prose(about: str) -> str:
    """Paragraphs; those that are indented as they stand."""
    blocks = [block for block in re.split(r"\n[ \t]*\n", about.expandtabs()) if block.strip()]
    return "".join(
        f"<pre>{escape(block)}</pre>" if block.startswith("    ") else f"<p>{escape(block)}</p>"
        for block in blocks
    )


def _commands(results: Results) -> Iterable[str]:
    """What trains the sweeps again, and what makes this report."""
    folders = []
    for run in results.runs:
        sweep = run.workdir.parent / "sweep.json"
        folder = run.workdir.parent if sweep.exists() else run.workdir
        if folder in folders:
            continue
        folders.append(folder)
        if sweep.exists():
            path = json.loads(sweep.read_text())["sweep"]
            yield f"python -m recjax.sweep --sweep={shlex.quote(path)} --workdir={_word(folder)}"
    yield f"python -m recjax.report {' '.join(map(_word, folders))}"


def _word(path: object) -> str:
    return shlex.quote(str(path))


def _version() -> str:
    try:
        return f"recjax {importlib.metadata.version('recjax')}"
    except importlib.metadata.PackageNotFoundError:
        return "recjax"


def _distinct(values: Iterable[object]) -> str:
    found = dict.fromkeys(str(value) for value in values if value)
    return ", ".join(found) or "unknown"


def _hash(digits: str) -> str:
    return f'<span class="hash">{escape(digits[:8])}</span>'


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _slug(name: str) -> str:
    return re.sub(r"\W+", "-", name)


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "\N{MINUS SIGN}")


def _p_value(p: float, html: str) -> Cell:
    return Cell(html.format("&lt; 0.001" if p < 0.001 else f"{p:.3f}"), p)
