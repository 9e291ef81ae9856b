"""Fingerprints of flows of any library: SHA-256 over the weights and all that says how they are used.

An ensemble names the flow that it was made with by its fingerprint, and a run is only resumed with the same one. So it
must be the same in another process, for a flow that was loaded instead of trained, and differ where draws may differ:
everything that can be reached from the flow is hashed, whatever library it is of, but for addresses, hooks and caches.
Code of a user's own functions and classes, and the globals that it names, are hashed too, as bytecode, so that another
version of Python gives another fingerprint. Code of installed libraries goes by its name: their versions are recorded
beside the fingerprint.
"""

from __future__ import annotations

import functools
import hashlib
import io
import re
import sys
import sysconfig
import types
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

__all__ = ["ADDRESS", "digest"]

ADDRESS = re.compile(r" at 0x[0-9a-f]+", re.IGNORECASE)
INSTALLED = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
"""Folders of code that has a version."""
OWN = ("flowmc", "flowmc_adapters", "flowmc_ensembles", "flowmc_analysis")
"""Packages of this project, whose version is recorded as well."""
CLASS_NOISE = {"__dict__", "__weakref__", "__module__", "__qualname__", "__doc__", "__firstlineno__", "_abc_impl"}
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


def _is_own_code(module: str) -> bool:
    """Return whether a module is a user's own: neither of this project nor installed."""
    if module.split(".")[0] in OWN:
        return False
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        # Code that was typed in or executed has no file; modules that are built in have none either.
        return module not in sys.builtin_module_names
    return not str(file).startswith(INSTALLED)


def _names(code: types.CodeType) -> set[str]:
    """Return all global names in a code, and in the functions inside it."""
    inner = (part for part in code.co_consts if isinstance(part, types.CodeType))
    return set(code.co_names).union(*(_names(part) for part in inner))


def _archive(module: torch.jit.ScriptModule) -> dict[str, bytes]:
    """Return what a scripted module would be saved as, but for where its source was."""
    written = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        torch.jit.save(module, written)
    with zipfile.ZipFile(written) as archive:
        names = [name for name in archive.namelist() if not name.endswith((".debug_pkl", "serialization_id"))]
        return {name.split("/", 1)[-1]: archive.read(name) for name in sorted(names)}


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
            self._class(value)
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
            self.feed(("script", _archive(value)))
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
        if _is_own_code(function.__module__):
            for name in sorted(_names(function.__code__) & function.__globals__.keys()):
                self.feed(name)
                self.feed(function.__globals__[name])

    def _class(self, kind: type) -> None:
        self._tell("class", f"{kind.__module__}.{kind.__qualname__}")
        if id(kind) in self._seen:
            return
        self._seen[id(kind)] = len(self._seen)
        self._alive.append(kind)
        for base in kind.__mro__:
            if not _is_own_code(base.__module__):
                continue
            for name, part in sorted(vars(base).items()):
                if name in CLASS_NOISE:
                    continue
                self.feed(name)
                parts = (getattr(part, key, None) for key in ("fget", "fset", "__func__"))
                self.feed(next((inner for inner in parts if inner is not None), part))

    def _code(self, code: types.CodeType) -> None:
        self._tell("code", code.co_code.hex())
        self.feed(list(code.co_consts))
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
