r"""Observables of a real scalar field on a periodic lattice of any dimension.

With volume :math:`V`, temporal extent :math:`T` (the first lattice axis) and :math:`m = \frac1V\sum_x\varphi_x`:

======================== ===============================================================================================
name                     definition
======================== ===============================================================================================
magnetisation            :math:`\langle m\rangle`; zero in a theory with the symmetry :math:`\varphi\to-\varphi`
magnetisation_abs        :math:`\langle|m|\rangle`
susceptibility           :math:`\chi = V\langle m^2\rangle`
binder_cumulant          :math:`1 - \langle m^4\rangle/(3\langle m^2\rangle^2)`
phi_squared              :math:`\frac1V\langle\sum_x\varphi_x^2\rangle`
phi_fourth               :math:`\frac1V\langle\sum_x\varphi_x^4\rangle`
action_density           :math:`\langle S\rangle/V`; needs the action of each configuration
two_point_zero_momentum  :math:`C(t) = \frac1V\sum_{t_0}\langle\Phi(t_0)\Phi(t_0+t)\rangle` for :math:`t = 0\ldots T-1`
effective_mass           :math:`\mathrm{arcosh}\frac{C(t+1)+C(t-1)}{2C(t)}` for :math:`t = 1\ldots\lfloor T/2\rfloor`
correlation_length       :math:`\frac{1}{2\sin(k/2)}\sqrt{\chi/F - 1}`, :math:`k = 2\pi/L`, the second-moment definition
======================== ===============================================================================================

Here :math:`\Phi(t) = \sum_{\vec x}\varphi(t,\vec x)`. :math:`C(t)` is the propagator summed over space, :math:`C(t)
= \sum_{\vec x}\langle\varphi(0,\vec 0)\varphi(t,\vec x)\rangle`, so that :math:`\sum_tC(t) = \chi`; it is averaged
over the source and symmetric, :math:`C(T-t) = C(t)`, by construction. For the correlation length :math:`F =
\frac1V\langle|\sum_xe^{ikx_\mu}\varphi_x|^2\rangle` is averaged over the axes :math:`\mu` of the longest extent
:math:`L`. Nothing is subtracted: the theories have the symmetry :math:`\varphi\to-\varphi`, so that
:math:`\langle\varphi\rangle = 0` on a finite lattice. In a free field of mass :math:`m_0`, :math:`\cosh m_{eff} = 1
+ m_0^2/2` at every :math:`t`, and the correlation length is :math:`1/m_0`.

The coordinates of a mixture of Gaussians are not sites along a time: such a field has no effective mass and no
correlation length, and ``component``, which a run records of it, is the label of the sector.

A further observable is one more entry of `SCALAR_OBSERVABLES`.

References
----------
.. [1] I. Montvay, G. Münster, Quantum Fields on a Lattice (Cambridge, 1994), chapters 1 and 2.
.. [2] K. Binder, Z. Phys. B 43 (1981) 119.
"""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from flowmc_analysis.magnetic_observables import CORRELATION_OBSERVABLES, MAGNETIC_OBSERVABLES, MAGNETIC_PRIMARIES
from flowmc_analysis.observables import (
    Configurations,
    Observable,
    ObservableContext,
    ObservableSet,
    action,
    effective_mass,
)

__all__ = ["SCALAR_OBSERVABLES"]

Array = npt.NDArray[np.float64]


def _phi_squared(configurations: Configurations) -> Array:
    square = np.square(configurations.field, dtype=np.float64)
    return np.asarray(square.mean(axis=configurations.lattice_axes), dtype=np.float64)


def _phi_fourth(configurations: Configurations) -> Array:
    square = np.square(configurations.field, dtype=np.float64)
    return np.asarray(np.square(square).mean(axis=configurations.lattice_axes), dtype=np.float64)


def _on_a_lattice(context: ObservableContext) -> bool:
    return "means" not in context.arrays


SCALAR_OBSERVABLES = ObservableSet(
    field_name="phi",
    values="a real scalar field of floats",
    accepts=lambda field: field.dtype.kind == "f",
    primaries=MappingProxyType(
        {**MAGNETIC_PRIMARIES, "phi_squared": _phi_squared, "phi_fourth": _phi_fourth, "action": action}
    ),
    observables=MappingProxyType(
        {
            **MAGNETIC_OBSERVABLES,
            "phi_squared": Observable(
                ("phi_squared",), lambda a, _: a["phi_squared"], "mean square of the field", average=True
            ),
            "phi_fourth": Observable(
                ("phi_fourth",), lambda a, _: a["phi_fourth"], "mean fourth power of the field", average=True
            ),
            "action_density": Observable(
                ("action",), lambda a, context: a["action"] / context.volume, "action per site <S>/V", average=True
            ),
            "two_point_zero_momentum": CORRELATION_OBSERVABLES["two_point_zero_momentum"],
            "effective_mass": Observable(
                ("two_point_zero_momentum",),
                lambda a, _: effective_mass(a["two_point_zero_momentum"]),
                "effective mass, cosh form",
                first_index=1,
                applies=_on_a_lattice,
                non_linear=True,
            ),
            "correlation_length": replace(CORRELATION_OBSERVABLES["correlation_length"], applies=_on_a_lattice),
        }
    ),
    histories=("magnetisation", "action_density"),
    cost_observable="susceptibility",
    correlators=MappingProxyType({"two_point_zero_momentum": "effective_mass"}),
    sectors=("component",),
)
"""The observables of a real scalar field by name, as defined at the top of this module."""
