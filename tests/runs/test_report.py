"""report.html: one page about a run, which stands by itself."""

import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser, colours
from conftest import lmtrain, scratch, trained

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def run(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with evaluations, samples in Korean, a gate and a setting that is HTML."""
    folder = tmp_path_factory.mktemp("report")
    rows = [{"text": f"고양이 {n}마리가 <b>작은</b> 집을 & 나무를 봅니다"} for n in range(60)]
    (folder / "ko.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    trained("clm", *scratch("gpt2"), "--tokenizer", "bpe:400", "--data", folder / "ko.jsonl", "--val-split", 0.2,
            "-L", 32, "--max-steps", 12, "--eval-every", 4, "--log-every", 1, "--assert", "eval_loss<100",
            "-o", folder / "run")  # fmt: skip
    return folder / "run"


class Tags(HTMLParser):
    """The names of the elements and their addresses."""

    def __init__(self, text: str):
        super().__init__()
        self.names: set[str] = set()
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.addresses += [str(value) for name, value in attrs if name in ("src", "href", "action", "srcset")]


def test_the_page_loads_nothing_and_runs_nothing(run: Path):
    text = (run / "report.html").read_text(encoding="utf-8")
    tags = Tags(text)
    assert not tags.names & {"script", "link", "img", "iframe", "object", "form"} and tags.addresses == []
    assert "url(" not in text and "@import" not in text and "default-src 'none'" in text


def test_the_page_shows_the_figures_of_the_run(run: Path):
    results = json.loads((run / "results.json").read_text())
    text = (run / "report.html").read_text(encoding="utf-8")
    for name, value in results["metrics"].items():
        assert name in text and f"{value:,.4f}"[:6] in text
    assert "eval_loss&lt;100" in text and "holds" in text and "completed after 12 steps" in text
    assert results["command"].split()[1] in text and "train.learning_rate" in text
    assert f"{results['data']['train']['tokens_used']:,}" in text


def test_the_curve_has_a_point_for_each_logged_step(run: Path):
    text = (run / "report.html").read_text(encoding="utf-8")
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    loss = text.split("<b>Loss</b>")[1].split("</figure>")[0]
    curves = re.findall(r'points="([^"]+)"', loss)
    assert [len(curve.split()) for curve in curves] == [
        sum("loss" in line for line in logged),
        sum("eval_loss" in line for line in logged),
    ]
    heights = [float(point.split(",")[1]) for point in curves[1].split()]
    losses = [line["eval_loss"] for line in logged if "eval_loss" in line]
    # A higher loss is drawn higher, and distances keep their ratio.
    ratio = (heights[1] - heights[0]) / (losses[0] - losses[1])
    assert ratio > 0 and heights[-1] - heights[0] == pytest.approx(ratio * (losses[0] - losses[-1]), abs=0.5)


def test_texts_of_the_data_are_escaped(run: Path):
    text = (run / "report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;" in text and "<b>작" not in text and "&amp;" in text


@needs_chromium
def test_a_browser_shows_the_page_at_every_width(run: Path):
    with Browser() as browser:
        for width in (400, 1400):
            browser.open(run / "report.html", width)
            assert browser.value("document.documentElement.scrollWidth") == width
            shown = browser.value("document.body.innerText")
            assert "고양이" in shown and "eval_loss" in shown
            assert browser.value("document.querySelectorAll('svg').length") >= 4
            assert colours(browser.screenshot()) > 100
        assert browser.complaints == []
        assert set(browser.requests) == {(run / "report.html").resolve().as_uri()}
        browser.open(run / "report.html", 1400, scripts=False)
        assert colours(browser.screenshot()) > 100


def test_a_run_that_failed_has_a_page(material: Path):
    outcome = lmtrain("clm", *scratch("gpt2"), "--data", material / "text.jsonl", "-L", 32, "--lr", 1e30,
                      "--max-grad-norm", 0, "--max-steps", 30, "-o", "run")  # fmt: skip
    assert outcome.code == 6
    assert "failed after" in Path("run/report.html").read_text()


def test_lines_of_a_log_end_at_line_feeds_only(tmp_path: Path):
    from lmtrain.runs.report import read_lines

    lines = [{"output": "a\u2028b"}, {"output": "c"}]
    (tmp_path / "log.jsonl").write_bytes(
        "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode() + b"\xea\xb3"
    )
    assert read_lines(tmp_path / "log.jsonl") == lines


def test_long_curves_keep_their_extremes():
    from lmtrain.runs.charts import thinned

    draw = random.Random(5)
    points = [(float(step), draw.gauss(0, 1)) for step in range(5000)]
    shorter = thinned(points)
    assert len(shorter) <= 410 and list(shorter) == sorted(shorter)
    assert max(p[1] for p in shorter) == max(p[1] for p in points)
    assert min(p[1] for p in shorter) == min(p[1] for p in points)


@pytest.mark.parametrize("low, high", [(0, 1), (3.39, 5.71), (0.00001, 0.00005), (-2, 7), (5, 5), (0, 0), (1e5, 3e6)])
def test_an_axis_holds_its_values_between_round_numbers(low: float, high: float):
    from lmtrain.runs.charts import axis

    first, last, ticks = axis(low, high)
    assert first <= low <= high <= last and 3 <= len(ticks) <= 8
    assert ticks[0] == first and ticks[-1] == last
