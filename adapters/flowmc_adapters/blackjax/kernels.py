"""The adjusted kernels of BlackJAX by name: how each is built, what it is given, and what is read from its Info.

A kernel is listed when one update keeps p(φ) = exp(−S(φ))/Z up to rounding, whatever its parameters. What is not, and why
not, stands in `REFUSED`. Where BlackJAX's own way would not be exact, this module takes another one:

- ``mhmc`` and ``dmhmc``: BlackJAX 1.7 picks from a trajectory that always starts at the current state. With two or more
  steps that is biased (one update of two steps of 1.2 brings ⟨φ²⟩ of N(0, 1) from 1 to 0.975): the current state must lie
  at a uniformly random place of the trajectory (Betancourt, arXiv:1701.02434, app. A.2), as in `multinomial_proposal`.
- ``ghmc``: BlackJAX starts with momenta of variance one, whatever the mass. Here they come from exp(−K(π)), and a step
  whose energy overflows keeps the slice variable, which would become NaN and reject for ever after.
- ``elliptical_slice``: BlackJAX is given the likelihood −S − log N(mean, cov), so that the posterior is exp(−S); a
  likelihood that is NaN, which would end its search, counts as zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from flowmc.errors import ParameterError
from flowmc_adapters.base import require_library
from flowmc_adapters.blackjax.multinomial import multinomial_proposal

__all__ = [
    "ALGORITHMS",
    "FIXED",
    "REFUSED",
    "Built",
    "ListedAlgorithm",
    "Observed",
    "Parameters",
    "Target",
    "listed",
]

Parameters: TypeAlias = Mapping[str, Any]
"""Parameters of an algorithm, with the names of BlackJAX: numbers, or arrays (sites,) where it takes them."""


class Target(NamedTuple):
    """What is sampled: log p of one field up to a constant, and the number of its sites."""

    logdensity_fn: Callable[[jax.Array], jax.Array]
    n_sites: int


class Observed(NamedTuple):
    """What is read from the Info of one update, scalars."""

    acceptance: Any
    """Whether the proposal was accepted; for NUTS and multinomial HMC, which reject nothing, the mean probability."""
    probability: Any
    """Acceptance probability, which pilots drive to its target."""
    delta_H: Any = jnp.nan
    """H at the end of the trajectory minus H at its start; NaN for kernels that have no one end."""
    n_steps: Any = 0
    """Steps of the trajectory; 0 for kernels without one."""


@dataclass(frozen=True)
class Built:
    """An algorithm with its parameters, for one chain.

    Parameters
    ----------
    init
        Maps a field and a key to the algorithm's state; momenta and the like are drawn from their own distribution.
    step
        One update: maps a key and a state to a state and BlackJAX's Info.
    observe
        Maps the states before and after, and the Info, to what is recorded.
    logdensity
        Maps a state to log p.
    """

    init: Callable[[jax.Array, jax.Array], Any]
    step: Callable[[jax.Array, Any], tuple[Any, Any]]
    observe: Callable[[Any, Any, Any], Observed]
    logdensity: Callable[[Any], Any] = lambda state: state.logdensity


@dataclass(frozen=True)
class ListedAlgorithm:
    """An entry of `ALGORITHMS`.

    Parameters
    ----------
    name
        BlackJAX's name.
    build
        Makes the kernel of one chain.
    defaults
        Every parameter with its default; a pilot may find better ones.
    gradient
        Whether the kernel needs the force.
    periodic
        Whether it commutes with translations of the field, so that it is exact for angles as well.
    """

    name: str
    build: Callable[[Target, Parameters], Built]
    defaults: Mapping[str, float]
    gradient: bool = True
    periodic: bool = True

    def checked(self, parameters: Parameters, n_sites: int) -> dict[str, float | NDArray[np.float64]]:
        """Return all parameters: those given, and defaults for the others.

        Raises
        ------
        ParameterError
            If one is unknown or has no meaning, or an array is given where there is one number, or not one for each site.
        """
        for key in parameters:
            if key not in self.defaults:
                near = get_close_matches(key, self.defaults, n=1, cutoff=0.5)
                raise ParameterError(
                    got=f"unknown parameter {key!r} of blackjax.{self.name}",
                    expected=f"one of {sorted(self.defaults)}",
                    fix=f"did you mean {near[0]!r}?" if near else "remove it",
                )
        return {
            name: _checked(self.name, name, parameters.get(name, value), n_sites)
            for name, value in self.defaults.items()
        }


COUNTS = ("num_integration_steps", "max_num_doublings", "max_num_steps")
FIXED = ("max_num_doublings", "max_num_steps")
"""Parameters on which the sizes of arrays in the compiled code depend."""
RANDOM_LENGTHS = ("dhmc", "dmhmc", "adjusted_mclmc_dynamic")
"""Algorithms whose number of steps is the scale of a random one, and need not be whole."""
LARGEST = {"alpha": 1.0}
ANY_SIGN = ("mean",)
BY_SITE = ("inverse_mass_matrix", "mean", "cov")
"""Parameters that may be one number or one for each site."""


def _checked(algorithm: str, name: str, value: Any, n_sites: int) -> float | NDArray[np.float64]:
    """Return a parameter as a number, or as an array where it is one."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ParameterError(
            got=f"{name} = {value!r} of blackjax.{algorithm}", expected="a number", fix=f"correct `{name}`"
        ) from error
    if array.ndim and not (name in BY_SITE and array.shape == (n_sites,)):
        raise ParameterError(
            got=f"{name} of shape {array.shape} of blackjax.{algorithm}",
            expected=f"one number, or {n_sites} in a row" if name in BY_SITE else "one number",
            fix=f"correct `{name}`",
        )
    usable = bool(np.isfinite(array).all()) and (name in ANY_SIGN or bool((array > 0).all()))
    usable = usable and bool((array <= LARGEST.get(name, np.inf)).all())
    whole = algorithm in RANDOM_LENGTHS or not bool((array % 1).any())
    if not usable or (name in COUNTS and not (bool((array >= 1).all()) and whole)):
        wanted = "finite" if name in ANY_SIGN else "finite and above zero"
        if name in COUNTS:
            wanted = "a whole number, at least 1"
        at_most = f", at most {LARGEST[name]:g}" if name in LARGEST else ""
        raise ParameterError(
            got=f"{name} = {value} of blackjax.{algorithm}", expected=wanted + at_most, fix=f"correct `{name}`"
        )
    return float(array) if array.ndim == 0 else array


def _metric(target: Target, parameters: Parameters) -> Any:
    """Return BlackJAX's metric of a diagonal inverse mass matrix: one number, or (sites,)."""
    inverse_mass = jnp.asarray(parameters["inverse_mass_matrix"], dtype=jnp.float64)
    inverse_mass = jnp.broadcast_to(inverse_mass, (target.n_sites,))
    return require_library("blackjax").mcmc.metrics.default_metric(inverse_mass)


def _steps(parameters: Parameters) -> jax.Array:
    return jnp.asarray(jnp.rint(jnp.asarray(parameters["num_integration_steps"])), dtype=jnp.int64)


def _random_steps(key: jax.Array, longest: jax.Array) -> jax.Array:
    """Draw the length of a trajectory: ⌈u · longest⌉ with u uniform on (0, 1]."""
    u = 1 - jax.random.uniform(key, dtype=jnp.float64)
    return jnp.maximum(1, jnp.ceil(u * longest)).astype(jnp.int64)


def _trajectory_end(metric: Any) -> Callable[[Any, Any, Any], Observed]:
    def observe(before: Any, after: Any, info: Any) -> Observed:  # noqa: ARG001
        energy = metric.kinetic_energy(info.momentum) - before.logdensity
        return Observed(info.is_accepted, info.acceptance_rate, info.energy - energy, info.num_integration_steps)

    return observe


def _along_trajectory(before: Any, after: Any, info: Any) -> Observed:  # noqa: ARG001
    rate = jnp.clip(info.acceptance_rate, 0.0, 1.0)
    return Observed(rate, rate, n_steps=info.num_integration_steps)


def _one_test(before: Any, after: Any, info: Any) -> Observed:  # noqa: ARG001
    return Observed(info.is_accepted, info.acceptance_rate)


def _without_energy(before: Any, after: Any, info: Any) -> Observed:  # noqa: ARG001
    # What decides is not H alone (isokinetic moves, or a length that was drawn), or the Info does not tell it.
    return Observed(info.is_accepted, info.acceptance_rate, n_steps=info.num_integration_steps)


def _without_rejection(before: Any, after: Any, info: Any) -> Observed:  # noqa: ARG001
    return Observed(1.0, 1.0)


def _built(algorithm: Any, observe: Callable[[Any, Any, Any], Observed]) -> Built:
    return Built(lambda position, key: algorithm.init(position, key), algorithm.step, observe)


def _hmc(target: Target, parameters: Parameters) -> Built:
    metric = _metric(target, parameters)
    hmc = require_library("blackjax").hmc
    algorithm = hmc(target.logdensity_fn, parameters["step_size"], metric, _steps(parameters))
    return _built(algorithm, _trajectory_end(metric))


def _mhmc(target: Target, parameters: Parameters) -> Built:
    algorithm = require_library("blackjax").hmc(
        target.logdensity_fn,
        parameters["step_size"],
        _metric(target, parameters),
        _steps(parameters),
        build_proposal=multinomial_proposal,
    )
    return _built(algorithm, _along_trajectory)


def _dynamic(target: Target, parameters: Parameters, metric: Any, **options: Any) -> Any:
    return require_library("blackjax").dhmc(
        target.logdensity_fn,
        parameters["step_size"],
        metric,
        integration_steps_fn=_random_steps,
        integration_steps_params=(parameters["num_integration_steps"],),
        **options,
    )


def _dhmc(target: Target, parameters: Parameters) -> Built:
    metric = _metric(target, parameters)
    return _built(_dynamic(target, parameters, metric), _trajectory_end(metric))


def _dmhmc(target: Target, parameters: Parameters) -> Built:
    metric = _metric(target, parameters)
    return _built(_dynamic(target, parameters, metric, build_proposal=multinomial_proposal), _along_trajectory)


def _nuts(target: Target, parameters: Parameters) -> Built:
    algorithm = require_library("blackjax").nuts(
        target.logdensity_fn,
        parameters["step_size"],
        _metric(target, parameters),
        max_num_doublings=int(parameters["max_num_doublings"]),
    )
    return _built(algorithm, _along_trajectory)


def _gist_step_size(target: Target, parameters: Parameters) -> Built:
    algorithm = require_library("blackjax").gist_step_size(
        target.logdensity_fn, _metric(target, parameters), parameters["step_size"], _steps(parameters)
    )
    # A step size that could not have been selected from the other end rejects as well: not by its energy alone.
    return _built(algorithm, _without_energy)


def _gist_trajectory_length(target: Target, parameters: Parameters) -> Built:
    algorithm = require_library("blackjax").gist_trajectory_length(
        target.logdensity_fn,
        _metric(target, parameters),
        parameters["step_size"],
        max_num_steps=int(parameters["max_num_steps"]),
    )
    return _built(algorithm, _without_energy)


def _mala(target: Target, parameters: Parameters) -> Built:
    return _built(require_library("blackjax").mala(target.logdensity_fn, parameters["step_size"]), _one_test)


def _barker(target: Target, parameters: Parameters) -> Built:
    return _built(require_library("blackjax").barker(target.logdensity_fn, parameters["step_size"]), _one_test)


def _random_walk(target: Target, parameters: Parameters) -> Built:
    widths = jnp.broadcast_to(jnp.asarray(parameters["step_size"], dtype=jnp.float64), (target.n_sites,))
    walk = require_library("blackjax").additive_step_random_walk
    return _built(walk.normal_random_walk(target.logdensity_fn, widths), _one_test)


def _ghmc(target: Target, parameters: Parameters) -> Built:
    metric = _metric(target, parameters)
    delta = parameters["delta"]
    algorithm = require_library("blackjax").ghmc(
        target.logdensity_fn, parameters["step_size"], metric, parameters["alpha"], delta
    )

    def init(position: jax.Array, key: jax.Array) -> Any:
        state_key, momentum_key = jax.random.split(key)
        state = algorithm.init(position, state_key)
        return state._replace(momentum=metric.sample_momentum(momentum_key, position))

    def step(key: jax.Array, state: Any) -> tuple[Any, Any]:
        after, info = algorithm.step(key, state)
        shifted = (state.slice + 1.0 + delta) % 2 - 1.0
        return after._replace(slice=jnp.where(jnp.isfinite(after.slice), after.slice, shifted)), info

    return Built(init, step, _trajectory_end(metric))


def _mclmc_options(target: Target, parameters: Parameters) -> dict[str, Any]:
    inverse_mass = jnp.asarray(parameters["inverse_mass_matrix"], dtype=jnp.float64)
    if target.n_sites < 2:
        raise ParameterError(
            got="adjusted MCLMC of a field with one number",
            expected="two or more: it moves at constant speed, and on a line it cannot turn",
            fix='choose another algorithm, for example "hmc"',
        )
    return {"inverse_mass_matrix": jnp.broadcast_to(inverse_mass, (target.n_sites,))}


def _adjusted_mclmc(target: Target, parameters: Parameters) -> Built:
    algorithm = require_library("blackjax").adjusted_mclmc(
        target.logdensity_fn,
        parameters["step_size"],
        integration_steps_params=(_steps(parameters),),
        **_mclmc_options(target, parameters),
    )
    return _built(algorithm, _without_energy)


def _adjusted_mclmc_dynamic(target: Target, parameters: Parameters) -> Built:
    algorithm = require_library("blackjax").adjusted_mclmc_dynamic(
        target.logdensity_fn,
        parameters["step_size"],
        integration_steps_fn=_random_steps,
        integration_steps_params=(parameters["num_integration_steps"],),
        **_mclmc_options(target, parameters),
    )
    return _built(algorithm, _without_energy)


def _elliptical_slice(target: Target, parameters: Parameters) -> Built:
    mean = jnp.broadcast_to(jnp.asarray(parameters["mean"], dtype=jnp.float64), (target.n_sites,))
    covariance = jnp.broadcast_to(jnp.asarray(parameters["cov"], dtype=jnp.float64), (target.n_sites,))

    def log_prior(position: jax.Array) -> jax.Array:
        return -0.5 * jnp.sum((position.reshape(-1) - mean) ** 2 / covariance)

    def log_likelihood(position: jax.Array) -> jax.Array:
        value = target.logdensity_fn(position) - log_prior(position)
        return jnp.where(jnp.isnan(value), -jnp.inf, value)

    algorithm = require_library("blackjax").elliptical_slice(log_likelihood, mean=mean, cov=covariance)
    return Built(
        lambda position, key: algorithm.init(position, key),
        algorithm.step,
        _without_rejection,
        lambda state: state.logdensity + log_prior(state.position),
    )


def _slice_sampling(target: Target, parameters: Parameters) -> Built:
    algorithm = require_library("blackjax").slice_sampling(target.logdensity_fn, width=parameters["width"])
    return _built(algorithm, _without_rejection)


_MASS: dict[str, float] = {"step_size": 0.1, "inverse_mass_matrix": 1.0}

ALGORITHMS: dict[str, ListedAlgorithm] = {
    entry.name: entry
    for entry in (
        ListedAlgorithm("hmc", _hmc, {**_MASS, "num_integration_steps": 10}),
        ListedAlgorithm("mhmc", _mhmc, {**_MASS, "num_integration_steps": 10}),
        ListedAlgorithm("dhmc", _dhmc, {**_MASS, "num_integration_steps": 20}),
        ListedAlgorithm("dmhmc", _dmhmc, {**_MASS, "num_integration_steps": 20}),
        ListedAlgorithm("nuts", _nuts, {**_MASS, "max_num_doublings": 8}),
        ListedAlgorithm("ghmc", _ghmc, {**_MASS, "alpha": 0.2, "delta": 0.1}),
        ListedAlgorithm("gist_step_size", _gist_step_size, {**_MASS, "num_integration_steps": 3}),
        ListedAlgorithm("gist_trajectory_length", _gist_trajectory_length, {**_MASS, "max_num_steps": 64}),
        ListedAlgorithm("mala", _mala, {"step_size": 0.05}),
        ListedAlgorithm("barker", _barker, {"step_size": 0.1}),
        ListedAlgorithm("adjusted_mclmc", _adjusted_mclmc, {**_MASS, "num_integration_steps": 10}),
        ListedAlgorithm("adjusted_mclmc_dynamic", _adjusted_mclmc_dynamic, {**_MASS, "num_integration_steps": 20}),
        ListedAlgorithm("random_walk", _random_walk, {"step_size": 0.05}, gradient=False),
        ListedAlgorithm("slice_sampling", _slice_sampling, {"width": 1.0}, gradient=False),
        ListedAlgorithm(
            "elliptical_slice", _elliptical_slice, {"mean": 0.0, "cov": 1.0}, gradient=False, periodic=False
        ),
    )
}
"""Every adjusted kernel that may be a part of a cycle. ``num_integration_steps`` of the "d" and "dynamic" ones is the
longest trajectory, of which a uniform fraction is run; ``step_size`` of "random_walk" is the standard deviation of a step
at every site; "elliptical_slice" takes mean and variances of the Gaussian whose ellipses it moves on."""

_ALIASES = {
    "multinomial_hmc": "mhmc",
    "dynamic_hmc": "dhmc",
    "barker_proposal": "barker",
    "normal_random_walk": "random_walk",
    "additive_step_random_walk": "random_walk",
}

_UNADJUSTED = "is not adjusted: it has no accept test, and its distribution is biased at any finite step size"
_NOISY = "moves with noisy gradients and no accept test: its distribution is biased at any finite step size"
_STRUCTURE = "samples models of another structure than exp(-S)"

REFUSED: dict[str, str] = {
    "mclmc": f"{_UNADJUSTED}; take adjusted_mclmc",
    "sgld": _NOISY,
    "sghmc": _NOISY,
    "sgnht": _NOISY,
    "csgld": _NOISY,
    "svgd": "is no Markov chain: it moves particles towards the target, which it does not keep",
    "orbital_hmc": "is a chain of weighted orbits, not of fields",
    "rmhmc": "solves implicit equations, so that it is reversible to the solver's tolerance only",
    "rmh": 'needs a proposal as a function, which no parameter can name; take "random_walk"',
    "irmh": 'is what flowmc\'s own kernel "flow" does, with log q kept beside the state',
    "coordinate_slice": "evaluates the whole action tens of times for every site; take slice_sampling",
    "mgrad_gaussian": _STRUCTURE,
    "laplace_hmc": _STRUCTURE,
    "laplace_mhmc": _STRUCTURE,
    "laplace_dhmc": _STRUCTURE,
    "laplace_dmhmc": _STRUCTURE,
}
"""What is refused by name, and why."""


def listed(name: str) -> ListedAlgorithm:
    """Return an algorithm by its name, or by another name that BlackJAX has for it.

    Raises
    ------
    ParameterError
        If it is refused, or unknown.
    """
    found = ALGORITHMS.get(_ALIASES.get(name, name))
    if found is not None:
        return found
    if name in REFUSED:
        raise ParameterError(
            got=f"algorithm = {name!r}: blackjax.{name} {REFUSED[name]}",
            expected=f"a kernel that keeps exp(-S) exactly, one of {sorted(ALGORITHMS)}",
            fix="choose one of these",
        )
    near = get_close_matches(name, [*ALGORITHMS, *_ALIASES], n=1, cutoff=0.5)
    raise ParameterError(
        got=f"algorithm = {name!r}",
        expected=f"one of {sorted(ALGORITHMS)}",
        fix=f"did you mean {near[0]!r}?" if near else "correct `algorithm`",
    )
