r"""Ensembles for ArviZ: ``InferenceData`` on ArviZ 0.x, ``xarray.DataTree`` from 1.0 on, the same groups in both.

``posterior`` holds scalar observables per (chain, draw), a draw being a stored configuration after thermalisation.
``sample_stats`` holds, in the names of the ArviZ schema [1]_, the log-density ``lp`` (the action with its sign changed,
so up to ``-ln Z``), ``acceptance_rate`` (mean over the updates since the previous draw), ``energy_error`` (of the last
HMC trajectory before the draw) and ``diverging`` (whether an energy error since the previous draw was not finite).

ArviZ counts in effective samples, lattice theory in autocorrelation times. For N draws of all chains
:math:`2\tau_{int} = N / ESS` where white noise has :math:`\tau_{int} = 1/2`; emcee's time is :math:`2\tau_{int}`.
ArviZ's "bulk" ESS is that of the rank-transformed draws [2]_, so the two agree only about.

References
----------
.. [1] https://python.arviz.org/en/stable/schema/schema.html
.. [2] A. Vehtari et al., Bayesian Analysis 16 (2021) 667, arXiv:1903.08008.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xarray

from flowmc_analysis.history import History
from flowmc_analysis.production import Production, read_production

if TYPE_CHECKING:
    from flowmc_analysis.ensemble import EnsembleAnalysis

__all__ = ["ChainDiagnostic", "chain_diagnostics", "to_arviz", "to_data_tree", "to_datasets"]

Array = npt.NDArray[np.float64]

_MINIMAL_DRAWS = 4  # what ArviZ needs to split a chain


@dataclass(frozen=True)
class ChainDiagnostic:
    """ArviZ's diagnostics of one observable.

    Parameters
    ----------
    name
        The observable.
    r_hat
        Rank-normalised split R-hat; NaN for a single chain.
    ess_bulk, ess_tail
        Effective number of draws, all chains together.
    tau_int_bulk
        ``N / (2 ess_bulk)``, in stored configurations, white noise = 0.5.
    """

    name: str
    r_hat: float
    ess_bulk: float
    ess_tail: float
    tau_int_bulk: float


def to_arviz(path: str | PathLike[str], *, streams: Sequence[int] | None = None) -> Any:
    """Convert an ensemble for ArviZ.

    Parameters
    ----------
    path
        The ensemble file.
    streams
        Which streams to lay side by side as chains; all by default.

    Returns
    -------
    ``arviz.InferenceData`` with ArviZ 0.x installed, ``xarray.DataTree`` with ArviZ 1.x.

    Raises
    ------
    EnsembleError, AnalysisError
        As in `flowmc_analysis.production.read_production`.
    """
    groups = to_datasets(read_production(path, streams))
    arviz = _import_arviz()
    major = int(str(arviz.__version__).partition(".")[0])
    return to_data_tree(groups) if major >= 1 else arviz.InferenceData(**groups)


def to_data_tree(groups: Mapping[str, xarray.Dataset]) -> xarray.DataTree:
    """Put groups into a tree, the container of ArviZ 1.x.

    Parameters
    ----------
    groups
        Name of the group to its dataset.
    """
    return xarray.DataTree.from_dict(dict(groups))


def to_datasets(production: Production) -> dict[str, xarray.Dataset]:
    """Build the groups of the ArviZ schema.

    Parameters
    ----------
    production
        The part of an ensemble after thermalisation.

    Returns
    -------
    ``posterior`` and ``sample_stats``, every variable of dimensions (chain, draw); the coordinate ``update`` gives the
    update number of each draw.
    """
    n_chains, n_draws = production.measurements["action"].shape
    coordinates = {
        "chain": np.arange(n_chains),
        "draw": np.arange(n_draws),
        "update": ("draw", production.trajectory),
    }
    attributes = {
        "inference_library": "flowmc-lattice",
        "theory": production.description.theory,
        "algorithm": production.streams[0].algorithm,
        "updates_per_configuration": production.updates_per_configuration,
        "tau_int_convention": "white noise = 0.5, so 2 tau_int = N / ESS",
    }

    def dataset(variables: Mapping[str, npt.NDArray[Any]]) -> xarray.Dataset:
        arrays = {name: (("chain", "draw"), values) for name, values in variables.items()}
        return xarray.Dataset(arrays, coords=coordinates, attrs=attributes)

    return {"posterior": dataset(production.scalar_series()), "sample_stats": dataset(_sample_stats(production))}


def chain_diagnostics(analysis: EnsembleAnalysis) -> tuple[ChainDiagnostic, ...]:
    """Compute R-hat and effective sample sizes of the scalar observables with ArviZ.

    Parameters
    ----------
    analysis
        The ensemble.

    Returns
    -------
    One entry for each observable that is a plain average; none where chains have fewer than four draws. An observable
    that never changed (frozen spins) has NaN for everything.
    """
    if analysis.n_configurations < _MINIMAL_DRAWS:
        return ()
    arviz = _import_arviz()
    diagnostics = []
    for name, values in analysis.series.items():
        if np.ptp(values) == 0.0:
            diagnostics.append(ChainDiagnostic(name, math.nan, math.nan, math.nan, math.nan))
            continue
        bulk = float(arviz.ess(values, method="bulk"))
        # The quantiles are the default of 0.23; 1.x has none.
        tail = float(arviz.ess(values, method="tail", prob=(0.05, 0.95)))
        with np.errstate(all="ignore"):  # an observable of two values may be constant once it is folded at its median
            r_hat = float(arviz.rhat(values)) if values.shape[0] > 1 else math.nan
        diagnostics.append(
            ChainDiagnostic(
                name=name,
                r_hat=r_hat,
                ess_bulk=bulk,
                ess_tail=tail,
                tau_int_bulk=values.size / (2.0 * bulk),
            )
        )
    return tuple(diagnostics)


def _sample_stats(production: Production) -> dict[str, npt.NDArray[Any]]:
    history = production.history
    # Updates up to and including a draw's own belong to it; those after the last draw belong to none.
    draw = np.searchsorted(production.trajectory, history.update, side="left")
    stats: dict[str, npt.NDArray[Any]] = {
        "lp": -production.measurements["action"],
        "acceptance_rate": _mean_per_draw(history.acceptance, draw, production.trajectory.size),
    }
    if set(history.energy_kinds) & set(history.kind_names):
        stats |= _energy_stats(history, draw, production.trajectory.size)
    return stats


def _mean_per_draw(values: Array, draw: npt.NDArray[np.intp], n_draws: int) -> Array:
    """Mean over the updates of each draw, NaN for a draw without any, shape ``(chains, draws)``."""
    kept = draw < n_draws
    count = np.bincount(draw[kept], minlength=n_draws)
    sums = np.stack([np.bincount(draw[kept], weights=chain[kept], minlength=n_draws) for chain in values])
    return np.asarray(np.where(count > 0, sums / np.maximum(count, 1), np.nan))


def _energy_stats(history: History, draw: npt.NDArray[np.intp], n_draws: int) -> dict[str, npt.NDArray[Any]]:
    rows = draw[np.isin(history.kinds, history.energy_kinds)]  # draw of each trajectory, ascending
    latest = np.searchsorted(rows, np.arange(n_draws), side="right") - 1
    own = (latest >= 0) & (rows[latest] == np.arange(n_draws))
    last = np.where(own, history.delta_h[:, latest], np.nan)
    broken = _mean_per_draw((~np.isfinite(history.delta_h)).astype(np.float64), rows, n_draws)
    return {"energy_error": last, "diverging": broken > 0.0}


def _import_arviz() -> ModuleType:
    """Import ArviZ late (it takes seconds) and without its daily notice about version 1."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return importlib.import_module("arviz")
