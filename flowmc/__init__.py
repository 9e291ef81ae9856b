"""Exact Markov-chain Monte Carlo of lattice field theories, with trained flows as proposals.

A theory gives an action; a flow (torch) is trained against it and becomes a *proposal*; a *certificate* says that its
``log_q`` is what it claims to be; kernels (JAX) turn it into an exact chain, mixed with hybrid Monte Carlo; the driver
streams the chains into an ensemble. Start reading at `flowmc.theories.base`, then `flowmc.proposals.base`,
`flowmc.kernels.base` and `flowmc.sampling`.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowmc.logdensity import sample_logdensity

__all__ = ["__version__", "sample_logdensity"]

try:
    __version__ = version("flowmc-lattice")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    # Only when it is asked for: torch and JAX take seconds, and must not be imported before their switches are set.
    if name == "sample_logdensity":
        return import_module("flowmc.logdensity").sample_logdensity
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
