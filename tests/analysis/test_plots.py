"""Figures: they draw what they are given, leave out what cannot be drawn, and touch no global state."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
import pytest
from matplotlib import _pylab_helpers
from matplotlib.figure import Figure

from flowmc_analysis import plots
from flowmc_analysis.errors import AnalysisError
from flowmc_analysis.estimate import Estimate
from flowmc_analysis.gamma import GammaResult, gamma_method
from flowmc_analysis.plot_style import series_styles


def render(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    return buffer.getvalue()


@pytest.fixture
def results(rng: np.random.Generator) -> dict[str, GammaResult]:
    return {label: gamma_method(rng.normal(size=(4, 300)).cumsum(axis=0)) for label in ("flow", "hmc")}


def correlator(mass: float, extent: int = 8) -> list[Estimate]:
    return [Estimate(math.cosh(mass * (t - extent / 2)), 0.1) for t in range(extent // 2 + 1)]


def test_tau_int_marks_the_window(results: dict[str, GammaResult]) -> None:
    figure = plots.plot_tau_int(results, name="susceptibility")
    (axis,) = figure.axes
    vertical = [line.get_xdata()[0] for line in axis.lines if len(set(line.get_xdata())) == 1]  # type: ignore[index, arg-type]
    assert {result.window for result in results.values()} <= set(vertical)
    assert {text.get_text() for text in axis.get_legend().get_texts()} == {"flow", "hmc"}  # type: ignore[union-attr]
    assert "0.5" in axis.get_title(loc="left")


def test_autocorrelation_starts_at_one(results: dict[str, GammaResult]) -> None:
    figure = plots.plot_autocorrelation(results, name="susceptibility")
    low, high = figure.axes[0].get_ylim()
    assert low < 0.0 < 1.0 < high


def test_history_has_a_panel_for_each_ensemble(rng: np.random.Generator) -> None:
    series = {label: rng.normal(size=(5, 4000)) for label in ("flow", "hybrid", "hmc")}
    figure = plots.plot_history(series, name="magnetisation")
    assert len(figure.axes) == 3
    # At most three chains are drawn and each is thinned.
    chains = [line for line in figure.axes[0].lines if len(line.get_xdata()) > 2]  # type: ignore[arg-type]
    assert len(chains) == 3
    assert all(len(line.get_xdata()) <= 1500 for line in chains)  # type: ignore[arg-type]
    render(figure)


def test_log_weights_ignore_what_is_infinite(rng: np.random.Generator) -> None:
    draws, states = rng.normal(size=(2, 500)), rng.normal(1.0, 1.0, size=(2, 500))
    draws[0, 0], states[0, 0] = -np.inf, np.inf
    figure = plots.plot_log_weights({"flow": draws}, {"flow": states})
    assert {text.get_text() for text in figure.axes[0].get_legend().get_texts()} == {"flow draws", "chain states"}  # type: ignore[union-attr]
    render(figure)
    render(plots.plot_log_weights({"perfect": np.zeros((1, 10))}))


def test_two_point_function_draws_its_cosh() -> None:
    mass = 0.7
    figure = plots.plot_two_point({"hmc": correlator(mass)}, {"hmc": mass}, temporal_extent=8)
    (axis,) = figure.axes
    assert axis.get_yscale() == "log"
    (curve,) = [line for line in axis.lines if len(line.get_xdata()) == 200]  # type: ignore[arg-type]
    x, y = np.asarray(curve.get_xdata()), np.asarray(curve.get_ydata())
    np.testing.assert_allclose(y, np.cosh(mass * (x - 4.0)))
    assert "0.7" in axis.get_legend().get_texts()[0].get_text()  # type: ignore[union-attr]


def test_points_that_cannot_be_drawn_are_left_out() -> None:
    noisy = [*correlator(0.7)[:4], Estimate(-0.1, 0.2)]
    render(plots.plot_two_point({"hmc": noisy}, {"hmc": math.nan}, temporal_extent=8))
    render(plots.plot_effective_mass({"hmc": [Estimate(0.7, 0.1), Estimate(math.nan, math.nan)]}))


def test_z_scores_show_the_bound() -> None:
    figure = plots.plot_z_scores({"a − b": {"susceptibility": 1.0, "binder": math.nan}}, bound=4.0)
    (axis,) = figure.axes
    assert {label.get_text() for label in axis.get_yticklabels()} == {"susceptibility", "binder"}
    assert axis.get_xlim()[1] > 4.0
    render(figure)


@pytest.mark.parametrize("n_pairs", [1, 2, 6, 28])
def test_z_scores_stay_in_their_rows(n_pairs: int) -> None:
    names = ["energy", "susceptibility", "binder"]
    figure = plots.plot_z_scores({f"pair {i}": dict.fromkeys(names, 0.1 * i) for i in range(n_pairs)}, bound=4.0)
    (axis,) = figure.axes
    bottom, top = axis.get_ylim()
    drawn = [np.asarray(line.get_ydata()) for line in axis.lines if len(line.get_xdata()) == len(names)]  # type: ignore[arg-type]
    assert len(drawn) == n_pairs
    for rows in drawn:
        assert np.all(np.abs(rows - np.arange(len(names))) <= 0.35 + 1e-12)
        assert np.all((rows > top) & (rows < bottom))
    assert len({tuple(rows) for rows in drawn}) == n_pairs


def test_styles_of_many_ensembles_differ() -> None:
    styles = series_styles(str(i) for i in range(28))
    assert len({(style.colour, style.marker) for style in styles.values()}) == 28


def test_two_point_function_below_a_decade_has_plain_ticks() -> None:
    figure = plots.plot_two_point({"hmc": [Estimate(3.1 - 0.2 * t, 0.02) for t in range(5)]}, temporal_extent=8)
    figure.draw_without_rendering()
    (axis,) = figure.axes
    low, high = axis.get_ylim()
    texts = [text.get_text() for text in axis.get_yticklabels() if low <= text.get_position()[1] <= high]
    assert len(texts) >= 3
    assert all(low <= float(text) <= high for text in texts)
    wide = plots.plot_two_point({"hmc": [Estimate(10.0**-t, 0.01 * 10.0**-t) for t in range(4)]}, temporal_extent=8)
    wide.draw_without_rendering()
    assert any("10" in text.get_text() for text in wide.axes[0].get_yticklabels())


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.plot_history({}, name="x"),
        lambda: plots.plot_tau_int({}, name="x"),
        lambda: plots.plot_autocorrelation({}, name="x"),
        lambda: plots.plot_log_weights({}),
        lambda: plots.plot_two_point({}, temporal_extent=4),
        lambda: plots.plot_effective_mass({}),
        lambda: plots.plot_z_scores({}),
    ],
)
def test_nothing_to_draw_is_refused(draw: Callable[[], Figure]) -> None:
    with pytest.raises(AnalysisError, match="leave this figure out"):
        draw()


def test_no_global_figures(results: dict[str, GammaResult]) -> None:
    before = list(_pylab_helpers.Gcf.figs)
    render(plots.plot_tau_int(results, name="x"))
    assert list(_pylab_helpers.Gcf.figs) == before


def test_correlation_leaves_out_what_has_no_error() -> None:
    points = [Estimate(0.8, 0.01), Estimate(1.0, math.nan), Estimate(0.4, 0.02)]
    figure = plots.plot_correlation({"heat_bath+flow": points})
    (container,) = figure.axes[0].containers
    assert list(container.lines[0].get_xdata()) == [1.0, 3.0]  # type: ignore[attr-defined]
    assert "heat_bath+flow" in render(figure)
