"""Flows for the double well: both wells, moments and the correlator by their weights, against what is exact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan, sqrt

import numpy as np
from numpy.typing import NDArray

from benchmarks.claims import Claim
from benchmarks.interpolations_flows import WELL_METHODS
from benchmarks.interpolations_quality import (
    KEPT_SHARE,
    LARGEST_Z,
    Weighed,
    alarm_claim,
    excess,
    missed_part,
    of_seeds,
    spread,
    z_of,
)
from flowmc.theories import DoubleWell
from flowmc_analysis.estimate import Estimate
from flowmc_analysis.exact_double_well import DoubleWellExact, double_well_exact
from flowmc_analysis.tables import Table
from flowmc_analysis.weights import log_mean_exp

Array = NDArray[np.float64]


@dataclass(frozen=True)
class WellQuality:
    """A flow for a double well: its weights, and moments of its draws reweighted to the target.

    Parameters
    ----------
    weighed
        Draws and weights.
    exact
        What is exactly known.
    phi_squared, phi_fourth, positive
        ⟨x²⟩, ⟨x⁴⟩ and P(x̄ > 0), by the weights.
    share
        Part of the draws with x̄ > 0.
    correlator
        ⟨x_0 x_t⟩ by the weights, t = 0 … N/2.
    ratio
        C(N/2 − 1) / C(N/2), by the weights: the hyperbolic cosine of Δ times the effective energy at T/2.
    """

    weighed: Weighed
    exact: DoubleWellExact
    phi_squared: Estimate
    phi_fourth: Estimate
    positive: Estimate
    share: float
    correlator: tuple[Estimate, ...]
    ratio: Estimate

    @classmethod
    def of(cls, weighed: Weighed) -> WellQuality:
        """Measure moments of the draws."""
        theory, x = weighed.theory, weighed.field
        assert isinstance(theory, DoubleWell)
        sites = theory.n_sites
        right = (x.mean(axis=1) > 0).astype(np.float64)
        spectrum = np.abs(np.fft.rfft(x, axis=1)) ** 2
        # Of each draw, averaged over translations.
        correlators = np.fft.irfft(spectrum, n=sites, axis=1)[:, : sites // 2 + 1] / sites
        return cls(
            weighed,
            double_well_exact(sites, theory.extent, theory.mass, theory.coupling),
            weighed.reweighted((x**2).mean(axis=1)),
            weighed.reweighted((x**4).mean(axis=1)),
            # All draws in one well: that has no error by their weights but that of rounding.
            Estimate(float(right[0]), 0.0) if (right == right[0]).all() else weighed.reweighted(right),
            float(right.mean()),
            tuple(weighed.reweighted(column) for column in correlators.T),
            _ratio(weighed.log_w, correlators[:, -2], correlators[:, -1]),
        )

    @property
    def exact_ratio(self) -> float:
        """The same ratio of the exact correlator."""
        exact, sites = self.exact.two_point_zero_momentum, len(self.exact.two_point_zero_momentum)
        return float(exact[sites // 2 - 1] / exact[sites // 2])

    @property
    def spacing(self) -> float:
        """Lattice spacing."""
        assert isinstance(self.weighed.theory, DoubleWell)
        return self.weighed.theory.spacing

    @property
    def energy(self) -> Estimate:
        """Effective energy at T/2; NaN where the correlator is not convex."""
        if not self.ratio.value > 1:
            return Estimate(nan, nan)
        error = self.ratio.error / sqrt(self.ratio.value**2 - 1) / self.spacing
        return Estimate(float(np.arccosh(self.ratio.value)) / self.spacing, error)

    @property
    def exact_energy(self) -> float:
        """The same of the exact correlator."""
        return float(np.arccosh(self.exact_ratio)) / self.spacing

    @property
    def one_well(self) -> bool:
        """Whether the draws give one of the wells less than `KEPT_SHARE` of its weight."""
        return not KEPT_SHARE / 2 <= self.share <= 1 - KEPT_SHARE / 2

    def scores(self) -> Mapping[str, float]:
        """Return the z-scores of what the weights give against what is exact."""
        return {
            "ln Z": z_of(self.weighed.log_z, self.exact.log_z),
            "<x²>": z_of(self.phi_squared, self.exact.phi_squared),
            "<x⁴>": z_of(self.phi_fourth, self.exact.phi_fourth),
            "P(x̄ > 0)": z_of(self.positive, 0.5),
            "effective energy": z_of(self.ratio, self.exact_ratio),
        }


def _ratio(log_w: Array, numerators: Array, denominators: Array) -> Estimate:
    """Return the ratio of two reweighted means, with the error that their correlation leaves."""
    weights = np.exp(log_w - log_mean_exp(log_w))
    above, below = float(np.mean(weights * numerators)), float(np.mean(weights * denominators))
    fluctuation = weights * (numerators - above / below * denominators) / below
    return Estimate(above / below, float(fluctuation.std()) / sqrt(len(weights) - 1))


Qualities = Mapping[tuple[int, float, str], Sequence[WellQuality]]
"""By sites, mass and method, one for each seed."""


def well_tables(qualities: Qualities) -> list[Table]:
    """Tabulate weights and wells, what they give for exact quantities, and the energy gap."""
    if not qualities:
        return []
    return [_weight_table(qualities), _exact_table(qualities), _gap_table(qualities)]


def _weight_table(qualities: Qualities) -> Table:
    rows = []
    for (sites, mass, method), found in qualities.items():
        weighed = [one.weighed for one in found]
        log_z = found[0].exact.log_z
        raised = sum(one.alarm.raised for one in weighed)
        alone = sum(one.alarm_alone.raised for one in weighed)
        rows.append(
            (
                f"{sites}, {mass:g}",
                WELL_METHODS[method],
                str(len(found)),
                spread([one.seconds / 60 for one in weighed], ".1f"),
                spread([one.ess_reverse for one in weighed]),
                spread([one.ess_forward for one in weighed], ".2g"),
                spread([one.pareto_k for one in weighed], ".2f"),
                of_seeds([missed_part(one, log_z) for one in weighed], ".3f"),
                spread([log_z - one.bound.value for one in weighed], ".2g"),
                spread([one.forward_divergence(log_z).value for one in weighed], ".2g"),
                of_seeds([one.share for one in found], ".3f"),
                spread([one.acceptance for one in weighed]),
                spread([one.alarm.unseen.share for one in weighed], ".2g"),
                f"raised {raised} of {len(found)}",
                f"raised {alone} of {len(found)}",
            )
        )
    columns = (
        "N, m",
        "trained by",
        "seeds",
        "min",
        "reverse ESS",
        "forward ESS",
        "Pareto k",
        "missed part of Z",
        "KL(q|p), nats",
        "KL(p|q), nats",
        "draws with x̄ > 0",
        "acceptance",
        "unseen",
        "alarm, exact states",
        "alarm, flow alone",
    )
    note = (
        "Median over the seeds (smallest … largest); missed part of Z, 1 - Z(draws)/Z, and "
        "draws with x̄ > 0, exactly 1/2, in every seed. KL(q|p) is the exact "
        "ln Z less ELBO. Forward figures on exact paths; unseen: share of these whose weight exceeds e times that of "
        "every draw. Alarm: that of a run whose chains visit both wells, and that of a run with the flow alone, which "
        "cannot know."
    )
    return Table("Double wells: weights", columns, tuple(rows), note)


def _exact_table(qualities: Qualities) -> Table:
    rows: list[tuple[str, ...]] = []
    for (sites, mass, method), found in qualities.items():
        exact = found[0].exact
        values = (exact.log_z, exact.phi_squared, exact.phi_fourth)
        if f"{sites}, {mass:g}" not in {row[0] for row in rows}:
            rows.append((f"{sites}, {mass:g}", "exact", "", "", *(f"{value:.5f}" for value in values), "0.5"))
        for one in found:
            scores = one.scores()
            estimates = (one.weighed.log_z, one.phi_squared, one.phi_fourth, one.positive)
            cells = [f"{estimate} ({scores[name]:+.1f})" for name, estimate in zip(scores, estimates, strict=False)]
            bound = one.weighed.bound
            rows.append((f"{sites}, {mass:g}", WELL_METHODS[method], str(one.weighed.seed), str(bound), *cells))
    columns = ("N, m", "trained by", "seed", "ELBO", "ln Z", "<x²>", "<x⁴>", "P(x̄ > 0)")
    note = "All but ELBO by the weights of the draws; z-scores against the exact values in brackets."
    return Table("Double wells against exact values", columns, tuple(rows), note)


def _gap_table(qualities: Qualities) -> Table:
    rows = []
    for (sites, mass, method), found in qualities.items():
        energies = "; ".join("–" if one.energy.value != one.energy.value else str(one.energy) for one in found)
        rows.append(
            (
                f"{sites}, {mass:g}",
                WELL_METHODS[method],
                energies,
                of_seeds([one.scores()["effective energy"] for one in found]),
                f"{found[0].exact_energy:.4f}",
                f"{found[0].exact.gap:.4f}",
            )
        )
    columns = ("N, m", "trained by", "effective energy at T/2", "z", "exactly", "gap E1 - E0")
    note = (
        "Effective energy: arcosh[C(T/2 - Δ) / C(T/2)] / Δ of the reweighted correlator, for every seed; –: the ratio is "
        "below one. z is that of the ratio. T = 4 is too short for it to be the gap, also exactly: transitions between "
        "higher states contribute."
    )
    return Table("Double wells: energy gap from the correlator", columns, tuple(rows), note)


def well_claims(qualities: Qualities, *, quick: bool) -> list[Claim]:
    """Hold the flows against exact values; a smoke run is not judged, nor are z-scores of the reverse divergence."""
    claims = []
    for (sites, mass, method), found in qualities.items():
        where = f"N = {sites}, m = {mass:g}, {WELL_METHODS[method]}"
        weighed = [one.weighed for one in found]

        def add(
            what: str, values: Sequence[float], target: str, *, holds: bool, unit: str = "", where: str = where
        ) -> None:
            detail = f"{min(values):.3g} to {max(values):.3g}, {len(values)} seeds"
            claims.append(Claim(f"{what}, {where}", float(np.median(values)), detail, target, unit, quick or holds))

        for what, values in (
            ("reverse ESS", [one.ess_reverse for one in weighed]),
            ("forward ESS", [one.ess_forward for one in weighed]),
        ):
            add(what, values, "informative", holds=True)
        log_z = found[0].exact.log_z
        above = [excess(one, log_z) for one in weighed]
        add("ELBO in its errors above ln Z", above, f"< {LARGEST_Z:g}", holds=max(above) < LARGEST_Z)
        judged = method != "reverse"
        target = f"< {LARGEST_Z:g} in every seed" if judged else "informative"
        for name in found[0].scores():
            scores = [abs(one.scores()[name]) for one in found]
            add(f"|z| of {name} by draws", scores, target, holds=not judged or max(scores) < LARGEST_Z)
        minutes = [one.seconds / 60 for one in weighed]
        add("training", minutes, "<= 20", holds=max(minutes) <= 20, unit="min")
        missed = [one.one_well for one in found]
        add("wells kept", [1 if one else 2 for one in missed], "2 in every seed", holds=not any(missed))
        claims.append(alarm_claim(where, weighed, log_z, quick=quick))
    return claims
