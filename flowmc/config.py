"""Run descriptions: one TOML file, validated as a whole before anything starts.

Sections: ``theory``, ``flow``, ``training``, ``sampling`` (with a table ``sampling.blackjax`` for that library's
kernels), ``baseline``, ``ensemble``. Each is checked against the dataclass that it becomes, so that a new method brings
its own keys; an unknown key is refused with the nearest known one.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from math import inf, isfinite
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from flowmc.errors import ConfigError, FlowmcError, ParameterError
from flowmc.flows import FLOWS
from flowmc.kernels import INTEGRATORS
from flowmc.sampling import SamplingPlan
from flowmc.theories import THEORIES, Theory
from flowmc.training import TrainingConfig
from flowmc.training.companions import other_theories

__all__ = [
    "KERNELS",
    "TRAJECTORY_KERNELS",
    "BaselineConfig",
    "BlackJAXConfig",
    "EnsembleConfig",
    "RunConfig",
    "SamplingConfig",
    "parse_run",
    "read_run",
]

TRAJECTORY_KERNELS = ("hmc", "fourier_hmc", "pseudofermion_hmc")
"""Kernels that move along trajectories, of which the step size is tuned."""
KERNELS = (*TRAJECTORY_KERNELS, "heat_bath", "metropolis", "wolff", "swendsen_wang", "blocks", "blackjax", "flow")
"""What a cycle may be made of; several are joined by "+", flow proposals last."""
HYBRIDS = {"real": "hmc+flow", "angle": "hmc+flow", "spin": "heat_bath+flow"}
"""What the kernel "hybrid" stands for, by the space of the field."""
LARGEST_TOLERANCE = 1e-8
STARTS = ("auto", "cold", "hot", "flow")
PRECISIONS = ("float64", "float32")
ADAPTATIONS = ("none", "window", "chees", "meads")
"""How parameters of BlackJAX's kernels are found before a run."""
BASELINES = {"real": "hmc", "angle": "hmc", "spin": "metropolis"}
SECTIONS = ("theory", "flow", "training", "sampling", "baseline", "ensemble")


@dataclass(frozen=True)
class BlackJAXConfig:
    """The ``[sampling.blackjax]`` table: what the kernel "blackjax" is.

    Parameters
    ----------
    algorithm
        Name of an adjusted kernel of BlackJAX, a key of `flowmc_adapters.blackjax.ALGORITHMS`, for example "hmc", "nuts",
        "mala", "ghmc", "dhmc" or "elliptical_slice".
    updates
        Updates in a cycle.
    adaptation
        How parameters are found on the starting fields, before the first update: "window" (step size and diagonal mass
        matrix), "chees" (for "dhmc"), "meads" (for "ghmc") or "none". Nothing adapts afterwards.
    adaptation_steps
        Updates of every chain in that pilot; they are not stored.
    target_acceptance
        Acceptance that "window" and "chees" aim at.
    parameters
        Parameters of the algorithm by BlackJAX's names, for example ``{step_size = 0.1, num_integration_steps = 10}``;
        a step size is the first guess of "window" and "chees", a mass matrix that of "window"; what else an adaptation
        finds it finds without a guess. Arrays, one number a site, are for Python (`flowmc_adapters.blackjax`).
    """

    algorithm: str = "hmc"
    updates: int = 1
    adaptation: str = "window"
    adaptation_steps: int = 500
    target_acceptance: float = 0.8
    parameters: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.adaptation not in ADAPTATIONS:
            near = get_close_matches(self.adaptation, ADAPTATIONS, n=1, cutoff=0.4)
            raise ParameterError(
                got=f"adaptation = {self.adaptation!r}",
                expected=f"one of {list(ADAPTATIONS)}",
                fix=f"did you mean {near[0]!r}?" if near else "correct `adaptation`",
            )
        for name in ("updates", "adaptation_steps"):
            if getattr(self, name) < 1:
                raise ParameterError(
                    got=f"{name} = {getattr(self, name)}", expected="at least 1", fix=f"raise `{name}`"
                )
        if not 0 < self.target_acceptance < 1:
            raise ParameterError(
                got=f"target_acceptance = {self.target_acceptance}",
                expected="a number between 0 and 1",
                fix="correct it",
            )


@dataclass(frozen=True)
class SamplingConfig:
    """The ``[sampling]`` section.

    Parameters
    ----------
    kernel
        A name of `KERNELS`, or several joined by "+" for a fixed cycle of them, for example "hmc+flow"; "hybrid" stands
        for "hmc+flow" or, for spins, "heat_bath+flow".
    seed
        Seed of the run.
    chains
        Chains, advanced together.
    cycles
        Cycles of production.
    thermalisation
        Cycles before production.
    tuning
        Cycles, the first of the thermalisation, in which the step size adapts.
    cycles_per_block
        Cycles between commits to the file.
    save_every
        Cycles between stored configurations.
    hmc_trajectories
        Trajectories in a cycle, of "hmc", "fourier_hmc" and "pseudofermion_hmc".
    flow_proposals
        Flow proposals in a cycle.
    sweeps
        Sweeps over the lattice in a cycle, of "heat_bath" and "metropolis".
    cluster_updates
        Clusters ("wolff") or sweeps ("swendsen_wang") in a cycle.
    block_moves
        Updates of all blocks in a cycle, of "blocks".
    block_side
        Side of those blocks, in lattice units; 0 stands for the largest that the flow has.
    integrator
        "minimum_norm" or "leapfrog".
    trajectory_length
        Fictitious time of a trajectory, dimensionless; with "fourier_hmc", π/2 decorrelates the free field completely.
    step_size
        Molecular-dynamics step; the first guess of the tuner where ``tuning`` > 0.
    target_acceptance
        Acceptance of trajectories that the tuner aims at.
    acceleration_mass
        Mass M > 0 of "fourier_hmc", in lattice units: the momenta have the masses 2 (p̂² + M²) in momentum space. Best
        near the inverse correlation length; it does not change the distribution.
    solver_tolerance
        Relative residual to which "pseudofermion_hmc" solves for the pseudofermions.
    start
        "auto" (flow draws where there is a flow, else hot), "cold", "hot" or "flow".
    start_from
        Path of an ensemble whose last state to start from; overrides ``start``.
    precision
        Type in which the flow's networks run in production.
    threads
        Threads of torch while sampling; more than one fights with JAX's own.
    device
        Device on which torch runs the flow, for example "cpu" or "cuda"; where the chains move is JAX's own setting.
    blackjax
        What the kernel "blackjax" is.
    """

    kernel: str = "hybrid"
    seed: int = 0
    chains: int = 32
    cycles: int = 1000
    thermalisation: int = 100
    tuning: int = 50
    cycles_per_block: int = 50
    save_every: int = 1
    hmc_trajectories: int = 1
    flow_proposals: int = 4
    sweeps: int = 1
    cluster_updates: int = 1
    block_moves: int = 1
    block_side: int = 0
    integrator: str = "minimum_norm"
    trajectory_length: float = 1.0
    step_size: float = 0.1
    target_acceptance: float = 0.85
    acceleration_mass: float = 1.0
    solver_tolerance: float = 1e-10
    start: str = "auto"
    start_from: str = ""
    precision: str = "float64"
    threads: int = 1
    device: str = "cpu"
    blackjax: BlackJAXConfig = field(default_factory=BlackJAXConfig)

    def __post_init__(self) -> None:
        _check_kernel(self.kernel)
        choices = {"start": STARTS, "precision": PRECISIONS, "integrator": tuple(INTEGRATORS)}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ParameterError(
                    got=f"{name} = {getattr(self, name)!r}", expected=f"one of {list(known)}", fix=f"correct `{name}`"
                )
        if not 0 < self.target_acceptance < 1:
            raise ParameterError(
                got=f"target_acceptance = {self.target_acceptance}",
                expected="a number between 0 and 1",
                fix="correct it",
            )
        if not 0 < self.acceleration_mass < inf:
            raise ParameterError(
                got=f"acceleration_mass = {self.acceleration_mass}",
                expected="a finite mass > 0, in lattice units",
                fix="correct it, for example to the inverse correlation length",
            )
        if not 0 < self.solver_tolerance <= LARGEST_TOLERANCE:
            raise ParameterError(
                got=f"solver_tolerance = {self.solver_tolerance}",
                expected=f"a number above 0 and at most {LARGEST_TOLERANCE:g}: it enters the accept test and so the "
                "distribution of the chain",
                fix="lower it, for example to 1e-10",
            )
        numbers = ["hmc_trajectories", "flow_proposals", "sweeps", "cluster_updates", "block_moves"]
        for name in [*numbers, "trajectory_length", "step_size", "threads"]:
            if not getattr(self, name) > 0:
                raise ParameterError(got=f"{name} = {getattr(self, name)}", expected=f"{name} > 0", fix="correct it")
        if not (self.step_size <= self.trajectory_length and isfinite(self.trajectory_length)):
            raise ParameterError(
                got=f"step_size = {self.step_size}, trajectory_length = {self.trajectory_length}",
                expected="step_size <= trajectory_length, both finite",
                fix="shorten the step or lengthen the trajectory",
            )
        if not self.needs_flow and self.start == "flow" and not self.start_from:
            raise ParameterError(
                got=f'kernel = "{self.kernel}" with start = "flow"',
                expected="a flow to draw from",
                fix='take start = "hot"',
            )
        # Refused here rather than when the sampling starts, which may be after a long training.
        _ = self.plan

    @property
    def plan(self) -> SamplingPlan:
        """The driver's plan."""
        return SamplingPlan(
            chains=self.chains,
            cycles=self.cycles,
            thermalisation=self.thermalisation,
            tuning=self.tuning if {*TRAJECTORY_KERNELS, "hybrid"} & set(self.kernel.split("+")) else 0,
            cycles_per_block=self.cycles_per_block,
            save_every=self.save_every,
        )

    @property
    def needs_flow(self) -> bool:
        """Whether the kernel proposes with a flow."""
        return bool({"flow", "blocks", "hybrid"} & set(self.kernel.split("+")))

    def kernels_for(self, theory: Theory) -> tuple[str, ...]:
        """Return the names of the cycle's kernels, in order."""
        return tuple((HYBRIDS[theory.space.name] if self.kernel == "hybrid" else self.kernel).split("+"))


@dataclass(frozen=True)
class BaselineConfig:
    """The ``[baseline]`` section: what the main ensemble is compared with, under otherwise equal settings.

    Parameters
    ----------
    kernels
        Kernels of the baseline ensembles; that of the main ensemble is passed over. By default HMC or, for spins,
        Metropolis.
    cycles, thermalisation, cycles_per_block, save_every
        As in ``[sampling]``; those left out are taken from there.
    hmc_trajectories, trajectory_length, flow_proposals, sweeps, cluster_updates, block_moves
        As in ``[sampling]``; those left out are taken from there.
    """

    kernels: tuple[str, ...] | None = None
    cycles: int | None = None
    thermalisation: int | None = None
    cycles_per_block: int | None = None
    save_every: int | None = None
    hmc_trajectories: int | None = None
    trajectory_length: float | None = None
    flow_proposals: int | None = None
    sweeps: int | None = None
    cluster_updates: int | None = None
    block_moves: int | None = None

    def __post_init__(self) -> None:
        for kernel in self.kernels or ():
            _check_kernel(kernel)

    def sampling(self, kernel: str, main: SamplingConfig) -> SamplingConfig:
        """Return the settings of the baseline with this kernel."""
        own = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "kernels"}
        given = {name: value for name, value in own.items() if value is not None}
        return replace(main, kernel=kernel, start="auto", start_from="", **given)


def _check_kernel(kernel: str) -> None:
    parts = kernel.split("+")
    known = kernel == "hybrid" or (set(parts) <= set(KERNELS) and len(set(parts)) == len(parts))
    if not known or "flow" in parts[:-1]:
        near = [get_close_matches(part, KERNELS, n=1, cutoff=0.5) for part in parts if part not in KERNELS]
        raise ParameterError(
            got=f"kernel {kernel!r}",
            expected=f'"hybrid", one of {list(KERNELS)}, or different ones of them joined by "+", "flow" last',
            fix=f"did you mean {near[0][0]!r}?" if near and near[0] else "correct it",
        )


@dataclass(frozen=True)
class EnsembleConfig:
    """The ``[ensemble]`` section: metadata of the files, with the names of QCDml 2.0."""

    collaboration: str = ""
    project_name: str = ""
    license_uri: str = ""
    markov_chain_uri: str = ""


@dataclass(frozen=True)
class RunConfig:
    """A whole run description."""

    theory: Theory
    flow: Mapping[str, Any] | None
    """Kind and hyper-parameters of the flow, or None for a run without one."""
    training: TrainingConfig
    sampling: SamplingConfig
    baseline: BaselineConfig
    ensemble: EnsembleConfig

    def baselines(self) -> dict[str, SamplingConfig]:
        """Return the settings of the baseline ensembles, by kernel; the main kernel needs none."""
        named = self.baseline.kernels
        kernels = [BASELINES[self.theory.space.name]] if named is None else list(named)
        found = {kernel: self.baseline.sampling(kernel, self.sampling) for kernel in kernels}
        # "hybrid" and what it stands for are the same kernel.
        own = self.sampling.kernels_for(self.theory)
        return {kernel: settings for kernel, settings in found.items() if settings.kernels_for(self.theory) != own}


def read_run(path: Path) -> RunConfig:
    """Read and validate a run description.

    Raises
    ------
    ConfigError
        If the file is missing or is not TOML, or a section, key or value is wrong.
    """
    if not path.is_file():
        raise ConfigError(got=f"no file {path}", expected="a run description in TOML", fix="check the path")
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(got=f"{path}: {error}", expected="valid TOML", fix="correct the syntax there") from error
    return parse_run(tables)


def parse_run(tables: Mapping[str, Any]) -> RunConfig:
    """Validate the tables of a run description.

    Raises
    ------
    ConfigError
        If a section, key or value is wrong.
    """
    _refuse_unknown("section", "the file", tables, SECTIONS)
    for name, table in tables.items():
        if not isinstance(table, Mapping):
            raise ConfigError(got=f"{name} = {table!r}", expected=f"a section [{name}]", fix="correct the file")
    if "theory" not in tables:
        raise ConfigError(got="no [theory] section", expected="[theory] with name, shape and couplings", fix="add it")
    theory = _choose("theory", "name", tables["theory"], THEORIES)
    flow = None
    if "flow" in tables:
        kinds = {kind: flow_class.Config for kind, flow_class in FLOWS.items()}
        _choose("flow", "kind", tables["flow"], kinds)
        flow = dict(tables["flow"])
    run = RunConfig(
        theory=theory,
        flow=flow,
        training=_section("training", tables.get("training", {}), TrainingConfig),
        sampling=_section("sampling", tables.get("sampling", {}), SamplingConfig),
        baseline=_section("baseline", tables.get("baseline", {"kernels": []}), BaselineConfig),
        ensemble=_section("ensemble", tables.get("ensemble", {}), EnsembleConfig),
    )
    other_theories(theory, run.training.also)
    try:
        run.baselines()
    except ParameterError as error:
        raise ConfigError(got=f"[baseline] {error.got}", expected=error.expected, fix=error.fix) from error
    return run


Parsed = TypeVar("Parsed")


def _choose(section: str, selector: str, table: Mapping[str, Any], known: Mapping[str, type[Parsed]]) -> Parsed:
    """Validate a section whose key ``selector`` names the class that it becomes."""
    chosen = str(table.get(selector, ""))
    if chosen not in known:
        near = get_close_matches(str(chosen), known, n=1, cutoff=0.4)
        raise ConfigError(
            got=f"[{section}] {selector} = {chosen!r}" if selector in table else f"no `{selector}` in [{section}]",
            expected=f"one of {sorted(known)}",
            fix=f"did you mean {near[0]!r}?" if near else f"set `{selector}`",
        )
    rest = {key: value for key, value in table.items() if key != selector}
    return _section(section, rest, known[chosen], extra=(selector,))


def _section(section: str, table: Mapping[str, Any], kind: type[Parsed], extra: Iterable[str] = ()) -> Parsed:
    _refuse_unknown("key", f"[{section}]", table, [*(item.name for item in fields(kind)), *extra])  # type: ignore[arg-type]
    _refuse_unknown_below(section, table, kind)
    try:
        # Through JSON: strict validation then still takes a table for a dataclass and an array for a tuple.
        return TypeAdapter(kind).validate_json(json.dumps(dict(table), default=str), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, FlowmcError):
            raise ConfigError(got=f"[{section}] {cause.got}", expected=cause.expected, fix=cause.fix) from cause
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing":
            raise ConfigError(got=f"[{section}] no {key}", expected=f"`{key}` in [{section}]", fix="add it") from error
        expected = {"tuple_type": "an array, for example [8, 8]"}.get(first["type"], first["msg"])
        raise ConfigError(
            got=f"[{section}] {key} = {first.get('input')!r}",
            expected=expected[0].lower() + expected[1:],
            fix=f"correct `{key}` in [{section}]",
        ) from error


def _refuse_unknown_below(section: str, table: Mapping[str, Any], kind: type[Any]) -> None:
    """Refuse unknown keys in the tables of a section whose values become dataclasses themselves."""
    hints = get_type_hints(kind)
    for name, value in table.items():
        inner = hints.get(name)
        if isinstance(value, Mapping) and isinstance(inner, type) and is_dataclass(inner):
            _refuse_unknown("key", f"[{section}.{name}]", value, [item.name for item in fields(inner)])
            _refuse_unknown_below(f"{section}.{name}", value, inner)


def _refuse_unknown(what: str, where: str, table: Mapping[str, Any], known: Iterable[str]) -> None:
    names = list(known)
    for key in table:
        if key not in names:
            near = get_close_matches(key, names, n=1, cutoff=0.5)
            raise ConfigError(
                got=f"unknown {what} {key!r} in {where}",
                expected=f"one of {sorted(names)}",
                fix=f"did you mean {near[0]!r}?" if near else "remove it",
            )
