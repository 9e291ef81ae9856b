"""Step-size tuning from the scaling law of the acceptance, with a definite end.

For a second-order integrator the mean energy violation grows like ⟨ΔH⟩ ∝ ε⁴ and the acceptance is
P = erfc(½ ⟨ΔH⟩^½), so that erfc⁻¹(P) = c ε² with one unknown c (Gupta, Irbäck, Karsch, Petersson, Phys. Lett. B 242
(1990) 437). Every measured acceptance gives an estimate of c; their running mean, which forgets the first ones, gives
the step size for the target. Where the law is only approximate its fixed point still has the target acceptance.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from math import exp, log, sqrt

from scipy.special import erfcinv

__all__ = ["StepSizeTuner"]

# Measured acceptances of exactly 0 or 1 carry no scale; these are the most they can say.
LOWEST, HIGHEST = 1e-3, 1 - 1e-3
# How fast the first estimates, from chains that are not thermalised, are forgotten: the mean's weight is count^-0.6.
FORGETTING = 0.6


@dataclass(frozen=True)
class StepSizeTuner:
    """State of the tuner; every number in it goes into the checkpoint.

    Parameters
    ----------
    target
        Mean acceptance probability to reach.
    log_coefficient
        Logarithm of the estimate of c.
    count
        Estimates so far.
    """

    target: float
    log_coefficient: float = 0.0
    count: float = 0.0

    def update(self, acceptance: float, step_size: float) -> StepSizeTuner:
        """Return the state after trajectories of this step size had this mean acceptance probability."""
        count = self.count + 1
        measured = log(float(erfcinv(min(max(acceptance, LOWEST), HIGHEST))) / step_size**2)
        weight = count**-FORGETTING
        return replace(self, log_coefficient=weight * measured + (1 - weight) * self.log_coefficient, count=count)

    @property
    def step_size(self) -> float:
        """Step size for the target, dimensionless; known after the first update."""
        return sqrt(float(erfcinv(self.target)) / exp(self.log_coefficient))

    def to_dict(self) -> dict[str, float]:
        """Return the state as numbers."""
        return asdict(self)
