"""Stored configurations as samples of a theory, for objectives with a forward part."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowmc.errors import ParameterError, TheoryMismatchError
from flowmc.theories import Theory
from flowmc_ensembles import Ensemble

__all__ = ["SampleSet", "check_ensemble", "read_samples"]


@dataclass(frozen=True)
class SampleSet:
    """Configurations of a theory, and what it has cost to make them."""

    fields: NDArray[Any]
    """All configurations, ``(N, *field_shape)``: stream by stream, and in each by the time of the chains."""
    seconds: float
    """Wall time of the chains that they come from, thermalisation included; of those whose time is not known, none."""


def read_samples(path: Path, theory: Theory) -> SampleSet:
    """Read all configurations of all chains and streams of an ensemble; they are held in memory together.

    Parameters
    ----------
    path
        The ensemble.
    theory
        The theory that it must be of.

    Raises
    ------
    EnsembleError
        If it cannot be read, or a configuration does not match its checksum.
    TheoryMismatchError
        If it is of another theory.
    ParameterError
        If it holds no configuration.
    """
    ensemble = Ensemble(path)
    check_ensemble(ensemble, theory, f"samples = {path}")
    streams = [stream for stream in ensemble.streams if stream.n_configurations]
    if not streams:
        raise ParameterError(
            got=f"samples = {path}, which holds no configuration", expected="at least one", fix="let its run go on"
        )
    fields = np.concatenate([stream.configurations().reshape(-1, *theory.field_shape) for stream in streams])
    walltime = [stream.history("walltime") for stream in ensemble.streams if "walltime" in stream.history_names]
    # NaN in chains of another program, which were converted (`flowmc.workflows.conversions`).
    return SampleSet(fields, float(sum(np.nansum(seconds) for seconds in walltime)))


def check_ensemble(found: Ensemble, theory: Theory, what: str) -> None:
    """Check that an ensemble is of a theory.

    Parameters
    ----------
    found
        The ensemble.
    theory
        The theory.
    what
        What the ensemble is called in the message.

    Raises
    ------
    TheoryMismatchError
        If it is of another one.
    """
    if found.description.action != theory.describe():
        raise TheoryMismatchError(
            got=f"{what}, an ensemble of {dict(found.description.action)}",
            expected=f"an ensemble of {theory.describe()}",
            fix="correct [theory], or choose another file",
        )
