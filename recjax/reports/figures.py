"""The figures of a comparison: what each shows, and how it is read."""

import json
from collections.abc import Sequence
from typing import Any

import polars as pl

from recjax.reports import frames
from recjax.reports.collect import Results
from recjax.reports.compare import Comparison
from recjax.reports.drawing import GREY, Drawing, Figure, Spec

# Of these more is not better, so nothing is on a Pareto front for having more.
_NOT_BETTER = ("gini", "mean_popularity", "popularity_lift")
_POINTS_OF_LOSS, _POINTS_OF_METRIC = 120, 50
# Of cost.json: what its axis says, and in which order it gets worse.
_COSTS = {
    "parameters": ("parameters", "ascending"),
    "train_seconds": ("training time (s)", "ascending"),
    "examples_per_second": ("examples per second", "descending"),
    "query_ms": ("query latency (ms)", "ascending"),
}
_SLICES = {
    "history": ("by length of history", "known interactions of the user (and queries)"),
    "items": ("by popularity of the target", "class of the target (and targets)"),
    "users": ("of warm and cold users", "users with and without training data (and queries)"),
}
_MEANS = f"datum.seed == '{frames.MEAN}'"
_BASELINES = f"datum.seed == '{frames.BASELINE}'"
_RUNS = f"datum.seed != '{frames.MEAN}' && datum.seed != '{frames.BASELINE}'"


def make_figures(results: Results, comparison: Comparison) -> dict[str, tuple[Figure, ...]]:
    """Every figure of a comparison, by section of the page.

    Raises:
      ConfigError: the extra `report` is not installed.
    """
    drawing = _Comparison(results, comparison.metrics)
    several = len(results.runs) > 1
    sections = {
        "comparison": [drawing.values(), *drawing.differences(comparison)] if several else [],
        "curves": [drawing.loss(), drawing.validation()],
        "slices": [drawing.slices(group) for group in _SLICES],
        "popularity": [drawing.popularity()],
        "cost": [drawing.cost()] if several else [],
    }
    return {
        name: tuple(figure for figure in figures if figure is not None)
        for name, figures in sections.items()
    }


class _Comparison(Drawing):
    """Draws one set of results."""

    def __init__(self, results: Results, asked: Sequence[str]):
        super().__init__([arm.name for arm in results.arms])
        self.results = results
        self.metrics = frames.shown_metrics(results, asked)
        self.seeds = any(len(arm.results) > 1 for arm in results.arms)

    def values(self) -> Figure:
        """The chosen metric of every run, and the mean of each arm."""
        alt = self.alt
        base, color = self.chart(by_metric=True), self.color(legend=None)
        scale = alt.Scale(zero=False, padding=14)
        x, y = alt.X("value:Q", title=None, scale=scale), self.arm_axis()
        runs, means = base.transform_filter(_RUNS), base.transform_filter(_MEANS)
        chart = alt.layer(
            means.mark_rule(strokeWidth=1.5, opacity=0.7).encode(
                x=alt.X("low:Q", title=None, scale=scale), x2="high:Q", y=y, color=color
            ),
            runs.mark_tick(thickness=1.5, size=13, opacity=0.8).encode(
                x=x, y=y, color=color, tooltip=self.tips("seed", "value")
            ),
            means.mark_point(filled=True, size=90, shape="diamond", opacity=1).encode(
                x=x, y=y, color=color, tooltip=self.tips("value", "low", "high")
            ),
        ).properties(height=self.height_of_arms)
        return Figure(
            "values",
            "The metric of every run, by arm",
            "Ticks are runs, one a seed; the diamond is their mean, the bar its 95 % interval over "
            "seeds (Student's t; none for an arm of one seed).",
            frames.values_frame(self.results, self.metrics).filter(
                pl.col("seed") != frames.BASELINE
            ),
            {"": self.spec(chart, "metric + ' on test'", self.metrics[0])},
            self.metrics,
        )

    def differences(self, comparison: Comparison) -> list[Figure]:
        """Each arm less the baseline, a figure for each compared metric."""
        alt, figures = self.alt, []
        for metric in comparison.metrics:
            found = [one for one in comparison.differences if one.metric == metric]
            if not found:
                continue
            rows = {
                "arm": [one.arm for one in found],
                "difference": [one.difference for one in found],
                "low": [one.low for one in found],
                "high": [one.high for one in found],
                "p_holm": [one.p_holm for one in found],
                "different": [one.different for one in found],
            }
            base, color, y = self.chart(), self.color(legend=None), self.arm_axis()
            tips = self.tips("difference", "low", "high", "p (Holm)=p_holm")
            scale = alt.Scale(padding=14)
            x = alt.X("difference:Q", title=f"difference in {metric}", scale=scale)
            dots = {
                "datum.different": {"filled": True, "size": 80},
                "!datum.different": {"filled": False, "size": 70, "strokeWidth": 1.5},
            }
            chart = alt.layer(
                base.mark_rule(strokeDash=[3, 3], color=GREY).encode(x=alt.datum(0)),
                base.mark_rule(strokeWidth=2).encode(
                    x=alt.X("low:Q", title=f"difference in {metric}", scale=scale),
                    x2="high:Q",
                    y=y,
                    color=color,
                ),
                *(
                    base.transform_filter(which)
                    .mark_point(opacity=1, **look)
                    .encode(x=x, y=y, color=color, tooltip=tips)
                    for which, look in dots.items()
                ),
            ).properties(height=self.height_of_arms)
            title = f"{metric}, difference to {comparison.baseline}"
            figures.append(
                Figure(
                    f"difference-{metric.replace('@', '-')}",
                    title,
                    f"Means over {comparison.queries:,} queries, paired with the baseline's, and "
                    "95 % intervals. Filled: different after Holm's correction (p < 0.05). Hollow: "
                    "not shown to be different.",
                    pl.DataFrame(rows),
                    {"": self.spec(chart, json.dumps(title))},
                )
            )
        return figures

    def loss(self) -> Figure | None:
        """Training loss on the way."""
        rows = frames.curves_frame(self.results, ["train/loss"], _POINTS_OF_LOSS)
        if rows.is_empty():
            return None
        return Figure(
            "loss",
            "Training loss",
            self._words("Thin lines are seeds, thick ones their mean. ")
            + "Losses of different kinds, or over different candidates, cannot be compared.",
            rows.drop("metric"),
            self._curves("'training loss'"),
        )

    def validation(self) -> Figure | None:
        """Validation metrics on the way."""
        rows = frames.curves_frame(
            self.results, [f"valid/{name}" for name in self.metrics], _POINTS_OF_METRIC
        ).with_columns(pl.col("metric").str.strip_prefix("valid/"))
        metrics = self._metrics_in(rows)
        if not metrics:
            return None
        return Figure(
            "validation",
            "Validation metrics",
            self._words("Thin lines are seeds, thick ones their mean where all seeds have one. ")
            + f"The checkpoint with the best {self.results.metric} is the one that is tested.",
            rows,
            self._curves("metric + ' on validation'", metrics[0]),
            metrics,
        )

    def slices(self, group: str) -> Figure | None:
        """The chosen metric by slice of queries or targets."""
        alt = self.alt
        rows, unscored = frames.slices_frame(self.results, group, self.metrics)
        metrics = self._metrics_in(rows)
        if rows["slice"].n_unique() < 2 or not metrics:
            return None
        title, axis = _SLICES[group]
        rows = rows.with_columns(pl.format("{}|({})", "slice", "size").alias("label"))
        labels = rows["label"].unique(maintain_order=True).to_list()
        base, color, y = self.chart(by_metric=True), self.color(), alt.Y("value:Q", title=None)
        x = alt.X(
            "label:N",
            sort=labels,
            title=axis,
            axis=alt.Axis(labelAngle=0, labelExpr="split(datum.label, '|')", ticks=False),
        )
        offset = alt.XOffset("arm:N", sort=self.arms)
        chart = alt.layer(
            base.mark_rule(strokeWidth=1.5).encode(
                x=x, xOffset=offset, y=alt.Y("low:Q", title=None), y2="high:Q", color=color
            ),
            base.mark_point(filled=True, size=56, opacity=1).encode(
                x=x,
                xOffset=offset,
                y=y,
                color=color,
                shape=self.shape(),
                tooltip=self.tips(
                    "slice", "value", "low", "high", "queries or targets=size", "seeds"
                ),
            ),
        ).properties(height=260)
        words = [
            self._words("Points are means over seeds, bars span the seeds. ")
            + "Small slices are noisy."
        ]
        if group == "items":
            words.append(
                "Head, middle and tail items hold a third of all training interactions each, cold "
                "ones none; recall is of the targets of a class."
            )
        words += unscored
        return Figure(
            f"slices-{group}",
            f"Metrics {title}",
            " ".join(words),
            rows,
            {"": self.spec(chart, f"metric + ' on test, {title}'", metrics[0])},
            metrics,
        )

    def popularity(self) -> Figure | None:
        """Recall against the popularity of what is recommended."""
        alt, k = self.alt, self.results.metric.rpartition("@")[2]
        recall, lift = f"recall@{k}", f"popularity_lift@{k}"
        if not {recall, lift} <= set(self.results.metrics):
            return None
        values = frames.values_frame(self.results, (recall, lift))
        rows = values.pivot("metric", index=["arm", "seed"], values="value").rename(
            {recall: "recall", lift: "lift"}
        )
        x = alt.X(
            "lift:Q",
            title=f"popularity lift@{k} (1: as popular as what users chose)",
            scale=alt.Scale(zero=True),
        )
        y = alt.Y("recall:Q", title=None, scale=alt.Scale(zero=True))
        base = self.chart()
        others = base.transform_filter(_BASELINES)
        chart = alt.layer(
            base.mark_rule(strokeDash=[3, 3], color=GREY).encode(x=alt.datum(1)),
            others.mark_point(shape="cross", filled=True, size=50, color=GREY, opacity=1).encode(
                x=x, y=y, tooltip=self.tips("recall", "lift")
            ),
            *self._labels(others, x, y, alt.value(GREY)),
            *self._scatter(base, x, y, self.tips("seed", "recall", "lift")),
        ).properties(height=320)
        return Figure(
            "popularity",
            "Recall against popularity lift",
            self._words("Large marks are means over seeds, small dots runs. ")
            + "Grey crosses are baselines. The lift is the mean training popularity of what is "
            "recommended over that of the targets.",
            rows,
            {"": self.spec(chart, f"'{recall} on test, against popularity lift'")},
        )

    def cost(self) -> Figure | None:
        """The chosen metric against what it costs, with the Pareto front."""
        alt = self.alt
        costs = frames.costs_frame(self.results, list(_COSTS))
        metrics = tuple(name for name in self.metrics if name.split("@")[0] not in _NOT_BETTER)
        rows = frames.values_frame(self.results, metrics).drop("low", "high")
        rows = rows.join(costs, on=["arm", "seed"], maintain_order="left")
        base = self.chart(by_metric=True)
        y = alt.Y("value:Q", title=None, scale=alt.Scale(zero=False, padding=18))
        tips = self.tips("seed", "value", *_COSTS)
        variants = {}
        for key, (label, order) in _COSTS.items():
            if not (costs[key].fill_null(0) > 0).all() or costs[key].n_unique() < 2:
                continue
            cheap = order == "ascending"
            x = alt.X(
                f"{key}:Q",
                title=f"{label}, {'less' if cheap else 'more'} is better",
                scale=alt.Scale(type="log", padding=28, nice=False),
                axis=alt.Axis(format="~s", tickCount=6),
            )
            best = [alt.SortField(key, order=order), alt.SortField("value", order="descending")]
            front = (
                base.transform_filter(_MEANS)
                .transform_window(best="max(value)", sort=best, frame=[None, 0])
                .transform_window(before="lag(best)", sort=best)
                .transform_filter("datum.before == null || datum.value > datum.before")
                .mark_line(
                    interpolate="step-after" if cheap else "step-before",
                    strokeDash=[4, 3],
                    strokeWidth=1.5,
                    color=GREY,
                )
                .encode(x=x, y=y)
            )
            chart = alt.layer(front, *self._scatter(base, x, y, tips)).properties(height=320)
            title = f"metric + ' on test, against {label}'"
            variants[label] = self.spec(chart, title, metrics[0])
        if not variants:
            return None
        return Figure(
            "cost",
            "Accuracy against cost",
            self._words("Large marks are means over seeds, small dots runs. ")
            + "The dashed line is the Pareto front of what is shown: no arm is both cheaper and "
            "better than one on it.",
            rows,
            variants,
            metrics,
        )

    def _curves(self, title: str, metric: str = "") -> dict[str, Spec]:
        axes = {"by step": ("step", "training step"), "by time": ("seconds", "training time (s)")}
        return {
            label: self.spec(self._curve_chart(*axis, bool(metric)), title, metric)
            for label, axis in axes.items()
        }

    def _curve_chart(self, field: str, axis: str, by_metric: bool) -> Any:
        alt, color = self.alt, self.color()
        base = self.chart(by_metric)
        ticks = alt.Axis(format=",d", tickMinStep=1) if field == "step" else alt.Axis()
        x = alt.X(f"{field}:Q", title=axis, scale=alt.Scale(nice=False), axis=ticks)
        y = alt.Y("value:Q", title=None, scale=alt.Scale(zero=False))
        near = alt.selection_point(
            name="near",
            fields=["arm", "seed", field],
            nearest=True,
            on="pointerover",
            clear="pointerout",
            empty=False,
        )
        return alt.layer(
            base.transform_filter(_RUNS)
            .mark_line(strokeWidth=1, opacity=0.4)
            .encode(x=x, y=y, color=color, detail="seed:N"),
            base.transform_filter(_MEANS)
            .mark_line(strokeWidth=2.2)
            .encode(x=x, y=y, color=color, strokeDash=self.dash()),
            # A list of fields would say "undefined" of text: Vega-Lite looks for it in the wrong
            # place where the nearest point is meant, so all of a row is shown.
            base.mark_circle(size=64, tooltip=alt.TooltipContent("data"))
            .encode(x=x, y=y, color=color, opacity=alt.condition(near, alt.value(1), alt.value(0)))
            .add_params(near),
        ).properties(height=280)

    def _scatter(self, base: Any, x: Any, y: Any, tips: list[Any]) -> list[Any]:
        runs, means = base.transform_filter(_RUNS), base.transform_filter(_MEANS)
        color = self.color()
        return [
            runs.mark_circle(size=22, opacity=0.5).encode(x=x, y=y, color=color, tooltip=tips),
            means.mark_point(filled=True, size=100, opacity=1).encode(
                x=x, y=y, color=color, shape=self.shape(), tooltip=tips
            ),
            *self._labels(means, x, y, color),
        ]

    def _labels(self, base: Any, x: Any, y: Any, color: Any) -> list[Any]:
        """Names beside marks, where there is room: of marks close together, the highest one's."""
        across, up = (f"datum['{channel.to_dict()['field']}']" for channel in (x, y))
        of_log = x.to_dict()["scale"].get("type") == "log"
        left, low = (
            "0" if channel.to_dict()["scale"].get("zero") else f"datum.{name}"
            for channel, name in ((x, "left"), (y, "low"))
        )
        known = (
            base.transform_calculate(u=f"log({across})" if of_log else across, v=up)
            .transform_joinaggregate(left="min(u)", right="max(u)", low="min(v)", high="max(v)")
            .transform_window(
                u_above="lag(u)",
                v_above="lag(v)",
                sort=[self.alt.SortField("v", order="descending")],
            )
            .transform_filter(
                f"datum.v_above == null || datum.v_above - datum.v > 0.06 * (datum.high - {low})"
                f" || abs(datum.u_above - datum.u) > 0.45 * (datum.right - {left})"
            )
        )
        sides = {"<=": {"align": "left", "dx": 8}, ">": {"align": "right", "dx": -8}}
        return [
            known.transform_filter(f"datum.u {sign} ({left} + datum.right) / 2")
            .mark_text(dy=-6, **look)
            .encode(x=x, y=y, text="arm:N", color=color)
            for sign, look in sides.items()
        ]

    def _words(self, of_seeds: str) -> str:
        return of_seeds if self.seeds else ""

    def _metrics_in(self, rows: pl.DataFrame) -> tuple[str, ...]:
        present = set(rows["metric"])
        return tuple(name for name in self.metrics if name in present)
