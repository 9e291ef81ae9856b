"""A theory whose action is a NumPy function: no gradient, no array API, whatever the function is made of.

It can be simulated by every kernel that only evaluates the action (independence Metropolis with a flow), and flows can be
trained for it with the score-function gradient, `flowmc.training.reinforce`. What needs a force refuses it beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import numpy as np
from array_api_compat import is_jax_array
from numpy.typing import NDArray

from flowmc.arrays import Array, check_field, namespace, require_x64
from flowmc.errors import LatticeMismatchError, ParameterError, PrecisionError
from flowmc.lattice import checked_shape
from flowmc.theories.base import Theory
from flowmc.theories.spaces import FieldSpace

__all__ = ["CallableTheory"]

Action = Callable[[NDArray[Any]], NDArray[Any]]

# Agreement of the action of a field alone with that of the same field in a batch: sums may be ordered differently.
ROUNDING = 1e-9


@dataclass(frozen=True)
class CallableTheory(Theory):
    """A theory with S(φ) = ``function(field)``.

    The function is called on the host with a copy of the fields in float64 (spins too), also from inside compiled JAX
    code, and must not use JAX itself. Where an action is not finite the field counts as impossible, as with any theory: a
    proposal is rejected and counted, a start is refused, a training stops with an error.

    Parameters
    ----------
    shape
        Lattice extents (T, ..., X), in lattice units.
    function
        Maps fields ``(n, *shape, *internal)`` to their dimensionless actions ``(n,)``, float64 or integers; the action of
        a configuration depends on it alone. It is tried out on two fields when the theory is built.
    space
        The space of the field, for example ``RealSpace()``.
    label
        What the action is called in error messages, descriptions and files: there it stands for the function, so that
        different actions need different labels.
    internal
        Extents of the axes after the lattice's, for example ``(2,)`` for the links of a two-dimensional lattice.

    Raises
    ------
    ParameterError
        If the label is empty, the function is not hashable (kernels are compiled for it), or the action of a
        configuration depends on the others of its batch.
    LatticeMismatchError
        If the function returns another shape.
    PrecisionError
        If the function returns other numbers, for example float32.

    Examples
    --------
    >>> from flowmc.theories import RealSpace
    >>> theory = CallableTheory((4, 4), lambda field: 0.5 * (field**2).sum(axis=(1, 2)), RealSpace(), "white noise")
    >>> theory.action(np.ones((3, 4, 4))).tolist()
    [8.0, 8.0, 8.0]
    """

    shape: tuple[int, ...]
    function: Action
    space: FieldSpace  # type: ignore[misc]  # one class for all spaces
    label: str
    internal: tuple[int, ...] = ()

    name: ClassVar[str] = "callable"
    convention: ClassVar[str] = "S is given as a function, p = exp(-S)"

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", checked_shape(self.shape))
        object.__setattr__(self, "internal", tuple(self.internal))
        if not self.label or any(extent < 1 for extent in self.internal):
            raise ParameterError(
                got=f"label = {self.label!r}, internal = {self.internal}",
                expected="a label that is not empty, and positive extents",
                fix="correct the arguments of the theory",
            )
        try:
            hash(self.function)
        except TypeError as error:
            raise ParameterError(
                got=f"a function that cannot be hashed ({error})",
                expected="a plain function, or an object that compares by identity",
                fix="wrap it: `lambda field: function(field)`",
            ) from error
        self._try_out()

    def _try_out(self) -> None:
        """Refuse a function that is no action before a run depends on it."""
        fields = self.space.start(np.random.default_rng(0), 2, self.field_shape, "hot")
        together = self._evaluate(fields)
        alone = np.concatenate([self._evaluate(fields[i : i + 1]) for i in (0, 1)])
        if not np.allclose(together, alone, rtol=ROUNDING, atol=ROUNDING, equal_nan=True):
            raise ParameterError(
                got=f"actions {together.tolist()} of two configurations by {self.label!r}, and {alone.tolist()} of each "
                "alone",
                expected="the same numbers: the action of a configuration is a function of it alone",
                fix="sum over all axes but the first, without random numbers",
            )

    @property
    def field_shape(self) -> tuple[int, ...]:
        """Shape of one configuration: the lattice, then the internal axes."""
        return (*self.shape, *self.internal)

    def action(self, field: Array) -> Array:
        """Return S of each configuration; see `Theory.action`.

        Raises
        ------
        LatticeMismatchError, PrecisionError
            If the function returns another shape or type for this batch. Inside compiled JAX code these, like every error
            of the function, come out as JAX's own `jax.errors.JaxRuntimeError`, with their text.
        """
        check_field(field, self.field_shape)
        if is_jax_array(field):
            require_x64()
            returned = jax.ShapeDtypeStruct((field.shape[0],), np.float64)  # type: ignore[no-untyped-call]
            return jax.pure_callback(self._evaluate, returned, field, vmap_method="sequential")
        if isinstance(field, np.ndarray):
            return self._evaluate(field)
        xp = namespace(field)
        return xp.asarray(self._evaluate(field.detach().cpu().numpy()), device=field.device)

    def _evaluate(self, field: Array) -> NDArray[np.float64]:
        # A copy, which the function may change, of what may be a view of another library's buffer; and float64 even for
        # spins, whose int8 would overflow in an innocent product.
        given = np.array(field, dtype=np.float64)
        values = np.asarray(self.function(given))
        if values.shape != (len(given),):
            raise LatticeMismatchError(
                got=f"an action of shape {values.shape} from {self.label!r} for fields of shape {given.shape}",
                expected=f"({len(given)},): one number for each configuration",
                fix="sum over all axes but the first",
            )
        if values.dtype.kind not in "iuf" or (values.dtype.kind == "f" and values.itemsize < 8):
            raise PrecisionError(
                got=f"an action of type {values.dtype} from {self.label!r}",
                expected="float64",
                fix="compute the action in double precision; it is given its fields in it",
            )
        return values.astype(np.float64)

    def identities(self) -> Mapping[str, Callable[[Array], Array]]:
        """Return none: they need derivatives of the action; see `Theory.identities`."""
        return {}

    def describe(self) -> dict[str, Any]:
        """Return the theory as plain data, with its label in place of the function, which no file can hold."""
        return {
            "name": self.name,
            "label": self.label,
            "space": self.space.name,
            "internal": list(self.internal),
            "shape": list(self.shape),
        }
