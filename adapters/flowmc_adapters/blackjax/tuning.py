"""Pilots: BlackJAX's adaptations, run on the chains' starting fields before the first update, and never afterwards.

- ``window``: `blackjax.window_adaptation` (Stan's warm-up): step size by dual averaging to a target acceptance and, for
  algorithms that have one, a diagonal inverse mass matrix from the variances of the fields. Every chain runs it by
  itself; the chains' step sizes (geometric mean) and matrices (mean) are then one.
- ``chees``: `blackjax.chees_adaptation`, for "dhmc": step size and length of the trajectories, from all chains together
  (Hoffman, Radul, Sountsov, AISTATS 2021).
- ``meads``: `blackjax.meads_adaptation`, for "ghmc": all of its parameters, from all chains together (Hoffman, Sountsov,
  AISTATS 2022).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from flowmc.errors import ParameterError
from flowmc_adapters.base import require_library
from flowmc_adapters.blackjax.kernels import Built, ListedAlgorithm, Parameters, Target

__all__ = ["PILOTS", "Pilot"]

# Learning rate of the optimiser of ChEES, as in the examples of BlackJAX.
CHEES_RATE = 0.02
MOST_FOLDS = 4
FEWEST_IN_FOLD = 4


class TunableKernel(Protocol):
    """What a pilot needs of a kernel, a frozen description that JAX compiles for."""

    @property
    def algorithm(self) -> str:
        """Name of the algorithm."""

    @property
    def target(self) -> Target:
        """What is sampled."""

    def build(self, parameters: Parameters, target: Target | None = None) -> Built:
        """Return init and step of one chain, for another form of the target where one is given."""


@dataclass(frozen=True)
class Pilot:
    """How parameters are found before the run.

    Parameters
    ----------
    method
        A name in `PILOTS`.
    steps
        Updates of every chain.
    target_acceptance
        Acceptance that "window" and "chees" aim at.

    Raises
    ------
    ParameterError
        If the method is unknown, or a number out of range.
    """

    method: str
    steps: int = 500
    target_acceptance: float = 0.8

    def __post_init__(self) -> None:
        if self.method not in PILOTS:
            raise ParameterError(
                got=f"adaptation = {self.method!r}", expected=f"one of {['none', *PILOTS]}", fix="correct `adaptation`"
            )
        if self.steps < 1 or not 0 < self.target_acceptance < 1:
            raise ParameterError(
                got=f"adaptation_steps = {self.steps}, target_acceptance = {self.target_acceptance}",
                expected="at least one step, and an acceptance between 0 and 1",
                fix="correct them",
            )

    def check(self, algorithm: ListedAlgorithm) -> None:
        """Check that the method can tune an algorithm.

        Raises
        ------
        ParameterError
            If it cannot.
        """
        only = {"chees": "dhmc", "meads": "ghmc"}.get(self.method, algorithm.name)
        if algorithm.name != only:
            raise ParameterError(
                got=f"adaptation = {self.method!r} for blackjax.{algorithm.name}",
                expected=f"the algorithm {only!r}, whose parameters it finds",
                fix=f'set algorithm = "{only}", or adaptation = "window" or "none"',
            )
        if self.method == "window" and "step_size" not in algorithm.defaults:
            raise ParameterError(
                got=f'adaptation = "window" for blackjax.{algorithm.name}, which has no step size',
                expected="an algorithm with one",
                fix='set adaptation = "none"',
            )

    def run(
        self, kernel: TunableKernel, parameters: Parameters, key: jax.Array, field: jax.Array
    ) -> tuple[dict[str, float | NDArray[np.float64]], NDArray[np.float64]]:
        """Run the pilot.

        Parameters
        ----------
        kernel
            What is tuned.
        parameters
            First guesses (of the step size for window and chees, of the mass matrix for window), and those that stay.
        key
            Typed JAX key.
        field
            Starting fields of all chains, (chains, *field_shape).

        Returns
        -------
        The parameters that were found, and the fields where the chains were at the end, (chains, *field_shape).

        Raises
        ------
        ParameterError
            If the chains are too few or too equal for the method, or it ends in parameters that are not finite.
        """
        numbers = {name: jnp.asarray(value, dtype=jnp.float64) for name, value in parameters.items()}
        _check_chains(self.method, np.asarray(field))
        found, ended = _run(self, kernel, numbers, key, field)
        fields = np.asarray(ended)
        result = {name: np.asarray(value, dtype=np.float64) for name, value in found.items()}
        positive = all(np.isfinite(value).all() and (value > 0).all() for value in result.values())
        if not (positive and np.isfinite(fields).all()):
            raise ParameterError(
                got=f"parameters or fields that are not finite after {self.steps} steps of {self.method!r}: "
                f"{ {name: float(value.mean()) for name, value in result.items()} }",
                expected="positive, finite parameters",
                fix='start from other fields (start = "hot" or "flow"), or lower `step_size`',
            )
        return {name: float(value) if value.ndim == 0 else value for name, value in result.items()}, fields


class _Adaptable(NamedTuple):
    """A state in the form that the window adaptation wants."""

    position: jax.Array
    logdensity_grad: jax.Array
    inner: Any


class _Rate(NamedTuple):
    acceptance_rate: jax.Array


@dataclass(frozen=True)
class _AdaptableAlgorithm:
    """Any algorithm with a step size, in the form that the window adaptation wants."""

    kernel: TunableKernel
    target: Target
    parameters: Parameters
    key: jax.Array

    def init(self, position: jax.Array, logdensity_fn: Any) -> _Adaptable:  # noqa: ARG002
        built = self.kernel.build(self.parameters, self.target)
        # The gradient is asked for by recipes of the mass matrix other than this one.
        return _Adaptable(position, jnp.zeros_like(position), built.init(position, self.key))

    def build_kernel(self) -> Callable[..., tuple[_Adaptable, _Rate]]:
        def kernel(
            key: jax.Array,
            state: _Adaptable,
            logdensity_fn: Any,  # noqa: ARG001
            step_size: jax.Array,
            inverse_mass_matrix: jax.Array,
        ) -> tuple[_Adaptable, _Rate]:
            found = {"step_size": step_size, "inverse_mass_matrix": inverse_mass_matrix}
            known = {name: value for name, value in found.items() if name in self.parameters}
            built = self.kernel.build({**self.parameters, **known}, self.target)
            inner, info = built.step(key, state.inner)
            rate = built.observe(state.inner, inner, info).probability
            return _Adaptable(inner.position, state.logdensity_grad, inner), _Rate(rate)

        return kernel


Found = tuple[dict[str, Any], jax.Array]
Method = Callable[[Pilot, TunableKernel, Target, Parameters, jax.Array, jax.Array], Found]


@partial(jax.jit, static_argnames=("pilot", "kernel"))
def _run(
    pilot: Pilot, kernel: TunableKernel, parameters: Parameters, key: jax.Array, field: jax.Array
) -> tuple[dict[str, Any], jax.Array]:
    # In rows: chees and meads of BlackJAX 1.7 fail for positions with the shape of a lattice, whose scales they take for
    # a dense matrix.
    shape, target = field.shape, kernel.target
    rows = Target(lambda row: target.logdensity_fn(row.reshape(shape[1:])), target.n_sites)
    found, ended = PILOTS[pilot.method](pilot, kernel, rows, parameters, key, field.reshape(len(field), -1))
    return found, ended.reshape(shape)


def _nothing(state: Any, info: Any, adaptation_state: Any) -> None:
    """Keep nothing of the pilot: all its states would not fit into memory."""


def _window(
    pilot: Pilot, kernel: TunableKernel, target: Target, parameters: Parameters, key: jax.Array, field: jax.Array
) -> Found:
    blackjax = require_library("blackjax")

    def one(chain_key: jax.Array, position: jax.Array) -> tuple[dict[str, Any], jax.Array]:
        init_key, run_key = jax.random.split(chain_key)
        warmup = blackjax.window_adaptation(
            _AdaptableAlgorithm(kernel, target, parameters, init_key),
            target.logdensity_fn,
            initial_inverse_mass_matrix=jnp.broadcast_to(parameters.get("inverse_mass_matrix", 1.0), position.shape),
            initial_step_size=parameters["step_size"],
            target_acceptance_rate=pilot.target_acceptance,
            adaptation_info_fn=_nothing,
        )
        (state, found), _ = warmup.run(run_key, position, num_steps=pilot.steps)
        return {name: found[name] for name in ("step_size", "inverse_mass_matrix")}, state.position

    found, fields = jax.vmap(one)(jax.random.split(key, len(field)), field)
    tuned = {"step_size": jnp.exp(jnp.log(found["step_size"]).mean())}
    if "inverse_mass_matrix" in parameters:
        tuned["inverse_mass_matrix"] = found["inverse_mass_matrix"].mean(axis=0)
    return tuned, fields


def _chees(
    pilot: Pilot,
    kernel: TunableKernel,  # noqa: ARG001
    target: Target,
    parameters: Parameters,
    key: jax.Array,
    field: jax.Array,
) -> Found:
    warmup = require_library("blackjax").chees_adaptation(
        target.logdensity_fn,
        len(field),
        # As the lengths of the trajectories of the kernel that is tuned.
        jitter_generator=lambda jitter_key: 1 - jax.random.uniform(jitter_key, dtype=jnp.float64),
        target_acceptance_rate=pilot.target_acceptance,
        adaptation_info_fn=_nothing,
    )
    optimiser = require_library("optax").adam(CHEES_RATE)
    (states, found), _ = warmup.run(key, field, parameters["step_size"], optimiser, pilot.steps)
    (longest,) = found["integration_steps_params"]
    tuned = {"step_size": found["step_size"], "inverse_mass_matrix": found["inverse_mass_matrix"]}
    return {**tuned, "num_integration_steps": jnp.maximum(longest, 1.0)}, states.position


def _folds(chains: int) -> int:
    """Return into how many parts the chains are divided by meads; 0 if they are too few."""
    return next((n for n in range(MOST_FOLDS, 0, -1) if chains % n == 0 and chains // n >= FEWEST_IN_FOLD), 0)


def _meads(
    pilot: Pilot,
    kernel: TunableKernel,  # noqa: ARG001
    target: Target,
    parameters: Parameters,  # noqa: ARG001
    key: jax.Array,
    field: jax.Array,
) -> Found:
    chains = len(field)
    warmup = require_library("blackjax").meads_adaptation(
        target.logdensity_fn, chains, num_folds=_folds(chains), adaptation_info_fn=_nothing
    )
    (states, found), _ = warmup.run(key, field, pilot.steps)
    tuned = {name: found[name] for name in ("step_size", "alpha", "delta")}
    return {**tuned, "inverse_mass_matrix": jnp.square(found["momentum_inverse_scale"])}, states.position


def _check_chains(method: str, field: NDArray[Any]) -> None:
    """Refuse chains that a method cannot compare with each other."""
    chains = len(field)
    wanted = {"chees": 2, "meads": FEWEST_IN_FOLD}.get(method, 1)
    if chains < wanted:
        raise ParameterError(
            got=f"adaptation = {method!r} with {chains} chains",
            expected=f"at least {wanted}, which it compares with each other",
            fix='raise `chains`, or set adaptation = "window"',
        )
    if method == "meads" and not (field.std(axis=0) > 0).all():
        raise ParameterError(
            got='adaptation = "meads" with starting fields that are equal in all chains',
            expected="fields that differ: their spread is what it measures",
            fix='set start = "hot" or "flow", or adaptation = "window"',
        )


PILOTS: dict[str, Method] = {"window": _window, "chees": _chees, "meads": _meads}
"""Every adaptation by its name in run descriptions."""
