"""Continuous flows of real fields: a base density carried along a velocity V(t, φ) from t = 0 to 1 in fixed steps.

What is drawn from, and what log q belongs to, is the *discrete* map. Most integrators here give the log-determinant of
that map, so that log q is exact however coarse the steps; those that integrate the divergence instead are off by the
error of the integration, and such a flow says so, with a bound that its certificate checks against the full Jacobian.
That forward and reverse agree proves nothing: a symmetric rule is consistent with itself at any error.

References
----------
.. [1] Chen, Rubanova, Bettencourt, Duvenaud, arXiv:1806.07366.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from flowmc.errors import ParameterError
from flowmc.flows.base import DTYPES, LARGEST_BOUND, BaseDensity, TransportFlow
from flowmc.flows.densities import FreeFieldDensity, GeneralisedGaussianDensity, base_mass_for, check_base_mass
from flowmc.flows.integrators import choose_integrator, runge_kutta_step
from flowmc.flows.velocities import Velocity, VelocityField
from flowmc.theories import Theory

__all__ = ["ContinuousConfig", "ContinuousFlow"]

CONTINUOUS_BASES = ("free_field", "generalised_gaussian")
MATRIX_ROWS = 4096
"""Sites of all fields that are carried at once where Jacobians are made."""


@dataclass(frozen=True)
class ContinuousConfig:
    """Hyper-parameters that all continuous flows share.

    Parameters
    ----------
    base
        "generalised_gaussian", −log r = Σ_x |φ(x)/σ|^p + const, or "free_field". Its parameters are kept fixed.
    base_width, base_power
        σ and p of the former.
    base_mass
        Mass of the latter in lattice units; "matched" is that of the free field nearest to the theory.
    integrator
        A name in `flowmc.flows.integrators.INTEGRATORS`.
    steps
        Number of fixed steps from t = 0 to 1.
    log_q_bound
        For integrators that are not exact: how many nats log q may be off. The certificate measures it.
    checkpointed
        Whether gradients through the integrator recompute each step instead of keeping all of them: memory of one step,
        for one more evaluation of the velocity.
    dtype
        "float32" or "float64": the type in which the flow is trained.

    Raises
    ------
    ParameterError
        If a value is out of range or a name unknown.
    """

    base: str = "generalised_gaussian"
    base_width: float = 1.0
    base_power: float = 2.0
    base_mass: float | str = 1.0
    integrator: str = "rk4"
    steps: int = 20
    log_q_bound: float = 1e-3
    checkpointed: bool = True
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name, known in (("base", CONTINUOUS_BASES), ("dtype", DTYPES)):
            if getattr(self, name) not in known:
                raise ParameterError(
                    got=f"{name} = {getattr(self, name)!r}", expected=f"one of {list(known)}", fix=f"correct `{name}`"
                )
        if self.steps < 1 or not 0 < self.log_q_bound <= LARGEST_BOUND:
            raise ParameterError(
                got=f"steps = {self.steps}, log_q_bound = {self.log_q_bound}",
                expected=f"at least one step, and a bound above zero, of at most {LARGEST_BOUND} nats",
                fix="correct the value",
            )
        check_base_mass(self.base_mass)
        # The name is checked here, the size of the lattice by the flow.
        choose_integrator(self.integrator, 1)


class ContinuousFlow(TransportFlow):
    """A base density and a velocity; a subclass makes ``self.velocity``, a `VelocityField`, after this constructor.

    Parameters
    ----------
    theory
        The theory of a real field.
    config
        Hyper-parameters.

    Raises
    ------
    ParameterError
        If the integrator is not affordable on the lattice, or a matched mass is not known.
    """

    config: ContinuousConfig
    velocity: VelocityField

    def __init__(self, theory: Theory, config: ContinuousConfig) -> None:
        super().__init__(theory, config)
        self._integrator = choose_integrator(config.integrator, theory.volume)
        self.exact = self._integrator.exact
        self.log_q_bound = 0.0 if self.exact else config.log_q_bound
        if self._integrator.largest_volume:
            # Matrices of more fields fall out of the caches.
            self.largest_batch = min(type(self).largest_batch, MATRIX_ROWS // theory.volume)
        self.base = self._build_base(theory, config)

    @staticmethod
    def _build_base(theory: Theory, config: ContinuousConfig) -> BaseDensity:
        dtype = DTYPES[config.dtype]
        if config.base == "generalised_gaussian":
            return GeneralisedGaussianDensity(theory.shape, dtype, config.base_width, config.base_power)
        mass = base_mass_for(theory, config.base_mass)
        return FreeFieldDensity(theory.shape, dtype, mass, learned=False)

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Carry base draws to fields; see `TransportFlow.forward`."""
        return self._carried(latent, backwards=False)

    def inverse(self, field: Tensor) -> tuple[Tensor, Tensor]:
        """Carry fields back to base draws; see `TransportFlow.inverse`."""
        return self._carried(field, backwards=True)

    def _carried(self, field: Tensor, *, backwards: bool) -> tuple[Tensor, Tensor]:
        velocity, steps = self.velocity.prepare(), self.config.steps
        move = self._integrator.inverse_step if backwards else self._integrator.step
        size = 1 / steps
        flat = field.flatten(1)
        log_det = torch.zeros(len(field), dtype=torch.float64, device=field.device)
        for number in reversed(range(steps)) if backwards else range(steps):
            if self.config.checkpointed and torch.is_grad_enabled():
                flat, change = checkpoint(
                    move, velocity, number * size, size, flat, use_reentrant=False, preserve_rng_state=False
                )
            else:
                flat, change = move(velocity, number * size, size, flat)
            log_det = log_det + change.double()
        return flat.reshape(field.shape), log_det

    def trajectory(self, latent: Tensor, steps: int) -> Iterator[tuple[float, Tensor]]:
        """Carry base draws along the velocity, and yield times and fields on the way, without log-determinants.

        Parameters
        ----------
        latent
            Base draws, (n, *shape).
        steps
            Number of steps of the fourth-order Runge-Kutta method.

        Yields
        ------
        t = 0, 1/steps, ..., 1 and the fields there, (n, *shape).
        """
        velocity: Velocity = self.velocity.prepare()
        flat = latent.flatten(1)
        yield 0.0, latent
        for number in range(steps):
            flat = runge_kutta_step(velocity, number / steps, 1 / steps, flat)
            yield (number + 1) / steps, flat.reshape(latent.shape)
