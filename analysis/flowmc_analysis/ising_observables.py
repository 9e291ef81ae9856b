r"""Observables of Ising spins :math:`s_x = \pm1` on a periodic lattice of any dimension.

With :math:`S = \beta H`, :math:`H = -J\sum_x\sum_\mu s_xs_{x+\mu} - h\sum_xs_x` (so that an extent of two has its links
twice), volume :math:`V`, temporal extent :math:`T` (the first lattice axis), longest extent :math:`L` and :math:`m =
\frac1V\sum_xs_x`, and on even extents :math:`m_s = \frac1V\sum_x(-1)^{\sum_\mu x_\mu}s_x`:

=========================== ============================================================================================
name                        definition
=========================== ============================================================================================
energy                      :math:`\langle H\rangle/V`
magnetisation               :math:`\langle m\rangle`; zero where :math:`h = 0`
magnetisation_abs           :math:`\langle|m|\rangle`
susceptibility              :math:`\chi = V\langle m^2\rangle`
susceptibility_connected    :math:`V(\langle m^2\rangle - \langle|m|\rangle^2)`, which peaks near the transition
susceptibility_subtracted   :math:`V(\langle m^2\rangle - \langle m\rangle^2)`; only where :math:`h \neq 0`
magnetisation_staggered_abs :math:`\langle|m_s|\rangle`; only where :math:`J < 0` on even extents
susceptibility_staggered    :math:`V\langle m_s^2\rangle`; likewise
binder_cumulant             :math:`1 - \langle m^4\rangle/(3\langle m^2\rangle^2)`
specific_heat               :math:`\beta^2(\langle H^2\rangle - \langle H\rangle^2)/V`; needs the action
correlation                 :math:`\langle s_0s_r\rangle` along an axis, for :math:`r = 1\ldots\lfloor L/2\rfloor`
two_point_zero_momentum     :math:`C(t) = \frac1V\sum_{t_0}\langle M(t_0)M(t_0+t)\rangle` for :math:`t = 0\ldots T-1`
correlation_length          :math:`\frac{1}{2\sin(k/2)}\sqrt{\chi/F - 1}`, :math:`k = 2\pi/L`, from the second moment
=========================== ============================================================================================

The on-axis correlation is averaged over all sites and over the axes of the longest extent (all axes of a square or
cube). :math:`M(t) = \sum_{\vec x}s(t,\vec x)`, and :math:`F = \frac1V\langle|\sum_xe^{ikx_\mu}s_x|^2\rangle` is
averaged over the same axes. Nothing is subtracted, so that with :math:`h \neq 0`, or deep in the ordered phase, neither
the two-point functions decay to zero nor is the correlation length that of the fluctuations. With :math:`h \neq 0`, m
has a mean, and its fluctuations are those of ``susceptibility_subtracted``; subtracting :math:`\langle|m|\rangle` is
meant for :math:`h = 0`, where m changes its sign. An antiferromagnet on even extents orders in :math:`m_s`; m, C(t) and
the correlation length do not show it. Sums of products of spins are whole numbers; rounding errors of Fourier
transforms are removed, and what does not fluctuate is constant to the last bit.

References
----------
.. [1] M. E. J. Newman, G. T. Barkema, Monte Carlo Methods in Statistical Physics (Oxford, 1999), chapter 3.
.. [2] K. Binder, Z. Phys. B 43 (1981) 119.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import scipy.fft

from flowmc_analysis.magnetic_observables import (
    CORRELATION_OBSERVABLES,
    MAGNETIC_OBSERVABLES,
    MAGNETIC_PRIMARIES,
    two_point_zero_momentum,
)
from flowmc_analysis.observables import (
    Configurations,
    Observable,
    ObservableContext,
    ObservableSet,
    action,
    action_squared,
)

__all__ = ["ISING_OBSERVABLES", "link_energy", "on_axis_correlation", "staggered_magnetisation"]

Array = npt.NDArray[np.float64]


def link_energy(configurations: Configurations) -> Array:
    """``sum_x sum_mu s_x s_{x+mu} / V``, each of the links once, shape ``(...)``."""
    spins, axes = configurations.field, configurations.lattice_axes
    total = np.zeros(configurations.batch_shape)
    for axis in axes:
        total += (spins * np.roll(spins, -1, axis)).sum(axis=axes, dtype=np.float64)
    return total / configurations.volume


def on_axis_correlation(configurations: Configurations) -> Array:
    """``s_x s_{x + r}`` along the longest axes, averaged over sites and these axes, ``r = 1 ... L//2`` last."""
    size, axes = configurations.lattice_size, configurations.lattice_axes
    extent = max(size)
    longest = [axis for axis, length in zip(axes, size, strict=True) if length == extent]
    total = np.zeros((*configurations.batch_shape, extent // 2))
    for axis in longest:
        transform = scipy.fft.rfft(configurations.field.astype(np.float64), axis=axis)
        power = np.square(np.abs(transform)).sum(axis=tuple(other for other in axes if other != axis))
        total += np.rint(scipy.fft.irfft(power, extent, axis=-1)[..., 1 : extent // 2 + 1])
    return np.asarray(total / (len(longest) * configurations.volume), dtype=np.float64)


def staggered_magnetisation(configurations: Configurations) -> Array:
    """Mean of ``s_x (-1)**(sum_mu x_mu)``, shape ``(...)``; of a sublattice only where all extents are even."""
    coordinates = np.indices(configurations.lattice_size).sum(axis=0)
    signs = (1 - 2 * (coordinates % 2)).astype(np.int8)
    return np.asarray((configurations.field * signs).mean(axis=configurations.lattice_axes, dtype=np.float64))


def _two_point_zero_momentum(configurations: Configurations) -> Array:
    volume = configurations.volume
    return np.asarray(np.rint(two_point_zero_momentum(configurations) * volume) / volume, dtype=np.float64)


def _energy(means: Mapping[str, Array], context: ObservableContext) -> Array:
    return -context.coupling("coupling") * means["links"] - context.coupling("field") * means["magnetisation"]


def _susceptibility_connected(means: Mapping[str, Array], context: ObservableContext) -> Array:
    return context.volume * (means["magnetisation_squared"] - means["magnetisation_abs"] ** 2)


def _susceptibility_subtracted(means: Mapping[str, Array], context: ObservableContext) -> Array:
    return context.volume * (means["magnetisation_squared"] - means["magnetisation"] ** 2)


def _in_a_field(context: ObservableContext) -> bool:
    return context.couplings.get("field", 0.0) != 0.0


def _with_sublattices(context: ObservableContext) -> bool:
    """Whether the couplings favour opposite neighbours, and the lattice lets all of them be opposite."""
    even = all(extent % 2 == 0 for extent in context.lattice_size)
    return even and context.couplings.get("coupling", 0.0) < 0.0


def _specific_heat(means: Mapping[str, Array], context: ObservableContext) -> Array:
    return (means["action_squared"] - means["action"] ** 2) / context.volume


def _are_spins(field: npt.NDArray[np.generic]) -> bool:
    return field.dtype.kind == "i" and bool(np.all(np.abs(field.astype(np.int64, copy=False)) == 1))


ISING_OBSERVABLES = ObservableSet(
    field_name="spin",
    values="spins +1 or -1 of an integer type",
    accepts=_are_spins,
    primaries=MappingProxyType(
        {
            **MAGNETIC_PRIMARIES,
            "two_point_zero_momentum": _two_point_zero_momentum,
            "magnetisation_staggered_abs": lambda c: np.abs(staggered_magnetisation(c)),
            "magnetisation_staggered_squared": lambda c: staggered_magnetisation(c) ** 2,
            "links": link_energy,
            "correlation": on_axis_correlation,
            "action": action,
            "action_squared": action_squared,
        }
    ),
    observables=MappingProxyType(
        {
            "energy": Observable(("links", "magnetisation"), _energy, "energy per site <H>/V", average=True),
            **MAGNETIC_OBSERVABLES,
            "susceptibility_connected": Observable(
                ("magnetisation_squared", "magnetisation_abs"),
                _susceptibility_connected,
                "connected susceptibility V (<m^2> - <|m|>^2)",
            ),
            "susceptibility_subtracted": Observable(
                ("magnetisation_squared", "magnetisation"),
                _susceptibility_subtracted,
                "susceptibility of the fluctuations in a field V (<m^2> - <m>^2)",
                applies=_in_a_field,
            ),
            "magnetisation_staggered_abs": Observable(
                ("magnetisation_staggered_abs",),
                lambda a, _: a["magnetisation_staggered_abs"],
                "mean modulus of the staggered magnetisation <|m_s|>",
                average=True,
                applies=_with_sublattices,
            ),
            "susceptibility_staggered": Observable(
                ("magnetisation_staggered_squared",),
                lambda a, context: context.volume * a["magnetisation_staggered_squared"],
                "staggered susceptibility V <m_s^2>",
                average=True,
                applies=_with_sublattices,
            ),
            "specific_heat": Observable(
                ("action", "action_squared"), _specific_heat, "specific heat per site Var(S)/V"
            ),
            "correlation": Observable(
                ("correlation",), lambda a, _: a["correlation"], "spin-spin correlation on an axis", first_index=1
            ),
            **CORRELATION_OBSERVABLES,
        }
    ),
    histories=("energy", "magnetisation_abs"),
    cost_observable="susceptibility",
    records=MappingProxyType({"action": ("action",), "action_squared": ("action",)}),
    correlators=MappingProxyType({"two_point_zero_momentum": ""}),
    inverse_temperature="beta",
)
"""The observables of Ising spins by name, as defined at the top of this module."""
