r"""What scalar fields and spins have in common: moments of the magnetisation and two-point functions.

The formulas are in the tables of `flowmc_analysis.scalar_observables` and `flowmc_analysis.ising_observables`. Sums over
the lattice run in float64 whatever the type of the field, so that spins of eight bits do not overflow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import scipy.fft

from flowmc_analysis.observables import Configurations, Observable, ObservableContext

__all__ = [
    "CORRELATION_OBSERVABLES",
    "MAGNETIC_OBSERVABLES",
    "MAGNETIC_PRIMARIES",
    "magnetisation",
    "momentum_mode_squared",
    "two_point_zero_momentum",
]

Array = npt.NDArray[np.float64]


def magnetisation(configurations: Configurations) -> Array:
    """Mean of the field over the lattice, shape ``(...)``."""
    return np.asarray(configurations.field.mean(axis=configurations.lattice_axes, dtype=np.float64))


def two_point_zero_momentum(configurations: Configurations) -> Array:
    """Correlation of the time slices at zero spatial momentum, normalised to sum to ``V m^2``, shape ``(..., T)``."""
    slices = configurations.field.sum(axis=configurations.lattice_axes[1:], dtype=np.float64)
    extent = configurations.lattice_size[0]
    transform = scipy.fft.rfft(slices, axis=-1)
    correlation = scipy.fft.irfft(transform.real**2 + transform.imag**2, extent, axis=-1)
    return np.asarray(correlation / configurations.volume, dtype=np.float64)


def momentum_mode_squared(configurations: Configurations) -> Array:
    """``|sum_x exp(i k x) phi|^2 / V`` at the smallest momentum, averaged over the longest axes, shape ``(...)``."""
    size = configurations.lattice_size
    longest = [axis for axis, extent in enumerate(size) if extent == max(size)]
    axes = configurations.lattice_axes
    total = np.zeros(configurations.batch_shape)
    phase = 2 * np.pi * np.arange(max(size)) / max(size)
    for axis in longest:
        others = tuple(a for i, a in enumerate(axes) if i != axis)
        profile = configurations.field.sum(axis=others, dtype=np.float64)
        total += (profile @ np.cos(phase)) ** 2 + (profile @ np.sin(phase)) ** 2
    return total / (len(longest) * configurations.volume)


MAGNETIC_PRIMARIES: Mapping[str, Callable[[Configurations], Array]] = MappingProxyType(
    {
        "magnetisation": magnetisation,
        "magnetisation_abs": lambda c: np.abs(magnetisation(c)),
        "magnetisation_squared": lambda c: magnetisation(c) ** 2,
        "magnetisation_fourth": lambda c: magnetisation(c) ** 4,
        "two_point_zero_momentum": two_point_zero_momentum,
        "momentum_mode_squared": momentum_mode_squared,
    }
)
"""Measurements that both sets of observables start from."""


def _binder(means: Mapping[str, Array], _: ObservableContext) -> Array:
    return 1.0 - means["magnetisation_fourth"] / (3.0 * means["magnetisation_squared"] ** 2)


def _correlation_length(means: Mapping[str, Array], context: ObservableContext) -> Array:
    longest = max(context.lattice_size)
    if longest == 1:  # no momentum but zero
        return np.full((), math.nan)
    susceptibility = context.volume * means["magnetisation_squared"]
    ratio = susceptibility / means["momentum_mode_squared"] - 1.0
    return np.asarray(np.sqrt(ratio) / (2.0 * np.sin(np.pi / longest)))


MAGNETIC_OBSERVABLES: Mapping[str, Observable] = MappingProxyType(
    {
        "magnetisation": Observable(
            ("magnetisation",), lambda a, _: a["magnetisation"], "mean field <m>", average=True
        ),
        "magnetisation_abs": Observable(
            ("magnetisation_abs",),
            lambda a, _: a["magnetisation_abs"],
            "mean modulus of the magnetisation <|m|>",
            average=True,
        ),
        "susceptibility": Observable(
            ("magnetisation_squared",),
            lambda a, context: context.volume * a["magnetisation_squared"],
            "susceptibility V <m^2>",
            average=True,
        ),
        "binder_cumulant": Observable(
            ("magnetisation_squared", "magnetisation_fourth"), _binder, "Binder cumulant 1 - <m^4>/(3 <m^2>^2)"
        ),
    }
)
"""Functions of the moments of the magnetisation."""

CORRELATION_OBSERVABLES: Mapping[str, Observable] = MappingProxyType(
    {
        "two_point_zero_momentum": Observable(
            ("two_point_zero_momentum",),
            lambda a, _: a["two_point_zero_momentum"],
            "two-point function at zero spatial momentum C(t)",
        ),
        "correlation_length": Observable(
            ("magnetisation_squared", "momentum_mode_squared"),
            _correlation_length,
            "second-moment correlation length",
            non_linear=True,
        ),
    }
)
"""The two-point function of time slices, and the correlation length."""
