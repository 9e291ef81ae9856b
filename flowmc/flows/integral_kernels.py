"""Kernels of displacement that act on every lattice: what joins the sites in an operator flow.

A kernel is K(x, t) = Σ_j c_j(t) B_j(x), with the coefficients as weights and functions B_j of the displacement in units
that do not know of a lattice. On a lattice of spacing a, in those units, it acts as ∫dx K → a^d Σ_x K(a x), with the
images of a periodic lattice, or by its symbol at the momenta p̂ / a. B_0 is always the delta function, which is 1 at no
displacement whatever the spacing; of the others each family has its own:

=========== ==========================================================================================================
name        B_j, j > 0
=========== ==========================================================================================================
distance    none: K is a network of r and t, r the shortest distance around the torus (arXiv:2401.00828), times
            exp(−r / reach) if a reach is given
local       cos(π (j − 1) r / reach) (1 − (r / reach)²)² for r < reach, and nothing beyond: image by image
multiscale  heat kernels: symbols exp(−½ σ_j² p²) of widths reach, reach / √2, reach / 2, ...
spectral    symbols T_{j−1}(u) (1 − (p / cutoff)²)² for p < cutoff and nothing beyond, T_j Chebyshev polynomials of
            u = (p² − 1) / (p² + 1)
=========== ==========================================================================================================

All of them are functions of r or of p̂² alone, and so have the lattice's point group as a symmetry, in any dimension.

References
----------
.. [1] Máté, Fleuret, arXiv:2401.00828: a kernel of distance and time.
.. [2] Gerdes et al., arXiv:2207.00283: convolutions of pointwise features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, sqrt
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowmc.errors import ParameterError
from flowmc.lattice import momentum_squared, volume

__all__ = ["KERNEL_FAMILIES", "KernelBasis", "KernelConfig", "build_coefficients", "kernel_basis"]


LARGEST_SUPPORT = 2**22


@dataclass(frozen=True)
class KernelConfig:
    """Hyper-parameters of a kernel.

    Parameters
    ----------
    family
        A name in `KERNEL_FAMILIES`.
    functions
        Number of functions B_j besides the delta function; not for "distance".
    reach
        Radius of the support of "local", largest width of "multiscale", length over which "distance" decays (0: it does
        not), in the units of the kernel.
    cutoff
        Largest momentum of "spectral", in the inverse of those units.
    hidden
        Widths of the two hidden layers of the network of "distance".

    Raises
    ------
    ParameterError
        If a value is out of range or the family unknown.
    """

    family: str = "local"
    functions: int = 6
    reach: float = 3.0
    cutoff: float = 3.0
    hidden: tuple[int, ...] = (32, 32)

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        if self.family not in KERNEL_FAMILIES:
            raise ParameterError(
                got=f"family = {self.family!r}", expected=f"one of {sorted(KERNEL_FAMILIES)}", fix="correct `family`"
            )
        unlimited = self.family == "distance" and self.reach == 0
        if not (0 < self.reach < inf or unlimited) or not 0 < self.cutoff < inf:
            raise ParameterError(
                got=f"reach = {self.reach}, cutoff = {self.cutoff}",
                expected='finite numbers above zero; of "distance" the reach may be 0, without a limit',
                fix="correct the value",
            )
        if self.functions < 1 or len(self.hidden) != 2 or min(self.hidden) < 1:
            raise ParameterError(
                got=f"functions = {self.functions}, hidden = {list(self.hidden)}",
                expected="at least one function, and the widths of two hidden layers",
                fix="correct the value",
            )

    def meaning(self) -> tuple[object, ...]:
        """Return what weights of such a kernel belong to; entries that serve other families are not among it."""
        if self.family == "distance":
            return (self.family, self.reach, self.hidden)
        return (self.family, self.functions, self.cutoff if self.family == "spectral" else self.reach)


class KernelBasis(NamedTuple):
    """The functions B_j on one lattice, with the measure in them."""

    places: NDArray[np.float64]
    """B_j at each displacement from a site, (J, *shape), in the order of the sites."""
    radii: NDArray[np.float64] | None
    """Of "distance", whose functions are shells of sites: the distances, (J − 1,), in the units of the kernel."""
    support: NDArray[np.int64] | None
    """Displacements within the reach, (D, d), as sites of the torus; None where there are no others."""

    @property
    def symbols(self) -> NDArray[np.float64]:
        """Their Fourier transforms on the dual lattice, (J, *shape): real, as B_j(−x) = B_j(x)."""
        axes = tuple(range(1, self.places.ndim))
        transformed: NDArray[np.float64] = np.fft.fftn(self.places, axes=axes).real
        return transformed


def _distances(shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return the shortest distance of each site from the origin, around the torus, in lattice units."""
    total = np.zeros(shape)
    for axis, extent in enumerate(shape):
        along = np.minimum(np.arange(extent), extent - np.arange(extent)).astype(float) ** 2
        total += along.reshape([-1 if direction == axis else 1 for direction in range(len(shape))])
    return np.sqrt(total)


def _shells(config: KernelConfig, shape: tuple[int, ...], spacing: float) -> KernelBasis:
    distance = _distances(shape).round(9)
    radii = np.unique(distance)
    places = np.stack([distance == radius for radius in radii]) * spacing ** len(shape)
    if config.reach:
        places = places * np.exp(-spacing * distance / config.reach)
    return KernelBasis(places, spacing * radii, None)


def _local(config: KernelConfig, shape: tuple[int, ...], spacing: float) -> KernelBasis:
    furthest = int(config.reach / spacing)
    if (2 * furthest + 1) ** len(shape) > LARGEST_SUPPORT:
        raise ParameterError(
            got=f"kernels that reach {furthest} sites in each of {len(shape)} directions",
            expected=f"at most {LARGEST_SUPPORT} sites within reach",
            fix="lower `reach`, which is in the units of `spacing`",
        )
    ranges = [np.arange(-furthest, furthest + 1)] * len(shape)
    images = np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1).reshape(-1, len(shape))
    fraction = spacing * np.sqrt((images**2).sum(1)) / config.reach
    images, fraction = images[fraction < 1], fraction[fraction < 1]
    values = np.cos(np.pi * np.arange(config.functions)[:, None] * fraction) * (1 - fraction**2) ** 2
    sites = images % np.array(shape)
    places = np.zeros((volume(shape), config.functions))
    np.add.at(places, np.ravel_multi_index(tuple(sites.T), shape), values.T * spacing ** len(shape))
    return KernelBasis(places.T.reshape(-1, *shape), None, np.unique(sites, axis=0))


def _from_symbols(symbols: NDArray[np.float64]) -> KernelBasis:
    return KernelBasis(np.fft.ifftn(symbols, axes=tuple(range(1, symbols.ndim))).real, None, None)


def _heat(config: KernelConfig, shape: tuple[int, ...], spacing: float) -> KernelBasis:
    squared = momentum_squared(shape) / spacing**2
    widths = config.reach * sqrt(0.5) ** np.arange(config.functions)
    return _from_symbols(np.stack([np.exp(-0.5 * width**2 * squared) for width in widths]))


def _spectral(config: KernelConfig, shape: tuple[int, ...], spacing: float) -> KernelBasis:
    squared = momentum_squared(shape) / spacing**2
    below = np.clip(1 - squared / config.cutoff**2, 0, None) ** 2
    angle = np.arccos((squared - 1) / (squared + 1))
    return _from_symbols(np.stack([np.cos(number * angle) * below for number in range(config.functions)]))


KERNEL_FAMILIES: dict[str, Callable[[KernelConfig, tuple[int, ...], float], KernelBasis]] = {
    "distance": _shells,
    "local": _local,
    "multiscale": _heat,
    "spectral": _spectral,
}
"""What makes the functions of each family on a lattice, but for the delta function, by its name in run descriptions."""


def kernel_basis(config: KernelConfig, shape: tuple[int, ...], spacing: float) -> KernelBasis:
    """Return the functions B_j on a lattice of some spacing, the delta function first."""
    found = KERNEL_FAMILIES[config.family](config, shape, spacing)
    delta = np.zeros((1, *shape))
    delta[(0,) * (1 + len(shape))] = 1
    return found._replace(places=np.concatenate([delta, found.places]))


class LinearCoefficients(torch.nn.Module):
    """c_j(t) of known functions, linear in functions of the time: zero at the start.

    Parameters
    ----------
    moments
        Number of functions of the time.
    functions
        Number J of functions B_j.
    outputs
        Kernels.
    terms
        Kernels whose sum one velocity is: so that steps of an optimiser change it by about their length, weights are
        those of the coefficients times the square root of the number of all of its terms.
    """

    def __init__(self, moments: int, functions: int, outputs: int, terms: int) -> None:
        super().__init__()
        self._scale = 1 / sqrt(moments * functions * terms)
        self.weight = torch.nn.Parameter(torch.zeros(moments, functions, outputs))

    def forward(self, moments: Tensor, radii: Tensor | None) -> Tensor:  # noqa: ARG002 - of the other kind
        """Map functions of the time, (T, moments), to coefficients, (T, J, outputs)."""
        scaled: Tensor = self._scale * torch.tensordot(moments, self.weight, dims=1)
        return scaled


class DistanceCoefficients(torch.nn.Module):
    """Kernels as networks of distance and time; zero at the start. The delta function is apart.

    Parameters
    ----------
    moments
        Number of functions of the time.
    hidden
        Widths of the hidden layers.
    outputs
        Kernels.
    terms
        Kernels whose sum one velocity is; as for `LinearCoefficients`.
    """

    def __init__(self, moments: int, hidden: tuple[int, ...], outputs: int, terms: int) -> None:
        super().__init__()
        self._scale = 1 / sqrt(terms)
        one, two = hidden
        self.delta = torch.nn.Parameter(torch.zeros(moments, outputs))
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(moments + 1, one),
            torch.nn.SiLU(),
            torch.nn.Linear(one, two),
            torch.nn.SiLU(),
            torch.nn.Linear(two, outputs),
        )
        last = self.layers[-1]
        torch.nn.init.zeros_(last.weight)  # type: ignore[arg-type]
        torch.nn.init.zeros_(last.bias)  # type: ignore[arg-type]

    def forward(self, moments: Tensor, radii: Tensor) -> Tensor:
        """Map functions of the time, (T, moments), and distances, (S,), to coefficients, (T, 1 + S, outputs)."""
        times, shells = len(moments), len(radii)
        where = radii.reshape(1, -1, 1).expand(times, shells, 1)
        inputs = torch.cat([where, moments.unsqueeze(1).expand(times, shells, -1)], dim=2)
        return self._scale * torch.cat([(moments @ self.delta).unsqueeze(1), self.layers(inputs)], dim=1)


def build_coefficients(config: KernelConfig, moments: int, outputs: int, terms: int) -> torch.nn.Module:
    """Build the weights of kernels, which no lattice has a part in.

    Parameters
    ----------
    config
        Hyper-parameters.
    moments
        Number of functions of the time (and of the couplings).
    outputs
        Number of kernels.
    terms
        Number of those whose sum one velocity is.
    """
    if config.family == "distance":
        return DistanceCoefficients(moments, config.hidden, outputs, terms)
    return LinearCoefficients(moments, 1 + config.functions, outputs, terms)
