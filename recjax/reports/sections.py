"""The sections of a page as HTML: what was compared, and the tables beside the figures."""

import dataclasses
import importlib.metadata
import itertools
import re
import shlex
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from recjax.config import flatten_config
from recjax.reports import frames, markup, tables
from recjax.reports.collect import Results
from recjax.reports.compare import Comparison
from recjax.reports.drawing import Figure
from recjax.reports.folders import plan_of
from recjax.reports.layout import Cell, Table, cells

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
_KEYS_AS_COLUMNS = 6


class Sections:
    """Sections of one page, figures and tables numbered as they come."""

    def __init__(self, results: Results, comparison: Comparison):
        self.results, self.compared = results, comparison
        self.arms = [arm.name for arm in results.arms]
        self.metrics = frames.shown_metrics(results, comparison.metrics)
        self.links: list[tuple[str, str]] = []
        self._figures, self._tables = itertools.count(1), itertools.count(1)

    def section(
        self, name: str, title: str, before: str, figures: Sequence[Figure] = (), after: str = ""
    ) -> str:
        """A heading, HTML, figures, HTML; nothing where there is none of it."""
        shown = "".join(markup.figure(one, next(self._figures)) for one in figures)
        inner = f"{before}{shown}{after}"
        if not inner:
            return ""
        self.links.append((name, title))
        return f'<section id="{name}"><h2>{escape(title)}</h2>{inner}</section>'

    def header(self) -> str:
        """Title, question, and under which protocol on what hardware."""
        results, protocol = self.results, self.results.protocol
        commands = escape("\n".join(_commands(results, self.compared)))
        seeds = sorted({run.seed for run in results.runs})
        split = [_SPLITS.get(protocol["split"], "")]
        split += [f"{key} {value}" for key, value in protocol["split_params"].items()]
        chosen = protocol["selection_metric"]
        runs = [_count(len(self.arms), "arm") if len(self.arms) > 1 else self.arms[0]]
        runs += [
            _count(len(results.runs), "run"),
            f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}",
        ]
        words = {
            "Data": f"{escape(protocol['dataset'])} {_hash(protocol['dataset_hash'])}",
            "Split": f"{escape(protocol['split'].replace('_', ' '))}: "
            f"{escape(', '.join(filter(None, split)))} {_hash(protocol['split_hash'])}",
            "History": escape(_HISTORIES.get(protocol["history"], str(protocol["history"]))),
            "Ranked": escape(
                f"{protocol['candidates']:,} items, "
                f"{_CORPORA.get(protocol['corpus'], protocol['corpus'])}; "
                f"{_SEEN.get(protocol['seen'], protocol['seen'])}; ties: {protocol['ties']}"
            ),
            "Measured": escape(
                f"on {results.measured_on}, {self.compared.queries:,} queries; "
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
        divisors = {
            name: escape(divisor) for name, divisor in protocol.get("denominators", {}).items()
        }
        return (
            f"<header><h1>{escape(results.title)}</h1>{_prose(results.about)}"
            f"{markup.facts(words)}</header>"
            f"{markup.details('What metrics are divided by', markup.facts(divisors))}"
        )

    def comparison(self) -> str:
        """Test metrics, and what a reader must know of them."""
        notes = [*self.results.notes, *self.compared.notes]
        listed = "".join(f"<li>{escape(note)}</li>" for note in notes)
        if len(self.results.runs) == 1:
            shown = tables.run_table(self.results)
            rows = tuple(row for row in shown.rows if row[0].text in self.metrics)
            shown = dataclasses.replace(shown, rows=rows)
        else:
            shown = tables.results_table(self.results, self.compared)
        return self._table(shown, "test") + (f'<ul class="notes">{listed}</ul>' if notes else "")

    def costs(self) -> str:
        """What each arm was given; differences and metrics in full, folded away."""
        parts = [self._table(tables.budget_table(self.results), "budget")]
        if self.compared.differences:
            shown = self._table(tables.differences_table(self.compared), "differences")
            parts.append(markup.details("Differences in full", shown))
        single = len(self.results.runs) == 1
        every = tables.run_table(self.results) if single else _every_metric(self.results)
        parts.append(markup.details("Every metric", self._table(every, "metrics")))
        return "".join(parts)

    def slices(self) -> str:
        """The numbers of the figures, folded away."""
        shown = tables.slices_table(self.results, self.compared.metrics[0])
        return markup.details("The numbers", self._table(shown, "slices"))

    def configs(self) -> str:
        """What differs between arms, marked where it is not the baseline's; and all the rest."""
        differ = tables.config_differences(self.results)
        flat = flatten_config(self.results.runs[0].config)
        rows = [cells([key, tables.setting_text(flat, key)]) for key in flat if key not in differ]
        title = "Settings of all arms" if len(self.arms) > 1 else "Settings"
        first = ""
        if differ:
            first = self._table(self._differing(differ), "differing")
        elif len(self.arms) > 1:
            first = '<p class="none">All arms have the same settings.</p>'
        rest = self._table(Table(title, "", ("key", "value"), tuple(rows)), "settings")
        return first + markup.details(f"{title}: {len(rows)} keys", rest)

    def _differing(self, differ: Mapping[str, Mapping[str, str]]) -> Table:
        baseline = self.compared.baseline

        def cell(key: str, arm: str) -> Cell:
            value = differ[key][arm]
            return Cell(value, "" if value == differ[key][baseline] else "mark")

        caption = f"Marked: not as in {baseline}, the baseline."
        if len(differ) <= _KEYS_AS_COLUMNS:
            rows = tuple((Cell(arm), *(cell(key, arm) for key in differ)) for arm in self.arms)
            return Table("Settings that differ", caption, ("arm", *differ), rows)
        rows = tuple((Cell(key), *(cell(key, arm) for arm in self.arms)) for key in differ)
        return Table("Settings that differ", caption, ("key", *self.arms), rows)

    def _table(self, shown: Table, name: str) -> str:
        return markup.table(shown, next(self._tables), self.arms, f"table-{name}")


def _every_metric(results: Results) -> Table:
    """Means over seeds of all test metrics, an arm a column."""
    values = frames.values_frame(results, results.metrics)
    means = values.filter(values["seed"].is_in([frames.MEAN, frames.BASELINE]))
    found = {(one["arm"], one["metric"]): one["value"] for one in means.iter_rows(named=True)}
    names = means["arm"].unique(maintain_order=True).to_list()
    rows = tuple(
        cells([metric, *(tables.number_text(found[name, metric]) for name in names)])
        for metric in results.metrics
    )
    return Table("Every test metric", "Means over seeds.", ("metric", *names), rows)


def _prose(about: str) -> str:
    """Paragraphs; those that are indented as they stand."""
    blocks = [block for block in re.split(r"\n[ \t]*\n", about.expandtabs()) if block.strip()]
    return "".join(
        f"<pre>{escape(textwrap.dedent(block))}</pre>"
        if block.startswith("    ")
        else f"<p>{escape(block)}</p>"
        for block in blocks
    )


def _commands(results: Results, compared: Comparison) -> Iterable[str]:
    """What trains the sweeps again, and what makes this report."""
    folders, known = [], {run.workdir for run in results.runs}.union(results.unfinished)
    for run in results.runs:
        owner = run.workdir.parent
        sweep = plan_of(owner)
        whole = sweep and known.issuperset(owner / name for name in sweep.get("trials", ()))
        folder = owner if whole else run.workdir
        if folder in folders:
            continue
        folders.append(folder)
        if whole:
            words = map(_word, sweep["words"])
            yield f"python -m recjax.sweep {' '.join(words)} --workdir={_word(folder)}"
    words = ["python -m recjax.report", *map(_word, folders)]
    if compared.baseline != results.arms[0].name:
        words.append(f"--baseline={_word(compared.baseline)}")
    if compared.metrics != (results.metric,):
        words.append(f"--metrics={','.join(compared.metrics)}")
    yield " ".join(words)


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
