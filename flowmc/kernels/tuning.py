"""Step-size tuning by dual averaging, with a definite end.

Nesterov's dual averaging drives the mean acceptance to a target (Hoffman and Gelman, arXiv:1111.4246, sec. 3.2.1). At
the freeze point the averaged step size is rounded so that a whole number of steps fills the trajectory, and nothing
adapts afterwards.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from math import exp, log, sqrt

__all__ = ["DualAveraging"]

# The constants of arXiv:1111.4246: shrinkage, delay and forgetting.
GAMMA, DELAY, KAPPA = 0.05, 10.0, 0.75


@dataclass(frozen=True)
class DualAveraging:
    """State of the tuner; every number in it goes into the checkpoint.

    Parameters
    ----------
    target
        Mean acceptance probability to reach.
    log_step
        Logarithm of the step size to use next.
    log_average
        Logarithm of the averaged step size, the result.
    centre
        Value that the step size is shrunk towards.
    statistic
        Running mean of target − acceptance.
    count
        Updates so far.
    """

    target: float
    log_step: float
    log_average: float
    centre: float
    statistic: float = 0.0
    count: float = 0.0

    @classmethod
    def start(cls, step_size: float, target: float) -> DualAveraging:
        """Begin at a step size."""
        return cls(target, log(step_size), log(step_size), log(10 * step_size))

    def update(self, acceptance: float) -> DualAveraging:
        """Return the state after an update with this mean acceptance probability."""
        count = self.count + 1
        weight = 1 / (count + DELAY)
        statistic = (1 - weight) * self.statistic + weight * (self.target - acceptance)
        log_step = self.centre - sqrt(count) / GAMMA * statistic
        forget = count**-KAPPA
        log_average = forget * log_step + (1 - forget) * self.log_average
        return replace(self, log_step=log_step, log_average=log_average, statistic=statistic, count=count)

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
