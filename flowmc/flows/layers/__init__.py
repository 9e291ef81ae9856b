"""Layers of coupling flows. To add one: one file, one line in `LAYERS`, which also parametrises the contract tests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from pydantic import TypeAdapter, ValidationError

from flowmc.errors import ParameterError
from flowmc.flows.layers.base import Layer, SiteOrder, SizeDependent
from flowmc.flows.layers.couplings import Additive, Affine, CouplingLayer, CouplingLayerConfig
from flowmc.flows.layers.pointwise import Rescale, SinhArcsinh
from flowmc.flows.layers.spectral import Spectral
from flowmc.flows.layers.spline import Spline, SplineConfig

__all__ = [
    "LAYERS",
    "Additive",
    "Affine",
    "CouplingLayer",
    "CouplingLayerConfig",
    "Layer",
    "Rescale",
    "SinhArcsinh",
    "SiteOrder",
    "SizeDependent",
    "Spectral",
    "Spline",
    "SplineConfig",
    "layer_config",
]

LAYERS: dict[str, type[Layer]] = {
    layer.kind: layer for layer in (Additive, Affine, Rescale, SinhArcsinh, Spectral, Spline)
}
"""Every layer by its kind in run descriptions and files."""


def layer_config(description: Mapping[str, Any]) -> Any:
    """Return the hyper-parameters of a layer, an instance of its ``Config``, from a table of a run description.

    Parameters
    ----------
    description
        ``{"kind": ..., **hyper_parameters}``.

    Raises
    ------
    ParameterError
        If the kind or a key is unknown, or a value has the wrong type or is out of range.
    """
    hyper = dict(description)
    kind = hyper.pop("kind", None)
    if not isinstance(kind, str) or kind not in LAYERS:
        near = get_close_matches(str(kind), LAYERS, n=1, cutoff=0.4)
        raise ParameterError(
            got=f"a layer of kind {kind!r}" if kind is not None else "a layer without `kind`",
            expected=f"one of {sorted(LAYERS)}",
            fix=f"did you mean {near[0]!r}?" if near else "set `kind` in [[flow.layers]]",
        )
    config = LAYERS[kind].Config
    known = [item.name for item in fields(config)]
    for key in hyper:
        if key not in known:
            near = get_close_matches(key, known, n=1, cutoff=0.4)
            raise ParameterError(
                got=f"{key!r} in a layer of kind {kind!r}",
                expected=f"one of {sorted(known)}" if known else "no further key",
                fix=f"did you mean {near[0]!r}?" if near else "leave it out",
            )
    try:
        # Through JSON: strict validation then still takes an array for a tuple.
        return TypeAdapter(config).validate_json(json.dumps(hyper, default=str), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, ParameterError):
            raise ParameterError(
                got=f"a layer of kind {kind!r} with {cause.got}", expected=cause.expected, fix=cause.fix
            ) from cause
        key = ".".join(str(part) for part in first["loc"])
        raise ParameterError(
            got=f"{key} = {first.get('input')!r} in a layer of kind {kind!r}",
            expected=first["msg"][0].lower() + first["msg"][1:],
            fix=f"correct `{key}`",
        ) from error
