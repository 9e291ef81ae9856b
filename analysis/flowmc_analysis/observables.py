r"""Observables of a real scalar field on a periodic lattice of any dimension.

*Primary* observables are numbers (or short arrays) per configuration; a *derived* observable is a function of the
expectation values of primary ones, and its error comes from linear propagation (`flowmc_analysis.gamma`). With volume
:math:`V`, temporal extent :math:`T` (the first lattice axis) and :math:`m = \frac1V\sum_x\varphi_x`:

======================== ===============================================================================================
name                     definition
======================== ===============================================================================================
magnetisation            :math:`\langle m\rangle`; zero in a theory with the symmetry :math:`\varphi\to-\varphi`
magnetisation_abs        :math:`\langle|m|\rangle`
susceptibility           :math:`\chi = V\langle m^2\rangle`
binder_cumulant          :math:`1 - \langle m^4\rangle/(3\langle m^2\rangle^2)`
phi_squared              :math:`\frac1V\langle\sum_x\varphi_x^2\rangle`
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

A further observable is one more entry of `PRIMARIES` and `OBSERVABLES`.

References
----------
.. [1] I. Montvay, G. Münster, Quantum Fields on a Lattice (Cambridge, 1994), chapters 1 and 2.
.. [2] K. Binder, Z. Phys. B 43 (1981) 119.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import scipy.fft

from flowmc_analysis.errors import AnalysisError, SampleShapeError
from flowmc_analysis.gamma import GammaResult, gamma_method_vector

__all__ = [
    "OBSERVABLES",
    "PRIMARIES",
    "Configurations",
    "Observable",
    "estimate_observables",
    "magnetisation",
    "measure",
    "momentum_mode_squared",
    "two_point_zero_momentum",
]

Array = npt.NDArray[np.float64]
_T = TypeVar("_T")


@dataclass(frozen=True)
class Configurations:
    """Field configurations with what was stored beside them.

    Parameters
    ----------
    field
        Real fields of shape ``(..., *lattice)``, the first lattice axis being time.
    dimension
        Number of lattice axes, at least one.
    action
        Action of each configuration, shape ``(...)``, or ``None`` if unknown.

    Raises
    ------
    SampleShapeError
        If the shapes do not fit or the field is not real.
    """

    field: Array
    dimension: int
    action: Array | None = None

    def __post_init__(self) -> None:
        values = np.asarray(self.field)
        if not 1 <= self.dimension <= values.ndim or values.dtype.kind not in "fiu" or 0 in self.lattice_size:
            raise SampleShapeError(
                got=f"a field of dtype {values.dtype}, shape {values.shape}, dimension = {self.dimension}",
                expected="real fields of shape (..., *lattice), dimension >= 1",
                fix="pass the number of lattice axes, which come last",
            )
        if self.action is not None and np.shape(self.action) != self.batch_shape:
            raise SampleShapeError(
                got=f"actions of shape {np.shape(self.action)} for configurations {self.batch_shape}",
                expected="one action for each configuration",
                fix="pass action with the shape of the field without its lattice axes",
            )

    @property
    def lattice_size(self) -> tuple[int, ...]:
        """Extents of the lattice, time first."""
        return tuple(np.shape(self.field)[-self.dimension :])

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of the set of configurations."""
        return tuple(np.shape(self.field)[: -self.dimension])

    @property
    def volume(self) -> int:
        """Number of lattice sites."""
        return math.prod(self.lattice_size)


def magnetisation(configurations: Configurations) -> Array:
    """Mean of the field over the lattice, shape ``(...)``."""
    return np.asarray(configurations.field.mean(axis=_lattice_axes(configurations), dtype=np.float64))


def two_point_zero_momentum(configurations: Configurations) -> Array:
    """Correlation of the time slices at zero spatial momentum, normalised to sum to ``V m^2``, shape ``(..., T)``."""
    slices = configurations.field.sum(axis=_lattice_axes(configurations)[1:], dtype=np.float64)
    extent = configurations.lattice_size[0]
    transform = scipy.fft.rfft(slices, axis=-1)
    correlation = scipy.fft.irfft(transform.real**2 + transform.imag**2, extent, axis=-1)
    return np.asarray(correlation / configurations.volume, dtype=np.float64)


def momentum_mode_squared(configurations: Configurations) -> Array:
    """``|sum_x exp(i k x) phi|^2 / V`` at the smallest momentum, averaged over the longest axes, shape ``(...)``."""
    size = configurations.lattice_size
    longest = [axis for axis, extent in enumerate(size) if extent == max(size)]
    axes = _lattice_axes(configurations)
    total = np.zeros(configurations.batch_shape)
    phase = 2 * np.pi * np.arange(max(size)) / max(size)
    for axis in longest:
        others = tuple(a for i, a in enumerate(axes) if i != axis)
        profile = configurations.field.sum(axis=others, dtype=np.float64)
        total += (profile @ np.cos(phase)) ** 2 + (profile @ np.sin(phase)) ** 2
    return total / (len(longest) * configurations.volume)


def _phi_squared(configurations: Configurations) -> Array:
    axes = _lattice_axes(configurations)
    return np.asarray(np.square(configurations.field, dtype=np.float64).mean(axis=axes), dtype=np.float64)


def _action(configurations: Configurations) -> Array:
    if configurations.action is None:
        raise AnalysisError(
            got="configurations without their action",
            expected="Configurations(..., action=...)",
            fix="pass the stored action, or leave out the observables that need it",
        )
    return np.asarray(configurations.action, dtype=np.float64)


def _lattice_axes(configurations: Configurations) -> tuple[int, ...]:
    return tuple(range(-configurations.dimension, 0))


PRIMARIES: Mapping[str, Callable[[Configurations], Array]] = MappingProxyType(
    {
        "magnetisation": magnetisation,
        "magnetisation_abs": lambda c: np.abs(magnetisation(c)),
        "magnetisation_squared": lambda c: magnetisation(c) ** 2,
        "magnetisation_fourth": lambda c: magnetisation(c) ** 4,
        "phi_squared": _phi_squared,
        "action": _action,
        "two_point_zero_momentum": two_point_zero_momentum,
        "momentum_mode_squared": momentum_mode_squared,
    }
)
"""Per-configuration measurements by name, each of shape ``(...)`` or ``(..., k)``."""


@dataclass(frozen=True)
class Observable:
    """A function of the expectation values of primary observables.

    Parameters
    ----------
    primaries
        Names in `PRIMARIES`.
    function
        Takes the means of the primaries (a mapping, arrays of shape ``()`` or ``(k,)``) and the lattice size; gives
        an array of shape ``()`` or ``(m,)``.
    description
        One line for tables and plots.
    first_index
        Label of the first entry of an array-valued observable (the time of ``effective_mass[1]``).
    """

    primaries: tuple[str, ...]
    function: Callable[[Mapping[str, Array], tuple[int, ...]], Array] = field(repr=False)
    description: str
    first_index: int = 0


def _binder(means: Mapping[str, Array], size: tuple[int, ...]) -> Array:  # noqa: ARG001
    return 1.0 - means["magnetisation_fourth"] / (3.0 * means["magnetisation_squared"] ** 2)


def _effective_mass(means: Mapping[str, Array], size: tuple[int, ...]) -> Array:  # noqa: ARG001
    correlation = means["two_point_zero_momentum"]
    times = np.arange(1, correlation.size // 2 + 1)
    neighbours = correlation[times - 1] + np.take(correlation, times + 1, mode="wrap")
    return np.asarray(np.arccosh(neighbours / (2.0 * correlation[times])))


def _correlation_length(means: Mapping[str, Array], size: tuple[int, ...]) -> Array:
    if max(size) == 1:  # no momentum but zero
        return np.full((), math.nan)
    susceptibility = math.prod(size) * means["magnetisation_squared"]
    ratio = susceptibility / means["momentum_mode_squared"] - 1.0
    return np.asarray(np.sqrt(ratio) / (2.0 * np.sin(np.pi / max(size))))


OBSERVABLES: Mapping[str, Observable] = MappingProxyType(
    {
        "magnetisation": Observable(("magnetisation",), lambda a, _: a["magnetisation"], "mean field <m>"),
        "magnetisation_abs": Observable(
            ("magnetisation_abs",), lambda a, _: a["magnetisation_abs"], "mean modulus of the magnetisation <|m|>"
        ),
        "susceptibility": Observable(
            ("magnetisation_squared",),
            lambda a, size: math.prod(size) * a["magnetisation_squared"],
            "susceptibility V <m^2>",
        ),
        "binder_cumulant": Observable(
            ("magnetisation_squared", "magnetisation_fourth"), _binder, "Binder cumulant 1 - <m^4>/(3 <m^2>^2)"
        ),
        "phi_squared": Observable(("phi_squared",), lambda a, _: a["phi_squared"], "mean square of the field"),
        "action_density": Observable(
            ("action",), lambda a, size: a["action"] / math.prod(size), "action per site <S>/V"
        ),
        "two_point_zero_momentum": Observable(
            ("two_point_zero_momentum",),
            lambda a, _: a["two_point_zero_momentum"],
            "two-point function at zero spatial momentum C(t)",
        ),
        "effective_mass": Observable(
            ("two_point_zero_momentum",), _effective_mass, "effective mass, cosh form", first_index=1
        ),
        "correlation_length": Observable(
            ("magnetisation_squared", "momentum_mode_squared"), _correlation_length, "second-moment correlation length"
        ),
    }
)
"""The observables of a real scalar field by name, as defined at the top of this module."""


def measure(configurations: Configurations, primaries: Iterable[str] | None = None) -> dict[str, Array]:
    """Measure primary observables on every configuration.

    Parameters
    ----------
    configurations
        Fields of shape ``(..., *lattice)``, with the actions where ``"action"`` is asked for.
    primaries
        Names in `PRIMARIES`; by default all that the configurations allow.

    Returns
    -------
    By name, arrays of shape ``(...)`` or ``(..., k)``. Blocks of configurations can be measured one after the other
    and concatenated.

    Raises
    ------
    AnalysisError
        If a name is unknown or an action is missing.

    Examples
    --------
    >>> import numpy as np
    >>> sorted(measure(Configurations(np.ones((5, 4, 4)), dimension=2)))[:2]
    ['magnetisation', 'magnetisation_abs']
    """
    if primaries is None:
        primaries = [name for name in PRIMARIES if name != "action" or configurations.action is not None]
    return {name: _lookup(PRIMARIES, name)(configurations) for name in primaries}


def estimate_observables(
    measurements: Mapping[str, npt.ArrayLike],
    lattice_size: tuple[int, ...],
    names: Iterable[str] | None = None,
    s: float = 2.0,
    tau_exp: float | None = None,
    n_sigma: float = 1.0,
) -> dict[str, GammaResult]:
    """Estimate derived observables from a history of primary ones.

    Parameters
    ----------
    measurements
        What `measure` gives for fields of shape ``(chains, n, *lattice)``: by name, ``(chains, n)`` or ``(chains,
        n, k)``.
    lattice_size
        Extents of the lattice, time first.
    names
        Names in `OBSERVABLES`; by default all whose primaries were measured.
    s, tau_exp, n_sigma
        As in `flowmc_analysis.gamma.gamma_method`.

    Returns
    -------
    Results by name; array-valued observables give one entry for each component, ``"effective_mass[1]"`` and so on. A
    component that is not defined at the measured means (a noisy effective mass) is NaN with a warning.

    Raises
    ------
    AnalysisError
        If a name is unknown, a primary is missing, or as in `flowmc_analysis.gamma.gamma_method`.
    """
    if names is None:
        names = [name for name, entry in OBSERVABLES.items() if set(entry.primaries) <= set(measurements)]
    results: dict[str, GammaResult] = {}
    for name in names:
        entry = _lookup(OBSERVABLES, name)
        arrays = {key: np.asarray(_lookup(measurements, key), dtype=np.float64) for key in entry.primaries}
        components = _evaluate(entry, arrays, tuple(lattice_size), s, tau_exp, n_sigma)
        if components is None:
            continue
        scalar, values = components
        for index, value in enumerate(values):
            results[name if scalar else f"{name}[{index + entry.first_index}]"] = value
    return results


def _evaluate(
    entry: Observable,
    arrays: Mapping[str, Array],
    lattice_size: tuple[int, ...],
    s: float,
    tau_exp: float | None,
    n_sigma: float,
) -> tuple[bool, tuple[GammaResult, ...]] | None:
    """Whether the observable is a scalar, and its components; ``None`` if the lattice is too small to have any."""
    stacked, shapes = [], {}
    for name, array in arrays.items():
        if array.ndim not in (2, 3):
            raise SampleShapeError(
                got=f"{name} of shape {array.shape}",
                expected="(chains, n) or (chains, n, k)",
                fix="measure fields of shape (chains, n, *lattice), chains first",
            )
        shapes[name] = array.shape[2:]
        stacked.append(np.moveaxis(array.reshape(*array.shape[:2], -1), -1, 0))
    if len({block.shape[1:] for block in stacked}) > 1:
        raise SampleShapeError(
            got=f"measurements of shapes {[array.shape for array in arrays.values()]}",
            expected="the same chains and samples in all of them",
            fix="measure all primaries on the same configurations",
        )

    def unpack(flat: Array) -> dict[str, Array]:
        means, start = {}, 0
        for name, shape in shapes.items():
            stop = start + math.prod(shape)
            means[name] = flat[start:stop].reshape(shape)
            start = stop
        return means

    primaries = np.concatenate(stacked)
    with np.errstate(all="ignore"):
        shape = np.shape(entry.function(unpack(primaries.mean(axis=(1, 2))), lattice_size))
    if 0 in shape:
        return None
    results = gamma_method_vector(
        lambda flat: np.atleast_1d(entry.function(unpack(flat), lattice_size)), primaries, s, tau_exp, n_sigma
    )
    return shape == (), results


def _lookup(table: Mapping[str, _T], name: str) -> _T:
    if name not in table:
        raise AnalysisError(got=f"the name {name!r}", expected=f"one of {', '.join(table)}", fix="correct the name")
    return table[name]
