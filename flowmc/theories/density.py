"""A theory whose action is minus a JAX function, the ``logdensity_fn`` of BlackJAX: it has a gradient, so HMC moves it.

The function gives the logarithm of the density of *one* configuration, up to a constant, as BlackJAX, NumPyro and PyMC
hand it out; the batch is made by `jax.vmap` and the force by `jax.grad`. What is no JAX function, or has no gradient,
belongs into a `flowmc.theories.CallableTheory`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, ClassVar, cast

import jax
import jax.numpy as jnp
import numpy as np
import torch
from array_api_compat import is_jax_array, is_torch_array
from numpy.typing import NDArray

from flowmc.arrays import Array, batch_axes, check_field, in_pieces, namespace, require_x64
from flowmc.errors import LatticeMismatchError, ParameterError, PrecisionError
from flowmc.theories.base import SmoothTheory
from flowmc.theories.spaces import SPACES, ContinuousSpace, RealSpace

__all__ = ["DensityTheory"]

LogDensity = Callable[[jax.Array], jax.Array]

# Agreement of the density of a configuration alone with that of the same one in a batch: sums may be ordered differently.
ROUNDING = 1e-9


@dataclass(frozen=True)
class DensityTheory(SmoothTheory):
    """A theory with S(φ) = −``logdensity_fn(φ)``.

    NumPy and torch fields are evaluated by JAX as well, and torch is told the gradient, so that flows can be trained for
    such a theory. Where the density is not finite a configuration counts as impossible, as with any theory.

    Parameters
    ----------
    shape
        Shape of one configuration, the ``position``; extents of one are possible, and ``()`` for a single number.
    logdensity_fn
        Maps a position, float64 of that shape, to the logarithm of its density, a scalar in nats. A pure JAX function.
    label
        What the density is called in error messages, descriptions and files: there it stands for the function, so that
        different densities need different labels.
    space
        The space of the field, real unless said otherwise; for ``AngleSpace()`` the density must be periodic.
    batched
        Whether the function maps positions (n, *shape) to (n,) at once; then it is called so, without `jax.vmap`.

    Raises
    ------
    ParameterError
        If an extent is not positive, the label is empty, the function is not hashable (kernels are compiled for it), JAX
        cannot trace it or has no gradient of it, or a batched one mixes the configurations of its batch.
    LatticeMismatchError
        If the function does not return one number for a configuration.
    PrecisionError
        If it returns float32, or JAX's x64 switch is off.

    Examples
    --------
    >>> jax.config.update("jax_enable_x64", True)
    >>> theory = DensityTheory((3,), lambda position: -0.5 * jnp.sum(position**2), "white noise")
    >>> theory.action(np.ones((2, 3))).tolist()
    [1.5, 1.5]
    >>> theory.force(np.ones((1, 3))).tolist()
    [[-1.0, -1.0, -1.0]]
    """

    shape: tuple[int, ...]
    logdensity_fn: LogDensity
    label: str = "logdensity"
    space: ContinuousSpace = RealSpace()  # type: ignore[misc]  # noqa: RUF009 - one class for all spaces; without state
    batched: bool = False

    name: ClassVar[str] = "density"
    convention: ClassVar[str] = "S = -logdensity_fn, given as a function, p = exp(-S)"
    homogeneous: ClassVar[bool] = False
    """Nothing is known of its symmetries."""

    @classmethod
    def from_potential(
        cls,
        potential_fn: LogDensity,
        shape: tuple[int, ...],
        label: str = "potential",
        space: ContinuousSpace | None = None,
        batched: bool = False,
    ) -> DensityTheory:
        """Return the theory with S(φ) = ``potential_fn(φ)``, NumPyro's convention: minus the log density."""
        return cls(shape, _Minus(potential_fn), label, space or RealSpace(), batched)

    def __post_init__(self) -> None:
        require_x64()
        object.__setattr__(self, "shape", _extents(self.shape))
        if not self.label:
            raise ParameterError(got="an empty label", expected="a name for the density", fix="give `label`")
        if not isinstance(self.space, ContinuousSpace):
            raise ParameterError(
                got=f"a log density of {self.space.name} fields",
                expected="a continuous space, which has gradients",
                fix="use a CallableTheory for spins",
            )
        # One object for each space, so that equal theories are equal.
        if type(known := SPACES.get(self.space.name)) is type(self.space):
            object.__setattr__(self, "space", known)
        try:
            hash(self.logdensity_fn)
        except TypeError as error:
            raise ParameterError(
                got=f"a function that cannot be hashed ({error})",
                expected="a plain function, or an object that compares by identity",
                fix="wrap it: `lambda position: logdensity_fn(position)`",
            ) from error
        self._try_out()

    def _try_out(self) -> None:
        """Refuse a function that is no log density before a run depends on it; nothing is compiled for it."""
        fields = jax.ShapeDtypeStruct((2, *self.shape), np.float64)  # type: ignore[no-untyped-call]
        try:
            returned = jax.eval_shape(self._log_density, fields)
        except jax.errors.JAXTypeError as error:
            raise ParameterError(
                got=f"{self.label!r}, a function that JAX cannot trace ({type(error).__name__})",
                expected="a pure JAX function: jax.numpy operations, no NumPy, no `if` on values",
                fix="write it with jax.numpy, or use a CallableTheory, which takes NumPy functions (and has no force)",
            ) from error
        shape = getattr(returned, "shape", None)
        if shape != (2,):
            raise LatticeMismatchError(
                got=f"a log density of shape {shape} from {self.label!r} for two positions {self.shape}",
                expected="one number for each position",
                fix="sum over all axes" + (" but the first" if self.batched else " of the position"),
            )
        if returned.dtype != np.float64:
            raise PrecisionError(
                got=f"a log density of type {returned.dtype} from {self.label!r}",
                expected="float64",
                fix="compute it in double precision; it is given its positions in it",
            )
        try:
            jax.eval_shape(self._with_gradient, fields)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise ParameterError(
                got=f"{self.label!r}, of which JAX has no gradient ({str(error).splitlines()[0]})",
                expected="a function that jax.grad can differentiate",
                fix="give it a custom_vjp, or use a CallableTheory with kernels that need no force",
            ) from error
        if self.batched:
            self._check_independence()

    def _check_independence(self) -> None:
        field = self.space.start(np.random.default_rng(0), 2, self.shape, "hot")
        together = self.action(field)
        alone = np.concatenate([self.action(field[i : i + 1]) for i in (0, 1)])
        if not np.allclose(together, alone, rtol=ROUNDING, atol=ROUNDING, equal_nan=True):
            raise ParameterError(
                got=f"actions {together.tolist()} of two positions by {self.label!r}, and {alone.tolist()} of each alone",
                expected="the same numbers: the density of a configuration is a function of it alone",
                fix="sum over all axes but the first",
            )

    def _log_density(self, field: jax.Array) -> jax.Array:
        return (self.logdensity_fn if self.batched else jax.vmap(self.logdensity_fn))(field)

    def _with_gradient(self, field: jax.Array) -> tuple[jax.Array, jax.Array]:
        if not self.batched:
            return jax.vmap(jax.value_and_grad(self.logdensity_fn))(field)
        values, pull_back = jax.vjp(self.logdensity_fn, field)
        return values, pull_back(jnp.ones_like(values))[0]

    def action(self, field: Array) -> Array:
        """Return S of each configuration; see `Theory.action`."""
        check_field(field, self.shape)
        if is_torch_array(field):
            return _TorchAction.apply(field, self)  # type: ignore[no-untyped-call]
        if is_jax_array(field):
            return _action(self, field)
        return np.asarray(_action(self, jnp.asarray(field)))

    def force(self, field: Array) -> Array:
        """Return −∂S/∂φ; see `SmoothTheory.force`."""
        return self.action_and_force(field)[1]

    def action_and_force(self, field: Array) -> tuple[Array, Array]:
        """Return both, from one evaluation; see `SmoothTheory.action_and_force`."""
        check_field(field, self.shape)
        if is_jax_array(field):
            by_jax: tuple[Array, Array] = _action_and_force(self, field)
            return by_jax
        if not is_torch_array(field):
            action, force = _action_and_force(self, jnp.asarray(field))
            return np.asarray(action), np.asarray(force)
        xp = namespace(field)
        both = self.action_and_force(field.detach().cpu().numpy())
        action, force = (xp.asarray(np.array(part), device=field.device) for part in both)
        return action, force

    def virial(self, field: Array) -> Array:
        """Return Σ φ ∂S/∂φ of each configuration, (n,), float64.

        Its expectation value is the number of degrees of freedom for a density that is smooth on all of a real space.
        """
        xp = namespace(field)
        return -xp.sum(field * self.force(field), axis=batch_axes(self.shape), dtype=xp.float64)

    def identities(self) -> Mapping[str, Callable[[Array], Array]]:
        """Return the virial of a real field; a density with a hard wall does not obey it. See `Theory.identities`."""
        return {"virial": self.virial} if isinstance(self.space, RealSpace) else {}

    def describe(self) -> dict[str, Any]:
        """Return the theory as plain data, with its label in place of the function, which no file can hold."""
        return {"name": self.name, "label": self.label, "space": self.space.name, "shape": list(self.shape)}


def _extents(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape as a tuple of positive integers; without neighbours, one site in a direction is possible."""
    if not isinstance(shape, Sequence):
        raise ParameterError(
            got=f"shape = {shape!r}", expected="the shape of one position, for example (8, 8)", fix="correct `shape`"
        )
    extents = tuple(shape)
    integral = all(isinstance(extent, int | np.integer) and not isinstance(extent, bool) for extent in extents)
    if not integral or prod(extents) < 1 or min(extents, default=1) < 1:
        raise ParameterError(
            got=f"shape = {list(extents)}", expected="positive integers, for example (8, 8)", fix="correct `shape`"
        )
    return tuple(int(extent) for extent in extents)


@dataclass(frozen=True)
class _Minus:
    """The negative of a function, equal for equal functions: what is compiled for one is found again."""

    function: LogDensity

    def __call__(self, position: jax.Array) -> jax.Array:
        return -self.function(position)


@partial(jax.jit, static_argnames=("theory",))
def _action(theory: DensityTheory, field: jax.Array) -> jax.Array:
    log_density: jax.Array = in_pieces(theory._log_density, field.astype(np.float64))
    return -log_density


@partial(jax.jit, static_argnames=("theory",))
def _action_and_force(theory: DensityTheory, field: jax.Array) -> tuple[jax.Array, jax.Array]:
    values, gradient = in_pieces(theory._with_gradient, field.astype(np.float64))
    return -values, gradient.astype(field.dtype)


class _TorchAction(torch.autograd.Function):
    """The action for torch, evaluated by JAX, with its slope."""

    @staticmethod
    def forward(ctx: Any, field: torch.Tensor, theory: DensityTheory) -> torch.Tensor:
        """Return the action, and keep the force where a gradient is asked for."""
        if not ctx.needs_input_grad[0]:
            values: NDArray[np.float64] = theory.action(field.detach().cpu().numpy())
            return torch.tensor(values, device=field.device)
        action, force = theory.action_and_force(field.detach())
        ctx.save_for_backward(force)
        return cast(torch.Tensor, action)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *slopes: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Return the gradient of what the action enters into."""
        (force,) = ctx.saved_tensors
        slope = slopes[0].reshape(-1, *[1] * (force.ndim - 1))
        return -(slope * force).to(force.dtype), None
