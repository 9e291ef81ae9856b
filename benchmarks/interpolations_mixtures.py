"""Flows for the mixtures: which modes their draws have, what their weights are worth, and what follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.claims import Claim
from benchmarks.interpolations_flows import MIXTURES
from benchmarks.interpolations_quality import KEPT_SHARE, LARGEST_Z, Weighed, alarm_claim, excess, spread, z_of
from flowmc.theories import GaussianMixture
from flowmc_analysis.estimate import Estimate
from flowmc_analysis.tables import Table


@dataclass(frozen=True)
class MixtureQuality:
    """A flow for a mixture: its weights and its modes.

    Parameters
    ----------
    weighed
        Draws and weights; ln Z is exactly 0.
    shares
        Part of the draws at each mode.
    reweighted
        Part of the target at each mode, by the weights of the draws.
    hausdorff
        Largest over the modes of the smallest distance from a draw to the centre of the mode.
    """

    weighed: Weighed
    shares: tuple[float, ...]
    reweighted: tuple[Estimate, ...]
    hausdorff: float

    @classmethod
    def of(cls, weighed: Weighed) -> MixtureQuality:
        """Look at which modes the draws of a flow are."""
        theory = weighed.theory
        assert isinstance(theory, GaussianMixture)
        posterior = theory.posterior(weighed.field)
        centres = np.asarray(theory.means)
        distances = np.linalg.norm(weighed.field[:, None, :] - centres, axis=2).min(axis=0)
        return cls(
            weighed,
            tuple(float(share) for share in posterior.mean(axis=0)),
            tuple(weighed.reweighted(column) for column in posterior.T),
            float(distances.max()),
        )

    @property
    def weights(self) -> tuple[float, ...]:
        """Exact weights of the modes."""
        assert isinstance(self.weighed.theory, GaussianMixture)
        return self.weighed.theory.weights

    @property
    def kept(self) -> int:
        """Number of modes to which the draws give at least `KEPT_SHARE` of their weight."""
        return sum(share >= KEPT_SHARE * weight for share, weight in zip(self.shares, self.weights, strict=True))

    @property
    def largest_z(self) -> float:
        """Largest |z| of the reweighted weights of the modes."""
        return max(abs(z_of(again, weight)) for again, weight in zip(self.reweighted, self.weights, strict=True))


Qualities = Mapping[tuple[str, str], Sequence[MixtureQuality]]
"""By mixture and method, one for each seed."""


def mixture_label(method: str) -> str:
    """Return what a method is called."""
    return "reverse KL" if method == "reverse" else f"{method} path"


def mixture_tables(qualities: Qualities) -> list[Table]:
    """Tabulate the weights and the modes of every method, for each mixture."""
    tables = []
    for mixture, theory in MIXTURES.items():
        mine = {method: found for (name, method), found in qualities.items() if name == mixture}
        if mine:
            count = len(theory["means"])
            tables.append(_weight_table(f"Mixture of {count} modes", mine, count))
            tables.append(_mode_table(f"Mixture of {count} modes: weights of the modes", mine))
    return tables


def _weight_table(title: str, qualities: Mapping[str, Sequence[MixtureQuality]], count: int) -> Table:
    rows = []
    for method, found in qualities.items():
        weighed = [one.weighed for one in found]
        raised = sum(one.alarm.raised for one in weighed)
        alone = sum(one.alarm_alone.raised for one in weighed)
        learned = [one.path_log_z for one in weighed]
        rows.append(
            (
                mixture_label(method),
                str(len(found)),
                spread([one.seconds / 60 for one in weighed], ".1f"),
                spread([one.kept for one in found], ".0f"),
                spread([one.hausdorff for one in found], ".2g"),
                spread([one.ess_reverse for one in weighed]),
                spread([one.ess_forward for one in weighed], ".2g"),
                spread([one.forward_divergence(0.0).value for one in weighed]),
                spread([one.bound.value for one in weighed]),
                spread([one.log_z.value for one in weighed], ".2g"),
                "" if method == "reverse" else spread(learned, ".2g"),
                spread([one.acceptance for one in weighed]),
                f"raised {raised} of {len(found)}",
                f"raised {alone} of {len(found)}",
            )
        )
    columns = (
        "trained by",
        "seeds",
        "min",
        f"modes kept, of {count}",
        "Hausdorff distance",
        "reverse ESS",
        "forward ESS",
        "KL(p|q), nats",
        "ELBO",
        "ln Z by draws",
        "∫C dt",
        "acceptance",
        "alarm, exact states",
        "alarm, flow alone",
    )
    note = (
        "Median over the seeds (smallest … largest). ln Z is exactly 0, and ELBO <= 0; a mode is kept if it has "
        f"{KEPT_SHARE:g} of its weight or more among the draws; Hausdorff distance: largest over modes of the smallest "
        "distance from a draw, in units of their width. Alarm: that of a run whose chains visit all modes, and that of a "
        "run with the flow alone, which cannot know."
    )
    return Table(title, columns, tuple(rows), note)


def _mode_table(title: str, qualities: Mapping[str, Sequence[MixtureQuality]]) -> Table:
    rows = []
    for method, found in qualities.items():
        for one in found:
            cells = [
                f"{share:.4f}; {again.value:.4f} ± {again.error:.1g}"
                for share, again in zip(one.shares, one.reweighted, strict=True)
            ]
            rows.append((mixture_label(method), str(one.weighed.seed), *cells, f"{one.largest_z:.2g}"))
    theory = next(iter(qualities.values()))[0].weighed.theory
    assert isinstance(theory, GaussianMixture)
    names = [
        f"at ({mean[0]:g}, {mean[1]:g}), exactly {weight:.4f}"
        for mean, weight in zip(theory.means, theory.weights, strict=True)
    ]
    columns = ("trained by", "seed", *names, "largest |z|")
    return Table(title, columns, tuple(rows), "Part of the draws; the same by their weights.")


def mixture_claims(qualities: Qualities, *, quick: bool) -> list[Claim]:
    """Return which modes are kept, what the weights are worth, and whether the alarm knows; a smoke run is not judged."""
    claims = []
    for (_, method), found in qualities.items():
        where = f"{mixture_label(method)}, {len(found[0].weights)} modes"
        weighed = [one.weighed for one in found]

        def add(
            what: str, values: Sequence[float], target: str, *, holds: bool, unit: str = "", where: str = where
        ) -> None:
            low, high = min(values), max(values)
            detail = f"{low:.3g} to {high:.3g}, {len(values)} seeds"
            claims.append(Claim(f"{what}, {where}", float(np.median(values)), detail, target, unit, quick or holds))

        kept, count = [one.kept for one in found], len(found[0].weights)
        wanted = {"reverse": (f"< {count} in every seed", max(kept) < count)}
        wanted["learned"] = (f"{count} in every seed", min(kept) == count)
        target, holds = wanted.get(method, ("informative", True))
        add("modes kept", kept, target, holds=holds)
        for what, values in (
            ("Hausdorff distance", [one.hausdorff for one in found]),
            ("reverse ESS", [one.ess_reverse for one in weighed]),
            ("forward ESS", [one.ess_forward for one in weighed]),
            ("KL(p|q)", [one.forward_divergence(0.0).value for one in weighed]),
        ):
            add(what, values, "informative", holds=True, unit="nats" if what.startswith("KL") else "")
        above = [excess(one, 0.0) for one in weighed]
        add("ELBO in its errors above ln Z = 0", above, f"< {LARGEST_Z:g}", holds=max(above) < LARGEST_Z)
        judged = method == "learned"
        scores = [abs(z_of(one.log_z, 0.0)) for one in weighed]
        wanted_z = f"< {LARGEST_Z:g}" if judged else "informative"
        add("|z| of ln Z by draws", scores, wanted_z, holds=not judged or max(scores) < LARGEST_Z)
        scores = [one.largest_z for one in found]
        add("largest |z| of mode weights", scores, wanted_z, holds=not judged or max(scores) < LARGEST_Z)
        minutes = [one.seconds / 60 for one in weighed]
        add("training", minutes, "<= 20", holds=max(minutes) <= 20, unit="min")
        claims.append(alarm_claim(where, weighed, 0.0, quick=quick))
    for mixture in MIXTURES:
        if (mixture, "learned") in qualities and (mixture, "linear") in qualities:
            learned, linear = (qualities[mixture, method] for method in ("learned", "linear"))
            claims += _path_claims(learned, linear, quick=quick)
    return claims


def _path_claims(learned: Sequence[MixtureQuality], linear: Sequence[MixtureQuality], *, quick: bool) -> list[Claim]:
    """Compare the linear path with the learned one."""
    claims, count = [], len(learned[0].weights)
    both = (learned, linear)
    divergences = [float(np.median([one.weighed.forward_divergence(0.0).value for one in found])) for found in both]
    fractions = [float(np.median([one.weighed.ess_forward for one in found])) for found in both]
    for what, (ours, theirs), difference in (
        ("KL(p|q), linear path less learned one", divergences, divergences[1] - divergences[0]),
        ("forward ESS, learned path less linear one", fractions, fractions[0] - fractions[1]),
    ):
        detail = f"medians: learned {ours:.3g}, linear {theirs:.3g}"
        claims.append(Claim(f"{what}, {count} modes", difference, detail, "> 0", "", quick or difference > 0))
    return claims
