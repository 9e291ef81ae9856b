"""What a nearly singular Dirac matrix does to the gradient of a step, above all in single precision.

The score-function gradient takes the number log|det D| of a field, the reparametrised one its force, which holds D⁻¹.
With σ the smallest singular value and ε the precision, an error of the matrix moves log|det D| by ~ ε/σ, and the force,
itself ~ 1/σ, by ~ ε/σ². Here fields of quenched U(1) gauge theory, rounded to single precision, are held against double
precision, at the κ of the study and at κ near those where one of them has an exact zero mode, κ* = 1/λ with λ a real
eigenvalue of the hopping matrix.

For these draws log q + S is −N_f log|det D| up to a constant: the score-function gradient weighs each field with

    R − b = −N_f (log|det D| − its mean),

and the reparametrised one with the force. What is compared is the error of either, in units of the same field's weight or
force, and in units of a typical field's, the median at that κ, which is what it is averaged with in a batch.

Precision is not all. det D is real and changes sign where κ = κ*, a surface in the space of fields, near which the force
is ~ 1/x with x the distance: over draws whose density does not vanish there, Prob(|force| > f) ~ 1/f, so that force and
reparametrised gradient have no variance and their average over batches no limit but a Cauchy distribution. The weights
R − b ~ log|x| have all moments. `tails` measures the exponent. (Exact draws of N_f = 2 flavours have a density ~ x².)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from flowmc.seeds import numpy_generator
from flowmc.testing import u1_draws
from flowmc.theories import U1Gauge2D
from flowmc.theories.wilson import determinant_and_force, dirac_matrix, log_determinant

__all__ = ["DISTANCES", "METHODS", "Failure", "Tail", "near_zero_modes", "quenched", "tails"]

BETA, EXTENT, FLAVOURS = 2.0, 8, 2
METHODS = ("RE", "RT, analytic force", "RT, autograd")
DISTANCES = tuple(10.0**-k for k in range(1, 8))
WRONG = 0.1
# Where baseline and typical sizes are known, and zero modes are looked for.
GRID = (0.22, 0.24, 0.26, 0.28, 0.30, 0.32, 0.35)
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Failure:
    """How a method fares in single precision over a set of fields.

    Parameters
    ----------
    where
        The set of fields.
    method
        One of `METHODS`.
    n_fields
        Number of fields.
    sigma
        Median of the smallest singular value of D.
    size
        Median of the field's weight or force, in units of a typical one.
    relative_error, typical_error
        Medians of the error in units of the same field's and of a typical one's.
    non_finite, wrong, wrong_typical
        Fraction of fields whose result is not finite; or is that, or wrong by more than 10 % in either unit.
    """

    where: str
    method: str
    n_fields: int
    sigma: float
    size: float
    relative_error: float
    typical_error: float
    non_finite: float
    wrong: float
    wrong_typical: float


@dataclass(frozen=True)
class Tail:
    """Exponents a of Prob(size > s) ~ s^(−a) of quenched fields' weights and forces, from the largest few (Hill).

    Parameters
    ----------
    kappa
        κ.
    n_fields, n_largest
        Number of fields, and of those that count as large.
    negative
        Fraction of fields with a negative determinant.
    weight, force
        Exponents; their relative errors are one over the root of ``n_largest``.
    largest_weight, largest_force
        The largest ones, in units of the median.
    """

    kappa: float
    n_fields: int
    n_largest: int
    negative: float
    weight: float
    force: float
    largest_weight: float
    largest_force: float


def _signal(field: torch.Tensor, kappa: float) -> Array:
    """Return −N_f log|det D|, (n, 1)."""
    return np.asarray(-FLAVOURS * log_determinant(field, kappa)[0].numpy())[:, None]


def _analytic_force(field: torch.Tensor, kappa: float) -> Array:
    """Return the force of it, (n, links)."""
    force = FLAVOURS * determinant_and_force(field, kappa).force
    return np.asarray(force.double().flatten(1).numpy())


def _autograd_force(field: torch.Tensor, kappa: float) -> Array:
    """Return the same by differentiation."""
    leaf = field.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(FLAVOURS * log_determinant(leaf, kappa)[0].sum(), leaf)
    return np.asarray(gradient.double().flatten(1).numpy())


WEIGHTS: dict[str, Callable[[torch.Tensor, float], Array]] = dict(
    zip(METHODS, (_signal, _analytic_force, _autograd_force), strict=True)
)


def _draw(n: int, batch: int) -> torch.Tensor:
    """Return quenched fields in single precision."""
    gauge = U1Gauge2D((EXTENT, EXTENT), BETA)
    return torch.tensor(u1_draws(gauge, numpy_generator(1, "quenched", batch), n)).float()


def _smallest_singular_value(field: torch.Tensor, kappa: float) -> Array:
    values: Array = np.linalg.norm(np.asarray(dirac_matrix(field.double().numpy(), kappa)), -2, axis=(1, 2))
    return values


def _lengths(values: Array) -> Array:
    lengths: Array = np.linalg.norm(values, axis=1)
    return lengths


class _Scale:
    """Baseline and typical sizes between two κ, medians over quenched fields: fields near zero modes do not set them."""

    def __init__(self) -> None:
        field = _draw(256, 0).double()
        signals = [_signal(field, kappa) for kappa in GRID]
        self._baseline = [float(np.median(signal)) for signal in signals]
        self._weight = [float(np.median(np.abs(signal - np.median(signal)))) for signal in signals]
        self._force = [float(np.median(_lengths(_analytic_force(field, kappa)))) for kappa in GRID]

    def baseline(self, method: str, kappa: float) -> float:
        """Return what is subtracted: b for the weights, nothing for forces."""
        return float(np.interp(kappa, GRID, self._baseline)) if method == "RE" else 0.0

    def typical(self, method: str, kappa: float) -> float:
        """Return the typical size for a method."""
        return float(np.interp(kappa, GRID, self._weight if method == "RE" else self._force))


@cache
def _scale() -> _Scale:
    return _Scale()


def _judge_all(where: str, fields: Sequence[torch.Tensor], kappas: Sequence[float]) -> list[Failure]:
    """Judge all methods on batches of fields, each at a κ of its own."""
    scale = _scale()
    pairs = list(zip(fields, kappas, strict=True))
    sigma = float(np.median(np.concatenate([_smallest_singular_value(field, kappa) for field, kappa in pairs])))
    found = []
    for method, weigh in WEIGHTS.items():
        sizes, errors, units = [], [], []
        for field, kappa in pairs:
            single, double = weigh(field, kappa), weigh(field.double(), kappa)
            sizes.append(_lengths(double - scale.baseline(method, kappa)))
            errors.append(_lengths(single - double))
            units.append(np.full(len(field), scale.typical(method, kappa)))
        size, error, unit = (np.concatenate(parts) for parts in (sizes, errors, units))
        failed = ~np.isfinite(error)
        error[failed] = np.inf
        found.append(
            Failure(
                where,
                method,
                len(error),
                sigma,
                float(np.median(size / unit)),
                float(np.median(error / size)),
                float(np.median(error / unit)),
                float(failed.mean()),
                float((error / size > WRONG).mean()),
                float((error / unit > WRONG).mean()),
            )
        )
    return found


def quenched(kappa: float, n: int) -> list[Failure]:
    """Judge all methods on quenched fields as they come, at one κ."""
    fields = torch.split(_draw(n, 1), 256)
    return _judge_all(f"quenched, κ = {kappa:g}", fields, [kappa] * len(fields))


def _with_zero_modes(n: int) -> tuple[list[torch.Tensor], list[float]]:
    """Return quenched fields with a zero mode at some 0.22 ≤ κ* ≤ 0.35, one by one, and the smallest κ*."""
    found: list[torch.Tensor] = []
    critical: list[float] = []
    batch = 2
    while len(found) < n:
        fields = _draw(64, batch)
        hopping = np.eye(2 * EXTENT**2) - np.asarray(dirac_matrix(fields.double().numpy(), 1.0))
        for field, values in zip(fields, np.linalg.eigvals(hopping), strict=True):
            real = values.real[(np.abs(values.imag) < 1e-10) & (values.real >= 1 / GRID[-1])]
            if real.size and real.max() <= 1 / GRID[0]:
                found.append(field[None])
                critical.append(1 / float(real.max()))
        batch += 1
    return found[:n], critical[:n]


def near_zero_modes(n: int) -> list[Failure]:
    """Judge all methods on fields whose κ is a given fraction below the one of an exact zero mode."""
    fields, critical = _with_zero_modes(n)
    found = []
    for away in DISTANCES:
        kappas = [kappa * (1 - away) for kappa in critical]
        found += _judge_all(f"1 − κ/κ* = {away:.0e}", fields, kappas)
    return found


def _exponent(sizes: Array, n_largest: int) -> float:
    """Estimate the exponent of a tail from its largest members (Hill, Annals of Statistics 3 (1975) 1163)."""
    largest = np.sort(sizes)[-n_largest - 1 :]
    return float(1 / np.log(largest[1:] / largest[0]).mean())


def tails(kappa: float, n: int) -> Tail:
    """Measure the tails of weights and forces of quenched fields at one κ, in double precision."""
    weights, forces, negative = [], [], 0
    for field in torch.split(_draw(n, 1).double(), 256):
        known = determinant_and_force(field, kappa)
        weights.append(known.log_modulus.numpy())
        forces.append(_lengths(known.force.flatten(1).numpy()))
        negative += int((known.sign < 0).sum())
    weight, force = np.concatenate(weights), np.concatenate(forces)
    weight = np.abs(weight - np.median(weight))
    n_largest = max(8, n // 1000)
    return Tail(
        kappa,
        n,
        n_largest,
        negative / n,
        _exponent(weight, n_largest),
        _exponent(force, n_largest),
        float(weight.max() / np.median(weight)),
        float(force.max() / np.median(force)),
    )
