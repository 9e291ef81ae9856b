r"""What a configuration costs: wall time per independent configuration, with and without the training of the flow.

A chain of N configurations holds :math:`N/(2\tau_{int})` independent ones for an observable with that autocorrelation
time (in stored configurations, white noise = 1/2). Sampling for T seconds therefore costs :math:`2\tau_{int}T/N`
seconds per independent configuration. Training is paid once; its seconds are added to T, that is spread over the
configurations that were actually produced. Thermalisation is left out of T and stated beside it.

Stored configurations that are already independent say nothing about how much faster the chain decorrelates: with
:math:`\tau_{int}` at its floor of 1/2 the cost is that of a stored configuration, an upper bound of the cost of an
independent one. Wall time scatters on a shared machine; its error is taken from equal parts of the run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from flowmc_analysis.estimate import Estimate

__all__ = ["Cost"]


@dataclass(frozen=True)
class Cost:
    """Wall time of a production.

    Parameters
    ----------
    sampling_seconds
        Wall time of the updates after thermalisation.
    sampling_seconds_error
        Its standard error; NaN if it is not known.
    thermalisation_seconds
        Wall time of the updates before.
    training_seconds
        Wall time of the training of the flow that proposed; zero where no flow proposed.
    n_configurations
        Stored configurations of all chains after thermalisation.
    thinned
        Whether there are several updates between stored configurations.
    """

    sampling_seconds: float
    sampling_seconds_error: float
    thermalisation_seconds: float
    training_seconds: float
    n_configurations: int
    thinned: bool

    @property
    def seconds_per_configuration(self) -> float:
        """Sampling seconds per stored configuration."""
        return self.sampling_seconds / self.n_configurations

    def per_independent(self, observable: Estimate, *, with_training: bool = False) -> Estimate:
        """Give the seconds per independent configuration for an observable.

        Parameters
        ----------
        observable
            The observable with its ``tau_int`` in stored configurations.
        with_training
            Whether the training is spread over the configurations.

        Returns
        -------
        Seconds; the error is that of ``tau_int`` and of the wall time together.

        Examples
        --------
        >>> cost = Cost(10.0, 0.0, 1.0, training_seconds=90.0, n_configurations=1000, thinned=False)
        >>> slow = Estimate(0.3, 0.01, tau_int=5.0, tau_int_error=0.5)
        >>> print(cost.per_independent(slow), cost.per_independent(slow, with_training=True))
        0.100(10) 1.00(10)
        """
        seconds = self.sampling_seconds + (self.training_seconds if with_training else 0.0)
        scale = 2.0 * seconds / self.n_configurations
        by_time = 2.0 * observable.tau_int * self.sampling_seconds_error / self.n_configurations
        return Estimate(scale * observable.tau_int, math.hypot(scale * observable.tau_int_error, by_time))

    def is_bound(self, observable: Estimate) -> bool:
        """Return whether the cost is an upper bound: configurations thinned until ``tau_int`` is at its floor of 1/2."""
        return self.thinned and observable.tau_int <= 0.5 + observable.tau_int_error

    def to_dict(self) -> dict[str, float | int]:
        """Give the fields for JSON, seconds."""
        return {
            "sampling_seconds": self.sampling_seconds,
            "sampling_seconds_error": self.sampling_seconds_error,
            "thermalisation_seconds": self.thermalisation_seconds,
            "training_seconds": self.training_seconds,
            "n_configurations": self.n_configurations,
            "seconds_per_configuration": self.seconds_per_configuration,
        }
