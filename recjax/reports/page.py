"""One self-contained HTML page of a comparison, and its figures as PNG."""

import importlib.resources
import pathlib
import re
from collections.abc import Mapping
from html import escape
from typing import Any

from recjax.data.dataset import Dataset
from recjax.extras import require
from recjax.files import write_file
from recjax.reports import markup
from recjax.reports.collect import Results
from recjax.reports.compare import Comparison
from recjax.reports.drawing import Figure, chart_config
from recjax.reports.figures import make_figures
from recjax.reports.inside import look_inside
from recjax.reports.sections import Sections

NAME = "page.html"


def write_page(
    results: Results, comparison: Comparison, out: pathlib.Path, dataset: Dataset | None = None
) -> tuple[pathlib.Path, ...]:
    """Writes `page.html`, which needs no other file and no network, and a PNG of each figure.

    Args:
      results: what is shown; of a single run the page looks inside the model too.
      comparison: of the same results.
      out: the folder.
      dataset: of the single run, where its config cannot load it.

    Returns:
      What was written, the page first.

    Raises:
      ConfigError: the extra `report` is not installed; nothing is written.
      CheckpointError: a file cannot be written.
    """
    for module in ("altair", "sklearn", "vl_convert"):
        require(module, "report")
    sections = Sections(results, comparison)
    figures = make_figures(results, comparison)
    single = len(results.runs) == 1
    inside = look_inside(results.runs[0], dataset) if single else None
    body = [
        sections.header(),
        sections.section(
            "comparison",
            "Results" if single else "Comparison",
            sections.comparison(),
            figures["comparison"],
            sections.costs(),
        ),
        sections.section("curves", "Training", "", figures["curves"]),
        sections.section("slices", "By slice", "", figures["slices"], sections.slices()),
        sections.section("popularity", "Popularity", "", figures["popularity"]),
        sections.section("cost", "Accuracy and cost", "", figures["cost"]),
        sections.section("configs", "Settings", sections.configs()),
    ]
    drawn = [one for group in figures.values() for one in group]
    if inside is not None:
        parts = inside.users, inside.figures, inside.neighbours
        body.append(sections.section("inside", "Inside the model", *parts))
        drawn += inside.figures
    record = {
        "metric": sections.metrics[0],
        "config": {theme: chart_config(theme) for theme in ("light", "dark")},
        "figures": [markup.figure_data(one) for one in drawn],
        "near": inside.near if inside else None,
    }
    text = _fill(
        _resource("page.html"),
        {
            "title": escape(results.title),
            "palette": markup.palette_css(len(sections.arms)),
            "css": _resource("page.css"),
            "nav": "".join(f'<a href="#{n}">{escape(title)}</a>' for n, title in sections.links),
            "placeholder": "user, title, setting" if single else "arm, slice, setting",
            "metrics": "".join(f"<option>{escape(name)}</option>" for name in sections.metrics),
            "arms_hidden": "" if len(sections.arms) > 1 else " hidden",
            "arms": "".join(markup.chip(i, arm) for i, arm in enumerate(sections.arms)),
            "body": "\n".join(body),
            "report": markup.json_in_script(record),
            "vega": _vega(),
            "js": _resource("page.js"),
        },
    )
    images = {f"{one.name}.png": _png(one) for one in drawn}
    for name, content in {NAME: text, **images}.items():
        write_file(out / name, content)
    return tuple(out / name for name in (NAME, *images))


def _vega() -> str:
    """Vega, Vega-Lite and Vega-Embed, of the version that the specs are written for."""
    bundle = require("vl_convert", "report").javascript_bundle(vl_version=_vega_lite())
    return bundle.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _png(figure: Figure) -> bytes:
    spec: dict[str, Any] = next(iter(figure.variants.values()))
    return require("vl_convert", "report").vegalite_to_png(
        {**spec, "datasets": {"rows": figure.rows.to_dicts()}},
        vl_version=_vega_lite(),
        scale=2,
        config={**chart_config("light"), "background": "white"},
        allowed_base_urls=[],
    )


def _vega_lite() -> str:
    version: str = require("altair", "report").SCHEMA_VERSION
    return ".".join(version.lstrip("v").split(".")[:2])


def _resource(name: str) -> str:
    return importlib.resources.files("recjax.reports").joinpath(name).read_text()


def _fill(template: str, values: Mapping[str, str]) -> str:
    """The template with its {{names}} replaced, in one pass: what is put in is not read again."""
    return re.sub(r"{{(\w+)}}", lambda match: values[match[1]], template)
