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
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from flowmc.errors import FlowFileError, FlowmcError, ParameterError
from flowmc.proposals import Proposal
from flowmc.theories import Theory
from flowmc_adapters import proposal as adapted

__all__ = ["ForeignFlow", "is_reference", "read_reference"]

SECONDS = "TRAINING_SECONDS"


@dataclass(frozen=True)
class ForeignFlow:
    """A proposal that was not trained here.

    Parameters
    ----------
    proposal
        The proposal.
    training_seconds
        What its training took, where its module says so (``TRAINING_SECONDS``); None where that is not known.
    """

    proposal: Proposal
    training_seconds: float | None


def is_reference(flow: Path) -> bool:
    """Return whether a path is a reference to a Python object, and not a file."""
    return ":" in flow.name and not flow.exists()


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
    FlowmcError
        As the adapter says.
    """
    place, _, name = str(flow).rpartition(":")
    module = _import(place)
    if not hasattr(module, name):
        public = sorted(key for key in vars(module) if not key.startswith("_"))
        raise FlowFileError(got=f"{flow}: no {name!r} in {place}", expected=f"one of {public}", fix="correct the name")
    found = getattr(module, name)
    # Not classes, and not flows that can be called, as modules of torch can.
    if inspect.isfunction(found):
        found = _called(found, flow)
    seconds = getattr(module, SECONDS, None)
    if callable(seconds):
        seconds = _called(seconds, flow)
    if not isinstance(found, Proposal):
        if theory is None:
            raise ParameterError(
                got=f"{flow}, a {type(found).__name__}",
                expected="a proposal: what an adapter's `proposal(flow, event_shape=...)` returns",
                fix="wrap the flow in its module; without a run description the shape of a configuration is not known",
            )
        found = adapted(found, event_shape=theory.field_shape, space=theory.space.name)
    return ForeignFlow(found, None if seconds is None else float(seconds))


def _import(place: str) -> ModuleType:
    path = Path(place)
    is_file = path.suffix == ".py"
    if is_file and not path.is_file():
        raise FlowFileError(got=f"no file {place}", expected="a Python file", fix="check the path before the colon")
    try:
        return _module_of_file(path) if is_file else importlib.import_module(place)
    except FlowmcError:
        raise
    except Exception as error:
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
    except Exception as error:
        raise _failed(str(flow), error) from error


def _failed(what: str, error: Exception) -> FlowFileError:
    return FlowFileError(
        got=f"{what}, which fails with {type(error).__name__}: {error}",
        expected="a Python object: a proposal, a flow, or a function without arguments that returns one",
        fix="run it in Python by itself first",
    )
