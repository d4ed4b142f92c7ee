import html.parser
import json
import sys

import pytest

from recjax.errors import ConfigError
from recjax.reports.collect import load_results
from recjax.reports.compare import compare
from recjax.reports.page import write_page
from recjax.reports.sections import Sections
from tests.reports.small import ARMS, write_run, write_sweep

HOSTILE = '</script><script>alert("1")</script> & <b>'
# A world that its config cannot make again.
NO_WORLD = {"data.synthetic.users": 40, "data.synthetic.items": 60}


class Parsed(html.parser.HTMLParser):
    """The elements of a page, with their attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.texts.append("")

    def handle_data(self, data):
        if self.texts:
            self.texts[-1] += data

    def of(self, tag):
        return [
            (attrs, text)
            for (name, attrs), text in zip(self.elements, self.texts, strict=True)
            if name == tag
        ]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    arms = {HOSTILE if name == "wide" else name: arm for name, arm in ARMS.items()}
    sweep = write_sweep(folder / "sweep", arms, unfinished=[("full", 2)])
    plan = json.loads((sweep / "sweep.json").read_text())
    plan |= {"title": f"</title>{HOSTILE}", "about": f"{HOSTILE}\n\n    {HOSTILE}"}
    (sweep / "sweep.json").write_text(json.dumps(plan))
    results = load_results(sweep)
    return results, write_page(results, compare(results, samples=50), folder / "report")


@pytest.fixture(scope="module")
def page(written):
    return Parsed(written[1][0].read_text())


def test_a_page_and_a_png_of_each_figure_are_written(written):
    path, *images = written[1]
    assert path.name == "page.html"
    assert path.stat().st_size < 3e6
    assert {image.name for image in images} >= {"values.png", "validation.png", "cost.png"}
    assert all(image.read_bytes().startswith(b"\x89PNG") for image in images)
    assert set(path.parent.iterdir()) == set(written[1])


def test_the_page_names_no_other_file(page):
    links = [a.get("src") or a.get("href") for _, a in page.elements if {"src", "href"} & a.keys()]
    assert all(link.startswith(("#", "data:")) for link in links)
    policy = next(a["content"] for a, _ in page.of("meta") if "http-equiv" in a)
    assert policy.startswith("default-src 'none'")


def test_names_are_escaped(page):
    scripts = page.of("script")
    assert len(scripts) == 3
    report = json.loads(scripts[0][1])
    values = next(one for one in report["figures"] if one["name"] == "values")
    assert values["rows"]["columns"]["arm"]["words"] == list(ARMS)[:3] + [HOSTILE]
    boxes = [a["value"] for a, _ in page.of("input") if a["type"] == "checkbox"]
    assert boxes == list(ARMS)[:3] + [HOSTILE]
    assert page.of("title")[0][1].strip() == page.of("h1")[0][1] == f"</title>{HOSTILE}"
    assert HOSTILE in [text for _, text in page.of("p")] + [text for _, text in page.of("pre")]


def test_the_page_says_how_everything_was_measured(page):
    said = dict(zip((t for _, t in page.of("dt")), (t for _, t in page.of("dd")), strict=True))
    assert said["Data"].startswith("synthetic")
    assert said["Split"].startswith("predefined: as the data came divided")
    assert said["Runs"] == "4 arms, 11 runs, seeds 0, 1, 2"
    assert "1 x cpu (cpu)" in said["Ran on"] and "JAX 0.10.2" in said["Ran on"]
    commands = page.of("pre")[-1][1].splitlines()
    assert commands[0].startswith("python -m recjax.sweep --sweep=experiments/ablations/fake.py ")
    assert commands[1].startswith("python -m recjax.report ")
    notes = [text for _, text in page.of("li")]
    assert any("full" in note for note in notes)


def test_the_command_says_what_was_compared_with_what(tmp_path):
    arms = {name: ARMS[name] for name in ("full", "64 negatives")}
    sweep = write_sweep(tmp_path / "sweep", arms, seeds=(0,), size=20)
    trials = sorted(path for path in sweep.iterdir() if path.is_dir())
    plan = json.loads((sweep / "sweep.json").read_text())
    plan["trials"] = [trial.name for trial in trials]
    (sweep / "sweep.json").write_text(json.dumps(plan))

    def commands(paths, *asked):
        results = load_results(paths)
        header = Sections(results, compare(results, *asked, samples=2)).header()
        return Parsed(header).of("pre")[0][1].splitlines()

    asked = commands(sweep, "64 negatives", ("recall@10", "ndcg@10"))
    assert asked[0] == (
        "python -m recjax.sweep --sweep=experiments/ablations/fake.py "
        f"'--config.data.dir=my data' --workdir={sweep}"
    )
    assert asked[1:] == [
        f"python -m recjax.report {sweep} --baseline='64 negatives' --metrics=recall@10,ndcg@10"
    ]
    assert commands(trials[:1]) == [f"python -m recjax.report {trials[0]}"]


@pytest.mark.parametrize("word", ["Table", "Figure"])
def test_tables_and_figures_are_numbered_as_they_come(page, word):
    heads = [text.split() for _, text in page.of("b") if text.startswith(f"{word} ")]
    assert len(heads) > 5
    assert [head[1] for head in heads] == [f"{i}." for i in range(1, len(heads) + 1)]


def test_settings_that_differ_from_the_baseline_are_marked(page):
    marked = [text for _, text in page.of("mark")]
    assert marked == ["uniform", "64", "in_batch", "False", "128", "512, 256"]


def test_a_single_run_without_its_data_says_so(tmp_path):
    results = load_results(write_run(tmp_path / "run", overrides=NO_WORLD, size=30))
    path, *images = write_page(results, compare(results), tmp_path / "report")
    page = Parsed(path.read_text())
    reasons = [text for attrs, text in page.of("p") if attrs.get("class") == "none"]
    assert len(reasons) == 1
    assert reasons[0].startswith("The model cannot be shown: ")
    assert "its data ('synthetic', hash 0123456789abcdef) cannot be loaded" in reasons[0]
    assert "values.png" not in {image.name for image in images}


def test_nothing_is_written_without_the_extra(written, tmp_path, monkeypatch):
    results, _ = written
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(ConfigError, match=r"vl_convert.*\[report\]"):
        write_page(results, compare(results, samples=2), tmp_path / "report")
    assert not (tmp_path / "report").exists()
