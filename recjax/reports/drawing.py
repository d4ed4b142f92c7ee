"""How a report draws: figures, their colours and type, and what every chart of arms has."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from recjax.extras import require

Spec = dict[str, Any]

# Any two differ by 10 or more (Oklab x 100), also as protanopia and deuteranopia see them; an arm
# keeps its hue when the theme changes.
PALETTES = {
    "light": (
        "#024872", "#9e4206", "#206f5c", "#db7997", "#a57a09", "#04a9dc", "#8043b8", "#6c2735",
    ),
    "dark": (
        "#2b7ae4", "#eba67c", "#87f9b8", "#b25f9e", "#fdda4b", "#7fcbe3", "#a894fe", "#e26352",
    ),
}  # fmt: skip
_INKS = {"light": ("#1d2127", "#596270", "#e4e7eb"), "dark": ("#e8eaed", "#a3abb6", "#2d3239")}
GREY = "#858c96"
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"
# Of Vega, and the like of each in text.
SHAPES = {
    "circle": "●",
    "square": "■",
    "triangle-up": "▲",
    "diamond": "◆",
    "cross": "✚",
    "triangle-down": "▼",
}
_FORMATS = {"step": ",d", "parameters": ",.0f", "items": ",d", "queries or targets": ",d"}


@dataclasses.dataclass(frozen=True, eq=False)
class Figure:
    """One figure: rows, and one or more specs that draw them.

    Attributes:
      name: in file names and links.
      title: what it shows, in words.
      caption: how to read it.
      rows: the data of every spec.
      variants: label -> Vega-Lite spec; the first is shown first, and is the PNG.
      metrics: what the specs' parameter `metric` may be; empty where they have none.
      groups: variant -> the values that its `hidden` may hold; empty where those are arms.
      renderer: `svg`, or `canvas` for thousands of marks.
    """

    name: str
    title: str
    caption: str
    rows: pl.DataFrame
    variants: Mapping[str, Spec]
    metrics: tuple[str, ...] = ()
    groups: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    renderer: str = "svg"


def chart_config(theme: str) -> Spec:
    """Vega's config for `light` or `dark`: fonts, lines, and the colours of arms in order."""
    ink, muted, line = _INKS[theme]
    return {
        "background": "transparent",
        "font": _FONT,
        "padding": {"left": 4, "top": 4, "right": 14, "bottom": 4},
        "view": {"stroke": None},
        "range": {"category": list(PALETTES[theme])},
        "title": {
            "anchor": "start",
            "frame": "group",
            "color": ink,
            "fontSize": 13,
            "fontWeight": 600,
            "offset": 12,
            "limit": {"expr": "width"},
        },
        "axis": {
            "labelColor": muted,
            "titleColor": muted,
            "titleFontWeight": "normal",
            "labelFontSize": 11,
            "titleFontSize": 12,
            "titlePadding": 8,
            "labelPadding": 6,
            "gridColor": line,
            "domain": False,
            "ticks": False,
        },
        "axisX": {
            "domain": True,
            "domainColor": muted,
            "ticks": True,
            "tickColor": muted,
            "tickSize": 4,
            "labelPadding": 4,
            "grid": False,
        },
        "axisQuantitative": {"tickCount": {"expr": "ceil(width / 80)"}, "labelFlush": False},
        "axisYQuantitative": {"tickCount": 6},
        "legend": {"labelColor": ink, "labelFontSize": 11, "labelLimit": 260, "symbolOpacity": 1},
        "text": {"color": ink, "fontSize": 11},
    }


class Drawing:
    """Draws arms: a chart filters by its list `hidden`, and an arm has one colour in all.

    Raises:
      ConfigError: the extra `report` is not installed.
    """

    def __init__(self, arms: Sequence[str]):
        self.alt = require("altair", "report")
        self.arms = list(arms)
        self.height_of_arms = 28 * max(len(arms), 2)

    def chart(self, by_metric: bool = False) -> Any:
        """An empty chart of the rows that are not hidden (`by_metric`: of the chosen metric)."""
        chart = self.alt.Chart(self.alt.NamedData("rows"))
        chart = chart.transform_filter("indexof(hidden, datum.arm) < 0")
        return chart.transform_filter("datum.metric == metric") if by_metric else chart

    def spec(self, chart: Any, title: str, metric: str = "") -> Spec:
        """The chart with its parameters; `title` is an expression of Vega's."""
        alt = self.alt
        params = [alt.param(name="hidden", value=[])]
        if metric:
            params.append(alt.param(name="metric", value=metric))
        words = alt.Title(text=alt.ExprRef(title))
        return chart.add_params(*params).properties(width=640, title=words).to_dict()

    def arm_axis(self) -> Any:
        """An arm a row, in order."""
        alt = self.alt
        return alt.Y("arm:N", sort=self.arms, title=None, axis=alt.Axis(labelLimit=230))

    def color(self, **settings: Any) -> Any:
        """A colour an arm."""
        scale = self.alt.Scale(domain=self.arms)
        return self.alt.Color("arm:N", scale=scale, title=None, **settings)

    def shape(self) -> Any:
        """A shape an arm, as far as there are shapes."""
        names = list(SHAPES)
        shapes = [names[i % len(names)] for i in range(len(self.arms))]
        return self.alt.Shape("arm:N", scale=self._scale(shapes), title=None)

    def dash(self) -> Any:
        """Solid lines, dashed once colours repeat."""
        colors = len(PALETTES["light"])
        dashes = [[1, 0] if i < colors else [5, 3] for i in range(len(self.arms))]
        return self.alt.StrokeDash("arm:N", scale=self._scale(dashes), title=None)

    def tips(self, *names: str) -> list[Any]:
        """What hovering shows: fields, `title=field` for one under another name."""
        return [self._tip(*name.partition("=")[::2]) for name in ("arm", *names)]

    def _tip(self, title: str, field: str) -> Any:
        field = field or title
        if field in ("arm", "seed", "slice"):
            return self.alt.Tooltip(f"{field}:N", title=title)
        return self.alt.Tooltip(f"{field}:Q", title=title, format=_FORMATS.get(title, ".4~f"))

    def _scale(self, values: list[Any]) -> Any:
        return self.alt.Scale(domain=self.arms, range=values)
