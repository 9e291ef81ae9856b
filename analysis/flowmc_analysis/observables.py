r"""Observables of lattice fields: the framework, whatever the field.

*Primary* observables are numbers (or short arrays) per configuration; a *derived* observable is a function of the
expectation values of primary ones, and its error comes from linear propagation (`flowmc_analysis.gamma`). What is
measured on one kind of field is an `ObservableSet`: `flowmc_analysis.scalar_observables`,
`flowmc_analysis.ising_observables` and `flowmc_analysis.gauge_observables` define one each, and
`flowmc_analysis.observable_sets` finds the one of a stored field by its name.

Some numbers cannot be had from a field afterwards, or only at great cost: the run records them with the configurations,
the action first of all. A set says which of its primaries need which records; where these are missing, so are the
primaries and what is derived from them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from flowmc_analysis.errors import AnalysisError, SampleShapeError
from flowmc_analysis.gamma import GammaResult, gamma_method_vector

__all__ = [
    "Configurations",
    "Field",
    "Observable",
    "ObservableContext",
    "ObservableSet",
    "action",
    "action_squared",
    "effective_mass",
    "estimate_observables",
    "measure",
    "observable_series",
    "recorded",
]

Array = npt.NDArray[np.float64]
Field = npt.NDArray[np.floating[Any]] | npt.NDArray[np.integer[Any]]
_T = TypeVar("_T")

_ACTION = "action"


@dataclass(frozen=True)
class Configurations:
    """Field configurations with what was stored beside them.

    Parameters
    ----------
    field
        Real or integer fields of shape ``(..., *lattice, *internal)``, the first lattice axis being time.
    dimension
        Number of lattice axes, at least one.
    action
        Action of each configuration, shape ``(...)``, or ``None`` if unknown.
    internal
        Number of axes behind those of the lattice (one for link fields: the direction).
    recorded
        What a run measured on the configurations, by name, each of shape ``(...)`` or ``(..., k)``.

    Raises
    ------
    SampleShapeError
        If the shapes do not fit or the field is not real.
    """

    field: Field
    dimension: int
    action: Array | None = None
    internal: int = 0
    recorded: Mapping[str, Array] = dataclasses.field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        values = np.asarray(self.field)
        fits = self.dimension >= 1 and self.internal >= 0 and self.dimension + self.internal <= values.ndim
        if not fits or values.dtype.kind not in "fiu" or 0 in self.lattice_size:
            raise SampleShapeError(
                got=f"a field of dtype {values.dtype}, shape {values.shape}, dimension = {self.dimension},"
                f" internal = {self.internal}",
                expected="real fields of shape (..., *lattice, *internal), dimension >= 1",
                fix="pass the number of lattice axes, which come last but for the internal ones",
            )
        if self.action is not None and np.shape(self.action) != self.batch_shape:
            raise SampleShapeError(
                got=f"actions of shape {np.shape(self.action)} for configurations {self.batch_shape}",
                expected="one action for each configuration",
                fix="pass action with the shape of the field without its lattice axes",
            )
        axes = len(self.batch_shape)
        for name, values in self.recorded.items():
            if np.shape(values)[:axes] != self.batch_shape or np.ndim(values) > axes + 1:
                raise SampleShapeError(
                    got=f"the record {name!r} of shape {np.shape(values)} for configurations {self.batch_shape}",
                    expected="one number, or a row of numbers, for each configuration",
                    fix="pass records of the same configurations",
                )

    @property
    def lattice_size(self) -> tuple[int, ...]:
        """Extents of the lattice, time first."""
        shape = np.shape(self.field)
        return tuple(shape[axis] for axis in self.lattice_axes)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of the set of configurations."""
        return tuple(np.shape(self.field)[: -self.dimension - self.internal])

    @property
    def volume(self) -> int:
        """Number of lattice sites."""
        return math.prod(self.lattice_size)

    @property
    def lattice_axes(self) -> tuple[int, ...]:
        """Axes of the field that count sites, from the end."""
        return tuple(range(-self.dimension - self.internal, -self.internal))


def action(configurations: Configurations) -> Array:
    """Give the action of each configuration, as stored, shape ``(...)``.

    Raises
    ------
    AnalysisError
        If the configurations come without it.
    """
    if configurations.action is None:
        raise AnalysisError(
            got="configurations without their action",
            expected="Configurations(..., action=...)",
            fix="pass the stored action, or leave out the observables that need it",
        )
    return np.asarray(configurations.action, dtype=np.float64)


def action_squared(configurations: Configurations) -> Array:
    """Give the square of the action of each configuration, shape ``(...)``."""
    return action(configurations) ** 2


def recorded(name: str) -> Callable[[Configurations], Array]:
    """Make the primary observable that is what the run recorded under a name, as it is.

    The primary raises an `AnalysisError` where configurations come without that record.
    """

    def primary(configurations: Configurations) -> Array:
        return np.asarray(_lookup(configurations.recorded, name), dtype=np.float64)

    return primary


def effective_mass(correlator: Array) -> Array:
    """Give the effective mass of a periodic correlator, ``arcosh((C(t+1) + C(t-1)) / 2 C(t))``.

    Parameters
    ----------
    correlator
        C(t) for ``t = 0 ... T - 1``, shape ``(T,)``.

    Returns
    -------
    The mass for ``t = 1 ... T//2``, in lattice units; NaN where the correlator is not convex.

    Examples
    --------
    >>> effective_mass(np.cosh(0.5 * (np.arange(8) - 4))).round(12)
    array([0.5, 0.5, 0.5, 0.5])
    """
    times = np.arange(1, correlator.size // 2 + 1)
    neighbours = correlator[times - 1] + np.take(correlator, times + 1, mode="wrap")
    return np.asarray(np.arccosh(neighbours / (2.0 * correlator[times])))


@dataclass(frozen=True)
class ObservableContext:
    """What a derived observable may need beside expectation values.

    Parameters
    ----------
    lattice_size
        Extents of the lattice, time first.
    couplings
        Couplings of the action by name (``beta``, ``m2``, ...), lattice units.
    arrays
        Couplings that are more than one number (the ``means`` of a mixture), by name.
    """

    lattice_size: tuple[int, ...]
    couplings: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    arrays: Mapping[str, Array] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def volume(self) -> int:
        """Number of lattice sites."""
        return math.prod(self.lattice_size)

    def coupling(self, name: str) -> float:
        """Coupling of that name.

        Raises
        ------
        AnalysisError
            If the action has none of that name.
        """
        if name not in self.couplings:
            raise AnalysisError(
                got=f"couplings {dict(self.couplings)}",
                expected=f"the coupling {name!r}, on which the observable depends",
                fix=f"pass ObservableContext(lattice_size, {{{name!r}: ...}})",
            )
        return self.couplings[name]

    def coupling_array(self, name: str) -> Array:
        """Coupling of that name that is more than one number.

        Raises
        ------
        AnalysisError
            If the action has none of that name.
        """
        return np.asarray(_lookup(self.arrays, name), dtype=np.float64)


@dataclass(frozen=True)
class Observable:
    """A function of the expectation values of primary observables.

    Parameters
    ----------
    primaries
        Names of primary observables of the set.
    function
        Takes the means of the primaries (a mapping, arrays of shape ``()`` or ``(k,)``) and the context; gives an
        array of shape ``()`` or ``(m,)``.
    description
        One line for tables and plots.
    first_index
        Label of the first entry of an array-valued observable (the time of ``effective_mass[1]``).
    average
        Whether it is one number that is linear in scalar primaries, so that ``function`` also gives its value on every
        configuration.
    applies
        Whether the observable means something on that lattice at these couplings; where it does not, it is measured only
        if asked for by name.
    non_linear
        Whether it depends so strongly on its primaries that linear error propagation needs a small relative error.
    may_be_constant
        Whether the same value on all configurations is nothing to wonder at (a sign that is always positive).
    """

    primaries: tuple[str, ...]
    function: Callable[[Mapping[str, Array], ObservableContext], Array] = field(repr=False)
    description: str
    first_index: int = 0
    average: bool = False
    applies: Callable[[ObservableContext], bool] = field(default=lambda _: True, repr=False)
    non_linear: bool = False
    may_be_constant: bool = False


@dataclass(frozen=True)
class ObservableSet:
    """What is measured on one kind of field.

    Parameters
    ----------
    field_name
        Name under which runs store such a field.
    values
        What the field holds, for messages.
    accepts
        Whether an array holds values of such a field.
    primaries
        Measurements on configurations by name, each of shape ``(...)`` or ``(..., k)``.
    observables
        The observables by name.
    histories
        Observables whose histories are drawn in a report, where they were measured; each is an average.
    cost_observable
        Observable, one number, whose autocorrelation time the cost of an ensemble is counted with, beside the slowest.
    records
        Primaries that need records of the run, to the names of these; the action is a record, too.
    internal_axes
        Names of the axes behind those of the lattice.
    correlators
        Functions of the time separation t = 0 ... T - 1, symmetric under t -> T - t, to their effective masses (an empty
        name where there is none).
    sectors
        Averages of discrete values that label the sectors of configuration space, or functions of such a label, where
        they were measured or recorded: a chain in which they hardly change samples one sector only.
    inverse_temperature
        Name of the coupling that multiplies the whole action, where there is one: S = beta H.
    """

    field_name: str
    values: str
    accepts: Callable[[npt.NDArray[np.generic]], bool] = field(repr=False)
    primaries: Mapping[str, Callable[[Configurations], Array]] = field(repr=False)
    observables: Mapping[str, Observable] = field(repr=False)
    histories: tuple[str, ...]
    cost_observable: str
    records: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: MappingProxyType({"action": (_ACTION,)}), repr=False
    )
    internal_axes: tuple[str, ...] = ()
    correlators: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    sectors: tuple[str, ...] = ()
    inverse_temperature: str = ""

    @property
    def recorded_names(self) -> frozenset[str]:
        """Names of all records that any primary needs, but for the action."""
        return frozenset(name for names in self.records.values() for name in names) - {_ACTION}

    def entry(self, name: str) -> Observable | None:
        """Find the observable behind a name of results, ``"effective_mass[1]"`` too; None for one of no set."""
        return self.observables.get(name.partition("[")[0])


def measure(
    configurations: Configurations, observables: ObservableSet, primaries: Iterable[str] | None = None
) -> dict[str, Array]:
    """Measure primary observables on every configuration.

    Parameters
    ----------
    configurations
        Fields of shape ``(..., *lattice, *internal)``, with the action and further records where they are asked for.
    observables
        The set that belongs to the field.
    primaries
        Names of primary observables; by default all that the configurations allow.

    Returns
    -------
    By name, arrays of shape ``(...)`` or ``(..., k)``. Blocks of configurations can be measured one after the other
    and concatenated.

    Raises
    ------
    AnalysisError
        If a name is unknown, or the action or another record is missing.

    Examples
    --------
    >>> import numpy as np
    >>> from flowmc_analysis.scalar_observables import SCALAR_OBSERVABLES
    >>> sorted(measure(Configurations(np.ones((5, 4, 4)), dimension=2), SCALAR_OBSERVABLES))[:2]
    ['magnetisation', 'magnetisation_abs']
    """
    table = observables.primaries
    if primaries is None:
        known = set(configurations.recorded) | (set() if configurations.action is None else {_ACTION})
        primaries = [name for name in table if set(observables.records.get(name, ())) <= known]
    return {name: _lookup(table, name)(configurations) for name in primaries}


def observable_series(
    measurements: Mapping[str, Array], observables: ObservableSet, context: ObservableContext
) -> dict[str, Array]:
    """Give the observables that are plain averages, configuration by configuration.

    Parameters
    ----------
    measurements
        What `measure` gives.
    observables
        The set that belongs to the field.
    context
        Lattice and couplings.

    Returns
    -------
    By name, arrays of the shape of the scalar primaries.
    """
    return {
        name: entry.function(measurements, context)
        for name, entry in observables.observables.items()
        if entry.average and entry.applies(context) and set(entry.primaries) <= set(measurements)
    }


def estimate_observables(
    measurements: Mapping[str, npt.ArrayLike],
    observables: ObservableSet,
    context: ObservableContext,
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
    observables
        The set that belongs to the field.
    context
        Lattice and couplings.
    names
        Names of observables of the set; by default all that apply and whose primaries were measured.
    s, tau_exp, n_sigma
        As in `flowmc_analysis.gamma.gamma_method`.

    Returns
    -------
    Results by name; array-valued observables give one entry for each component, ``"effective_mass[1]"`` and so on. A
    component that is not defined at the measured means (a noisy effective mass) is NaN with a warning.

    Raises
    ------
    AnalysisError
        If a name is unknown, a primary or a coupling is missing, or as in `flowmc_analysis.gamma.gamma_method`.
    """
    table = observables.observables
    if names is None:
        measured = set(measurements)
        names = [name for name, entry in table.items() if entry.applies(context) and set(entry.primaries) <= measured]
    results: dict[str, GammaResult] = {}
    for name in names:
        entry = _lookup(table, name)
        arrays = {key: np.asarray(_lookup(measurements, key), dtype=np.float64) for key in entry.primaries}
        components = _evaluate(entry, arrays, context, s, tau_exp, n_sigma)
        if components is None:
            continue
        scalar, values = components
        for index, value in enumerate(values):
            results[name if scalar else f"{name}[{index + entry.first_index}]"] = value
    return results


def _evaluate(
    entry: Observable,
    arrays: Mapping[str, Array],
    context: ObservableContext,
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
        shape = np.shape(entry.function(unpack(primaries.mean(axis=(1, 2))), context))
    if 0 in shape:
        return None
    results = gamma_method_vector(
        lambda flat: np.atleast_1d(entry.function(unpack(flat), context)), primaries, s, tau_exp, n_sigma
    )
    return shape == (), results


def _lookup(table: Mapping[str, _T], name: str) -> _T:
    if name not in table:
        raise AnalysisError(got=f"the name {name!r}", expected=f"one of {', '.join(table)}", fix="correct the name")
    return table[name]
