"""Draws against their density: identities that every density obeys over its own draws, one set for each kind of field.

A base that draws too wide, or spins drawn with probabilities other than those in log q, show nowhere else: the forward
pass and ``log_prob`` agree, and the weights are self-consistent. Each identity comes as samples whose mean is zero, and
is judged by its z-score.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from flowmc.errors import CertificateError
from flowmc.proposals.base import Proposal
from flowmc.seeds import numpy_generator
from flowmc.theories.spaces import wrapped
from flowmc.theories.u1 import link_gradient, plaquette_angles

__all__ = [
    "CLOSURES",
    "ENUMERATED_SITES",
    "EVALUATIONS",
    "Identity",
    "angle_closure",
    "flip_identities",
    "local_field",
    "real_closure",
    "spin_closure",
    "spins_of_numbers",
    "total_probability",
]

Array = NDArray[np.float64]

# An identity that holds draw by draw deviates by rounding, which is no noise.
ROUNDING = 1e-12

DIRECTIONS = 2
# Relative step of the directional derivatives of log q: small against the field, large against float32's rounding.
STEP = 1e-3
ENUMERATED_SITES = 16
"""Largest lattice on which the probabilities of all configurations of spins are summed."""
CHUNK = 4096
# Sites of each draw at which a spin is flipped.
SITES = 4


class Identity(NamedTuple):
    """Samples, one for each draw, whose expectation is zero if the draws have the density that log q says."""

    samples: Array
    variance: float = 0.0
    """What is known of their variance beforehand: rare events, and with them the noise, may be missing among them."""

    @property
    def score(self) -> float:
        """The mean in units of its error; NaN for fewer than two samples."""
        if self.samples.size < 2:
            return float("nan")
        # No max(): it would pass over NaN.
        spread = float(np.maximum(self.samples.std(ddof=1), max(np.sqrt(self.variance), ROUNDING)))
        return float(self.samples.mean() / (spread / np.sqrt(self.samples.size)))


def real_closure(proposal: Proposal, fields: NDArray[Any], seed: int) -> dict[str, Identity]:
    """Return the identities of a density on real fields.

    By partial integration ⟨φ·∂ log q⟩ = −V and, for a fixed direction u, ⟨u·∂ log q⟩ = 0 and ⟨(u·φ)(u·∂ log q)⟩ = −|u|².
    """
    n, volume = len(fields), fields[0].size
    directions = numpy_generator(seed).standard_normal((DIRECTIONS, *fields.shape[1:]))
    directions *= fields.std() / directions.std(axis=tuple(range(1, directions.ndim)), keepdims=True)

    def slope(shift: NDArray[Any]) -> Array:
        ends = [proposal.log_prob((fields + sign * STEP * shift).astype(fields.dtype)) for sign in (1, -1)]
        return (ends[0] - ends[1]) / (2 * STEP)

    identities = {"<phi d log q> + V": Identity(slope(fields) + volume)}
    for number, direction in enumerate(directions):
        along = (fields * direction).reshape(n, -1).sum(1)
        derivative = slope(np.broadcast_to(direction, fields.shape))
        identities[f"<d_{number} log q>"] = Identity(derivative)
        square = float((direction**2).sum())
        identities[f"<phi_{number} d_{number} log q> + 1"] = Identity(along * derivative + square)
    return identities


def spin_closure(proposal: Proposal, fields: NDArray[Any], seed: int) -> dict[str, Identity]:
    """Return the identities of a probability of spins.

    Let g be a flip that undoes itself and f a function that changes sign under it. Among the two configurations s and g s
    the mean of f is f(s) tanh a with a = ½ [log q(s) − log q(g s)], so that

        ⟨f (1 − tanh a)⟩ = 0,   with variance f² (1 − tanh² a), given the two.

    For the flip of one spin f is s(x) times a function of the other spins: 1, a(x) = s(x) a (which a wrong temperature
    spoils most), the spin at another random site, the next spin along the last axis, and the sum of all other spins over
    √V. Each draw has random sites x of its own, over which is summed. For the flip of all spins f is their sum over √V:
    it alone sees whether the weight that q gives to the mirror images of its draws is drawn from.
    """
    n, volume = len(fields), fields[0].size
    generator = numpy_generator(seed)
    spins = fields.reshape(n, -1)
    every = np.arange(n)
    log_q = proposal.log_prob(fields)
    total = spins.sum(1, dtype=np.float64)
    width = fields.shape[-1]
    parts: dict[str, list[tuple[Array, Array]]] = {}
    for _ in range(SITES):
        site = generator.integers(volume, size=n)
        other = (site + generator.integers(1, volume, size=n)) % volume
        neighbour = site - site % width + (site + 1) % width
        flipped = spins.copy()
        flipped[every, site] *= -1
        change = log_q - proposal.log_prob(flipped.reshape(fields.shape))
        here = spins[every, site].astype(np.float64)
        functions = {
            "<s_x - t_x>": np.ones(n),
            "<(s_x - t_x) a_x>": local_field(here, change),
            "<(s_x - t_x) s_y>": spins[every, other],
            "<(s_x - t_x) s_x+1>": spins[every, neighbour],
            "<(s_x - t_x) M>": (total - here) / np.sqrt(volume),
        }
        for name, function in functions.items():
            parts.setdefault(name, []).append((here * function, change))
    parts["<M - mean of M and -M>"] = [(total / np.sqrt(volume), log_q - proposal.log_prob(-fields))]
    return flip_identities(parts)


def local_field(spin: Array, change: Array) -> Array:
    """Return a(x) = s(x) a of a flipped spin, from the change 2a of log q; 0 where the flip leads out of the support.

    There the deviation f (1 − tanh a) vanishes, but infinity times zero would not be a number.
    """
    return np.where(np.isposinf(change), 0.0, 0.5 * spin * change)


def flip_identities(parts: Mapping[str, Sequence[tuple[Array, Array]]]) -> dict[str, Identity]:
    """Return the identities ⟨f (1 − tanh a)⟩ = 0 of flips; see `spin_closure`.

    Parameters
    ----------
    parts
        By the name of an identity the terms of its sum: the odd function f of what was drawn, and 2a, the change of
        log q, log q(s) − log q(g s), both (n, ...). Over the axes after the first is summed as well.
    """
    identities = {}
    for name, terms in parts.items():
        samples, variance = 0.0, 0.0
        for odd, change in terms:
            # 1 − tanh a and 1 − tanh² a without loss of precision.
            deviation, spread = 2 * odd * expit(-change), 4 * odd**2 * expit(change) * expit(-change)
            samples = samples + deviation.reshape(len(odd), -1).sum(1)
            variance += float(spread.reshape(len(odd), -1).sum(1).mean())
        identities[name] = Identity(np.asarray(samples), variance)
    return identities


def angle_closure(proposal: Proposal, fields: NDArray[Any], seed: int) -> dict[str, Identity]:
    """Return the identities of a density on the angles of links, (n, T, X, 2).

    On a compact space ⟨∇·v + v·∇ log q⟩ = 0 for every smooth vector field v; here v is the gradient of Σ h(P) over the
    plaquettes, on which also a gauge invariant density depends. Reflections g, which undo themselves and keep the Haar
    measure, do what flips do in `spin_closure`, with f the change of Σ h(P), of log q, of the charge or of Wilson lines:

    - one angle around a random point, θ → 2c − θ, and all of them around zero;
    - all of them at an instanton I of charge one with uniform plaquettes, θ → I − θ, so that Q → 1 − Q: draws that miss
      sectors show here, however well they sample the others;
    - the Wilson lines of a direction around a random point, by as much for all of them, which moves no plaquette.

    Raises
    ------
    CertificateError
        If the fields are not links of a two-dimensional lattice.
    """
    if fields.ndim != 4 or fields.shape[-1] != 2:
        raise CertificateError(
            got=f"angles of shape {fields.shape[1:]}",
            expected="links (T, X, 2) of a two-dimensional lattice: for others no identities are known",
            fix="add the identities of such fields to flowmc.proposals.closure",
        )
    n = len(fields)
    generator = numpy_generator(seed)
    identities = {}
    plaquettes = plaquette_angles(fields.astype(np.float64))
    log_q = proposal.log_prob(fields)
    # First and second derivatives of h, by its name.
    functions: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
        "cos P": (lambda p: -np.sin(p), lambda p: -np.cos(p)),
        "cos 2P": (lambda p: -2 * np.sin(2 * p), lambda p: -4 * np.cos(2 * p)),
        "sin P": (np.cos, lambda p: -np.sin(p)),
    }
    for name, (first, second) in functions.items():
        direction = link_gradient(first(plaquettes))
        ends = [proposal.log_prob((fields + sign * STEP * direction).astype(fields.dtype)) for sign in (1, -1)]
        # Every plaquette has four links.
        divergence = 4 * second(plaquettes).sum((1, 2))
        identities[f"<div grad {name} + grad {name} . grad log q>"] = Identity(
            divergence + (ends[0] - ends[1]) / (2 * STEP)
        )
    links = fields.reshape(n, -1)
    every = np.arange(n)
    parts: dict[str, list[tuple[Array, Array]]] = {}
    for _ in range(SITES):
        link = generator.integers(links.shape[1], size=n)
        image = links.copy()
        image[every, link] = 2 * generator.uniform(-np.pi, np.pi, n) - links[every, link]
        reflected = image.reshape(fields.shape)
        change = log_q - proposal.log_prob(reflected)
        moved = (np.cos(plaquettes) - np.cos(plaquette_angles(reflected.astype(np.float64)))).sum((1, 2))
        parts.setdefault("<cos P - its mean over a reflection>", []).append((moved, change))
        # A reflection out of the support: its deviation vanishes, but infinity times zero would not be a number.
        bounded = np.where(np.isposinf(change), 0.0, change)
        parts.setdefault("<log q - its mean over a reflection>", []).append((bounded, change))
    parts["<sin P - its mean over the reflection of all>"] = [
        (np.sin(plaquettes).sum((1, 2)), log_q - proposal.log_prob(-fields))
    ]
    image = wrapped(_instanton(fields.shape[1], fields.shape[2]) - fields).astype(fields.dtype)
    parts["<Q - its mean over the reflection at an instanton>"] = [
        (_charge(fields) - _charge(image), log_q - proposal.log_prob(image))
    ]
    for direction in (0, 1):
        lines = fields[..., direction].sum(1 + direction, dtype=np.float64)
        turn = 2 * (generator.uniform(-np.pi, np.pi, n) - np.angle(np.exp(1j * lines).mean(1)))
        image = fields.copy()
        # Every line of this direction has one link in its first slice.
        image.swapaxes(1, 1 + direction)[:, 0, :, direction] += turn[:, None]
        turned = np.cos(lines).sum(1) - np.cos(lines + turn[:, None]).sum(1)
        name = f"<cos W_{direction} - its mean over a reflection>"
        parts[name] = [(turned, log_q - proposal.log_prob(image))]
    return identities | flip_identities(parts)


def _charge(fields: NDArray[Any]) -> Array:
    """Return the topological charge Q = Σ P / 2π, P in [−π, π), of links (n, T, X, 2): (n,)."""
    plaquettes: Array = wrapped(plaquette_angles(fields.astype(np.float64)))
    charge: Array = np.rint(plaquettes.sum((1, 2)) / (2 * np.pi))
    return charge


def _instanton(time: int, space: int) -> Array:
    """Return links (T, X, 2) of charge one whose plaquettes are all 2π / V."""
    links = np.zeros((time, space, 2))
    links[..., 1] = 2 * np.pi * np.arange(time)[:, None] / (time * space)
    links[-1, :, 0] = -2 * np.pi * np.arange(space) / space
    return links


EVALUATIONS = {"angle": 15, "real": 6, "spin": 6}
"""How often the identities of each space need log q of all draws."""
CLOSURES: dict[str, Callable[[Proposal, NDArray[Any], int], dict[str, Identity]]] = {
    "angle": angle_closure,
    "real": real_closure,
    "spin": spin_closure,
}
"""The identities of each space, by its name."""


def total_probability(proposal: Proposal) -> float:
    """Return Σ_s q(s) over all 2^V configurations of spins.

    Parameters
    ----------
    proposal
        A proposal of spins on at most `ENUMERATED_SITES` sites.
    """
    shape = proposal.metadata.event_shape
    volume = int(np.prod(shape))
    total = 0.0
    for start in range(0, 2**volume, CHUNK):
        numbers = np.arange(start, min(start + CHUNK, 2**volume))
        total += float(np.exp(proposal.log_prob(spins_of_numbers(numbers, shape))).sum())
    return total


def spins_of_numbers(numbers: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.int8]:
    """Return the configurations with these numbers, (n, *shape): in number k site x is up where bit x of k is set."""
    bits = numbers[:, None] >> np.arange(int(np.prod(shape))) & 1
    return (2 * bits - 1).astype(np.int8).reshape(-1, *shape)
