"""Chains of emcee on disk: reading an `emcee.backends.HDFBackend`, and writing one that emcee reads and continues.

The layout is that of emcee 3.1 (``emcee/backends/hdf.py``): a group, "mcmc" unless another name was given, with the
attributes ``version, nwalkers, ndim, has_blobs, iteration, random_state_0 ... 4`` and the datasets ``chain`` (steps,
walkers, ndim), ``log_prob`` (steps, walkers), ``accepted`` (walkers,), the number of accepted steps of each walker, and
perhaps ``blobs``. emcee extends the datasets before it runs and counts afterwards: ``iteration`` says how many rows are
real, and what lies behind them is filling.

emcee's autocorrelation time is 1 + 2 Σ ρ(t), **twice** the τ_int of this project (white noise: 1 there, 0.5 here).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from flowmc.errors import FlowmcError, LatticeMismatchError, NonFiniteError, ParameterError, RunExistsError
from flowmc.seeds import fold

__all__ = ["BackendError", "EmceeChain", "holds_backend", "read_backend", "write_backend"]

LAYOUT = "3.1.6"
"""Version of emcee whose layout is written."""

Array = npt.NDArray[np.float64]


class BackendError(FlowmcError):
    """A file of emcee cannot be read: missing, in use, truncated, empty, or not one of emcee's."""


@dataclass(frozen=True)
class EmceeChain:
    """What an HDFBackend holds."""

    fields: Array
    """Positions, (n, walkers, *event_shape); a rejected step repeats the one before."""
    log_prob: Array
    """Log density of the target there, (n, walkers), nats, up to a constant."""
    accepted: npt.NDArray[np.float64]
    """Accepted steps of each walker, (walkers,), of all ``n_steps``; with emcee's ``thin_by`` only stored ones count."""
    n_steps: int
    """Steps in the file, before any are discarded."""
    steps: npt.NDArray[np.int64]
    """Number of the step, from 1, to which each of the n rows belongs."""
    stored_dtype: np.dtype[Any]
    """Floating-point type in which emcee stored positions and log densities; here they are float64."""
    blobs: npt.NDArray[Any] | None
    """What the target returned beside its log density, (n, walkers, ...); None if there is nothing or it was left out."""
    version: str
    """Version of emcee that wrote the file."""

    @property
    def acceptance_fraction(self) -> Array:
        """Accepted fraction of all steps, (walkers,), as emcee gives it."""
        return self.accepted / self.n_steps


def read_backend(
    path: str | os.PathLike[str],
    *,
    event_shape: tuple[int, ...] | None = None,
    name: str = "mcmc",
    discard: int = 0,
    thin: int = 1,
    with_blobs: bool = False,
) -> EmceeChain:
    """Read a chain of emcee; emcee itself is not needed for that.

    Parameters
    ----------
    path
        The HDF5 file.
    event_shape
        Shape of one configuration, to which the flat walkers are brought; one axis by default.
    name
        Name of the group.
    discard
        Steps to leave out at the beginning.
    thin
        Keep every ``thin``-th of the others, the last of each ``thin`` as emcee does.
    with_blobs
        Whether blobs are read, too; otherwise they are ignored.

    Raises
    ------
    BackendError
        If the file is missing, held by a running emcee, truncated, or none of emcee's, or has no steps.
    LatticeMismatchError
        If the walkers do not have ``prod(event_shape)`` dimensions.
    ParameterError
        If ``discard`` is negative, ``thin`` less than one, or nothing is left.
    NonFiniteError
        If a position is not finite.
    """
    source = Path(path)
    if discard < 0 or thin < 1:
        raise ParameterError(
            got=f"discard = {discard}, thin = {thin}", expected="discard >= 0 and thin >= 1", fix="correct them"
        )
    with _opened(source) as file:
        group = _group(file, source, name)
        n_steps, n_walkers, ndim = (int(group.attrs[key]) for key in ("iteration", "nwalkers", "ndim"))
        event = (ndim,) if event_shape is None else tuple(event_shape)
        if prod(event) != ndim:
            raise LatticeMismatchError(
                got=f"{source}: walkers of {ndim} dimensions",
                expected=f"{prod(event)}, for configurations of shape {event}",
                fix="give the shape that was flattened for emcee",
            )
        steps = np.arange(1, n_steps + 1, dtype=np.int64)[discard + thin - 1 :: thin]
        if not steps.size:
            raise ParameterError(
                got=f"discard = {discard}, thin = {thin} of {n_steps} steps in {source}",
                expected="at least one step that is left",
                fix="lower them, or run emcee longer",
            )
        # A stride is left to NumPy, which is much faster at it than HDF5.
        rows = slice(discard, n_steps)
        try:
            chain, log_prob = group["chain"][rows][thin - 1 :: thin], group["log_prob"][rows][thin - 1 :: thin]
            blobs = group["blobs"][rows][thin - 1 :: thin] if with_blobs and "blobs" in group else None
            accepted = np.asarray(group["accepted"][...], dtype=np.float64)
        except OSError as error:
            raise _unreadable(source, error) from error
        found = EmceeChain(
            fields=np.asarray(chain, dtype=np.float64).reshape(len(steps), n_walkers, *event),
            log_prob=np.asarray(log_prob, dtype=np.float64),
            accepted=accepted,
            n_steps=n_steps,
            steps=steps,
            stored_dtype=np.dtype(chain.dtype),
            blobs=blobs,
            version=str(group.attrs.get("version", "unknown")),
        )
    bad = int(np.count_nonzero(~np.isfinite(found.fields)))
    if bad:
        raise NonFiniteError(
            got=f"{source}: {bad} coordinates that are not finite",
            expected="finite positions, the only ones that emcee accepts",
            fix="restore the file from a copy, or discard the damaged steps",
        )
    return found


def write_backend(
    path: str | os.PathLike[str],
    fields: npt.ArrayLike,
    log_prob: npt.ArrayLike,
    *,
    accepted: npt.ArrayLike | None = None,
    name: str = "mcmc",
    seed: int = 0,
    attributes: Mapping[str, str | int | float] | None = None,
) -> None:
    """Write a chain as emcee would have, so that emcee reads it and can continue from its last step.

    The file appears whole or not at all.

    Parameters
    ----------
    path
        Where; nothing may be there.
    fields
        Positions, (n, walkers, *event_shape), finite; stored flat, in float64.
    log_prob
        Log density of the target there, (n, walkers), nats. To continue, emcee needs it with the same additive constant
        that its own target has.
    accepted
        Accepted steps of each walker, (walkers,); by default the number of rows that differ from the one before.
    name
        Name of the group.
    seed
        Seed of the generator with which emcee continues.
    attributes
        Further attributes of the group, which emcee ignores.

    Raises
    ------
    RunExistsError
        If something is at ``path``; it is left as it is.
    LatticeMismatchError
        If shapes do not fit, or there is no row.
    NonFiniteError
        If a position is not finite, or a log density NaN or +inf.
    """
    target = Path(path)
    if os.path.lexists(target):
        raise RunExistsError(
            got=f"{target}, which exists", expected="a path where nothing is yet", fix="choose another output"
        )
    positions, density = np.asarray(fields, dtype=np.float64), np.asarray(log_prob, dtype=np.float64)
    if positions.ndim < 2 or not positions.size or density.shape != positions.shape[:2]:
        raise LatticeMismatchError(
            got=f"fields of shape {positions.shape} with log_prob of shape {density.shape}",
            expected="(n, walkers, *event_shape) and (n, walkers), at least one of each",
            fix="give one log density for each configuration",
        )
    if not np.isfinite(positions).all() or not (density < np.inf).all():
        raise NonFiniteError(
            got="positions that are not finite, or log densities that are NaN or +inf",
            expected="finite positions, and log densities that are numbers or -inf",
            fix="drop the broken configurations",
        )
    n, n_walkers = density.shape
    flat = positions.reshape(n, n_walkers, -1)
    moves = np.any(flat[1:] != flat[:-1], axis=2).sum(axis=0) if accepted is None else np.asarray(accepted)
    if moves.shape != (n_walkers,):
        raise LatticeMismatchError(
            got=f"accepted of shape {moves.shape}", expected=f"({n_walkers},): one number a walker", fix="correct it"
        )
    temporary = target.with_name(target.name + ".tmp")
    try:
        with h5py.File(temporary, "w") as file:
            group = file.create_group(name)
            group.attrs.update(
                {"version": LAYOUT, "nwalkers": n_walkers, "ndim": flat.shape[2], "has_blobs": False, "iteration": n}
            )
            group.attrs.update(attributes or {})
            # The legacy generator is the one that emcee uses.
            for index, part in enumerate(np.random.RandomState(fold(seed, "emcee") % 2**32).get_state()):
                group.attrs[f"random_state_{index}"] = part
            group.create_dataset("accepted", data=moves.astype(np.float64))
            # Without a limit in time, so that emcee can extend them.
            group.create_dataset("chain", data=flat, maxshape=(None, *flat.shape[1:]))
            group.create_dataset("log_prob", data=density, maxshape=(None, n_walkers))
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def holds_backend(path: str | os.PathLike[str], name: str = "mcmc") -> bool:
    """Return whether a file is HDF5 with a group of emcee's of that name; False where it cannot be read at all."""
    try:
        with h5py.File(path, "r") as file:
            return name in file and isinstance(file[name], h5py.Group) and _missing(file[name]) == []
    except OSError:
        return False


def _opened(path: Path) -> h5py.File:
    if not path.is_file():
        raise BackendError(got=f"no file {path}", expected="an HDF5 file of emcee", fix="check the path")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> BackendError:
    """Say in one's own words why HDF5 cannot read a file."""
    text = str(error)
    if isinstance(error, BlockingIOError) or "unable to lock" in text:
        return BackendError(
            got=f"{path}, which another process holds",
            expected="a file that nobody writes to",
            fix="wait for emcee to end, or copy the file between two of its steps and read the copy",
        )
    if "truncated" in text:
        return BackendError(
            got=f"{path}, which is shorter than its own header says",
            expected="a complete HDF5 file",
            fix="copy it again, or restore it",
        )
    return BackendError(
        got=f"{path}: {text}", expected="an HDF5 file of emcee", fix="check the path, or restore the file"
    )


def _missing(group: h5py.Group) -> list[str]:
    """Return what an emcee group must have and this one has not."""
    attributes = [name for name in ("nwalkers", "ndim", "iteration") if name not in group.attrs]
    return [*attributes, *(name for name in ("chain", "log_prob", "accepted") if name not in group)]


def _group(file: h5py.File, path: Path, name: str) -> h5py.Group:
    """Return the group of a chain, checked; ``iteration`` and the shapes of its tables fit each other."""
    candidates = sorted(key for key in file if isinstance(file[key], h5py.Group) and not _missing(file[key]))
    if name not in candidates:
        raise BackendError(
            got=f"{path}: no chain of emcee called {name!r}",
            expected=f"one of {candidates}" if candidates else "a file that emcee.backends.HDFBackend wrote",
            fix="give the name of the group" if candidates else "check the path",
        )
    group = file[name]
    n, walkers, ndim = (int(group.attrs[key]) for key in ("iteration", "nwalkers", "ndim"))
    if n < 1:
        raise BackendError(
            got=f"{path}: a chain {name!r} without steps", expected="at least one stored step", fix="run emcee first"
        )
    shapes = {key: tuple(group[key].shape) for key in ("chain", "log_prob", "accepted")}
    fits = shapes["chain"][1:] == (walkers, ndim) and shapes["log_prob"][1:] == (walkers,)
    if not fits or shapes["accepted"] != (walkers,) or min(shapes["chain"][0], shapes["log_prob"][0]) < n:
        raise BackendError(
            got=f"{path}: {shapes} with iteration = {n}, nwalkers = {walkers}, ndim = {ndim}",
            expected="tables with a row for every step",
            fix="restore the file from a copy",
        )
    return group
