"""BlackJAX both ways: its adjusted kernels as members of our cycles, and our kernels as algorithms of BlackJAX.

BlackJAX is imported when something is built, not with this package.
"""

from __future__ import annotations

from flowmc_adapters.blackjax.algorithms import SamplingAPI, hmc, hybrid, independence, irmh
from flowmc_adapters.blackjax.kernels import ALGORITHMS, REFUSED
from flowmc_adapters.blackjax.member import BlackJAXKernel, BlackJAXUpdates, logdensity_of
from flowmc_adapters.blackjax.smc import FlowSMC, SMCResult, flow_smc
from flowmc_adapters.blackjax.tuning import PILOTS, Pilot

__all__ = [
    "ALGORITHMS",
    "PILOTS",
    "REFUSED",
    "BlackJAXKernel",
    "BlackJAXUpdates",
    "FlowSMC",
    "Pilot",
    "SMCResult",
    "SamplingAPI",
    "flow_smc",
    "hmc",
    "hybrid",
    "independence",
    "irmh",
    "logdensity_of",
]
