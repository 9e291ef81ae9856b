"""One call from a log density to samples with errors, for whoever has a function and wants neither files nor a lattice.

The pieces are those of every production, in memory: a `flowmc.theories.DensityTheory`, HMC whose step size is tuned
before a freeze point, perhaps a certified flow that proposes beside it, and `flowmc.sampling.sample`. For ensembles on
disk that can be resumed, build the pieces and hand a `flowmc_ensembles.EnsembleWriter` to `flowmc.sampling.sample`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import gcd
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from flowmc.errors import LatticeMismatchError, ParameterError
from flowmc.kernels import HMC, Cycle, CycleMember, FlowProposals, Independence, Trajectories
from flowmc.proposals import Certificate, Proposal, certify
from flowmc.proposals.requirement import require_certificate
from flowmc.sampling import BlockReport, MemoryStore, SamplingPlan, sample
from flowmc.seeds import fold, numpy_generator
from flowmc.theories import DensityTheory
from flowmc_analysis.estimate import Estimate
from flowmc_analysis.gamma import gamma_method
from flowmc_analysis.zscores import ZScore, z_score

__all__ = ["LogdensitySamples", "sample_logdensity"]

# Most cycles whose proposals are held at once, where the caller does not say.
CYCLES_PER_BLOCK = 100
# Draws from which the start of each chain is picked by weight: chains that begin far up a steep slope may stay there.
START_DRAWS = 64


@dataclass(frozen=True)
class LogdensitySamples:
    """What `sample_logdensity` returns."""

    theory: DensityTheory
    """The density as a theory."""
    fields: NDArray[np.float64]
    """Positions after thermalisation, (n, chains, *event_shape)."""
    log_density: NDArray[np.float64]
    """``logdensity_fn`` there, (n, chains), nats."""
    acceptance: Mapping[str, float]
    """Acceptance after thermalisation by kernel, "hmc" and "flow"."""
    adaptation: Mapping[str, float]
    """The tuned parameters, for example "hmc.step_size"."""
    certificate: Certificate | None
    """Of the flow; None without one."""
    store: MemoryStore = field(repr=False)
    """All that happened: ``store.table("history", "log_weight")`` and so on, thermalisation included."""

    def estimate(self, observable: Callable[[NDArray[np.float64]], NDArray[Any]]) -> Estimate:
        """Estimate an expectation value, with its error and autocorrelation time by the Γ-method.

        Parameters
        ----------
        observable
            Maps positions (m, *event_shape) to numbers (m,).

        Raises
        ------
        LatticeMismatchError
            If it returns another shape.

        Returns
        -------
        The mean over all chains; ``tau_int`` is in stored cycles, white noise 0.5.
        """
        shape = self.log_density.shape
        values = np.asarray(observable(self.fields.reshape(-1, *self.theory.shape)), dtype=np.float64)
        if values.shape != (self.log_density.size,):
            raise LatticeMismatchError(
                got=f"an observable of shape {values.shape} for {self.log_density.size} positions",
                expected=f"({self.log_density.size},): one number for each",
                fix="reduce all axes but the first",
            )
        return gamma_method(values.reshape(shape).T).estimate

    def virial(self) -> ZScore | None:
        """Return how far ⟨Σ φ ∂S/∂φ⟩ is from the number of degrees of freedom, a check of the whole chain.

        None for angles. A density that is not smooth, or vanishes beyond a wall, does not obey the identity.
        """
        if "virial" not in self.theory.identities():
            return None
        found = gamma_method(self.store.table("observables", "virial").T).estimate
        return z_score("virial", found.value, float(self.theory.volume), found.error)


def sample_logdensity(
    logdensity_fn: Callable[[jax.Array], jax.Array] | DensityTheory,
    event_shape: tuple[int, ...] | None = None,
    *,
    proposal: Proposal | None = None,
    certificate: Certificate | None = None,
    chains: int = 16,
    cycles: int = 1000,
    thermalisation: int = 500,
    cycles_per_block: int | None = None,
    save_every: int = 1,
    seed: int = 0,
    start: NDArray[Any] | None = None,
    trajectory_length: float = 1.0,
    step_size: float = 0.1,
    target_acceptance: float | None = 0.8,
    hmc_trajectories: int = 1,
    flow_proposals: int = 1,
    integrator: str = "minimum_norm",
    should_stop: Callable[[], str] = lambda: "",
    on_block: Callable[[BlockReport], None] = lambda _: None,
) -> LogdensitySamples:
    """Sample an unnormalised log density exactly: by HMC, or by HMC and a flow in turns.

    Parameters
    ----------
    logdensity_fn
        Maps one position of shape ``event_shape`` to its log density, a JAX scalar in nats; or a
        `flowmc.theories.DensityTheory`, which can also be made of a ``potential_fn``, of a function of batches or of
        one on angles.
    event_shape
        Shape of a position; left out for a theory, which knows it.
    proposal
        A flow that proposes after the trajectories of each cycle; without one there is HMC alone.
    certificate
        The flow's certificate, where it exists; otherwise the flow is certified first, which takes up to some minutes.
    chains, cycles, thermalisation, cycles_per_block, save_every
        See `flowmc.sampling.SamplingPlan`; blocks are chosen if their length is left out. Step sizes are tuned during the
        first half of the thermalisation.
    seed
        From which all random numbers follow.
    start
        Positions (chains, *event_shape). By default each chain starts at one of 64 draws of its own, of the flow or else
        standard normal (uniform angles), picked by its weight; where the density is far from these, give better ones.
    trajectory_length, step_size, target_acceptance, integrator
        Of HMC, see `flowmc.kernels.Trajectories`; ``target_acceptance = None`` keeps the step size as it is.
    hmc_trajectories, flow_proposals
        Of each kind in one cycle. Zero trajectories leave HMC out: then the flow must reach all that the density reaches.
    should_stop, on_block
        See `flowmc.sampling.sample`.

    Returns
    -------
    Positions, histories and estimates.

    Raises
    ------
    ParameterError
        If an argument has no meaning, or there is nothing that moves.
    CertificateError
        If the flow fails its certificate, or the one given belongs to another flow.
    LatticeMismatchError, TheoryMismatchError
        If function, flow or start have other shapes, or the flow is of another space.
    NonFiniteError
        If the density is not finite at the start.
    PrecisionError
        If JAX's x64 switch is off.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> jax.config.update("jax_enable_x64", True)
    >>> samples = sample_logdensity(lambda x: -0.5 * jnp.sum((x - 1.0) ** 2), (2,), chains=8, cycles=200, seed=1)
    >>> mean = samples.estimate(lambda x: x[:, 0])
    >>> abs(mean.value - 1.0) < 5 * mean.error
    True
    """
    theory = _theory(logdensity_fn, event_shape)
    if proposal is None and certificate is not None:
        raise ParameterError(
            got="a certificate without a proposal", expected="both or none", fix="give `proposal`, too"
        )
    members: list[CycleMember] = []
    tuning = thermalisation // 2
    if hmc_trajectories:
        members.append(
            Trajectories.build(
                HMC(theory, integrator),
                seed,
                hmc_trajectories,
                trajectory_length=trajectory_length,
                step_size=step_size,
                target_acceptance=target_acceptance if tuning else None,
            )
        )
    if proposal is not None:
        # Before the certificate, which takes its time: shape and space.
        members.append(FlowProposals(Independence(theory), proposal, seed, flow_proposals))
    cycle = Cycle(theory, tuple(members))
    plan = SamplingPlan(
        chains=chains,
        cycles=cycles,
        thermalisation=thermalisation,
        tuning=tuning,
        cycles_per_block=cycles_per_block or _block(cycles, thermalisation),
        save_every=save_every,
    )
    if proposal is not None:
        certificate = certificate or certify(proposal, fold(seed, "certificate"))
        require_certificate(certificate, proposal)
    store = MemoryStore()
    result = sample(
        cycle,
        plan,
        store,
        lambda: _start(theory, proposal, seed, chains) if start is None else np.asarray(start),
        observers=theory.identities(),
        should_stop=should_stop,
        on_block=on_block,
    )
    return LogdensitySamples(
        theory=theory,
        fields=store.table("configurations", theory.space.field_name),
        log_density=-store.table("configurations", "action"),
        acceptance=_acceptance(store, cycle, thermalisation),
        adaptation=result.adaptation,
        certificate=certificate,
        store=store,
    )


def _theory(logdensity_fn: Callable[[jax.Array], jax.Array] | DensityTheory, shape: Any) -> DensityTheory:
    if isinstance(logdensity_fn, DensityTheory):
        if shape is not None and tuple(shape) != logdensity_fn.shape:
            raise LatticeMismatchError(
                got=f"event_shape = {tuple(shape)} with a theory on {logdensity_fn.shape}",
                expected="the shape of the theory",
                fix="leave `event_shape` out",
            )
        return logdensity_fn
    if shape is None:
        raise ParameterError(
            got="a log density without `event_shape`",
            expected="the shape of one position, for example (8, 8)",
            fix="give it",
        )
    return DensityTheory(shape, logdensity_fn)


def _start(theory: DensityTheory, proposal: Proposal | None, seed: int, chains: int) -> NDArray[np.float64]:
    """Return a starting position for each chain: one of its own draws, picked in proportion to its weight."""
    generator, n = numpy_generator(seed, "start"), chains * START_DRAWS
    if proposal is not None:
        field, log_q = proposal.sample(fold(seed, "start"), n)
        field = field.astype(np.float64)
    else:
        field = theory.start(generator, n, "hot")
        # Of angles the draws are uniform.
        log_q = np.zeros(n) if theory.space.bounded else -0.5 * (field.reshape(n, -1) ** 2).sum(axis=1)
    log_w = -theory.action(field) - log_q
    log_w = np.where(np.isfinite(log_w), log_w, -np.inf).reshape(chains, START_DRAWS)
    # The maximum of log w plus Gumbel noise is a draw in proportion to w.
    picked = np.argmax(log_w + generator.gumbel(size=log_w.shape), axis=1) + START_DRAWS * np.arange(chains)
    chosen: NDArray[np.float64] = field[picked]
    return chosen


def _block(cycles: int, thermalisation: int) -> int:
    """Return the longest block, of no more cycles than are held at once, that fills both parts of the run."""
    common = gcd(max(cycles, 0), max(thermalisation, 0)) or 1
    return max(k for k in range(1, CYCLES_PER_BLOCK + 1) if common % k == 0)


def _acceptance(store: MemoryStore, cycle: Cycle, thermalisation: int) -> dict[str, float]:
    production = store.table("history", "update") > thermalisation * cycle.n_updates
    if not production.any():
        return {}
    kinds, acceptance = (store.table("history", name)[production] for name in ("proposal_kind", "acceptance"))
    return {kind: float(acceptance[kinds == index].mean()) for index, kind in enumerate(cycle.kinds)}
