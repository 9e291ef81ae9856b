"""Step-size tuning by stochastic approximation, with a definite end.

Robbins and Monro (Ann. Math. Stat. 22 (1951) 400): after each update the logarithm of the step size moves by
g_k (P − target), where P is the measured acceptance probability and g_k a falling gain. P enters linearly, so that its
noise averages out whether there is one chain or a thousand. The result is the running mean of the logarithms, which
forgets the first ones (Polyak and Juditsky, SIAM J. Control Optim. 30 (1992) 838).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from math import exp, log

__all__ = ["StepSizeTuner"]

# Near the usual targets the acceptance of a second-order integrator falls by 0.3 to 0.5 for each unit of the logarithm
# of the step size: its inverse is the gain, which falls slower than 1/k to get away from a bad guess.
GAIN, FALL = 2.5, 0.7
# No update changes the step size by more than a factor of two.
LARGEST_CHANGE = log(2)
FORGETTING = 0.6


@dataclass(frozen=True)
class StepSizeTuner:
    """State of the tuner; every number in it goes into the checkpoint.

    Parameters
    ----------
    target
        Mean acceptance probability to reach.
    log_step
        Logarithm of the step size to use next.
    log_average
        Logarithm of the averaged step size, the result.
    count
        Updates so far.
    """

    target: float
    log_step: float
    log_average: float
    count: float = 0.0

    @classmethod
    def start(cls, step_size: float, target: float) -> StepSizeTuner:
        """Begin at a step size."""
        return cls(target, log(step_size), log(step_size))

    def update(self, acceptance: float) -> StepSizeTuner:
        """Return the state after trajectories of `step_size` had this mean acceptance probability."""
        count = self.count + 1
        change = GAIN * count**-FALL * (acceptance - self.target)
        log_step = self.log_step + min(max(change, -LARGEST_CHANGE), LARGEST_CHANGE)
        weight = count**-FORGETTING
        log_average = weight * log_step + (1 - weight) * self.log_average
        return replace(self, log_step=log_step, log_average=log_average, count=count)

    @property
    def step_size(self) -> float:
        """Step size to use next, dimensionless."""
        return exp(self.log_step)

    @property
    def result(self) -> float:
        """Averaged step size, dimensionless."""
        return exp(self.log_average)

    def to_dict(self) -> dict[str, float]:
        """Return the state as numbers."""
        return asdict(self)
