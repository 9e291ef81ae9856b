"""The sign of the mean field along the chains of a run: how often it changes, and its autocorrelation time or a bound."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite

import numpy as np

from flowmc_analysis import gamma_method
from flowmc_analysis.ensemble import EnsembleAnalysis
from flowmc_analysis.estimate import Estimate

__all__ = ["Sign", "sign_of"]

FEWEST_CHANGES = 20
"""An autocorrelation time that rests on fewer tunnellings is not stated."""


@dataclass(frozen=True)
class Sign:
    """The sign of the magnetisation along the chains of a run."""

    estimate: Estimate
    changes: int
    trajectories: int
    """Stored cycles of all chains."""

    @property
    def known(self) -> bool:
        """Whether the autocorrelation time rests on enough changes of the sign."""
        return self.changes >= FEWEST_CHANGES and isfinite(self.estimate.tau_int)

    @property
    def tau_text(self) -> str:
        """The autocorrelation time, or a bound of it where the sign hardly changes.

        A chain that flips with the rate r has tau_int = 1 / (2 r). With no flip in N cycles r < 3 / N at 95 %.
        """
        if self.known:
            return f"{self.estimate.tau_int:.3g} ± {self.estimate.tau_int_error:.1g}"
        # Poisson: 95 % upper limits of the mean for 0 events, and roughly for a few.
        largest = 3.0 if self.changes == 0 else self.changes + 2 * self.changes**0.5 + 2
        return f"> {self.trajectories / (2 * largest):.2g} (95 %)"

    def in_units(self, number: float) -> Sign:
        """Return the same with times in units of which there are so many in a cycle, for times of many cycles.

        What happens between stored configurations is not seen: a time of about a cycle would come out too long.
        """
        tau = self.estimate
        scaled = replace(tau, tau_int=number * tau.tau_int, tau_int_error=number * tau.tau_int_error)
        return replace(self, estimate=scaled, trajectories=round(number * self.trajectories))


def sign_of(analysis: EnsembleAnalysis) -> Sign:
    """Measure the sign of the magnetisation of a run."""
    sign = np.sign(analysis.series["magnetisation"])
    changes = int(np.count_nonzero(np.diff(sign, axis=1)))
    return Sign(gamma_method(sign).estimate, changes, sign.size)
