"""Exact Markov kernels on batches of chains, and the fixed cycles that combine them."""

from __future__ import annotations

from flowmc.kernels.accept import accept, log_ratio
from flowmc.kernels.base import CycleMember, HybridState, Updates
from flowmc.kernels.cycle import Cycle, CycleUpdates, flow_only, hmc_only, hybrid
from flowmc.kernels.hmc import HMC, HMCInfo, Trajectories
from flowmc.kernels.independence import FlowProposals, Independence, IndependenceInfo, Proposals
from flowmc.kernels.integrators import INTEGRATORS, Phase, leapfrog, minimum_norm
from flowmc.kernels.tuning import StepSizeTuner

__all__ = [
    "HMC",
    "INTEGRATORS",
    "Cycle",
    "CycleMember",
    "CycleUpdates",
    "FlowProposals",
    "HMCInfo",
    "HybridState",
    "Independence",
    "IndependenceInfo",
    "Phase",
    "Proposals",
    "StepSizeTuner",
    "Trajectories",
    "Updates",
    "accept",
    "flow_only",
    "hmc_only",
    "hybrid",
    "leapfrog",
    "log_ratio",
    "minimum_norm",
]
