"""The page in headless Chromium, as readers open it."""

import contextlib
import dataclasses
import shutil

import pytest
from playwright.sync_api import expect, sync_playwright

from recjax.reports.collect import load_results
from recjax.reports.compare import compare
from recjax.reports.page import write_page
from recjax.reports.write import write_report
from tests.reports.small import ARMS, write_sweep
from tests.runs import never_stopped

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to open the page with"),
]
# A machine with other work takes long to load Vega.
TIMEOUT = 60_000
expect.set_options(timeout=TIMEOUT)
HOSTILE = "</script><script>document.title = 'run'</script>"


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def sweep_page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    results = load_results(write_sweep(folder / "sweep"))
    return write_page(results, compare(results, samples=50), folder / "report")[0]


@pytest.fixture(scope="module")
def run_page(tmp_path_factory):
    run = never_stopped("mf")
    titles = run.experiment.dataset.titles.astype(object)
    titles[:] = [f"{HOSTILE} {title}" for title in titles]
    dataset = dataclasses.replace(run.experiment.dataset, titles=titles.astype(str))
    results = load_results(run.workdir)
    report = write_report(results, tmp_path_factory.mktemp("run"), dataset=dataset)
    return next(path for path in report.files if path.name == "page.html")


@contextlib.contextmanager
def opened(browser, path, **settings):
    """The page, drawn; whatever it complains of or fetches is an error when it is closed."""
    complaints = []
    context = browser.new_context(**settings)
    page = context.new_page()
    page.set_default_timeout(TIMEOUT)
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-drawn]", state="attached")
    yield page
    context.close()
    own = path.as_uri(), "data:", f"blob:{path.as_uri()[:5]}"
    assert not [one for one in complaints if not one.startswith(own)]


def marks(page, figure, kind="symbol"):
    return page.locator(f"#chart-{figure} .mark-{kind}.role-mark path")


def shown_rows(page, table):
    rows = page.locator(f"#table-{table} tbody tr:visible")
    return [text.strip() for text in rows.locator("th").all_inner_texts()]


def test_every_figure_of_a_sweep_is_drawn(browser, sweep_page):
    with opened(browser, sweep_page) as page:
        figures = page.locator("figure")
        assert figures.count() == 9
        for i in range(9):
            svg = figures.nth(i).locator(".chart svg")
            assert svg.locator(".role-mark path").count() >= len(ARMS) - 1
            assert svg.locator(".role-title-text").text_content()
            assert svg.locator(".role-axis-label text").count()
            box = svg.bounding_box()
            assert box["width"] > 400 and box["height"] > 80


def test_a_search_leaves_the_rows_and_marks_that_match(browser, sweep_page):
    with opened(browser, sweep_page) as page:
        expect(marks(page, "values")).to_have_count(len(ARMS))
        page.keyboard.press("/")
        page.keyboard.type("64 NEG")
        assert shown_rows(page, "test") == ["64 negatives"]
        assert shown_rows(page, "budget") == ["64 negatives"]
        expect(page.locator("#status")).to_contain_text("rows")
        expect(marks(page, "values")).to_have_count(1)
        page.keyboard.press("Escape")
        assert shown_rows(page, "test") == [*ARMS, "popularity", "random"]
        page.locator("#search").fill("learning_rate")
        assert shown_rows(page, "settings") == ["optim.learning_rate"]
        assert shown_rows(page, "test") == []
        expect(marks(page, "validation", "line")).to_have_count(4 * len(ARMS))
        page.locator("#search").fill("nothing is called so")
        expect(page.locator("#status")).to_have_text("nothing matches")


def test_a_box_hides_its_arm_in_every_figure_and_table(browser, sweep_page):
    with opened(browser, sweep_page) as page:
        before = {name: marks(page, name).count() for name in ("values", "slices-items", "cost")}
        page.get_by_label("wide", exact=True).uncheck()
        for name, fewer in (("values", 1), ("slices-items", 3), ("cost", 4)):
            expect(marks(page, name)).to_have_count(before[name] - fewer)
        assert "wide" not in shown_rows(page, "test") + shown_rows(page, "differing")
        page.get_by_label("wide", exact=True).check()
        assert "wide" in shown_rows(page, "test")


def test_metric_and_axis_are_chosen(browser, sweep_page):
    with opened(browser, sweep_page) as page:
        page.locator("#metric").select_option("ndcg@10")
        for figure, title in (
            ("values", "ndcg@10 on test"),
            ("validation", "ndcg@10 on validation"),
            ("slices-items", "recall@10 on test, by popularity of the target"),
        ):
            expect(page.locator(f"#chart-{figure} .role-title-text")).to_have_text(title)
        page.locator("#figure-cost select").select_option("query latency (ms)")
        axis = page.locator("#chart-cost .role-axis-title").first
        expect(axis).to_have_text("query latency (ms), less is better")
        title = page.locator("#chart-cost .role-title-text")
        expect(title).to_contain_text("ndcg@10")
        assert title.text_content() == "ndcg@10 on test, against query latency (ms)"
        assert marks(page, "cost").count() > len(ARMS)


def test_a_heading_sorts_its_table(browser, sweep_page):
    with opened(browser, sweep_page) as page:
        head = page.locator("#table-test th", has_text="recall@10")
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == "descending"
        texts = page.locator("#table-test tbody td:nth-child(3)").all_inner_texts()
        values = [float(text.split()[0]) for text in texts]
        assert values == sorted(values, reverse=True)
        page.locator("#table-test th button").first.click()
        assert shown_rows(page, "test") == sorted([*ARMS, "popularity", "random"])


def test_the_theme_follows_the_system_and_the_button(browser, sweep_page):
    def colors(page):
        return page.evaluate(
            "[getComputedStyle(document.body).backgroundColor, document.querySelector("
            "'#chart-values .role-title-text text').getAttribute('fill')]"
        )

    with opened(browser, sweep_page, color_scheme="dark") as page:
        dark = colors(page)
        page.locator("#theme").click()
        page.wait_for_selector("html[data-drawn=light]", state="attached")
        light = colors(page)
        assert light[0] == "rgb(255, 255, 255)" and dark[0] != light[0]
        assert light[1] != dark[1]


def test_a_figure_is_saved(browser, sweep_page, tmp_path):
    with opened(browser, sweep_page) as page:
        for kind, head in (("svg", b"<svg"), ("png", b"\x89PNG")):
            with page.expect_download() as download:
                page.locator(f"#figure-cost [data-save={kind}]").click()
            download.value.save_as(tmp_path / f"cost.{kind}")
            assert (tmp_path / f"cost.{kind}").read_bytes().startswith(head)


def test_the_page_fits_a_phone(browser, sweep_page):
    with opened(browser, sweep_page, viewport={"width": 375, "height": 700}) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == 375


def test_the_inside_of_a_run_is_shown(browser, run_page):
    ink = """() => {
        const canvas = document.querySelector('#chart-map canvas');
        const copy = new OffscreenCanvas(canvas.width, canvas.height);
        const context = copy.getContext('2d', { willReadFrequently: true });
        context.drawImage(canvas, 0, 0);
        const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
        return data.reduce((sum, value, i) => sum + (i % 4 === 3 && value > 0), 0);
    }"""
    with opened(browser, run_page) as page:
        assert page.title() != "run"
        users = page.locator(".user")
        assert users.count() == 12
        title = users.first.locator("ol li").first.inner_text()
        assert HOSTILE in title
        page.locator("#search").fill(users.first.locator("h3").inner_text())
        assert 1 <= page.locator(".user:visible").count() < 12
        page.locator("#search").fill("")

        everything = page.evaluate(ink)
        assert everything > 1000
        page.locator("#chips-map input").first.uncheck()
        page.wait_for_function(f"({ink})() < {everything}")
        page.locator("#figure-map select").select_option("by popularity")
        expect(page.locator("#chips-map label").first).to_have_text("head")

        page.locator("#item").fill("script 7")
        chosen = page.locator("#items button[aria-pressed=true]").inner_text()
        assert page.locator("#near-title").inner_text() == chosen
        assert page.locator("#near-rows tr").count() == 10
        second = page.locator("#items button").nth(1)
        second.click()
        assert page.locator("#near-title").inner_text() == second.inner_text()


def test_hovering_over_a_curve_tells_the_run(browser, sweep_page):
    with opened(browser, sweep_page) as page:
        chart = page.locator("#chart-validation svg")
        chart.scroll_into_view_if_needed()
        box = chart.bounding_box()
        page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"], steps=3)
        rows = page.locator("#vg-tooltip-element.visible tr")
        expect(rows).to_have_count(6)
        told = rows.all_inner_texts()
        said = dict(line.replace(":", "").split(maxsplit=1) for line in told)
        assert list(said) == ["arm", "seed", "step", "seconds", "metric", "value"]
        assert said["arm"] in ARMS and said["seed"] in ("0", "1", "2", "mean")
        assert said["step"] in ("7", "14", "20") and 0 < float(said["value"]) < 1
