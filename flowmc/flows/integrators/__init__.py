"""Integrators of continuous flows. To add one: one file, one line in `INTEGRATORS`, which also parametrises the tests."""

from __future__ import annotations

from flowmc.errors import ParameterError
from flowmc.flows.integrators.base import Integrator
from flowmc.flows.integrators.midpoint import Midpoint, MidpointTrace
from flowmc.flows.integrators.runge_kutta import RungeKutta, RungeKuttaTrace, runge_kutta_step
from flowmc.flows.integrators.splitting import ColourSplitting

__all__ = ["INTEGRATORS", "Integrator", "choose_integrator", "runge_kutta_step"]

INTEGRATORS: dict[str, Integrator] = {
    integrator.name: integrator
    for integrator in (ColourSplitting(), Midpoint(), MidpointTrace(), RungeKutta(), RungeKuttaTrace())
}
"""Every integrator by its name in run descriptions."""

# Names under which other libraries offer integrators that choose their own steps.
ADAPTIVE = ("adaptive", "adaptive_heun", "bosh3", "dopri5", "dopri8", "fehlberg2", "kvaerno5", "tsit5")


def choose_integrator(name: str, sites: int) -> Integrator:
    """Return the integrator of a name, for a lattice of so many sites.

    Raises
    ------
    ParameterError
        If the name is unknown or that of an adaptive method, or the lattice too large.
    """
    if name in ADAPTIVE:
        raise ParameterError(
            got=f"integrator = {name!r}, which chooses its steps by the batch that it is given",
            expected=f"fixed steps, one of {sorted(INTEGRATORS)}: with adaptive ones the map, and so log q of a field, "
            "depends on the other fields of its batch",
            fix='take "rk4" on small lattices, else "splitting" or "rk4_trace", and set `steps`',
        )
    if name not in INTEGRATORS:
        raise ParameterError(
            got=f"integrator = {name!r}", expected=f"one of {sorted(INTEGRATORS)}", fix="correct `integrator`"
        )
    integrator = INTEGRATORS[name]
    if integrator.largest_volume is not None and sites > integrator.largest_volume:
        raise ParameterError(
            got=f"integrator = {name!r} for {sites} sites",
            expected=f"at most {integrator.largest_volume}: each step takes determinants of {sites} x {sites} matrices",
            fix='take "rk4_trace" with a bound on its error, or "splitting" (exact, slow where each site is a colour)',
        )
    return integrator
