"""Making ensembles: from a run description to the driver, the store and back."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flowmc import __version__
from flowmc.arrays import require_x64
from flowmc.config import TRAJECTORY_KERNELS, RunConfig, SamplingConfig
from flowmc.display import Display
from flowmc.errors import ConfigError, ParameterError, RunExistsError
from flowmc.flows import build_flow, load_flow
from flowmc.kernels import Cycle, PilotedMember
from flowmc.proposals import CertificateRecord, Proposal, as_proposal, certify
from flowmc.sampling import SamplingResult, sample
from flowmc.seeds import fold, numpy_generator
from flowmc.theories import Theory
from flowmc.workflows.cycles import build_cycle, build_members
from flowmc.workflows.flows import check_device, check_theory, check_writable, exists_already, for_production
from flowmc.workflows.foreign import is_reference, read_reference
from flowmc.workflows.samples import check_ensemble
from flowmc_ensembles import Ensemble, EnsembleDescription, EnsembleWriter, LogQAccuracy, StreamDescription

__all__ = ["check_resumable", "sample_ensemble", "versions"]

# Flow draws from which the starting point of each chain is picked by weight.
START_DRAWS = 64


def versions() -> dict[str, str]:
    """Return the versions of flowmc and of the libraries that its numbers depend on, optional ones where they are."""
    found = {name: version(name) for name in ("numpy", "numba", "torch", "jax", "jaxlib", "h5py")}
    with suppress(PackageNotFoundError):
        found["blackjax"] = version("blackjax")
    return {"flowmc": __version__, **found}


@dataclass(frozen=True)
class _Flow:
    """A certified proposal, and what the ensemble's file tells of it."""

    proposal: Proposal
    facts: dict[str, Any]
    device: str


def sample_ensemble(
    config: RunConfig,
    settings: SamplingConfig,
    output: Path,
    *,
    flow_path: Path | None,
    resume: bool,
    should_stop: Callable[[], str],
    display: Display,
    base: Path,
    certificate: Path | None = None,
) -> SamplingResult:
    """Make, resume or extend an ensemble.

    Parameters
    ----------
    config
        The run description, for theory and metadata.
    settings
        The kernel and its parameters: the sampling section or a baseline's.
    output
        Path of the ensemble.
    flow_path
        Path of the flow file, or a reference to a proposal of another library (`flowmc.workflows.foreign`), which has its
        own type and device; needed by flow kernels.
    resume
        Whether to go on with an existing file, which is also how a finished run is extended to more cycles.
    should_stop
        Asked after each block.
    display
        Where progress is shown.
    base
        Folder that a relative ``start_from`` refers to.
    certificate
        Record of a certificate of this flow; without one it is measured.

    Raises
    ------
    PrecisionError
        If JAX would truncate to float32.
    RunExistsError
        If the file exists and ``resume`` is off, or it belongs to another run.
    FlowFileError, CertificateError, LatticeMismatchError, TheoryMismatchError
        If the flow cannot be read, fails its certificate or belongs to another theory.
    """
    require_x64()
    check_writable(output)
    exists = output.exists()
    if exists and not resume:
        raise exists_already(output)
    if flow_path is not None and not settings.needs_flow:
        raise ConfigError(
            got=f"a flow ({flow_path}) for kernel = {settings.kernel!r}",
            expected='a kernel with "flow", "blocks" or "hybrid" in [sampling], or no flow',
            fix="change the kernel, or leave --flow out",
        )
    seed = _run_seed(settings)
    torch.set_num_threads(settings.threads)
    flow = _read_flow(config.theory, settings, flow_path, seed, display, certificate) if settings.needs_flow else None
    if flow is not None:
        settings = replace(settings, precision=flow.proposal.metadata.dtype, device=flow.device)
    cycle = build_cycle(config.theory, settings, seed, flow.proposal if flow else None)
    wanted = _describe_stream(cycle, settings, seed)
    if exists:
        found = Ensemble(output)
        _check_same_run(found, config.theory, wanted)
        _tell_of_resumption(found, settings, cycle.n_updates, display)
        writer = EnsembleWriter.open(output)

        def start() -> NDArray[Any]:
            # Only for a file whose run stopped before its first block.
            return _start(config.theory, settings, flow, seed, base)[0]()
    else:
        start, parent = _start(config.theory, settings, flow, seed, base)
        output.parent.mkdir(parents=True, exist_ok=True)
        stream = StreamDescription(**{**wanted, "parent_stream": parent})
        writer = EnsembleWriter.create(output, _describe_ensemble(config, flow), stream)
    if flow is not None:
        measured = flow.facts["certificate"]
        told = f"{len(measured['checks'])} checks, {settings.precision}"
        display.say(f"{settings.kernel}: flow certified ({told}); {LogQAccuracy.of_certificate(measured)}")
    if writer.checkpoint() is None and any(isinstance(member, PilotedMember) for member in cycle.members):
        _tell_of_pilot(settings, display)
    with writer, display.sampling(settings.kernel, settings.plan.total_cycles) as on_block:
        writer.set_attributes({"finished": False, "stop_reason": ""})
        result = sample(
            cycle,
            settings.plan,
            writer,
            start,
            observers={**config.theory.identities(), **config.theory.observers()},
            should_stop=should_stop,
            on_block=on_block,
        )
        adapted = {name.replace(".", "_"): value for name, value in result.adaptation.items()}
        writer.set_attributes({"finished": result.finished, "stop_reason": result.stop_reason, **adapted})
    return result


def _tell_of_pilot(settings: SamplingConfig, display: Display) -> None:
    chosen = settings.blackjax
    if chosen.adaptation != "none":
        told = f"{chosen.adaptation}, {chosen.adaptation_steps} steps of {chosen.algorithm}"
        display.say(f"{settings.kernel}: finding parameters ({told})")


def _run_seed(settings: SamplingConfig) -> int:
    """Return the seed of an ensemble: kernels of one run share a section's seed, but no random numbers."""
    return fold(settings.seed, "sampling", settings.kernel)


def _read_flow(
    theory: Theory, settings: SamplingConfig, path: Path | None, seed: int, display: Display, recorded: Path | None
) -> _Flow:
    if path is None:
        raise ConfigError(
            got=f"kernel = {settings.kernel!r} without a flow",
            expected='a flow file (--flow FILE), or a kernel without "flow", "blocks" and "hybrid" in [sampling]',
            fix="train a flow first, or choose the kernel",
        )
    proposal, facts, used = _proposal(theory, settings, path)
    if recorded is None:
        display.say(f"{settings.kernel}: certifying the flow")
        record = CertificateRecord(certify(proposal, fold(seed, "certificate")), used)
        record.certificate.require()
    else:
        record = CertificateRecord.read(recorded)
        record.require_for(proposal, used)
    facts |= {"certificate": record.certificate.to_dict(), "certificate_name": record.name}
    return _Flow(proposal, facts, "its own" if is_reference(path) else settings.device)


def _proposal(theory: Theory, settings: SamplingConfig, path: Path) -> tuple[Proposal, dict[str, Any], dict[str, str]]:
    """Return the flow as a proposal, what the ensemble's file tells of where it is from, and versions."""
    if is_reference(path):
        foreign = read_reference(path, theory)
        used = {**versions(), **foreign.versions}
        origin = {
            "kind": "foreign",
            "reference": str(path),
            "dtype": foreign.proposal.metadata.dtype,
            "versions": dict(foreign.versions),
        }
        facts = {"flow": origin, "training": {}, "training_seconds": foreign.training_seconds}
        return foreign.proposal, facts, used
    flow, saved = load_flow(path)
    check_theory(saved, theory, path)
    seconds = saved.training.get("seconds", 0.0)
    facts = {"flow": saved.flow, "training": saved.training, "training_seconds": seconds}
    return for_production(flow, settings.precision, settings.device), facts, versions()


def _describe_stream(cycle: Cycle, settings: SamplingConfig, seed: int) -> dict[str, Any]:
    """Return the fields of the stream's description that decide what its numbers are."""
    plan = settings.plan
    parameters = cycle.describe()
    parameters["plan"] = {key: value for key, value in asdict(plan).items() if key != "cycles"}
    parameters["precision"] = settings.precision
    parameters["threads"] = settings.threads
    parameters["device"] = settings.device
    parameters["run_seed"] = settings.seed
    parameters["start"] = settings.start_from or settings.start
    if set(TRAJECTORY_KERNELS) & set(cycle.kinds):
        parameters["tuning"] = {"step_size": settings.step_size, "target_acceptance": settings.target_acceptance}
    return {
        "seed": seed,
        "algorithm": settings.kernel,
        "algorithm_parameters": parameters,
        "n_chains": plan.chains,
        "field_name": cycle.theory.space.field_name,
        "field_dtype": cycle.theory.space.dtype,
        "internal_axes": cycle.theory.internal_axes,
        "thermalisation_updates": plan.thermalisation * cycle.n_updates,
        "freeze_update": plan.tuning * cycle.n_updates,
        "flow_sha256": next((part["flow_sha256"] for part in cycle.describe().values() if "flow_sha256" in part), ""),
        "proposal_kinds": dict(enumerate(cycle.kinds)),
    }


def _describe_ensemble(config: RunConfig, flow: _Flow | None) -> EnsembleDescription:
    theory = config.theory
    return EnsembleDescription(
        theory=theory.name,
        action=theory.describe(),
        lattice_size=theory.shape,
        convention=theory.convention,
        boundary_conditions=("periodic",) * len(theory.shape),
        run={"versions": versions(), **(flow.facts if flow else {})},
        **asdict(config.ensemble),
    )


def _check_same_run(found: Ensemble, theory: Theory, wanted: dict[str, Any]) -> None:
    """Refuse to go on with a file of another run; more cycles are the one thing that may differ."""
    check_ensemble(found, theory, "the file")
    stream = found.streams[0].description
    parameters = "algorithm_parameters"
    old = {key: getattr(stream, key) for key in wanted if key != parameters} | _flat(dict(stream.algorithm_parameters))
    new = {key: value for key, value in wanted.items() if key != parameters} | _flat(wanted[parameters])
    different = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    if "converted_from" in found.description.run:
        raise RunExistsError(
            got="an ensemble that was converted from another program's file",
            expected="one that a run of flowmc began",
            fix="start another ensemble from its last state: `start_from` in [sampling]",
        )
    if different:
        raise RunExistsError(
            got=f"an ensemble with {', '.join(f'{key} = {old.get(key)!r}' for key in different)}",
            expected=f"{', '.join(f'{key} = {new.get(key)!r}' for key in different)}, as in this run (cycles may grow)",
            fix="restore the settings or the flow, or choose another output",
        )


def _flat(nested: dict[str, Any]) -> dict[str, Any]:
    """Return nested tables as one, keyed "outer.inner"."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= {f"{key}.{name}": part for name, part in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def _tell_of_resumption(found: Ensemble, settings: SamplingConfig, updates_per_cycle: int, display: Display) -> None:
    done = found.streams[0].n_updates // updates_per_cycle
    if done > settings.plan.total_cycles:
        display.say(f"{settings.kernel}: the file has {done} cycles already, more than {settings.plan.total_cycles}")
    before: Any = found.description.run.get("versions", {})
    changed = [f"{name} {before[name]} -> {now}" for name, now in versions().items() if before.get(name, now) != now]
    if changed and done < settings.plan.total_cycles:
        display.say(f"{settings.kernel}: other versions than at the start, so not bit-identical: {', '.join(changed)}")


def check_resumable(config: RunConfig, settings: SamplingConfig, output: Path, base: Path) -> None:
    """Check, before a training, what can be known of an ensemble that is to be made after it.

    Raises
    ------
    FlowmcError, EnsembleError
        If the target cannot be written, holds another theory or (where no flow is needed to tell) another run, the
        device is not there, or ``start_from`` cannot be started from.
    """
    check_writable(output)
    proposal = None
    if settings.needs_flow and config.flow is not None:
        check_device(settings.device)
        # Untrained: enough to tell whether the kernels can propose with such a flow.
        proposal = as_proposal(build_flow(config.flow, config.theory))
    build_members(config.theory, settings, _run_seed(settings), proposal)
    if output.exists():
        found = Ensemble(output)
        check_ensemble(found, config.theory, str(output))
        if not settings.needs_flow:
            seed = _run_seed(settings)
            cycle = build_cycle(config.theory, settings, seed, None)
            _check_same_run(found, config.theory, _describe_stream(cycle, settings, seed))
    elif settings.start_from:
        _last_state(base / settings.start_from, config.theory, settings.chains, _run_seed(settings))


Start = Callable[[], NDArray[Any]]


def _start(theory: Theory, settings: SamplingConfig, flow: _Flow | None, seed: int, base: Path) -> tuple[Start, str]:
    """Return what draws the starting fields, and the name of the state they come from ("" if none)."""
    if settings.start_from:
        return _last_state(base / settings.start_from, theory, settings.chains, seed)
    kind = settings.start if settings.start != "auto" else "flow" if flow else "hot"
    if kind == "flow" and flow is not None:
        proposal = flow.proposal
        return lambda: _flow_start(theory, proposal, seed, settings.chains), ""
    generator = numpy_generator(seed, "start")
    return lambda: theory.start(generator, settings.chains, kind), ""


def _flow_start(theory: Theory, proposal: Proposal, seed: int, chains: int) -> NDArray[Any]:
    """Draw a starting point for each chain: one of its own flow draws, picked by weight."""
    field, log_q = proposal.sample(fold(seed, "start"), chains * START_DRAWS)
    log_q = np.where(theory.space.contains(field.reshape(len(field), -1)), log_q, np.nan)
    field = field.astype(theory.space.dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        log_w = -theory.action(field) - log_q
    log_w = np.where(np.isfinite(log_w), log_w, -np.inf).reshape(chains, START_DRAWS)
    # The maximum of log w plus Gumbel noise is a draw in proportion to w.
    noise = numpy_generator(seed, "start").gumbel(size=log_w.shape)
    picked = np.argmax(log_w + noise, axis=1) + START_DRAWS * np.arange(chains)
    chosen: NDArray[Any] = field[picked]
    return chosen


def _last_state(path: Path, theory: Theory, chains: int, seed: int) -> tuple[Start, str]:
    ensemble = Ensemble(path)
    check_ensemble(ensemble, theory, f"start_from = {path}")
    stream = ensemble.streams[-1]
    if stream.description.seed == seed:
        raise ParameterError(
            got=f"start_from = {path}, which has the seed and the kernel of this run",
            expected="another seed: with the same one, random numbers and proposals would be used twice",
            fix="change `seed` in [sampling], or extend the ensemble with --resume instead",
        )
    saved = stream.checkpoint()
    if saved is None:
        raise ParameterError(
            got=f"start_from = {path}, which holds no checkpoint", expected="a run with a committed block", fix="run it"
        )
    field = np.asarray(saved["state.field"])
    if len(field) != chains:
        raise ParameterError(
            got=f"start_from = {path} with {len(field)} chains",
            expected=f"{chains} chains, as in [sampling]",
            fix=f"set chains = {len(field)}",
        )
    uri = ensemble.description.markov_chain_uri or path.name
    return lambda: field, f"{uri}#stream_{len(ensemble.streams) - 1:04d}@{stream.n_updates}"
