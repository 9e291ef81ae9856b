"""From a run description to the cycle of kernels: one line for each kernel that a description may name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

from flowmc.config import SamplingConfig
from flowmc.kernels import (
    HMC,
    BlockMoves,
    Checkerboard,
    ClusterKernel,
    ClusterUpdates,
    Cycle,
    CycleMember,
    FlowProposals,
    FourierHMC,
    Independence,
    LinkMetropolis,
    LocalKernel,
    LocalUpdates,
    PseudofermionHMC,
    Trajectories,
    TrajectoryKernel,
)
from flowmc.proposals import BlockProposal, Proposal
from flowmc.theories import GaugeTheory2D, Ising, Schwinger, SmoothTheory, Theory, U1Gauge2D
from flowmc_adapters.blackjax import BlackJAXUpdates, Pilot

__all__ = ["build_cycle", "build_members"]


def _trajectories(kernel: TrajectoryKernel, settings: SamplingConfig, seed: int) -> CycleMember:
    return Trajectories.build(
        kernel,
        seed,
        settings.hmc_trajectories,
        trajectory_length=settings.trajectory_length,
        step_size=settings.step_size,
        target_acceptance=settings.target_acceptance if settings.plan.tuning else None,
    )


def _hmc(theory: Theory, settings: SamplingConfig, seed: int) -> CycleMember:
    return _trajectories(HMC(cast(SmoothTheory, theory), settings.integrator), settings, seed)


def _fourier_hmc(theory: Theory, settings: SamplingConfig, seed: int) -> CycleMember:
    kernel = FourierHMC(cast(SmoothTheory, theory), settings.integrator, settings.acceleration_mass)
    return _trajectories(kernel, settings, seed)


def _pseudofermions(theory: Theory, settings: SamplingConfig, seed: int) -> CycleMember:
    kernel = PseudofermionHMC(cast(Schwinger, theory), settings.integrator, settings.solver_tolerance)
    return _trajectories(kernel, settings, seed)


def _sweeps(rule: str, theory: Theory, settings: SamplingConfig, seed: int) -> CycleMember:
    kernel: LocalKernel
    if rule == LinkMetropolis.rule and isinstance(theory, GaugeTheory2D):
        kernel = LinkMetropolis(cast(U1Gauge2D, theory))
    else:
        kernel = Checkerboard(cast(Ising, theory), rule)
    return LocalUpdates(kernel, seed, settings.sweeps)


def _clusters(rule: str, theory: Theory, settings: SamplingConfig, seed: int) -> CycleMember:
    return ClusterUpdates(ClusterKernel(cast(Ising, theory), rule), seed, settings.cluster_updates)


def _blackjax(theory: Theory, settings: SamplingConfig, seed: int) -> CycleMember:
    chosen = settings.blackjax
    pilot = None
    if chosen.adaptation != "none":
        pilot = Pilot(chosen.adaptation, chosen.adaptation_steps, chosen.target_acceptance)
    return BlackJAXUpdates.build(theory, chosen.algorithm, seed, chosen.updates, chosen.parameters, pilot=pilot)


OWN: dict[str, Callable[[Theory, SamplingConfig, int], CycleMember]] = {
    "hmc": _hmc,
    "fourier_hmc": _fourier_hmc,
    "pseudofermion_hmc": _pseudofermions,
    "heat_bath": partial(_sweeps, "heat_bath"),
    "metropolis": partial(_sweeps, "metropolis"),
    "wolff": partial(_clusters, "wolff"),
    "swendsen_wang": partial(_clusters, "swendsen_wang"),
    "blackjax": _blackjax,
}
"""Kernels that need the theory alone."""

WITH_FLOW: dict[str, Callable[[Theory, SamplingConfig, int, Proposal], CycleMember]] = {
    "blocks": lambda theory, settings, seed, proposal: BlockMoves(
        cast(Ising, theory), cast(BlockProposal, proposal), seed, settings.block_moves, settings.block_side
    ),
    "flow": lambda theory, settings, seed, proposal: FlowProposals(
        Independence(theory), proposal, seed, settings.flow_proposals
    ),
}
"""Kernels that propose with a flow."""


def build_members(
    theory: Theory, settings: SamplingConfig, seed: int, proposal: Proposal | None
) -> tuple[CycleMember, ...]:
    """Build the kernels of a cycle.

    Parameters
    ----------
    theory
        The theory.
    settings
        The sampling section, or a baseline's.
    seed
        Seed of the ensemble.
    proposal
        The flow; without one, the kernels that need it are left out, which checks the others before a training.

    Raises
    ------
    ParameterError, TheoryMismatchError, LatticeMismatchError
        If a kernel cannot move this theory's fields, or not with these settings.
    """
    members = []
    for name in settings.kernels_for(theory):
        if name in OWN:
            members.append(OWN[name](theory, settings, seed))
        elif proposal is not None:
            members.append(WITH_FLOW[name](theory, settings, seed, proposal))
    return tuple(members)


def build_cycle(theory: Theory, settings: SamplingConfig, seed: int, proposal: Proposal | None) -> Cycle:
    """Build the cycle; see `build_members`."""
    return Cycle(theory, build_members(theory, settings, seed, proposal))
