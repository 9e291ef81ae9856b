"""The figures of a report: which are drawn for given analyses, with captions, as images inside the page."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import scipy.special

from flowmc_analysis import plots
from flowmc_analysis.plot_style import SeriesStyle, series_styles
from flowmc_analysis.training_plots import Row, plot_training_history

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from flowmc_analysis.comparison import Comparison
    from flowmc_analysis.ensemble import EnsembleAnalysis
    from flowmc_analysis.estimate import Estimate

__all__ = ["Picture", "cosh_mass", "draw_pictures"]

_RESOLUTION = 150  # of the parts drawn as pixels, dots per inch
_PIXELS_PER_INCH = 88.0
_CORRELATION = "correlation"
_LARGEST_RELATIVE_ERROR = 1.0 / 3.0


@dataclass(frozen=True)
class Picture:
    """A figure ready for a page.

    Parameters
    ----------
    section
        Heading it belongs to.
    caption
        What it shows and how to read it.
    uri
        The image as a ``data:`` URI; nothing is fetched from elsewhere.
    width
        Natural width on the page, pixels.
    """

    section: str
    caption: str
    uri: str
    width: int


def draw_pictures(
    analyses: Sequence[EnsembleAnalysis],
    comparison: Comparison | None = None,
    training_history: Sequence[Row] | None = None,
) -> tuple[Picture, ...]:
    """Draw everything the analyses have data for.

    Parameters
    ----------
    analyses
        The ensembles, with different labels.
    comparison
        Their comparison, if there is one.
    training_history
        Rows for :func:`flowmc_analysis.training_plots.plot_training_history`.
    """
    styles = series_styles(analysis.label for analysis in analyses)
    pictures = []
    if comparison is not None:
        pictures.append(_agreement(comparison))
    pictures += _histories(analyses, styles)
    pictures += _autocorrelations(analyses, styles)
    pictures += _weights(analyses, styles)
    pictures += _correlators(analyses, styles)
    if training_history:
        figure = plot_training_history({"training": training_history})
        caption = (
            "Loss, effective sample size and acceptance, gradient norm and learning rate during training; bold lines are"
            " running medians. Where training is annealed, they refer to the theory of that step, not to the final one."
        )
        pictures.append(_picture("Training", figure, caption))
    return tuple(pictures)


def cosh_mass(analysis: EnsembleAnalysis, name: str) -> float:
    """Average an effective mass over the separations where it is known to a third, weighted by inverse variance.

    Parameters
    ----------
    analysis
        The ensemble.
    name
        Name of the effective mass.

    Returns
    -------
    The mass in lattice units, NaN where there is none. Correlations are ignored: it is for drawing a curve.
    """
    known = [
        mass
        for mass in analysis.components(name)
        if math.isfinite(mass.value) and 0.0 < mass.error < _LARGEST_RELATIVE_ERROR * mass.value
    ]
    weights = [mass.error**-2 for mass in known]
    return sum(w * mass.value for w, mass in zip(weights, known, strict=True)) / sum(weights) if known else math.nan


def _agreement(comparison: Comparison) -> Picture:
    verdict = comparison.verdict
    # The |z| at which Sidak's family of this size reaches its level.
    bound = -float(scipy.special.ndtri(-0.5 * math.expm1(math.log1p(-verdict.level) / verdict.count)))
    scores = {pair: {score.name: score.z for score in row} for pair, row in comparison.shown_scores.items()}
    caption = (
        f"Differences between the ensembles in units of their combined error. Beyond ±{bound:.2f} (dashed) the family"
        f" of {verdict.count} z-scores is rejected at level {verdict.level:g}; the band is one standard error."
        f" {comparison.note_on_pairs}"
    ).rstrip()
    return _picture("Agreement", plots.plot_z_scores(scores, bound=bound), caption)


def _histories(analyses: Sequence[EnsembleAnalysis], styles: Mapping[str, SeriesStyle]) -> list[Picture]:
    updates = {analysis.label: analysis.updates for analysis in analyses}
    pictures = []
    # Ensembles in one report are of one theory.
    for name in analyses[0].observable_set.histories:
        series = {analysis.label: analysis.series[name] for analysis in analyses if name in analysis.series}
        if not series:
            continue
        figure = plots.plot_history(series, name=name, updates=updates, styles=styles)
        caption = f"History of {name} after thermalisation (lattice units). Drifts and steps mean trouble."
        pictures.append(_picture("Histories", figure, caption))
    return pictures


def _autocorrelations(analyses: Sequence[EnsembleAnalysis], styles: Mapping[str, SeriesStyle]) -> list[Picture]:
    pictures = []
    usual = analyses[0].observable_set.cost_observable
    for name in dict.fromkeys([usual, *(analysis.slowest for analysis in analyses)]):
        results = {analysis.label: analysis.results[name] for analysis in analyses if name in analysis.results}
        tau = plots.plot_tau_int(results, name=name, styles=styles)
        rho = plots.plot_autocorrelation(results, name=name, styles=styles)
        caption = f"Integrated autocorrelation time of {name} against the summation window, with the chosen windows."
        pictures.append(_picture("Autocorrelation", tau, f"{caption} The curve should be flat from the line on."))
        pictures.append(_picture("Autocorrelation", rho, f"Autocorrelation function of {name}."))
    return pictures


def _weights(analyses: Sequence[EnsembleAnalysis], styles: Mapping[str, SeriesStyle]) -> list[Picture]:
    draws = {analysis.label: analysis.weights.log_weight for analysis in analyses if analysis.weights}
    states = {analysis.label: analysis.weights.log_weight_current for analysis in analyses if analysis.weights}
    if not draws:
        return []
    caption = (
        "Log-weights of the flow's proposals (filled) and of the chains' states (outline). The outline is the filled"
        " histogram times w/Z; states far to the right of all draws mean regions that the flow misses."
    )
    return [_picture("Weights", plots.plot_log_weights(draws, states, styles=styles), caption)]


def _correlators(analyses: Sequence[EnsembleAnalysis], styles: Mapping[str, SeriesStyle]) -> list[Picture]:
    extent, definitions = analyses[0].description.lattice_size[0], analyses[0].observable_set
    pictures = []
    for name, mass in definitions.correlators.items():
        correlators = _measured(analyses, name)
        if not correlators:
            continue
        masses = {a.label: cosh_mass(a, mass) for a in analyses}
        title = definitions.observables[name].description
        figure = plots.plot_two_point(correlators, masses, temporal_extent=extent, title=title, styles=styles)
        caption = f"{title[0].upper()}{title[1:]}, shown up to T/2 (it is symmetric)."
        if any(math.isfinite(value) for value in masses.values()):
            caption += " Curves: A cosh(m(t − T/2)) with the mean effective mass."
        pictures.append(_picture("Correlators", figure, caption))
        effective = _measured(analyses, mass)
        if effective:
            title = definitions.observables[mass].description
            figure = plots.plot_effective_mass(effective, title=title, styles=styles)
            caption = (
                f"{title[0].upper()}{title[1:]}: arcosh[(C(t+1) + C(t−1)) / 2C(t)]; a plateau is the mass of the"
                " lightest state."
            )
            pictures.append(_picture("Correlators", figure, caption))
    correlations = _measured(analyses, _CORRELATION)
    if correlations:
        figure = plots.plot_correlation(correlations, styles=styles)
        caption = "Correlation of two spins at distance r along an axis, over sites and axes averaged."
        pictures.append(_picture("Correlators", figure, caption))
    return pictures


def _measured(analyses: Sequence[EnsembleAnalysis], name: str) -> dict[str, tuple[Estimate, ...]]:
    """Components of an array-valued observable by label, where it was measured."""
    return {a.label: a.components(name) for a in analyses if a.components(name)}


def _picture(section: str, figure: Figure, caption: str) -> Picture:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", dpi=_RESOLUTION, metadata={"Date": None})
    uri = "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Picture(section, caption, uri, round(_PIXELS_PER_INCH * figure.get_figwidth()))
