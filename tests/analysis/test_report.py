"""The report: one self-contained, well-formed page with everything in it, written in one step."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path

import pytest

from flowmc_analysis import report
from flowmc_analysis.comparison import Comparison, compare_many
from flowmc_analysis.report import render_report, write_report

TRAINING = [
    {
        "step": i,
        "loss": 1.0 / i,
        "ess": 0.5,
        "acceptance": 0.6,
        "gradient_norm": 1.0 / i,
        "learning_rate": 0.01,
        "seconds": 0.1 * i,
    }
    for i in range(1, 10)
]


class Page(HTMLParser):
    """Collects text and attributes; refuses tags that do not match."""

    void = frozenset({"meta", "img", "br", "link", "input", "hr"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.images: list[str] = []
        self.tags: set[str] = set()
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "img":
            self.images.append(dict(attrs)["src"] or "")
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def comparison(ensembles: Mapping[str, Path]) -> Comparison:
    return compare_many(list(ensembles.values()), list(ensembles))


@pytest.fixture(scope="module")
def html(comparison: Comparison, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    info = {"versions": {"torch": "2.13.0"}, "command": "flowmc run"}
    write_report(path, comparison.analyses, comparison, training_history=TRAINING, run_info=info)
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


def test_page_is_self_contained(html: str) -> None:
    page = Page(html)
    assert not page.tags & {"script", "link", "iframe", "object"}
    assert page.images
    assert all(image.startswith("data:image/svg+xml;base64,") for image in page.images)
    assert not re.search(r"""(src|href)\s*=\s*["']?\s*(https?:)?//""", html)
    assert "@import" not in html


def test_page_holds_every_part(html: str, comparison: Comparison) -> None:
    text = Page(html).text
    for analysis in comparison.analyses:
        for name, estimate in analysis.observables.items():
            assert name in text
            assert str(estimate) in text
        for monitor in analysis.monitors:
            assert monitor.identity in text
    for words in (
        "agree",
        "Run card",
        "with training",
        "ESS per draw",
        "ln Z from chain states",
        "R-hat",
        "versions.torch",
        "2.13.0",
        "ab" * 8,
        "white noise = 0.5",
        "Training",
        "Warnings",
        "periodic",
    ):
        assert words in text
    # z-scores, weights, two histories, two correlators, training, and two for each autocorrelation shown.
    assert len(Page(html).images) >= 9


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the figures out where they do not matter; drawing them takes seconds."""
    monkeypatch.setattr(report, "draw_pictures", lambda *_: ())


def test_report_of_one_ensemble(comparison: Comparison) -> None:
    html = render_report([comparison.analyses[-1]])
    text = Page(html).text
    assert "Cost" not in text
    assert "Training" not in text
    assert "Monitors of hmc: 2 identities quiet" in text
    assert "free_scalar, 6×4 lattice, mass = 0.8" in text


@pytest.mark.usefixtures("without_pictures")
def test_labels_and_info_are_escaped(comparison: Comparison) -> None:
    analysis = dataclasses.replace(comparison.analyses[-1], label="<b>hmc</b> & co")
    html = render_report([analysis], run_info={"note": "<script>alert(1)</script>"})
    assert "<script" not in html
    assert "<b>hmc" not in html


@pytest.mark.usefixtures("without_pictures")
def test_raised_monitor_leads_the_page(comparison: Comparison) -> None:
    analysis = comparison.analyses[-1]
    assert analysis.verdict is not None
    failed = dataclasses.replace(
        analysis, verdict=dataclasses.replace(analysis.verdict, passed=False), warnings=("alas",)
    )
    html = render_report([failed])
    assert '<li class="bad">Monitors of hmc: 2 identities RAISED' in html
    assert "alas" in html


@pytest.mark.usefixtures("without_pictures")
def test_failed_write_leaves_the_old_report(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def fail(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(path, [comparison.analyses[-1]])
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
