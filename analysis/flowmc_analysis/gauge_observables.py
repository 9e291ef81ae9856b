r"""Observables of U(1) link angles on a periodic lattice of two dimensions, and of fermions in such fields.

Links are angles of shape (..., T, X, 2), the direction last, 0 being time. With :math:`P(t,x) = \theta_0(t,x) +
\theta_1(t+1,x) - \theta_0(t,x+1) - \theta_1(t,x)`, volume :math:`V = TX` and :math:`[P]` brought to :math:`[-\pi,\pi)`:

============================== =========================================================================================
name                           definition
============================== =========================================================================================
plaquette                      :math:`\langle\cos P\rangle`, which is also the loop W(1,1)
wilson_loop_1x2                :math:`W(R,T)`, here R = 1 and T = 2: around R links in space and T in time; so are
                               ``wilson_loop_1x3`` up to ``wilson_loop_3x3``
string_tension                 :math:`-\ln\frac{W(2,2)W(1,1)}{W(1,2)W(2,1)}`, Creutz's ratio
topological_charge             :math:`\langle Q\rangle`, :math:`Q = \frac1{2\pi}\sum_x[P]` whole; zero by symmetry
charge_squared                 :math:`\langle Q^2\rangle`
topological_susceptibility     :math:`\langle Q^2\rangle/V`
polyakov_loop                  :math:`\langle\mathrm{Re}\,L\rangle`, :math:`L = \frac1X\sum_xe^{i\sum_t\theta_0(t,x)}`
polyakov_loop_abs              :math:`\langle|L|\rangle`
polyakov_loop_squared          :math:`\langle|L|^2\rangle`
action_density                 :math:`\langle S\rangle/V`; needs the action
condensate                     :math:`\langle\mathrm{Re\,tr}\,D^{-1}\rangle/V` of one flavour
log_determinant_density        :math:`\langle\ln|\det D|\rangle/V`
mean_sign                      :math:`\langle s\rangle`, s the sign of det D
pion_correlator                :math:`C_\pi(t) = \frac1V\sum\langle\mathrm{tr}|D^{-1}(t_0{+}t,x;t_0,y)|^2\rangle`
pion_effective_mass            :math:`\mathrm{arcosh}\frac{C(t+1)+C(t-1)}{2C(t)}`, :math:`t = 1\ldots\lfloor T/2\rfloor`
eta_correlator                 :math:`C_\pi(t) - \frac{N_f}V\sum_{t_0}\langle\Lambda(t_0)\Lambda(t_0+t)\rangle`
eta_effective_mass             as above
plaquette_sign_reweighted      :math:`\langle s\cos P\rangle/\langle s\rangle`; this and the following for odd :math:`N_f`
charge_squared_sign_reweighted :math:`\langle sQ^2\rangle/\langle s\rangle`
condensate_sign_reweighted     :math:`\langle s\,\mathrm{Re\,tr}\,D^{-1}\rangle/(V\langle s\rangle)`
============================== =========================================================================================

A loop is the mean of the cosine of its flux over all places, which is the mean over both directions of going around. It
is measured where the rectangle is smaller than the lattice in both directions. What has the Dirac operator D in it is
measured in the run, and taken as recorded: the sum is over :math:`t_0` and the places x and y, traces are over spins, and
:math:`\Lambda(t) = \sum_x\mathrm{tr}\,\gamma_5D^{-1}(t,x;t,x)`. Correlators are symmetric, :math:`C(T-t) = C(t)`.

Fermions enter the sampled weight as :math:`|\det D|^{N_f}`. For odd :math:`N_f` this lacks the sign of the determinant:
the observables without a word about the sign are those of the sampled weight, and those reweighted are the theory's;
where the mean sign is hardly known to differ from zero, these are hardly known. For even :math:`N_f` the sign is only
shown. Where the sign changes, :math:`D^{-1}` diverges like the inverse of an eigenvalue, and the weight vanishes like its
power :math:`N_f`: for one flavour the condensate has no variance there, and the pion correlator no mean. Errors then mean
little, however good they look.

References
----------
.. [1] M. Creutz, Phys. Rev. Lett. 45 (1980) 313 (the ratio of loops).
.. [2] S. Elser, hep-lat/0103035 (the Schwinger model with Wilson fermions).
.. [3] G. Kanwar et al., Phys. Rev. Lett. 125 (2020) 121601, arXiv:2003.06413.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from flowmc_analysis.errors import AnalysisError, SampleShapeError
from flowmc_analysis.observables import (
    Configurations,
    Observable,
    ObservableContext,
    ObservableSet,
    action,
    effective_mass,
    recorded,
)

__all__ = ["GAUGE_OBSERVABLES", "plaquette_angles", "polyakov_loop", "topological_charge", "wilson_loop"]

Array = npt.NDArray[np.float64]

_LARGEST_LOOP = 3
_ROUND_OFF = 1e-6  # of the charge: rounding leaves 1e-15 a plaquette


def plaquette_angles(configurations: Configurations) -> Array:
    """``P(x)``, the oriented sum of the angles around each plaquette, not wrapped, shape ``(..., T, X)``.

    Raises
    ------
    SampleShapeError
        If these are not links of two directions on a lattice of two dimensions.
    """
    time, space = _links(configurations)
    return time + np.roll(space, -1, axis=-2) - np.roll(time, -1, axis=-1) - space


def wilson_loop(configurations: Configurations, spatial: int, temporal: int) -> Array:
    """Cosine of the flux through rectangles of ``spatial`` times ``temporal`` links, their mean, shape ``(...)``."""
    flux = _sum_ahead(_sum_ahead(plaquette_angles(configurations), temporal, axis=-2), spatial, axis=-1)
    return np.asarray(np.cos(flux).mean(axis=(-2, -1)))


def topological_charge(configurations: Configurations) -> Array:
    """``Q``, the sum of the wrapped plaquette angles over 2 pi, whole numbers of shape ``(...)``.

    Raises
    ------
    AnalysisError
        If it is not whole: the angles are not finite, or too large to have digits behind the point.
    """
    angles = plaquette_angles(configurations)
    wrapped = angles - 2.0 * np.pi * np.floor((angles + np.pi) / (2.0 * np.pi))
    charge = wrapped.sum(axis=(-2, -1)) / (2.0 * np.pi)
    whole: Array = np.rint(charge)
    deviation = float(np.max(np.abs(charge - whole), initial=0.0))
    if not deviation < _ROUND_OFF:
        raise AnalysisError(
            got=f"a topological charge that is off a whole number by {deviation:.2g}",
            expected="whole numbers, as plaquettes of a periodic lattice have",
            fix="store finite angles, wrapped to an interval of 2 pi",
        )
    return whole + 0.0  # no negative zeros


def polyakov_loop(configurations: Configurations) -> npt.NDArray[np.complex128]:
    """``L``, the product of all links in time at one place, averaged over space, shape ``(...)``."""
    time, _ = _links(configurations)
    return np.asarray(np.exp(1j * time.sum(axis=-2)).mean(axis=-1))


def _links(configurations: Configurations) -> tuple[Array, Array]:
    links = np.asarray(configurations.field, dtype=np.float64)
    if (configurations.dimension, configurations.internal, links.shape[-1]) != (2, 1, 2):
        raise SampleShapeError(
            got=f"a field of shape {links.shape}, dimension = {configurations.dimension},"
            f" internal = {configurations.internal}",
            expected="link angles of shape (..., T, X, 2), dimension = 2, internal = 1",
            fix="pass links with the direction last",
        )
    return links[..., 0], links[..., 1]


def _sum_ahead(values: Array, count: int, axis: int) -> Array:
    """Sum of the values at ``count`` successive sites, beginning at each."""
    return sum((np.roll(values, -step, axis) for step in range(1, count)), start=values)


def _signed(primary: Callable[[Configurations], Array]) -> Callable[[Configurations], Array]:
    """Multiply a primary by the sign of the determinant."""
    sign = recorded("sign_determinant")
    return lambda configurations: primary(configurations) * sign(configurations)


def _loop(spatial: int, temporal: int) -> Callable[[Configurations], Array]:
    return lambda configurations: wilson_loop(configurations, spatial, temporal)


def _string_tension(means: Mapping[str, Array], _: ObservableContext) -> Array:
    ratio = means["wilson_loop_2x2"] * means["plaquette"] / (means["wilson_loop_1x2"] * means["wilson_loop_2x1"])
    return np.asarray(-np.log(ratio))


def _eta_correlator(means: Mapping[str, Array], context: ObservableContext) -> Array:
    return means["pion_correlator"] - context.coupling("n_flavours") * means["eta_disconnected"]


def _fits(spatial: int, temporal: int) -> Callable[[ObservableContext], bool]:
    return lambda context: temporal < context.lattice_size[0] and spatial < context.lattice_size[1]


def _with_flavours(context: ObservableContext) -> bool:
    return "n_flavours" in context.couplings


def _with_a_sign(context: ObservableContext) -> bool:
    """Whether the weight of the theory has the sign that the sampled one lacks."""
    return context.couplings.get("n_flavours", 0.0) % 2.0 == 1.0


def _same(name: str, description: str, applies: Callable[[ObservableContext], bool] = lambda _: True) -> Observable:
    """Make the observable that is the mean of a scalar primary."""
    return Observable((name,), lambda a, _: a[name], description, average=True, applies=applies)


def _reweighted(name: str, description: str) -> Observable:
    signed = f"{name}_signed"
    return Observable(
        (signed, "sign_determinant"),
        lambda a, _: a[signed] / a["sign_determinant"],
        f"{description}, reweighted with the sign of det D",
        applies=_with_a_sign,
        non_linear=True,
    )


_LOOPS = {
    f"wilson_loop_{spatial}x{temporal}": (spatial, temporal)
    for spatial in range(1, _LARGEST_LOOP + 1)
    for temporal in range(1, _LARGEST_LOOP + 1)
    if (spatial, temporal) != (1, 1)
}
_OF_FIELDS: Mapping[str, Callable[[Configurations], Array]] = {
    "plaquette": _loop(1, 1),
    **{name: _loop(*size) for name, size in _LOOPS.items()},
    "topological_charge": topological_charge,
    "charge_squared": lambda c: topological_charge(c) ** 2,
    "polyakov_loop": lambda c: polyakov_loop(c).real,
    "polyakov_loop_abs": lambda c: np.abs(polyakov_loop(c)),
    "polyakov_loop_squared": lambda c: np.abs(polyakov_loop(c)) ** 2,
}
_RECORDED = (
    "condensate",
    "log_determinant",
    "sign_determinant",
    "pion_correlator",
    "eta_disconnected",
)

GAUGE_OBSERVABLES = ObservableSet(
    field_name="angle",
    values="angles of U(1) links, two at each site",
    accepts=lambda field: field.dtype.kind == "f" and field.shape[-1:] == (2,),
    primaries=MappingProxyType(
        {
            **_OF_FIELDS,
            "action": action,
            **{name: recorded(name) for name in _RECORDED},
            "plaquette_signed": _signed(_OF_FIELDS["plaquette"]),
            "charge_squared_signed": _signed(_OF_FIELDS["charge_squared"]),
            "condensate_signed": _signed(recorded("condensate")),
        }
    ),
    observables=MappingProxyType(
        {
            "plaquette": _same("plaquette", "mean plaquette <cos P>"),
            **{
                name: _same(name, f"Wilson loop of {size[0]} links in space, {size[1]} in time", applies=_fits(*size))
                for name, size in _LOOPS.items()
            },
            "string_tension": Observable(
                ("plaquette", "wilson_loop_1x2", "wilson_loop_2x1", "wilson_loop_2x2"),
                _string_tension,
                "string tension from Creutz's ratio -ln W(2,2) W(1,1) / (W(1,2) W(2,1))",
                applies=_fits(2, 2),
                non_linear=True,
            ),
            "topological_charge": _same("topological_charge", "topological charge <Q>"),
            "charge_squared": _same("charge_squared", "square of the topological charge <Q^2>"),
            "topological_susceptibility": Observable(
                ("charge_squared",),
                lambda a, context: a["charge_squared"] / context.volume,
                "topological susceptibility <Q^2>/V",
                average=True,
            ),
            "polyakov_loop": _same("polyakov_loop", "real part of the Polyakov loop, averaged over space"),
            "polyakov_loop_abs": _same("polyakov_loop_abs", "modulus of the Polyakov loop, averaged over space"),
            "polyakov_loop_squared": _same("polyakov_loop_squared", "square of that modulus <|L|^2>"),
            "action_density": Observable(
                ("action",), lambda a, context: a["action"] / context.volume, "action per site <S>/V", average=True
            ),
            "condensate": _same("condensate", "chiral condensate <Re tr D^-1>/V of one flavour"),
            "log_determinant_density": Observable(
                ("log_determinant",),
                lambda a, context: a["log_determinant"] / context.volume,
                "logarithm of |det D| per site",
                average=True,
            ),
            "mean_sign": Observable(
                ("sign_determinant",),
                lambda a, _: a["sign_determinant"],
                "mean sign of det D",
                average=True,
                may_be_constant=True,
            ),
            "pion_correlator": Observable(
                ("pion_correlator",), lambda a, _: a["pion_correlator"], "pion correlator C(t) at zero momentum"
            ),
            "pion_effective_mass": Observable(
                ("pion_correlator",),
                lambda a, _: effective_mass(a["pion_correlator"]),
                "effective mass of the pion, cosh form",
                first_index=1,
                non_linear=True,
            ),
            "eta_correlator": Observable(
                ("pion_correlator", "eta_disconnected"),
                _eta_correlator,
                "eta' correlator C(t) at zero momentum",
                applies=_with_flavours,
            ),
            "eta_effective_mass": Observable(
                ("pion_correlator", "eta_disconnected"),
                lambda a, context: effective_mass(_eta_correlator(a, context)),
                "effective mass of the eta', cosh form",
                first_index=1,
                applies=_with_flavours,
                non_linear=True,
            ),
            "plaquette_sign_reweighted": _reweighted("plaquette", "mean plaquette"),
            "charge_squared_sign_reweighted": _reweighted("charge_squared", "square of the topological charge"),
            "condensate_sign_reweighted": _reweighted("condensate", "chiral condensate"),
        }
    ),
    histories=("plaquette", "topological_charge", "condensate"),
    cost_observable="topological_susceptibility",
    records=MappingProxyType(
        {
            "action": ("action",),
            **{name: (name,) for name in _RECORDED},
            "plaquette_signed": ("sign_determinant",),
            "charge_squared_signed": ("sign_determinant",),
            "condensate_signed": ("condensate", "sign_determinant"),
        }
    ),
    internal_axes=("mu",),
    correlators=MappingProxyType({"pion_correlator": "pion_effective_mass", "eta_correlator": "eta_effective_mass"}),
    sectors=("topological_charge", "charge_squared"),
)
"""The observables of U(1) links by name, as defined at the top of this module."""
