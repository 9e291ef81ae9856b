"""Flows of other libraries on the command line: a reference FILE.py:NAME, or package.module:NAME, to a Python object.

The object is a proposal, a flow that an adapter knows, or a function without arguments that returns one of these, which
reads the weights from where its author keeps them. The code is run: refer only to what you trust.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from math import inf
from pathlib import Path
from types import ModuleType
from typing import Any

from flowmc.errors import FlowFileError, FlowmcError, LatticeMismatchError, ParameterError, TheoryMismatchError
from flowmc.proposals import Proposal
from flowmc.theories import Theory
from flowmc_adapters import proposal as adapted

__all__ = ["ForeignFlow", "is_reference", "loaded_versions", "read_reference"]

SECONDS = "TRAINING_SECONDS"
LIBRARIES = (
    "bijx", "distrax", "equinox", "flax", "flow_matching", "flowjax", "flowMC", "haiku", "nflows", "normflows", "numpyro",
    "paramax", "pyro", "tensorflow_probability", "zuko",
)  # fmt: skip
"""Packages that flows are made of; the versions of those that are loaded go into the record of a certificate."""


@dataclass(frozen=True)
class ForeignFlow:
    """A proposal that was not trained here.

    Parameters
    ----------
    proposal
        The proposal.
    training_seconds
        What its training took, where its module says so (``TRAINING_SECONDS``); None where that is not known.
    versions
        Versions of the packages that it may be made of.
    """

    proposal: Proposal
    training_seconds: float | None
    versions: Mapping[str, str]


def is_reference(flow: Path) -> bool:
    """Return whether a path is a reference to a Python object, and not a file.

    Raises
    ------
    FlowFileError
        If it is a Python file without a name of something in it.
    """
    if flow.suffix == ".py":
        raise FlowFileError(
            got=f"{flow}, a Python file",
            expected="a flow file, or the name of a flow in a Python file",
            fix=f"say which: {flow}:NAME",
        )
    return ":" in flow.name and not flow.exists()


def loaded_versions() -> dict[str, str]:
    """Return the versions of the packages of `LIBRARIES` that are loaded."""
    found = {}
    distributions = packages_distributions()
    for name in LIBRARIES:
        if name in sys.modules:
            with suppress(PackageNotFoundError):
                found[name] = version(distributions.get(name, [name])[0])
    return found


def read_reference(flow: Path, theory: Theory | None = None) -> ForeignFlow:
    """Import the module of a reference and return its proposal.

    Parameters
    ----------
    flow
        FILE.py:NAME or package.module:NAME.
    theory
        The theory that it is to propose for; without one, a flow that is not a proposal yet cannot be adapted.

    Raises
    ------
    FlowFileError
        If there is no such file or name, or the code fails.
    ParameterError
        If the object is neither a proposal nor a flow that an adapter knows.
    LatticeMismatchError, TheoryMismatchError
        If the proposal is for fields of another shape or space than the theory's.
    FlowmcError
        As the adapter says.
    """
    place, _, name = str(flow).rpartition(":")
    module = _import(place)
    if not hasattr(module, name):
        public = sorted(key for key, one in vars(module).items() if _is_candidate(key, one, module))
        raise FlowFileError(got=f"{flow}: no {name!r} in {place}", expected=f"one of {public}", fix="correct the name")
    found = getattr(module, name)
    # Not classes, and not flows that can be called, as modules of torch can.
    if inspect.isfunction(found):
        found = _called(found, flow)
    seconds = getattr(module, SECONDS, None)
    if callable(seconds):
        seconds = _called(seconds, flow)
    if not (seconds is None or (isinstance(seconds, int | float) and 0 <= seconds < inf)):
        raise FlowFileError(
            got=f"{SECONDS} = {seconds!r} in {place}", expected="seconds, a number or a function", fix="correct it"
        )
    if not isinstance(found, Proposal):
        if theory is None:
            raise ParameterError(
                got=f"{flow}, a {type(found).__name__}",
                expected="a proposal: what an adapter's `proposal(flow, event_shape=...)` returns",
                fix="wrap the flow in its module; without a run description the shape of a configuration is not known",
            )
        found = adapted(found, event_shape=theory.field_shape, space=theory.space.name)
    if theory is not None:
        _check_fits(found, theory, flow)
    return ForeignFlow(found, None if seconds is None else float(seconds), loaded_versions())


def _check_fits(found: Proposal, theory: Theory, flow: Path) -> None:
    if tuple(found.metadata.event_shape) != tuple(theory.field_shape):
        raise LatticeMismatchError(
            got=f"{flow}, a proposal of fields of shape {tuple(found.metadata.event_shape)}",
            expected=f"{tuple(theory.field_shape)}, the field of {theory}",
            fix="correct `event_shape`, or [theory]; an adapter puts sites in a row onto the lattice",
        )
    if found.metadata.space != theory.space.name:
        raise TheoryMismatchError(
            got=f"{flow}, a proposal of {found.metadata.space} fields",
            expected=f"{theory.space.name} fields, those of {theory}",
            fix="correct `space` of the adapter, or [theory]",
        )


def _is_candidate(name: str, value: Any, module: ModuleType) -> bool:
    """Return whether a name may be meant: not private, not imported from elsewhere, and no plain data."""
    if inspect.isfunction(value):
        return not name.startswith("_") and value.__module__ == module.__name__
    plain = (ModuleType, type, Theory, Path, str, bytes, int, float, tuple, list, dict)
    return not (name.startswith("_") or isinstance(value, plain) or type(value).__module__ == "__future__")


def _import(place: str) -> ModuleType:
    path = Path(place)
    is_file = path.suffix == ".py"
    if is_file and not path.is_file():
        raise FlowFileError(got=f"no file {place}", expected="a Python file", fix="check the path before the colon")
    # As for a script that is run: what lies beside the file, or in the current folder, can be imported.
    folder = str(path.resolve().parent) if is_file else str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return _module_of_file(path) if is_file else importlib.import_module(place)
    except FlowmcError:
        raise
    except (Exception, SystemExit) as error:
        raise _failed(place, error) from error


def _module_of_file(path: Path) -> ModuleType:
    # A name of its own, which no other file has, and under which what it defines can be found again.
    name = f"flowmc_flow_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    specification = importlib.util.spec_from_file_location(name, path)
    if specification is None or specification.loader is None:
        raise ImportError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    try:
        specification.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _called(function: Any, flow: Path) -> Any:
    try:
        return function()
    except FlowmcError:
        raise
    except (Exception, SystemExit) as error:
        raise _failed(str(flow), error) from error


def _failed(what: str, error: BaseException) -> FlowFileError:
    return FlowFileError(
        got=f"{what}, which fails with {type(error).__name__}: {error}",
        expected="a Python object: a proposal, a flow, or a function without arguments that returns one",
        fix="run it in Python by itself first",
    )
