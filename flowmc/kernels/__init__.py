"""Exact Markov kernels on batches of chains, and the fixed cycles that combine them."""

from __future__ import annotations

from flowmc.kernels.accept import accept, log_ratio
from flowmc.kernels.base import CycleMember, HybridState, PilotedMember, Updates
from flowmc.kernels.blocks import BlockMoves
from flowmc.kernels.cluster import ClusterKernel, ClusterUpdates
from flowmc.kernels.cycle import Cycle, CycleUpdates
from flowmc.kernels.fourier_hmc import FourierHMC
from flowmc.kernels.hmc import HMC, HMCInfo, Trajectories, TrajectoryKernel
from flowmc.kernels.independence import FlowProposals, Independence, IndependenceInfo, Proposals
from flowmc.kernels.integrators import INTEGRATORS, Phase, leapfrog, minimum_norm
from flowmc.kernels.links import LinkMetropolis
from flowmc.kernels.local import Checkerboard, LocalKernel, LocalUpdates
from flowmc.kernels.pseudofermion import PseudofermionHMC
from flowmc.kernels.tuning import StepSizeTuner

__all__ = [
    "HMC",
    "INTEGRATORS",
    "BlockMoves",
    "Checkerboard",
    "ClusterKernel",
    "ClusterUpdates",
    "Cycle",
    "CycleMember",
    "CycleUpdates",
    "FlowProposals",
    "FourierHMC",
    "HMCInfo",
    "HybridState",
    "Independence",
    "IndependenceInfo",
    "LinkMetropolis",
    "LocalKernel",
    "LocalUpdates",
    "Phase",
    "PilotedMember",
    "Proposals",
    "PseudofermionHMC",
    "StepSizeTuner",
    "Trajectories",
    "TrajectoryKernel",
    "Updates",
    "accept",
    "leapfrog",
    "log_ratio",
    "minimum_norm",
]
