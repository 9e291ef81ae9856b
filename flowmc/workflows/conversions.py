"""Ensembles from chains of emcee, and chains of emcee from ensembles.

A chain of emcee becomes an ensemble only with the theory that it is claimed to sample: log p + S must be one number on
all configurations, up to rounding, and the actions that the ensemble stores are the theory's own. What emcee does not
know (a seed, wall times, the moves) is stated as unknown and never made up.

emcee's ensemble moves (stretch, differential evolution) let walkers move along each other's differences. Walkers are then
independent at one time, but not from one time to another, which errors that take them for replicas do not see; with
moves of single walkers (`flowmc_adapters.emcee.FlowMove`, `emcee.moves.GaussianMove`) they are independent altogether.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowmc.errors import ConfigError, NonFiniteError, ParameterError, RunExistsError, TheoryMismatchError
from flowmc.theories import Theory
from flowmc.workflows.ensembles import versions
from flowmc.workflows.flows import check_writable
from flowmc_adapters.emcee_backend import EmceeChain, holds_backend, read_backend, write_backend
from flowmc_ensembles import Ensemble, EnsembleDescription, EnsembleError, EnsembleWriter, StreamDescription

__all__ = ["Conversion", "convert", "ensemble_from_emcee", "ensemble_to_emcee"]

Array = NDArray[np.float64]

KIND = "emcee"
# log p + S of one target may scatter by the rounding of two sums over the lattice, relative to their size.
ROUNDING = {"float64": 1e-9, "longdouble": 1e-9, "float32": 1e-4, "float16": 1e-1}
# Field values written in one block: 64 MiB in double precision.
BLOCK_NUMBERS = 2**23


@dataclass(frozen=True)
class Conversion:
    """What was converted."""

    target: Path
    kind: str
    """What the target is: "ensemble" or "emcee"."""
    n_configurations: int
    """Configurations of each chain."""
    n_chains: int
    steps_left_out: bool = False
    """Whether emcee stored only some of its steps, so that an update is several of them."""


def convert(
    source: Path,
    target: Path,
    *,
    theory: Theory | None = None,
    discard: int = 0,
    thin: int = 1,
    name: str = "mcmc",
    stream: int = 0,
    tolerance: float | None = None,
) -> Conversion:
    """Convert a chain of emcee to an ensemble, or an ensemble to a chain of emcee: the content of the source decides.

    Parameters
    ----------
    source
        An `emcee.backends.HDFBackend` or an ensemble.
    target
        The file to write; nothing may be there.
    theory
        The theory that a chain of emcee samples; an ensemble knows its own.
    discard, thin
        See `ensemble_from_emcee` and `ensemble_to_emcee`.
    name
        Name of emcee's group.
    stream
        Number of the ensemble's stream.
    tolerance
        See `ensemble_from_emcee`.

    Raises
    ------
    ConfigError
        If the theory is missing for a chain of emcee, or one is given for an ensemble.
    FlowmcError, EnsembleError
        As `ensemble_from_emcee` and `ensemble_to_emcee` say.
    """
    if theory is not None:
        if _is_ensemble(source):
            raise ConfigError(
                got=f"a theory for {source}, which is an ensemble",
                expected="an ensemble without a theory, since it knows its own, or a chain of emcee",
                fix="leave --theory out, or check the source",
            )
        return ensemble_from_emcee(source, theory, target, discard=discard, thin=thin, name=name, tolerance=tolerance)
    if holds_backend(source, name):
        raise ConfigError(
            got=f"{source}, a chain of emcee, without a theory",
            expected="the theory that it samples: emcee's file does not say",
            fix="add --theory CONFIG.toml, a run description with its [theory]",
        )
    return ensemble_to_emcee(source, target, discard=discard, thin=thin, name=name, stream=stream)


def ensemble_from_emcee(
    backend: Path,
    theory: Theory,
    output: Path,
    *,
    discard: int = 0,
    thin: int = 1,
    name: str = "mcmc",
    tolerance: float | None = None,
    seconds: float | None = None,
) -> Conversion:
    """Write the chain of an `emcee.backends.HDFBackend` as an ensemble.

    Every walker becomes a chain, and every stored step of emcee an update. Rejected steps repeat the configuration before
    them and are kept, as the weights of the chain that they are.

    Parameters
    ----------
    backend
        emcee's file.
    theory
        The theory, of a real field, whose exp(−S) emcee has sampled, up to a factor.
    output
        The ensemble; nothing may be there.
    discard
        Steps to leave out at the beginning as thermalisation.
    thin
        Steps between configurations that are kept; the history has all of them.
    name
        Name of emcee's group.
    tolerance
        By how many nats log p + S may scatter. By default 10⁻⁹ of the largest |S| or |log p| (10⁻⁴ where emcee stored
        float32), and no less than that of one nat; raise it for a target that was computed in single precision.
    seconds
        Wall time of all steps in the file, if it is known; it is spread evenly over them.

    Returns
    -------
    What was written.

    Raises
    ------
    BackendError
        If emcee's file cannot be read.
    RunExistsError, OutputError
        If something is at ``output``, or nothing can be written there.
    TheoryMismatchError
        If the theory is not of real fields, or log p + S is not constant: emcee sampled another target.
    NonFiniteError
        If log p or S is not finite at a kept configuration.
    LatticeMismatchError, ParameterError
        If shape, ``discard`` or ``thin`` do not fit.
    """
    _check_output(output)
    if theory.space.name != "real":
        raise TheoryMismatchError(
            got=f"a theory of {theory.space.name} fields for a chain of emcee",
            expected="a theory of real fields, which is what walkers are",
            fix="choose another theory",
        )
    chain, before = _read_with_predecessor(backend, theory, name, discard)
    kept = len(chain.steps) // thin if thin > 0 else 0
    if not kept:
        raise ParameterError(
            got=f"discard = {discard}, thin = {thin} of {chain.n_steps} steps",
            expected="thin >= 1 and at least one step that is left",
            fix="correct them, or run emcee longer",
        )
    n_walkers = chain.log_prob.shape[1]
    action = np.asarray(theory.action(chain.fields.reshape(-1, *theory.field_shape)), dtype=np.float64)
    action = action.reshape(-1, n_walkers)
    constant, scatter, allowed = _check_target(chain, action, theory, backend, tolerance)
    description = EnsembleDescription(
        theory=theory.name,
        action=theory.describe(),
        lattice_size=theory.shape,
        convention=theory.convention,
        run={
            "versions": versions(),
            "converted_from": {
                "file": backend.name,
                "group": name,
                "emcee_version": chain.version,
                "stored_type": chain.stored_dtype.name,
                "log_prob_plus_action": constant,
                "log_prob_plus_action_scatter": scatter,
                "tolerance": allowed,
            },
        },
    )
    stream = StreamDescription(
        # A number must be there; the parameters say that it means nothing.
        seed=0,
        algorithm=KIND,
        algorithm_parameters={
            "seed": "unknown: emcee keeps the state of a generator, not a seed",
            "moves": "unknown: emcee's file does not say",
            "discard": discard,
            "thin": thin,
            "steps_in_file": chain.n_steps,
            "acceptance_fraction": chain.acceptance_fraction.tolist(),
        },
        n_chains=n_walkers,
        field_name=theory.space.field_name,
        field_dtype=theory.space.dtype,
        internal_axes=theory.internal_axes,
        thermalisation_updates=discard,
        freeze_update=discard,
        proposal_kinds={0: KIND},
    )
    history = _history(chain, before, action, seconds)
    if left_out := not _counts_agree(chain, history["accepted"], before is None):
        stream = replace(
            stream,
            algorithm_parameters={
                **stream.algorithm_parameters,
                "accepted": "changed since the step that was stored before",
            },
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    with EnsembleWriter.create(output, description, stream) as writer:
        writer.set_attributes({"finished": False, "stop_reason": "the conversion was interrupted"})
        per_block = max(1, BLOCK_NUMBERS // chain.fields[0].size // thin) * thin
        for first in range(0, len(chain.steps), per_block):
            block = slice(first, first + per_block)
            _append(writer, theory, chain, action, {key: column[block] for key, column in history.items()}, block, thin)
        writer.set_attributes({"finished": True, "stop_reason": ""})
    return Conversion(output, "ensemble", kept, n_walkers, steps_left_out=left_out)


def _counts_agree(chain: EmceeChain, accepted: NDArray[np.uint8], from_the_start: bool) -> bool:
    """Return whether emcee counted as many acceptances as there are changes: it did not if it left steps out (`thin_by`).

    Its count is of all steps, those at the beginning that are discarded included.
    """
    missing = chain.accepted - accepted.sum(axis=0)
    return bool((missing >= 0).all() and (not from_the_start or (missing == 0).all()))


def _check_target(
    chain: EmceeChain, action: Array, theory: Theory, backend: Path, tolerance: float | None
) -> tuple[float, float, float]:
    """Return the constant log p + S, how far it scatters, and how far it may; refuse another target."""
    bad = int(np.count_nonzero(~(np.isfinite(action) & np.isfinite(chain.log_prob))))
    if bad:
        raise NonFiniteError(
            got=f"{backend}: {bad} of {action.size} configurations with a log density or an action that is not finite",
            expected="configurations of the theory",
            fix="raise `discard` if they are at the beginning; otherwise correct emcee's target",
        )
    total = chain.log_prob + action
    constant = float(np.median(total))
    scatter = float(np.abs(total - constant).max())
    size = max(1.0, float(np.abs(action).max()), float(np.abs(chain.log_prob).max()))
    allowed = ROUNDING.get(chain.stored_dtype.name, ROUNDING["float64"]) * size if tolerance is None else tolerance
    if not scatter <= allowed:
        raise TheoryMismatchError(
            got=f"{backend}: log p + S scatters by {scatter:.3g} nats about {constant:.6g}",
            expected=f"one number up to {allowed:.2g} nats, if emcee sampled exp(-S) of {theory}",
            fix="give the theory, its couplings and its shape as they were sampled; for a target that was computed in "
            "single precision raise `tolerance` (--tolerance, in nats)",
        )
    return constant, scatter, allowed


def _read_with_predecessor(backend: Path, theory: Theory, name: str, discard: int) -> tuple[EmceeChain, Array | None]:
    """Return all steps after ``discard``, and the positions before the first of them where they are known."""
    chain = read_backend(backend, event_shape=theory.field_shape, name=name, discard=discard - (discard > 0))
    if not discard:
        return chain, None
    later = replace(chain, fields=chain.fields[1:], log_prob=chain.log_prob[1:], steps=chain.steps[1:])
    return later, chain.fields[0]


def _history(chain: EmceeChain, before: Array | None, action: Array, seconds: float | None) -> dict[str, NDArray[Any]]:
    """Return one row for each step: an accepted step is one that changed the position."""
    fields = chain.fields.reshape(*action.shape, -1)
    accepted = np.empty(action.shape, np.uint8)
    accepted[1:] = np.any(fields[1:] != fields[:-1], axis=2)
    if before is not None:
        accepted[0] = np.any(fields[0] != before.reshape(fields[0].shape), axis=1)
    else:
        # What came before the first step is in no file, but emcee's count tells, unless it left steps out.
        left = chain.accepted - accepted[1:].sum(axis=0)
        accepted[0] = left > 0 if np.isin(left, (0, 1)).all() else 0
    return {
        "update": chain.steps,
        "proposal_kind": np.zeros(len(chain.steps), np.uint8),
        "accepted": accepted,
        "action": action,
        "walltime": np.full(len(chain.steps), np.nan if seconds is None else seconds / chain.n_steps),
    }


def _append(
    writer: EnsembleWriter,
    theory: Theory,
    chain: EmceeChain,
    action: Array,
    history: dict[str, NDArray[Any]],
    block: slice,
    thin: int,
) -> None:
    kept = slice(thin - 1, None, thin)
    fields, actions, steps = chain.fields[block][kept], action[block][kept], chain.steps[block][kept]
    observers = {**theory.identities(), **theory.observers()} if len(steps) else {}
    flat = fields.reshape(fields.shape[0] * fields.shape[1], *theory.field_shape)
    measured = {key: np.asarray(observer(flat)) for key, observer in observers.items()}
    writer.append(
        trajectory=steps,
        configurations={theory.space.field_name: fields, "action": actions},
        history=history,
        observables={key: values.reshape(*actions.shape, *values.shape[1:]) for key, values in measured.items()},
        # From which `start_from` of a run description can go on.
        checkpoint={"state.field": chain.fields[block][-1], "state.action": action[block][-1]},
    )


def ensemble_to_emcee(
    ensemble: Path,
    output: Path,
    *,
    stream: int = 0,
    discard: int = 0,
    thin: int = 1,
    name: str = "mcmc",
) -> Conversion:
    """Write the configurations of an ensemble as an `emcee.backends.HDFBackend`.

    emcee reads it, and can continue from its last configuration if its own target is −S with the same constant. There,
    one step is one *stored configuration*; a walker counts as accepted where its configuration differs from the one
    before.

    Parameters
    ----------
    ensemble
        The ensemble, of a real field.
    output
        emcee's file; nothing may be there.
    stream
        Number of the stream.
    discard
        Configurations after thermalisation to leave out at the beginning.
    thin
        Keep every ``thin``-th of the others, the last of each ``thin``.
    name
        Name of emcee's group.

    Returns
    -------
    What was written.

    Raises
    ------
    EnsembleError
        If the ensemble cannot be read, or has no such stream.
    RunExistsError, OutputError
        If something is at ``output``, or nothing can be written there.
    TheoryMismatchError
        If its field is not real.
    ParameterError
        If no configuration is left.
    """
    _check_output(output)
    source = Ensemble(ensemble)
    if not 0 <= stream < len(source.streams):
        raise ParameterError(
            got=f"stream {stream} of {ensemble}",
            expected=f"0 to {len(source.streams) - 1}",
            fix="name a stream that the ensemble has",
        )
    chosen = source.streams[stream]
    # By name: angles are stored as real numbers, too, but the real line is not where they live.
    if chosen.description.field_name != "phi":
        raise TheoryMismatchError(
            got=f"{ensemble}, an ensemble of the field {chosen.description.field_name!r}",
            expected="a real field, which is what emcee's walkers are",
            fix="use the ensemble as it is; flowmc analyze and flowmc_ensembles.Ensemble read it",
        )
    start = int(np.searchsorted(chosen.trajectory, chosen.description.thermalisation_updates, side="right"))
    kept = np.arange(chosen.n_configurations)[start:][max(discard, 0) + thin - 1 :: max(thin, 1)]
    if discard < 0 or thin < 1 or not kept.size:
        raise ParameterError(
            got=f"discard = {discard}, thin = {thin} of {chosen.n_configurations - start} configurations",
            expected="discard >= 0, thin >= 1 and at least one configuration that is left",
            fix="correct them, or let the run go on",
        )
    rows = kept - start
    fields = chosen.configurations(start=start)[rows]
    action = np.asarray(chosen.configurations("action", start=start), dtype=np.float64)[rows]
    output.parent.mkdir(parents=True, exist_ok=True)
    write_backend(
        output,
        fields,
        -action,
        name=name,
        seed=chosen.description.seed,
        attributes={
            "flowmc_theory": source.description.theory,
            "flowmc_source": f"{ensemble.name}#stream_{stream:04d}",
        },
    )
    return Conversion(output, KIND, len(rows), chosen.description.n_chains)


def _is_ensemble(path: Path) -> bool:
    try:
        Ensemble(path)
    except EnsembleError:
        return False
    return True


def _check_output(output: Path) -> None:
    check_writable(output)
    if output.exists():
        raise RunExistsError(
            got=f"{output}, which exists", expected="a path where nothing is yet", fix="choose another target"
        )
