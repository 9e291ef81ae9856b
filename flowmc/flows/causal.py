"""Networks that give the conditional probabilities of spins in an order, each from the spins before it.

A network maps spins, and a context that they are conditioned on, to the logits of the conditional probabilities

    q(s | context) = Π_i q(s_i | s_1 … s_{i−1}, context),   q(s_i = +1 | …) = 1 / (1 + exp(−logit_i)).

Masks on the weights keep logit i from depending on spins i, i+1, …, so that one pass gives all of them for given spins.
Drawing goes spin by spin, and computes at each step the numbers of that step alone: a hidden unit belongs to a position
in the order and is evaluated once, when the spins before that position are known. So drawing costs the multiplications
of one pass, in as many small steps as there are spins.
"""

from __future__ import annotations

import abc
from itertools import pairwise
from math import sqrt

import torch
from torch import Tensor
from torch.nn.functional import conv2d, linear

__all__ = ["CausalConvolution", "CausalDense", "CausalNetwork"]

SLOPE = 0.25  # where the learned slope of the PReLU starts


class CausalNetwork(torch.nn.Module, abc.ABC):
    """Conditional logits of spins in an order."""

    n_spins: int

    @abc.abstractmethod
    def forward(self, context: Tensor, spins: Tensor) -> Tensor:
        """Return the logits (n, n_spins) of given spins (n, n_spins) in a context (n, n_context)."""

    @abc.abstractmethod
    def draw(self, context: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Draw spins one after the other.

        Parameters
        ----------
        context
            (n, n_context), dtype of the weights.
        uniform
            Uniform numbers on [0, 1), (n_spins, n): spin i is up where number i is below its probability.

        Returns
        -------
        Spins ±1 and their logits, each (n, n_spins), dtype of the weights.
        """


def _up(logits: Tensor, uniform: Tensor) -> Tensor:
    """Return spins ±1, up where the uniform number is below the probability of it."""
    return (uniform < torch.sigmoid(logits.to(uniform.dtype))).to(logits.dtype) * 2 - 1


def _prelu(hidden: Tensor, slope: Tensor) -> Tensor:
    return torch.where(hidden > 0, hidden, slope * hidden)


class CausalDense(CausalNetwork):
    """Masked dense layers (MADE, Germain et al., arXiv:1502.03509) with a context and a direct connection.

    A hidden unit of position i depends on the context and on spins before i; the direct connection adds a linear function
    of both to each logit. The network starts with all logits zero.

    Parameters
    ----------
    n_context
        Numbers in the context.
    n_spins
        Spins.
    width
        Hidden units for each spin.
    depth
        Hidden layers.
    """

    def __init__(self, n_context: int, n_spins: int, width: int, depth: int) -> None:
        super().__init__()
        self.n_context, self.n_spins, self.width = n_context, n_spins, width
        position = torch.arange(n_spins)
        unit = position.repeat_interleave(width)
        n_units = n_spins * width
        # Rows are outputs, columns inputs; the context comes first among the inputs of a layer that sees it.
        sees_context = torch.ones(n_units, n_context, dtype=torch.bool)
        strict = torch.cat([sees_context, unit[:, None] > position[None, :]], 1)
        self.register_buffer("_first", strict, persistent=False)
        inner = unit[:, None] >= unit[None, :] if depth > 1 else torch.empty(0, 0, dtype=torch.bool)
        self.register_buffer("_inner", inner, persistent=False)
        self.register_buffer("_last", position[:, None] >= unit[None, :], persistent=False)
        direct = torch.cat([sees_context[:n_spins], position[:, None] > position[None, :]], 1)
        self.register_buffer("_direct", direct, persistent=False)
        masks = [self._first, *[self._inner] * (depth - 1)]
        self.weights = torch.nn.ParameterList([_initial(mask) for mask in masks])
        self.biases = torch.nn.ParameterList([torch.zeros(n_units) for _ in masks])
        self.slopes = torch.nn.ParameterList([torch.full((n_units,), SLOPE) for _ in masks])
        self.last = torch.nn.Parameter(torch.zeros(n_spins, n_units))
        self.direct = torch.nn.Parameter(torch.zeros(n_spins, n_context + n_spins))
        self.bias = torch.nn.Parameter(torch.zeros(n_spins))

    _first: Tensor
    _inner: Tensor
    _last: Tensor
    _direct: Tensor

    def _masks(self) -> list[Tensor]:
        return [self._first, *[self._inner] * (len(self.weights) - 1)]

    def forward(self, context: Tensor, spins: Tensor) -> Tensor:
        """Return the logits; see `CausalNetwork.forward`."""
        inputs = torch.cat([context, spins], 1)
        hidden = inputs
        for mask, weight, bias, slope in zip(self._masks(), self.weights, self.biases, self.slopes, strict=True):
            hidden = _prelu(linear(hidden, weight * mask, bias), slope)
        return linear(hidden, self.last * self._last) + linear(inputs, self.direct * self._direct, self.bias)

    def draw(self, context: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Draw spins; see `CausalNetwork.draw`."""
        n, width, given = len(context), self.width, self.n_context
        # Unmasked weights will do: what a mask would hide is never multiplied.
        inputs = context.new_empty(given + self.n_spins, n)
        inputs[:given] = context.T
        hidden = [context.new_empty(self.n_spins * width, n) for _ in self.weights]
        logits = context.new_empty(self.n_spins, n)
        for i in range(self.n_spins):
            mine, before = slice(i * width, (i + 1) * width), (i + 1) * width
            known = inputs[: given + i]
            for layer, (weight, bias, slope) in enumerate(zip(self.weights, self.biases, self.slopes, strict=True)):
                below = known if layer == 0 else hidden[layer - 1][:before]
                units = torch.addmm(bias[mine, None], weight[mine, : len(below)], below)
                hidden[layer][mine] = _prelu(units, slope[mine, None])
            logit = self.last[i, :before] @ hidden[-1][:before] + self.direct[i, : given + i] @ known + self.bias[i]
            logits[i] = logit
            inputs[given + i] = _up(logit, uniform[i])
        return inputs[given:].T, logits.T


def _initial(mask: Tensor) -> Tensor:
    """Draw weights whose sums over the visible inputs of spins ±1 have unit variance."""
    visible = mask.sum(1, keepdim=True).clamp(min=1)
    return torch.randn(mask.shape) / visible.sqrt()


class CausalConvolution(CausalNetwork):
    """Masked convolutions on a two-dimensional lattice in raster order (PixelCNN, van den Oord et al., arXiv:1601.06759).

    The first layer sees the sites before its own, the others their own too; beyond the edges of the lattice lie zeros,
    since sites that are neighbours across a periodic edge come too late in the order. The network starts with all logits
    zero.

    Parameters
    ----------
    shape
        Lattice extents (T, X).
    width
        Channels of the hidden layers.
    depth
        Hidden layers.
    radius
        Range of a layer in each direction, in lattice units.
    """

    def __init__(self, shape: tuple[int, int], width: int, depth: int, radius: int) -> None:
        super().__init__()
        self.shape, self.radius = shape, radius
        self.n_spins = shape[0] * shape[1]
        window = torch.ones(radius + 1, 2 * radius + 1, dtype=torch.bool)
        window[radius, radius:] = False
        strict = window.clone()
        window[radius, radius] = True
        self.register_buffer("_strict", strict, persistent=False)
        self.register_buffer("_window", window, persistent=False)
        channels = [1, *[width] * depth, 1]
        self.weights = torch.nn.ParameterList()
        for layer, (inner, outer) in enumerate(pairwise(channels)):
            visible = int((self._window if layer else self._strict).sum()) * inner
            scale = 0.0 if layer == depth else 1 / sqrt(visible)
            self.weights.append(scale * torch.randn(outer, inner, *window.shape))
        self.biases = torch.nn.ParameterList([torch.zeros(outer) for outer in channels[1:]])
        self.slopes = torch.nn.ParameterList([torch.full((width,), SLOPE) for _ in range(depth)])

    _strict: Tensor
    _window: Tensor

    def _masked(self) -> list[Tensor]:
        return [weight * (self._window if layer else self._strict) for layer, weight in enumerate(self.weights)]

    def forward(self, context: Tensor, spins: Tensor) -> Tensor:  # noqa: ARG002 - no context
        """Return the logits; see `CausalNetwork.forward`."""
        radius = self.radius
        field = spins.reshape(-1, 1, *self.shape)
        for layer, (weight, bias) in enumerate(zip(self._masked(), self.biases, strict=True)):
            # The window reaches up and to both sides: zeros there, and none below.
            field = conv2d(torch.nn.functional.pad(field, (radius, radius, radius, 0)), weight, bias)
            if layer < len(self.slopes):
                field = _prelu(field, self.slopes[layer][:, None, None])
        return field.flatten(1)

    def draw(self, context: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Draw spins; see `CausalNetwork.draw`."""
        n, radius, (rows, columns) = len(context), self.radius, self.shape
        weights = self._masked()
        # What each layer sees, with its zeros beyond the edges; sites that are still to come hold zeros too.
        seen = [context.new_zeros(weight.shape[1], rows + radius, columns + 2 * radius, n) for weight in weights]
        flat = [weight.flatten(1) for weight in weights]
        logits = context.new_empty(self.n_spins, n)
        for i in range(self.n_spins):
            t, x = divmod(i, columns)
            for layer, (weight, bias) in enumerate(zip(flat, self.biases, strict=True)):
                window = seen[layer][:, t : t + radius + 1, x : x + 2 * radius + 1].reshape(-1, n)
                units = torch.addmm(bias[:, None], weight, window)
                if layer < len(self.slopes):
                    seen[layer + 1][:, t + radius, x + radius] = _prelu(units, self.slopes[layer][:, None])
            logits[i] = units[0]
            seen[0][0, t + radius, x + radius] = _up(logits[i], uniform[i])
        spins = seen[0][0, radius:, radius:-radius].reshape(self.n_spins, n)
        return spins.T, logits.T
