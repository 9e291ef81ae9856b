"""The Schwinger model, QED in two dimensions: U(1) links and Wilson fermions.

    S = −β Σ_x cos P(x) − N_f log|det D|,   D = 1 − κ H   (`flowmc.theories.wilson`),

with Haar measure for the links and the conventions of arXiv:2308.13294: the links are periodic, the fermions
antiperiodic in time. The Boltzmann weight of N_f flavours of one mass is exp(β Σ cos P) (det D)^N_f with a real
determinant. Its sign is **not** in the action. For even N_f that makes no difference; for odd N_f the sign is a
reweighting factor of every observable, ⟨O⟩ = ⟨O sign⟩ / ⟨sign⟩, and is recorded as ``sign_determinant``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flowmc.arrays import Array, check_field
from flowmc.errors import ParameterError
from flowmc.theories.u1 import GaugeTheory2D
from flowmc.theories.wilson import determinant_and_force, log_determinant, propagator

__all__ = ["Schwinger", "condensate", "eta_disconnected", "pion_correlator"]

Propagator: TypeAlias = NDArray[np.complexfloating[Any, Any]]


@dataclass(frozen=True)
class Schwinger(GaugeTheory2D):
    """The Schwinger model with N_f equal flavours of Wilson fermions.

    Parameters
    ----------
    shape
        Lattice extents (T, X), in lattice units; even ones make the determinant eight times as fast.
    beta
        Inverse gauge coupling β > 0, dimensionless.
    kappa
        Hopping parameter κ ≥ 0, dimensionless: κ = 1/(2 m + 4) with the bare mass m.
    n_flavours
        Number of flavours N_f ≥ 1; the sign of the determinant is not in the action, which matters where N_f is odd.

    Raises
    ------
    ParameterError
        If the lattice is not two-dimensional or a coupling is out of range.

    References
    ----------
    .. [1] Białas, Korcyl, Stebel, arXiv:2308.13294.
    .. [2] Albergo et al., arXiv:2202.11712.
    """

    kappa: float
    n_flavours: int = 2

    name: ClassVar[str] = "schwinger"
    convention: ClassVar[str] = (
        "S = -beta sum_x cos P(x) - n_flavours log|det D|, "
        "P(x) = theta_0(x) + theta_1(x+0) - theta_0(x+1) - theta_1(x), "
        "D = 1 - kappa H, "
        "(H psi)(x) = sum_mu [(1 - gamma_mu) U_mu(x) psi(x+mu) + (1 + gamma_mu) U_mu(x-mu)^* psi(x-mu)], "
        "fermions antiperiodic in direction 0 (time), p = exp(-S), Haar measure prod dtheta/2pi, as in arXiv:2308.13294"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (isfinite(self.kappa) and self.kappa >= 0):
            raise ParameterError(got=f"kappa = {self.kappa}", expected="a number >= 0", fix="correct `kappa`")
        integral = isinstance(self.n_flavours, int | np.integer) and not isinstance(self.n_flavours, bool)
        if not integral or self.n_flavours < 1:
            raise ParameterError(
                got=f"n_flavours = {self.n_flavours}",
                expected="an integer >= 1",
                fix='correct `n_flavours`; without fermions, the theory is "u1"',
            )

    def action(self, field: Array) -> Array:
        """Return S of each configuration, without the sign of the determinant; see `Theory.action`."""
        gauge_action = self.gauge_action(field)
        return gauge_action - self.n_flavours * log_determinant(field, self.kappa)[0]

    def force(self, field: Array) -> Array:
        """Return −∂S/∂θ; see `SmoothTheory.force`."""
        return self.action_and_force(field)[1]

    def action_and_force(self, field: Array) -> tuple[Array, Array]:
        """Return S and −∂S/∂θ, from one decomposition of the Dirac matrix."""
        gauge_action, gauge_force = self.gauge_action(field), self.gauge_force(field)
        log_modulus, _, force = determinant_and_force(field, self.kappa)
        return gauge_action - self.n_flavours * log_modulus, gauge_force + self.n_flavours * force

    def sign_determinant(self, field: Array) -> Array:
        """Return the sign of det D of one flavour, (n,), float64."""
        check_field(field, self.field_shape)
        return log_determinant(field, self.kappa)[1]

    def annealed(self, fraction: float) -> Schwinger:
        """Return the theory at β · fraction and κ · fraction; see `Theory.annealed`."""
        return replace(self, beta=self.beta * fraction, kappa=self.kappa * fraction)

    def fermion_observables(self, field: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """Return all that is measured of the fermions, for a batch of fields (n, T, X, 2).

        Returns
        -------
        ``log_determinant`` and ``sign_determinant`` of one flavour, ``condensate``, (n,) each; ``pion_correlator`` and
        ``eta_disconnected``, (n, T).
        """
        check_field(field, self.field_shape)
        log_modulus, sign = log_determinant(field, self.kappa)
        inverse = propagator(field, self.kappa)
        return {
            "log_determinant": log_modulus,
            "sign_determinant": sign,
            "condensate": condensate(inverse),
            "pion_correlator": pion_correlator(inverse),
            "eta_disconnected": eta_disconnected(inverse),
        }

    def observers(self) -> Mapping[str, Callable[[Array], Array]]:
        """Return the parts of `fermion_observables` one by one; see `Theory.observers`.

        They share their work: a batch is measured when the first of them asks, and kept until another one comes.
        """
        kept: list[tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]] = []

        def observer(name: str) -> Callable[[Array], Array]:
            def observe(field: Array) -> Array:
                if not kept or kept[0][0] is not field:
                    kept[:] = [(field, self.fermion_observables(field))]
                return kept[0][1][name]

            return observe

        return {name: observer(name) for name in FERMION_OBSERVABLES}


FERMION_OBSERVABLES = ("log_determinant", "sign_determinant", "condensate", "pion_correlator", "eta_disconnected")
"""Names of what the Schwinger model measures of its fermions."""


def condensate(inverse: Propagator) -> NDArray[np.float64]:
    """Return Re tr D⁻¹ / V, (n,), of propagators (n, T, X, 2, T, X, 2); the trace runs over sites and spin."""
    n, time, space = inverse.shape[:3]
    size = 2 * time * space
    trace = np.trace(inverse.reshape(n, size, size), axis1=1, axis2=2).real
    return np.asarray(trace / (time * space), dtype=np.float64)


def pion_correlator(inverse: Propagator) -> NDArray[np.float64]:
    """Return C(t) = (1/V) Σ_{t₀, x₀, x} tr |D⁻¹(t₀+t, x; t₀, x₀)|², (n, T), of propagators (n, T, X, 2, T, X, 2).

    By γ_5 D γ_5 = D† it is the correlator of the operators ψ̄₁ γ_5 ψ₂ of two flavours, at zero momentum.
    """
    volume = inverse.shape[1] * inverse.shape[2]
    norm = np.sum(np.abs(inverse) ** 2, axis=(2, 3, 5, 6), dtype=np.float64)
    return _by_distance(np.asarray(norm) / volume)


def eta_disconnected(inverse: Propagator) -> NDArray[np.float64]:
    """Return (1/V) Σ_{t₀} L(t₀) L(t₀+t) with L(t) = Σ_x tr γ_5 D⁻¹(t, x; t, x), (n, T).

    L is real, because γ_5 D⁻¹ is Hermitian. With N_f flavours the correlator of the flavour singlet is
    C(t) − N_f times this, C being `pion_correlator`.
    """
    volume = inverse.shape[1] * inverse.shape[2]
    loops = np.asarray(np.einsum("ntxstxs,s->nt", inverse, np.array([1, -1])).real, dtype=np.float64)
    return _by_distance(loops[:, :, None] * loops[:, None, :] / volume)


def _by_distance(correlation: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Σ_{t₀} C(t₀+t, t₀), (n, T), of correlations (n, T, T)."""
    start = np.arange(correlation.shape[1])
    ahead = (start[:, None] + start) % start.size
    return np.asarray(correlation[:, ahead, start].sum(axis=-1))
