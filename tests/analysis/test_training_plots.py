"""Figures of trainings: what is in their panels, that noise is smoothed, and that beginnings do not flatten the rest."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib import _pylab_helpers
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flowmc_analysis.errors import AnalysisError
from flowmc_analysis.training_plots import Row, plot_training_history, running_median


def log(rng: np.random.Generator, n: int = 400, *, forward: bool = False, **changed: float) -> list[Row]:
    """Return a training whose loss falls from 5 to about 0, with noise on top."""
    return [
        {
            "step": step,
            "loss": 5 * np.exp(-10 * step / n) + 0.1 * rng.normal(),
            "ess": float(rng.uniform(0.4, 0.6)),
            "acceptance": float(rng.uniform(0.5, 0.7)),
            "gradient_norm": float(rng.lognormal()),
            "learning_rate": 0.003 * (1 - step / n),
            "seconds": 0.5 * step,
            "forward_loss": 20 + rng.normal() if forward else None,
            **changed,
        }
        for step in range(1, n + 1)
    ]


def render(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    return buffer.getvalue()


def titles(figure: Figure) -> list[str]:
    return [axis.get_title(loc="left") for axis in figure.axes]


def bold(axis: Axes) -> list[np.ndarray]:
    """Return the curves drawn boldly."""
    return [np.asarray(line.get_ydata()) for line in axis.lines if line.get_linewidth() > 1 and len(line.get_ydata())]  # type: ignore[arg-type]


def test_four_panels_against_the_step(rng: np.random.Generator) -> None:
    figure = plot_training_history({"training": log(rng)})
    assert [axis.get_xlabel() for axis in figure.axes] == ["training step"] * 4
    loss, quality, gradient, rate = titles(figure)
    assert "400 steps, 200 s" in loss
    assert "quality" in quality
    assert "gradient norm" in gradient
    assert "learning rate" in rate
    assert figure.axes[2].get_yscale() == "log"
    assert {text.get_text() for text in figure.axes[1].get_legend().get_texts()} == {  # type: ignore[union-attr]
        "ESS per draw (reverse)",
        "acceptance",
    }
    before = list(_pylab_helpers.Gcf.figs)
    render(figure)
    assert list(_pylab_helpers.Gcf.figs) == before


def test_two_more_against_wall_time(rng: np.random.Generator) -> None:
    figure = plot_training_history({"training": log(rng)}, wall_time=True)
    labels = [axis.get_xlabel() for axis in figure.axes]
    assert labels == ["training step"] * 2 + ["wall time (minutes)"] * 2 + ["training step"] * 2
    # 200 s, in minutes.
    assert max(figure.axes[2].lines[-1].get_xdata()) == pytest.approx(200 / 60)  # type: ignore[arg-type, type-var]
    render(figure)


def test_bold_curves_are_smooth(rng: np.random.Generator) -> None:
    rows = log(rng, 1400)
    figure = plot_training_history({"training": rows})
    ess, acceptance = bold(figure.axes[1])
    raw = np.array([row["ess"] for row in rows], dtype=np.float64)
    assert np.std(ess) < 0.5 * np.std(raw)
    assert abs(ess.mean() - 0.5) < 0.05
    assert abs(acceptance.mean() - 0.6) < 0.05
    # What has no noise is drawn as it is.
    rates = np.array([row["learning_rate"] for row in rows], dtype=np.float64)
    np.testing.assert_allclose(bold(figure.axes[3])[0], rates)


def test_long_trainings_are_thinned(rng: np.random.Generator) -> None:
    figure = plot_training_history({"training": log(rng, 5000)})
    assert all(len(line.get_xdata()) <= 1500 for axis in figure.axes for line in axis.lines)  # type: ignore[arg-type]


@pytest.mark.parametrize("n", [1, 2, 5])
def test_short_trainings_are_drawn(n: int, rng: np.random.Generator) -> None:
    render(plot_training_history({"training": log(rng, n)}, wall_time=True))
    render(plot_training_history({"training": log(rng, n, gradient_norm=0.0, ess=0.0, seconds=0.0)}, wall_time=True))


def test_the_beginning_does_not_flatten_the_loss(rng: np.random.Generator) -> None:
    rows = [{**row, "loss": 1e6} if (row["step"] or 0) < 10 else row for row in log(rng)]
    figure = plot_training_history({"one": rows, "other": rows})
    low, high = figure.axes[0].get_ylim()
    assert high < 10
    assert low < -0.1
    assert "off the scale" in titles(figure)[0]
    # An ordinary one is shown from its start.
    assert plot_training_history({"training": log(rng)}).axes[0].get_ylim()[1] > 4


def test_trainings_share_the_panels(rng: np.random.Generator) -> None:
    figure = plot_training_history({"flow_a": log(rng), "flow_b": log(rng, 200)}, wall_time=True)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["flow_a", "flow_b"]
    assert len(bold(figure.axes[0])) == 2
    assert len({line.get_color() for line in figure.axes[0].lines}) == 2
    assert "flow_b" in render(figure)


def test_a_forward_part_has_a_scale_of_its_own(rng: np.random.Generator) -> None:
    figure = plot_training_history({"mixed": log(rng, forward=True), "reverse": log(rng)})
    (right,) = [axis for axis in figure.axes if "forward part" in axis.get_ylabel()]
    assert len(bold(right)) == 1
    render(figure)
    # Where it is the loss itself, it is drawn once.
    alone = [{**row, "forward_loss": row["loss"]} for row in log(rng)]
    assert len(plot_training_history({"forward": alone}).axes) == 4


def test_medians_at_the_ends_are_those_of_what_is_there() -> None:
    noise = np.array([0.0, 0, 0, 0, 0, 0, 9])
    np.testing.assert_array_equal(running_median(noise, 5), 0)
    np.testing.assert_array_equal(running_median(noise, 1), noise)


@pytest.mark.parametrize("histories", [{}, {"training": []}])
def test_nothing_to_draw_is_refused(histories: dict[str, list[Row]]) -> None:
    with pytest.raises(AnalysisError, match="leave this figure out"):
        plot_training_history(histories)
