"""A flow as a move of emcee: independence Metropolis on its walkers, alone or beside emcee's own moves.

With the target p and the flow's density q, a draw y replaces the walker x with probability
min(1, p(y) q(x) / (p(x) q(y))) (Tierney, Ann. Stat. 22 (1994) 1701). In emcee's words the factor of the move is
log q(x) − log q(y), old minus new; with the other sign a chain settles at another distribution, and nothing complains.

A proposal is independent of the walkers, so there is no stretch along differences of walkers and no need of twice as
many of them as dimensions: a lattice field of thousands of sites can have four walkers.

**Resuming.** emcee stores the state of its generator with every step and nothing of a move. `FlowMove` is built for
that: the seed of each batch of draws is one integer from emcee's own generator, and log q of the walkers is computed
anew where it is not known. With one step in a batch (the default) a run that goes on from an
`emcee.backends.HDFBackend` (in float64) therefore repeats the uninterrupted one, up to the rounding between the flow's
two passes. With more steps in a batch the draws that were left over are gone; the resumed run is another realisation of
the same chain, since draws are given up without a look at them.
"""

from __future__ import annotations

import warnings
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowmc.errors import LatticeMismatchError, NonFiniteError, ParameterError
from flowmc.proposals import Certificate, DeviceProposal, Proposal
from flowmc.proposals.requirement import require_certificate
from flowmc_adapters.base import require_library

__all__ = ["FlowMove"]

# A class needs its base when it is made, so this adapter imports its library at once.
emcee = require_library("emcee")
_Move: Any = emcee.moves.Move

Array = NDArray[np.float64]

# Legacy generators draw integers below this bound in 64 bits.
SEEDS = 2**62
# What emcee says, as a plain ValueError, of a log density that is NaN.
EMCEE_NAN = "Probability function returned NaN"


class FlowMove(_Move):  # type: ignore[misc]  # emcee has no types
    """Propose every walker's next position with a flow, whatever the positions are now.

    Walkers are flat vectors of ``prod(event_shape)`` numbers; the flow sees fields of its ``event_shape``. Certify the
    proposal first (`flowmc.proposals.certify`): a log q that is wrong makes a wrong chain, without any sign of it.

    A draw that is unusable (a field or log q that is not finite, a target of NaN or +inf) counts as rejected: emcee is
    given the walker's own position in its place, which is finite, and never raises. Where another move has taken a
    walker to a place that the flow cannot reach, log q = −inf, every draw is rejected until it comes back; with a flow
    of full support that does not happen, and without it the move must not be the only one.

    Parameters
    ----------
    proposal
        The flow, of real fields.
    certificate
        What `flowmc.proposals.certify` found for this proposal; refused if a check failed or it is another's.
    steps_per_batch
        Steps of the whole ensemble whose draws are made at once. More is faster where a call of the flow has a fixed cost
        (a device, a compiled function), and costs the exact repetition of an interrupted run; see the module.
    record
        Whether log weights are kept, 17 bytes for each draw; the counters are kept in any case.

    Raises
    ------
    ParameterError
        If the proposal is of spins or angles, which are no real vectors, or there is no step in a batch.
    CertificateError
        If the certificate failed or belongs to another proposal.

    Examples
    --------
    Beside one of emcee's own moves, with fewer walkers than dimensions. emcee checks, unless told otherwise, that the
    walkers span the space; its moves along differences of walkers need that, these do not.

    >>> import emcee
    >>> import numpy as np
    >>> from flowmc.testing import GaussianProposal
    >>> def log_prob(x):
    ...     return -0.5 * (x**2).sum()
    >>> flow = FlowMove(GaussianProposal((4, 4), width=1.2))
    >>> sampler = emcee.EnsembleSampler(4, 16, log_prob, moves=[(flow, 0.5), (emcee.moves.GaussianMove(0.1), 0.5)])
    >>> state = sampler.run_mcmc(np.zeros((4, 16)), 20, skip_initial_state_check=True)
    >>> sampler.get_chain().shape
    (20, 4, 16)
    >>> flow.n_proposed >= flow.n_accepted >= 0
    True
    """

    def __init__(
        self,
        proposal: Proposal,
        *,
        certificate: Certificate | None = None,
        steps_per_batch: int = 1,
        record: bool = True,
    ) -> None:
        metadata = proposal.metadata
        if metadata.space != "real":
            raise ParameterError(
                got=f"a proposal of {metadata.space} fields for emcee",
                expected="real fields: walkers of emcee are vectors of real numbers, with the flat measure",
                fix="sample this theory with flowmc's own kernels (flowmc sample)",
            )
        if steps_per_batch < 1:
            raise ParameterError(got=f"steps_per_batch = {steps_per_batch}", expected="at least 1", fix="correct it")
        if certificate is not None:
            require_certificate(certificate, proposal)
        if not metadata.full_support:
            warnings.warn(
                "the flow's support is smaller than that of a real field: mix this move with one that reaches every "
                "field, for example emcee.moves.GaussianMove",
                stacklevel=2,
            )
        self._proposal = proposal
        self._event = tuple(metadata.event_shape)
        self._steps_per_batch = steps_per_batch
        self._record = record
        # Positions to which the known log q belong. Both follow from the state, so nothing of them need be stored.
        self._coords: Array | None = None
        self._log_q: Array = np.empty(0)
        self._drawn: tuple[NDArray[Any], Array] | None = None
        self._next = 0
        self.reset_statistics()

    def reset_statistics(self) -> None:
        """Set the counters to zero and forget the log weights, for example after burn-in."""
        self.n_proposed = 0
        """Draws that were offered to a walker."""
        self.n_accepted = 0
        """Those that were accepted."""
        self.n_nonfinite = 0
        """Those that were unusable: field, log q or target not finite (a target of −inf is a plain rejection)."""
        self.n_offsupport = 0
        """Those that were offered to a walker where the flow's density vanishes."""
        self._log_weight: list[Array] = []
        self._log_weight_current: list[Array] = []
        self._accepted: list[NDArray[np.bool_]] = []

    @property
    def acceptance_fraction(self) -> float:
        """Fraction of the draws that were accepted, in this move alone; NaN before the first."""
        return self.n_accepted / self.n_proposed if self.n_proposed else float("nan")

    @property
    def log_weight(self) -> Array:
        """Log p − log q of every draw, (steps of this move, walkers), nats; −inf for one that was unusable."""
        return _table(self._log_weight, np.float64)

    @property
    def log_weight_current(self) -> Array:
        """Log p − log q of the walkers before each draw, same shape; +inf where the flow cannot go."""
        return _table(self._log_weight_current, np.float64)

    @property
    def accepted(self) -> NDArray[np.bool_]:
        """Whether each draw was accepted, same shape."""
        return _table(self._accepted, np.bool_)

    def propose(self, model: Any, state: Any) -> tuple[Any, NDArray[np.bool_]]:
        """Offer each walker one draw of the flow; called by emcee.

        Parameters
        ----------
        model
            emcee's model: the target and the generator.
        state
            emcee's state: positions (walkers, ndim), log densities (walkers,), blobs.

        Returns
        -------
        The state, changed in place, and whether each walker accepted, (walkers,).

        Raises
        ------
        LatticeMismatchError
            If the walkers have another number of dimensions than the flow's fields, or the flow draws other shapes.
        NonFiniteError
            If log q at a walker's position is NaN or +inf.
        """
        n_walkers, ndim = state.coords.shape
        if ndim != prod(self._event):
            raise LatticeMismatchError(
                got=f"walkers of {ndim} dimensions",
                expected=f"{prod(self._event)}, for fields of shape {self._event}",
                fix="use a flow that was built for this target",
            )
        if not (state.log_prob < np.inf).all():
            raise NonFiniteError(
                got="a target of NaN or +inf at the position of a walker",
                expected="a number, or -inf where the target vanishes",
                fix="correct the target, and start somewhere else",
            )
        log_q_current = self._log_q_of(state.coords)
        coords, log_q = self._draw(model.random, n_walkers)
        usable = np.isfinite(coords).all(axis=1) & np.isfinite(log_q)
        offered = np.where(usable[:, None], coords, state.coords)
        log_prob, blobs, known = _evaluate(model, offered, state)
        usable &= known & (log_prob < np.inf)
        log_weight = np.where(usable, log_prob - np.where(usable, log_q, 0.0), -np.inf)
        with np.errstate(divide="ignore", invalid="ignore"):
            # Where p vanishes anything is better, also where q does.
            current = np.where(np.isneginf(state.log_prob), -np.inf, state.log_prob - log_q_current)
            # −inf − (−inf) is not a number, and rejects.
            accepted = np.log(model.random.rand(n_walkers)) < log_weight - current
        state = self.update(state, emcee.State(offered, log_prob=log_prob, blobs=blobs), accepted)
        self._coords = np.array(state.coords)
        self._log_q = np.where(accepted, log_q, log_q_current)
        self._count(accepted, usable, log_q_current, log_weight, current)
        return state, accepted

    def _count(
        self, accepted: NDArray[np.bool_], usable: NDArray[np.bool_], log_q: Array, log_weight: Array, current: Array
    ) -> None:
        self.n_proposed += accepted.size
        self.n_accepted += int(accepted.sum())
        self.n_nonfinite += int((~usable).sum())
        self.n_offsupport += int(np.isneginf(log_q).sum())
        if self._record:
            self._log_weight.append(log_weight)
            self._log_weight_current.append(current)
            self._accepted.append(accepted)

    def _log_q_of(self, coords: Array) -> Array:
        """Return log q at the walkers' positions, computed only for those that another move has taken elsewhere."""
        if self._coords is None or self._coords.shape != coords.shape:
            moved = np.ones(len(coords), dtype=bool)
            log_q = np.empty(len(coords))
        else:
            moved = np.any(self._coords != coords, axis=1)
            log_q = self._log_q.copy()
        if moved.any():
            # Flows made of JAX are compiled for every number of fields: they are given all walkers, always as many.
            fixed = isinstance(self._proposal, DeviceProposal)
            asked = coords if fixed else coords[moved]
            found = np.asarray(self._proposal.log_prob(asked.reshape(-1, *self._event)), dtype=np.float64)
            found = found[moved] if fixed else found
            bad = np.isnan(found) | np.isposinf(found)
            if bad.any():
                raise NonFiniteError(
                    got=f"log q = {found[bad][0]} at the position of {int(bad.sum())} of {bad.size} walkers",
                    expected="a number, or -inf where the flow's density vanishes",
                    fix="certify the flow; its inverse pass breaks down at these positions",
                )
            log_q[moved] = found
        return log_q

    def _draw(self, random: np.random.RandomState, n_walkers: int) -> tuple[Array, Array]:
        """Return draws that no walker has been offered, (walkers, ndim) and log q (walkers,)."""
        if self._drawn is None or self._next + n_walkers > len(self._drawn[1]):
            n = self._steps_per_batch * n_walkers
            field, log_q = self._proposal.sample(int(random.randint(0, SEEDS, dtype=np.int64)), n)
            if np.shape(field) != (n, *self._event) or np.shape(log_q) != (n,):
                raise LatticeMismatchError(
                    got=f"draws of shape {np.shape(field)} with log q of shape {np.shape(log_q)}",
                    expected=f"{(n, *self._event)} and {(n,)}",
                    fix="correct the proposal; `flowmc.testing.ProposalContract` tests it",
                )
            self._drawn, self._next = (np.asarray(field), np.asarray(log_q, dtype=np.float64)), 0
        rows = slice(self._next, self._next + n_walkers)
        self._next += n_walkers
        field, log_q = self._drawn
        return field[rows].reshape(n_walkers, -1).astype(np.float64), log_q[rows]


def _table(rows: list[NDArray[Any]], dtype: type) -> NDArray[Any]:
    return np.stack(rows) if rows else np.empty((0, 0), dtype=dtype)


def _evaluate(model: Any, coords: Array, state: Any) -> tuple[Array, Any, NDArray[np.bool_]]:
    """Return log p, blobs and whether log p is a number, where emcee alone would raise for the whole ensemble.

    Only where a number is missing each walker is evaluated again, alone, to find out whose.
    """
    try:
        log_prob, blobs = model.compute_log_prob_fn(coords)
    except ValueError as error:
        if EMCEE_NAN not in str(error):
            raise
    else:
        return log_prob, blobs, np.ones(len(coords), dtype=bool)
    log_prob, known = np.full(len(coords), -np.inf), np.zeros(len(coords), dtype=bool)
    blobs = None if state.blobs is None else np.array(state.blobs)
    for walker in range(len(coords)):
        try:
            value, blob = model.compute_log_prob_fn(coords[walker : walker + 1])
        except ValueError as error:
            if EMCEE_NAN not in str(error):
                raise
            continue
        log_prob[walker], known[walker] = value[0], True
        if blobs is not None and blob is not None:
            blobs[walker] = blob[0]
    return log_prob, blobs, known
