"""A BlackJAX kernel as a member of a cycle: the local part of a hybrid with a flow, or a kernel by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from flowmc.arrays import require_x64
from flowmc.errors import ParameterError
from flowmc.kernels import HybridState, Updates
from flowmc.seeds import jax_key
from flowmc.theories import ContinuousSpace, SmoothTheory, Theory
from flowmc_adapters.base import require_library
from flowmc_adapters.blackjax.kernels import FIXED, Built, Parameters, Target, listed
from flowmc_adapters.blackjax.tuning import Pilot

__all__ = ["BlackJAXKernel", "BlackJAXUpdates", "logdensity_of"]


def logdensity_of(theory: Theory) -> Any:
    """Return the function of one field (*field_shape) to −S, for BlackJAX; its gradient is the theory's own force."""

    def value(position: jax.Array) -> jax.Array:
        return -jnp.asarray(theory.action(position[None]))[0]

    if not isinstance(theory, SmoothTheory):
        return value

    logdensity_fn = jax.custom_vjp(value)

    def forward(position: jax.Array) -> tuple[jax.Array, jax.Array]:
        action, force = theory.action_and_force(position[None])
        return -action[0], force[0]

    def backward(force: jax.Array, cotangent: jax.Array) -> tuple[jax.Array]:
        return (cotangent * force,)

    logdensity_fn.defvjp(forward, backward)
    return logdensity_fn


class _Record(NamedTuple):
    """What is kept of one update of one chain."""

    moved: jax.Array
    acceptance: jax.Array
    action: jax.Array
    delta_H: jax.Array
    n_steps: jax.Array


@dataclass(frozen=True)
class BlackJAXKernel:
    """An adjusted BlackJAX kernel for a theory, a frozen description that JAX compiles for.

    Parameters
    ----------
    theory
        The theory: of real fields, or of angles where the algorithm commutes with translations; with a force where the
        algorithm needs one.
    algorithm
        A name in `flowmc_adapters.blackjax.ALGORITHMS`.
    fixed
        Parameters that change the compiled code.

    Raises
    ------
    ParameterError
        If BlackJAX is not installed, the algorithm is not one of the list, or it cannot move this theory's fields.
    """

    theory: Theory
    algorithm: str
    fixed: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        require_library("blackjax")
        found = listed(self.algorithm)
        object.__setattr__(self, "algorithm", found.name)
        space = self.theory.space
        what = f"blackjax.{found.name} for the theory {self.theory.name!r} of {space.name} fields"
        if not isinstance(space, ContinuousSpace):
            raise ParameterError(
                got=what,
                expected="a continuous field",
                fix='choose another kernel: "heat_bath", "metropolis", "wolff" or "swendsen_wang" for spins',
            )
        if found.gradient and not isinstance(self.theory, SmoothTheory):
            raise ParameterError(
                got=what, expected="a theory with a force", fix='choose the algorithm "random_walk" or "slice_sampling"'
            )
        if space.bounded and not found.periodic:
            raise ParameterError(
                got=what,
                expected="real fields: its Gaussian is not periodic",
                fix='choose another algorithm, for example "hmc"',
            )

    @property
    def target(self) -> Target:
        """What is sampled."""
        return Target(logdensity_of(self.theory), prod(self.theory.field_shape))

    def build(self, parameters: Parameters, target: Target | None = None) -> Built:
        """Return init and step of one chain, for another form of the target where one is given."""
        return listed(self.algorithm).build(target or self.target, {**parameters, **dict(self.fixed)})

    def inside(self, fields: jax.Array) -> jax.Array:
        """Return fields (chains, *field_shape) brought back to where chains keep them: angles to [−π, π)."""
        space = self.theory.space
        return (
            jnp.asarray(space.drift(fields, jnp.zeros_like(fields), 0.0))
            if isinstance(space, ContinuousSpace)
            else fields
        )


@partial(jax.jit, static_argnames=("kernel", "n_updates"))
def _updates(
    kernel: BlackJAXKernel, key: jax.Array, fields: jax.Array, parameters: dict[str, jax.Array], n_updates: int
) -> tuple[jax.Array, _Record]:
    built = kernel.build(parameters)

    def chain(chain_key: jax.Array, position: jax.Array) -> tuple[jax.Array, _Record]:
        init_key, run_key = jax.random.split(chain_key)

        def update(state: Any, number: jax.Array) -> tuple[Any, _Record]:
            after, info = built.step(jax.random.fold_in(run_key, number), state)
            seen = built.observe(state, after, info)
            record = _Record(
                jnp.any(after.position != state.position),
                jnp.asarray(seen.acceptance, dtype=jnp.float32),
                -jnp.asarray(built.logdensity(after)),
                jnp.asarray(seen.delta_H, dtype=jnp.float64),
                jnp.asarray(seen.n_steps, dtype=jnp.float64),
            )
            return after, record

        # Momenta and the like are drawn anew here, from their distribution given the field.
        last, records = jax.lax.scan(update, built.init(position, init_key), jnp.arange(n_updates))
        return last.position, records

    moved, records = jax.vmap(chain, out_axes=(0, 1))(jax.random.split(key, len(fields)), fields)
    return kernel.inside(moved), records


@dataclass(frozen=True, eq=False)
class BlackJAXUpdates:
    """A BlackJAX kernel as a member of a cycle, for all chains at once.

    Momenta, slices and random lengths begin anew with every cycle, from their own distributions given the field: they are
    no part of the chain's state, and what other members do to the field cannot spoil them.

    Parameters
    ----------
    kernel
        The kernel.
    seed
        Seed of the run; cycle c uses the key (seed, kind, c).
    n_updates
        Updates of every chain in one cycle.
    parameters
        Parameters of the algorithm, with BlackJAX's names; those left out have the defaults of the list.
    pilot
        What finds better ones before the run, from the starting fields; None for none.
    tuned
        What the pilot found; None before it ran.

    Raises
    ------
    ParameterError
        If there is no update in a cycle, a parameter is unknown or has no meaning, or the pilot does not fit the
        algorithm.
    """

    kernel: BlackJAXKernel
    seed: int
    n_updates: int
    parameters: Parameters = field(default_factory=dict)
    pilot: Pilot | None = None
    tuned: Parameters | None = None

    kind: ClassVar[str] = "blackjax"
    needs: ClassVar[frozenset[str]] = frozenset()
    leaves: ClassVar[frozenset[str]] = frozenset({"action"})

    def __post_init__(self) -> None:
        if self.n_updates < 1:
            raise ParameterError(
                got=f"{self.n_updates} updates per cycle", expected="at least one", fix="correct `updates`"
            )
        listed(self.kernel.algorithm).checked(self.parameters, self.kernel.target.n_sites)
        if self.pilot is not None:
            self.pilot.check(listed(self.kernel.algorithm))
        fixed = tuple((name, round(float(self.used[name]))) for name in FIXED if name in self.used)
        object.__setattr__(self, "kernel", replace(self.kernel, fixed=fixed))

    @classmethod
    def build(
        cls,
        theory: Theory,
        algorithm: str,
        seed: int,
        n_updates: int,
        parameters: Parameters | None = None,
        *,
        pilot: Pilot | None = None,
    ) -> BlackJAXUpdates:
        """Build the member for a theory from the name of an algorithm; see the class and `BlackJAXKernel`."""
        return cls(BlackJAXKernel(theory, algorithm), seed, n_updates, dict(parameters or {}), pilot)

    @property
    def theory(self) -> Theory:
        """The theory whose distribution the kernel keeps."""
        return self.kernel.theory

    @property
    def used(self) -> dict[str, float | NDArray[np.float64]]:
        """All parameters of the next update."""
        return listed(self.kernel.algorithm).checked(
            {**self.parameters, **(self.tuned or {})}, self.kernel.target.n_sites
        )

    def prepare(self, block: int, n_cycles: int, n_chains: int) -> None:
        """Prepare nothing: updates depend on the state."""

    def run(self, cycle: int, index: int, state: HybridState, prepared: None) -> tuple[HybridState, Updates]:  # noqa: ARG002
        """Run the updates of one cycle."""
        require_x64()
        used = {name: jnp.asarray(value, dtype=jnp.float64) for name, value in self.used.items()}
        fields, record = _updates(self.kernel, jax_key(self.seed, self.kind, cycle), state.field, used, self.n_updates)
        # Trajectories of one update may differ in length from chain to chain.
        n_steps = np.rint(np.asarray(record.n_steps).mean(axis=1)).astype(np.int64)
        step_size = float(self.used["step_size"]) if n_steps.any() else np.nan
        moved = np.asarray(record.moved)
        happened = Updates.plain(moved, np.asarray(record.action), np.asarray(record.acceptance))._replace(
            delta_H=np.asarray(record.delta_H), step_size=np.full(self.n_updates, step_size), n_steps=n_steps
        )
        return state._replace(field=fields, action=record.action[-1]), happened

    def piloted(self, field: NDArray[Any]) -> tuple[BlackJAXUpdates, NDArray[Any]]:
        """Run the pilot on the starting fields; see `flowmc.kernels.PilotedMember`."""
        if self.pilot is None:
            return self, field
        require_x64()
        start = jnp.asarray(field, dtype=jnp.float64)
        tuned, reached = self.pilot.run(self.kernel, self.used, jax_key(self.seed, self.kind, "pilot"), start)
        return replace(self, tuned=tuned), np.asarray(self.kernel.inside(jnp.asarray(reached)))

    def adapted(self, updates: Updates, *, last: bool) -> Self:  # noqa: ARG002
        """Return the member unchanged: the pilot was before."""
        return self

    def adaptation(self) -> Mapping[str, float | NDArray[Any]]:
        """Return what the pilot found."""
        return dict(self.tuned or {})

    def restored(self, adaptation: Mapping[str, Any]) -> BlackJAXUpdates:
        """Return the member with what the pilot had found at the checkpoint."""
        return replace(self, tuned=dict(adaptation) or None)

    def describe(self) -> dict[str, Any]:
        """Return algorithm, given parameters and pilot; not what the pilot finds."""
        given = listed(self.kernel.algorithm).checked(self.parameters, self.kernel.target.n_sites)
        pilot = {} if self.pilot is None else {"steps": self.pilot.steps, "target": self.pilot.target_acceptance}
        return {
            "algorithm": self.kernel.algorithm,
            "updates_per_cycle": self.n_updates,
            **{name: np.asarray(value).tolist() for name, value in given.items()},
            "adaptation": "none" if self.pilot is None else self.pilot.method,
            **{f"adaptation_{name}": value for name, value in pilot.items()},
        }
