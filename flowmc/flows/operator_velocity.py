"""Neural operators as velocities: integral kernels over pointwise features of a field, on any lattice.

    V(t, φ)_x = Σ_g h_g(φ_x) Σ_f Σ_y K_fg(x − y, t) s_f(φ_y),

with features s = φ and sin(ω_f φ) / ω_f, odd and of slopes up to 1, gates h = 1 and cos(ν_g φ), even, and the kernels of
`flowmc.flows.integral_kernels`: one set of weights is a velocity on every lattice, odd under φ → −φ and equivariant under
translations and the point group. The divergence costs no more than V itself:

    div V = Σ_x Σ_g [ h_g(φ_x) Σ_f K_fg(0, t) s_f'(φ_x) + h_g'(φ_x) Σ_f Σ_y K_fg(x − y, t) s_f(φ_y) ].

Without gates it is the form of arXiv:2207.00283. Kernels depend on t, and on couplings where that is asked for, by
cos(πkt) and Chebyshev polynomials.

The sum over y is one matrix product where there are few sites, else done by Fourier transform, O(V log V). For kernels of
finite reach there is one by displacements too, O(V).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import pi

import numpy as np
import torch
from torch import Tensor

from flowmc.errors import ParameterError
from flowmc.flows.integral_kernels import KernelBasis, KernelConfig, build_coefficients, kernel_basis
from flowmc.flows.velocities import Velocity, VelocityField
from flowmc.lattice import volume

__all__ = ["SUMS", "OperatorNetworkConfig", "OperatorVelocity", "OperatorWeights"]

SUMS = ("automatic", "displacements", "fourier", "matrix")
"""Ways to sum over the sites, by their names."""
MATRIX_VOLUME = 256
"""Largest number of sites for which "automatic" is "matrix". Above it is "fourier", as measured on one core, also for
kernels of finite reach: "displacements" is slower at least up to 32 × 32 sites."""
MATRIX_ENTRIES = 2**21
"""Largest number of entries of that matrix: more fall out of the caches."""


@dataclass(frozen=True)
class OperatorNetworkConfig:
    """Hyper-parameters of an `OperatorVelocity`.

    Parameters
    ----------
    kernel
        The kernels.
    features
        Number of features sin(ω_f φ) / ω_f; φ itself is always one.
    gates
        Number of gates cos(ν_g φ); 1 itself is always one.
    frequency
        Frequencies are ω_f = f · frequency and ν_g = g · frequency at the start, for f, g = 1, 2, ...
    moments
        Number of functions cos(πkt) / (1 + k) of the time: few, as velocities that change quickly ask for small steps.
    degree
        Largest total degree of polynomials of the couplings, where kernels depend on them.
    sums
        A name in `SUMS`: how to sum over the sites. All give the same but for rounding.

    Raises
    ------
    ParameterError
        If a value is out of range.
    """

    kernel: KernelConfig = field(default_factory=KernelConfig)
    features: int = 8
    gates: int = 4
    frequency: float = 1.0
    moments: int = 3
    degree: int = 2
    sums: str = "automatic"

    def __post_init__(self) -> None:
        if isinstance(self.kernel, dict):
            object.__setattr__(self, "kernel", KernelConfig(**self.kernel))
        if self.sums not in SUMS:
            raise ParameterError(got=f"sums = {self.sums!r}", expected=f"one of {list(SUMS)}", fix="correct `sums`")
        if self.sums == "displacements" and self.kernel.family != "local":
            raise ParameterError(
                got=f'sums = "displacements" for kernels of family {self.kernel.family!r}',
                expected='kernels of finite reach, "local"',
                fix='take "automatic"',
            )
        for name, least in (("features", 1), ("gates", 0), ("moments", 1), ("degree", 1)):
            if getattr(self, name) < least:
                raise ParameterError(
                    got=f"{name} = {getattr(self, name)}", expected=f"at least {least}", fix=f"raise `{name}`"
                )
        if not 0 < self.frequency < float("inf"):
            raise ParameterError(
                got=f"frequency = {self.frequency}", expected="a finite number above zero", fix="correct `frequency`"
            )

    def meaning(self) -> tuple[object, ...]:
        """Return what the weights belong to: initial values and ways to sum are not among it."""
        return (self.kernel.meaning(), self.features, self.gates, self.moments, self.degree)


class OperatorWeights(torch.nn.Module):
    """The weights of a neural operator: those of all lattices.

    Parameters
    ----------
    config
        Hyper-parameters.
    couplings
        Number of couplings on which the kernels depend.
    """

    def __init__(self, config: OperatorNetworkConfig, couplings: int) -> None:
        super().__init__()
        self.config = config
        numbers = itertools.product(range(config.degree + 1), repeat=couplings)
        self._degrees = [degrees for degrees in numbers if sum(degrees) <= config.degree]
        moments = len(self._degrees) * config.moments
        self._outputs = (1 + config.features, 1 + config.gates)
        inputs, outputs = self._outputs
        self.coefficients = build_coefficients(config.kernel, moments, inputs * outputs, inputs)
        self.frequencies = torch.nn.Parameter(config.frequency * torch.arange(1.0, config.features + 1))
        self.gate_frequencies = (
            torch.nn.Parameter(config.frequency * torch.arange(1.0, config.gates + 1)) if config.gates else None
        )

    def polynomials(self, couplings: Sequence[float]) -> list[float]:
        """Return the polynomials of couplings in [−1, 1] on which the kernels depend: products of Chebyshev ones."""
        angles = np.arccos(np.asarray(couplings, dtype=float))
        return [float(np.prod(np.cos(np.asarray(degrees) * angles))) for degrees in self._degrees]

    def kernels(self, time: Tensor, polynomials: Tensor, radii: Tensor | None) -> Tensor:
        """Return c_jfg at times ``()`` or (n,), of the polynomials of some couplings: shape (1 or n, J, F, G)."""
        number = torch.arange(self.config.moments, dtype=time.dtype, device=time.device)
        moments = torch.cos(pi * number * time.reshape(-1, 1)) / (1 + number)
        moments = (polynomials.reshape(1, -1, 1) * moments.unsqueeze(1)).flatten(1)
        found: Tensor = self.coefficients(moments, radii)
        return found.reshape(*found.shape[:2], *self._outputs)


class OperatorVelocity(VelocityField):
    """A neural operator on one lattice.

    Parameters
    ----------
    weights
        Its weights, which other lattices may share.
    shape
        Lattice extents.
    spacing
        Lattice spacing a in the units of the kernels. Features are taken of a^−(d − 2)/2 φ, the field in those units by
        its canonical dimension.
    couplings
        Those on which the kernels depend, scaled to [−1, 1].
    """

    def __init__(
        self,
        weights: OperatorWeights,
        shape: tuple[int, ...],
        spacing: float = 1.0,
        couplings: Sequence[float] = (),
    ) -> None:
        super().__init__()
        self.weights = weights
        self._shape, self._sums = shape, weights.config.sums
        self._unit = float(spacing ** (1 - 0.5 * len(shape)))
        basis = kernel_basis(weights.config.kernel, shape, spacing)
        self._range = _range(basis, shape)
        sites = volume(shape)
        # Tables of this lattice, which are no weights; torch has them in the type and on the device of the weights.
        self._tables = {
            "places": basis.places.reshape(-1, sites),
            "polynomials": np.array(weights.polynomials(couplings)),
            **({} if basis.radii is None else {"radii": basis.radii}),
        }
        self._made: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}
        if self._sums == "automatic":
            entries = len(basis.places) * sites**2
            small = sites <= MATRIX_VOLUME and entries <= MATRIX_ENTRIES
            self._sums = "matrix" if small else "fourier"
        if self._sums == "matrix":
            matrix = self._tables["places"][:, _differences(shape)]
            # (y, j) to x: what mixes the features leaves the functions of a site next to each other.
            self._tables["matrix"] = matrix.transpose(1, 0, 2).reshape(-1, sites)
        elif self._sums == "fourier":
            symbols = basis.symbols[..., : shape[-1] // 2 + 1]
            self._tables["symbols"] = symbols.reshape(len(symbols), -1).T
        elif basis.support is not None:
            delta = np.zeros((1, len(shape)), dtype=np.int64)
            support = np.unique(np.concatenate([delta, basis.support]), axis=0)
            self._support = [tuple(int(step) for step in place) for place in support]
            self._tables["values"] = basis.places[(slice(None), *support.T)]

    def _table(self, name: str) -> Tensor:
        """Return a table in the type and on the device of the weights, which other lattices may share and convert."""
        like = self.weights.frequencies
        key = (name, like.dtype, like.device)
        if key not in self._made:
            # Ordinary tensors even inside inference mode: the certificate differentiates through them.
            with torch.inference_mode(False):
                self._made[key] = torch.as_tensor(self._tables[name], dtype=like.dtype, device=like.device)
        return self._made[key]

    def prepare(self) -> Velocity:
        """Return the velocity with the present weights."""
        return _Prepared(self)

    @property
    def sums(self) -> str:
        """How the sum over the sites is done."""
        return self._sums

    def kernels(self, time: Tensor) -> Tensor:
        """Return c_jfg, (1 or n, J, F, G)."""
        return self.weights.kernels(
            time, self._table("polynomials"), self._table("radii") if "radii" in self._tables else None
        )

    def features(self, field: Tensor) -> Tensor:
        """Return s_f(φ), (n, V, F)."""
        at = (self._unit * field).unsqueeze(2)
        return torch.cat([at, torch.sin(at * self.weights.frequencies) / self.weights.frequencies], dim=2)

    def slopes(self, field: Tensor) -> Tensor:
        """Return s_f'(φ), (n, V, F)."""
        waves = torch.cos((self._unit * field).unsqueeze(2) * self.weights.frequencies)
        return torch.cat([torch.ones_like(waves[:, :, :1]), waves], dim=2)

    def gates(self, field: Tensor) -> Tensor:
        """Return h_g(φ) without h_0 = 1, (n, V, G − 1)."""
        if self.weights.gate_frequencies is None:
            return field.new_zeros((*field.shape, 0))
        return torch.cos((self._unit * field).unsqueeze(2) * self.weights.gate_frequencies)

    def gate_slopes(self, field: Tensor) -> Tensor:
        """Return h_g'(φ) without h_0' = 0, (n, V, G − 1)."""
        if self.weights.gate_frequencies is None:
            return field.new_zeros((*field.shape, 0))
        frequencies = self.weights.gate_frequencies
        return -frequencies * torch.sin((self._unit * field).unsqueeze(2) * frequencies)

    def summed(self, kernels: Tensor, features: Tensor) -> Tensor:
        """Return Σ_f Σ_y K_fg(x − y) s_f(φ_y), (n, V, G)."""
        _, functions, inputs, outputs = kernels.shape
        if self._sums == "fourier" and functions > inputs:
            # Fewer transforms than of mixed features: the kernels are put together for each momentum.
            modes = self._modes(features)
            symbols = self._table("symbols") @ kernels.flatten(2)
            symbols = symbols.reshape(len(kernels), -1, inputs, outputs)
            return self._back((modes.unsqueeze(3) * symbols).sum(2))
        # As one matrix for all fields where there is one time: (F, G J).
        mixing = kernels.permute(0, 2, 3, 1).flatten(2)
        mixed = features @ (mixing[0] if len(mixing) == 1 else mixing)
        n, sites = mixed.shape[:2]
        mixed = mixed.reshape(n, sites, outputs, functions)
        if self._sums == "matrix":
            return (mixed.transpose(1, 2).flatten(2) @ self._table("matrix")).transpose(1, 2)
        if self._sums == "fourier":
            modes = self._modes(mixed.flatten(2)).reshape(n, -1, outputs, functions)
            return self._back((modes * self._table("symbols").unsqueeze(1)).sum(3))
        each = (mixed @ self._table("values")).permute(3, 0, 2, 1).reshape(-1, n, outputs, *self._shape)
        axes = tuple(range(2, 2 + len(self._shape)))
        total = torch.zeros_like(each[0])
        for values, shift in zip(each, self._support, strict=True):
            total = total + torch.roll(values, shift, axes)
        return total.flatten(2).transpose(1, 2)

    def _modes(self, values: Tensor) -> Tensor:
        """Transform (n, V, channels) to (n, half the momenta, channels)."""
        axes = tuple(range(1, 1 + len(self._shape)))
        found: Tensor = torch.fft.rfftn(values.reshape(len(values), *self._shape, -1), dim=axes).flatten(1, -2)
        return found

    def _back(self, modes: Tensor) -> Tensor:
        """Undo `_modes`."""
        axes = tuple(range(1, 1 + len(self._shape)))
        half = (*self._shape[:-1], self._shape[-1] // 2 + 1)
        found: Tensor = torch.fft.irfftn(modes.reshape(len(modes), *half, -1), s=self._shape, dim=axes)
        return found.flatten(1, -2)

    def rows(self, kernels: Tensor, sites: Tensor) -> Tensor:
        """Return K_fg(x − y) for some sites x, (1 or n, F, G, sites, V)."""
        at = self._pairs.to(sites.device)[sites]
        places = torch.einsum("jd,tjfg->tfgd", self._table("places"), kernels)
        return places[..., at]

    def at_origin(self, kernels: Tensor) -> Tensor:
        """Return K_fg(0), (1 or n, F, G)."""
        return torch.einsum("j,tjfg->tfg", self._table("places")[:, 0], kernels)

    @property
    def unit(self) -> float:
        """By what a field is multiplied before features are taken."""
        return self._unit

    @cached_property
    def _pairs(self) -> Tensor:
        """The number of the site x − y for each pair of sites, (V, V): asked for in every substep of a splitting."""
        return torch.as_tensor(_differences(self._shape))

    @cached_property
    def colour_classes(self) -> Sequence[Sequence[int]]:
        """Sites that do not feel each other: those further apart than the reach in some direction."""
        colours = [_colours(extent, self._range) for extent in self._shape]
        classes: dict[tuple[int, ...], list[int]] = {}
        for number, place in enumerate(np.ndindex(*self._shape)):
            key = tuple(along[step] for along, step in zip(colours, place, strict=True))
            classes.setdefault(key, []).append(number)
        return list(classes.values())


def _differences(shape: tuple[int, ...]) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Return the number of the site x − y for each pair of sites, (V, V)."""
    places = np.stack(np.unravel_index(np.arange(volume(shape)), shape), axis=-1)
    difference = (places[:, None] - places[None]) % np.array(shape)
    found: np.ndarray[tuple[int, ...], np.dtype[np.int64]] = np.ravel_multi_index(
        tuple(np.moveaxis(difference, -1, 0)), shape
    )
    return found


def _range(basis: KernelBasis, shape: tuple[int, ...]) -> int:
    """Return the largest displacement along an axis, in lattice units, beyond which all kernels vanish."""
    if basis.support is None:
        return max(shape)
    shortest = np.minimum(basis.support, np.array(shape) - basis.support)
    return int(shortest.max())


def _colours(extent: int, reach: int) -> list[int]:
    """Return colours along an axis: sites of the same one are further apart than the reach, around the torus."""
    period = reach + 1
    whole = extent // period * period
    if whole < 2 * period:
        return list(range(extent))
    # What is left at the end has colours of its own.
    return [place % period if place < whole else place - whole + period for place in range(extent)]


class _Prepared(Velocity):
    """An operator velocity as integrators take it: kernels are made anew for each time, which costs next to nothing."""

    def __init__(self, operator: OperatorVelocity) -> None:
        self._operator = operator

    @property
    def colour_classes(self) -> Sequence[Sequence[int]]:
        return self._operator.colour_classes

    def __call__(self, time: Tensor, field: Tensor) -> Tensor:
        operator = self._operator
        return self._gated(field, operator.summed(operator.kernels(time), operator.features(field)))

    def _gated(self, field: Tensor, summed: Tensor) -> Tensor:
        return (summed[:, :, 0] + (self._operator.gates(field) * summed[:, :, 1:]).sum(2)) / self._operator.unit

    def with_divergence(self, time: Tensor, field: Tensor) -> tuple[Tensor, Tensor]:
        operator = self._operator
        kernels = operator.kernels(time)
        summed = operator.summed(kernels, operator.features(field))
        return self._gated(field, summed), self._diagonal(kernels, field, summed).sum(1)

    def _diagonal(self, kernels: Tensor, field: Tensor, summed: Tensor) -> Tensor:
        """Return ∂V_x/∂φ_x, (n, sites)."""
        operator = self._operator
        own = operator.slopes(field) @ operator.at_origin(kernels)
        gated = own[:, :, 0] + (operator.gates(field) * own[:, :, 1:]).sum(2)
        return gated + (operator.gate_slopes(field) * summed[:, :, 1:]).sum(2)

    def with_jacobian(self, time: Tensor, field: Tensor) -> tuple[Tensor, Tensor]:
        operator = self._operator
        kernels = operator.kernels(time)
        summed = operator.summed(kernels, operator.features(field))
        everywhere = torch.arange(field.shape[1], device=field.device)
        rows = operator.rows(kernels, everywhere)
        rows = rows.expand(len(field), *rows.shape[1:])
        each = torch.einsum("nyf,nfgxy->ngxy", operator.slopes(field), rows)
        jacobian = each[:, 0] + torch.einsum("nxg,ngxy->nxy", operator.gates(field), each[:, 1:])
        diagonal = (operator.gate_slopes(field) * summed[:, :, 1:]).sum(2)
        return self._gated(field, summed), jacobian + torch.diag_embed(diagonal)

    def at_sites(self, time: Tensor, field: Tensor, sites: Tensor) -> tuple[Tensor, Tensor]:
        return self.around(time, field, sites)(field[:, sites])

    def around(self, time: Tensor, field: Tensor, sites: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        operator = self._operator
        kernels, features = operator.kernels(time), operator.features(field)
        rows = operator.rows(kernels, sites)
        own = operator.at_origin(kernels)
        others = (
            torch.einsum("nyf,fgxy->nxg", features, rows[0])
            if len(rows) == 1
            else torch.einsum("nyf,nfgxy->nxg", features, rows)
        )
        # What each site contributes to itself is taken out: it changes with the value there.
        others = others - features[:, sites] @ own

        def at(values: Tensor) -> tuple[Tensor, Tensor]:
            summed = others + operator.features(values) @ own
            return self._gated(values, summed), self._diagonal(kernels, values, summed)

        return at
