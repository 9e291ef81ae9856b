"""Fingerprints of flows of any library: SHA-256 over the weights and all that says how they are used.

An ensemble names the flow that it was made with by its fingerprint, and a run is only resumed with the same one. So it
must be the same in another process, for a flow that was loaded instead of trained, and differ where draws may differ:
everything that can be reached from the flow is hashed, whatever library it is of, but for addresses, hooks and caches.
Code is hashed as bytecode, so that another version of Python gives another fingerprint.
"""

from __future__ import annotations

import functools
import hashlib
import re
import types
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

__all__ = ["digest"]

ADDRESS = re.compile(r" at 0x[0-9a-f]+")
# What changes while a flow is used, and is no part of it. Hooks of torch modules are private attributes that end so.
VOLATILE = re.compile(r"^_cached|^_.*hooks.*$|^training$|^_abc_impl$|^__")


def digest(*objects: Any) -> str:
    """Return the SHA-256, in hexadecimal, of what objects are made of.

    Floating-point numbers are hashed in double precision, which float32 enters exactly: a flow that is only run in a
    wider type keeps its fingerprint.
    """
    walker = _Walker()
    for one in objects:
        walker.feed(one)
    return walker.hash.hexdigest()


class _Walker:
    def __init__(self) -> None:
        self.hash = hashlib.sha256()
        self._seen: dict[int, int] = {}
        # Keeps what was walked alive, or another object could take its address.
        self._alive: list[Any] = []

    def feed(self, value: Any) -> None:
        """Hash a value and what can be reached from it."""
        if value is None or isinstance(value, bool | int | float | complex | str | bytes | np.generic):
            self._tell("plain", repr(value.item() if isinstance(value, np.generic) else value))
        elif isinstance(value, np.ndarray | jax.Array | torch.Tensor):
            self._array(value)
        elif isinstance(value, type):
            self._tell("class", f"{value.__module__}.{value.__qualname__}")
        elif isinstance(value, torch.dtype | torch.device | np.dtype | types.ModuleType | range | slice):
            self._tell("name", ADDRESS.sub("", getattr(value, "__name__", str(value))))
        else:
            self._compound(value)

    def _tell(self, kind: str, text: str) -> None:
        # With lengths, so that two neighbours cannot be taken for others.
        self.hash.update(f"{kind} {len(text)} {text};".encode())

    def _array(self, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found = value.detach().cpu().resolve_conj().resolve_neg()
            array = (found.double() if found.is_floating_point() else found).numpy()
        else:
            is_key = isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
            array = np.asarray(jax.random.key_data(value) if is_key else value)
            # bfloat16 and its kind are floating-point numbers that NumPy does not know as such.
            if array.dtype.kind in "fV" and array.dtype != object:
                array = array.astype(np.float64)
        self._tell("array", f"{array.dtype} {array.shape}")
        self.hash.update(np.ascontiguousarray(array).tobytes())

    def _compound(self, value: Any) -> None:
        if id(value) in self._seen:
            self._tell("again", str(self._seen[id(value)]))
            return
        self._seen[id(value)] = len(self._seen)
        self._alive.append(value)
        if isinstance(value, Mapping):
            self._tell("mapping", str(len(value)))
            for key, part in value.items():
                self.feed(key)
                self.feed(part)
        elif isinstance(value, list | tuple):
            self._tell(type(value).__name__, str(len(value)))
            for part in value:
                self.feed(part)
        elif isinstance(value, set | frozenset):
            self._tell("set", " ".join(sorted(ADDRESS.sub("", repr(part)) for part in value)))
        elif isinstance(value, functools.partial):
            self.feed(("partial", value.func, value.args, value.keywords))
        elif isinstance(value, types.MethodType):
            self.feed(("method", value.__func__.__qualname__, value.__self__))
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, types.CodeType):
            self._code(value)
        elif isinstance(value, torch.jit.ScriptModule):
            self.feed(("script", dict(value.state_dict()), value.inlined_graph.__str__()))
        elif isinstance(value, torch.export.ExportedProgram):
            self.feed(("export", dict(value.state_dict), dict(value.constants), value.graph_module.code))
        elif callable(wrapped := getattr(value, "__wrapped__", None)):
            self.feed(("wrapped", wrapped))
        else:
            self._object(value)

    def _function(self, function: types.FunctionType) -> None:
        self._tell("function", f"{function.__module__}.{function.__qualname__}")
        self.feed(function.__code__)
        self.feed(function.__defaults__)
        self.feed(function.__kwdefaults__)
        for cell in function.__closure__ or ():
            try:
                self.feed(cell.cell_contents)
            except ValueError:
                self._tell("cell", "empty")

    def _code(self, code: types.CodeType) -> None:
        self._tell("code", code.co_code.hex())
        self.feed([part for part in code.co_consts if not isinstance(part, str)])
        self.feed(code.co_names)

    def _object(self, value: Any) -> None:
        self.feed(type(value))
        slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
        parts = {name: getattr(value, name) for name in slots if isinstance(name, str) and hasattr(value, name)}
        parts |= getattr(value, "__dict__", {})
        if not parts:
            self._tell("object", ADDRESS.sub("", repr(value)))
        for name in sorted(parts):
            if not VOLATILE.match(name):
                self.feed(name)
                self.feed(parts[name])
