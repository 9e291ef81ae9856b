"""Coupling flows of real fields: layers of any kinds, one after the other, over a Gaussian or free-field base.

The layers are those of `flowmc.flows.layers`, in the order and number that a run description gives them; so are their
references. A base that is a free field leaves to them what is not Gaussian: the flow refines the free theory. If the
layers are equivariant under φ → −φ, so is the flow, since all bases are even.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from flowmc.errors import ParameterError
from flowmc.flows.base import DTYPES, Flow, TransportFlow
from flowmc.flows.densities import BASES, base_mass_for, build_base, check_base_mass
from flowmc.flows.layers import LAYERS, Layer, SiteOrder, SizeDependent, layer_config
from flowmc.theories import Theory

__all__ = ["CouplingConfig", "CouplingFlow"]


@dataclass(frozen=True)
class CouplingConfig:
    """Hyper-parameters of a `CouplingFlow`.

    Parameters
    ----------
    base
        "gaussian", "free_field" or "spectral" (learned width of each p̂²).
    base_mass
        Mass of the free field in lattice units, from which "spectral" starts as well; "matched" is that of the free
        field nearest to the theory (`ScalarTheory.gaussian_mass`).
    base_learned
        Whether the free field's mass is learned, or kept.
    layers
        The layers in order: tables ``{"kind": ..., **hyper_parameters}``, with a kind of `flowmc.flows.layers.LAYERS`.
    repeat
        How often that sequence of layers stands in a row, each time with weights of its own.
    z2
        Whether the flow is exactly equivariant under φ → −φ.
    dtype
        "float32" or "float64": the type in which the flow is trained.

    Raises
    ------
    ParameterError
        If a value is out of range or a name unknown.
    """

    base: str = "free_field"
    base_mass: float | str = 1.0
    base_learned: bool = True
    layers: tuple[Mapping[str, Any], ...] = ({"kind": "affine"}, {"kind": "sinh_arcsinh"})
    repeat: int = 4
    z2: bool = True
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name, known in (("base", BASES), ("dtype", DTYPES)):
            if getattr(self, name) not in known:
                raise ParameterError(
                    got=f"{name} = {getattr(self, name)!r}", expected=f"one of {list(known)}", fix=f"correct `{name}`"
                )
        if not self.layers or self.repeat < 1:
            raise ParameterError(
                got=f"{len(self.layers)} layers, repeat = {self.repeat}",
                expected="at least one layer, at least once",
                fix="add [[flow.layers]], or correct `repeat`",
            )
        check_base_mass(self.base_mass)
        # With all their defaults, so that a file says what its layers are.
        complete = tuple({**asdict(layer_config(layer)), "kind": layer["kind"]} for layer in self.layers)
        object.__setattr__(self, "layers", complete)


class CouplingFlow(TransportFlow):
    """A sequence of layers over a Gaussian or free-field base; see the module for the maths.

    Parameters
    ----------
    theory
        The theory of a real field; only its lattice is used and, for a matched base, its mass.
    config
        Hyper-parameters.

    Raises
    ------
    ParameterError
        If a layer does not fit the lattice, or a mass is to be matched to a theory for which it is not known.
    """

    kind: ClassVar[str] = "coupling"
    Config: ClassVar[type] = CouplingConfig
    config: CouplingConfig

    def __init__(self, theory: Theory, config: CouplingConfig) -> None:
        super().__init__(theory, config)
        dtype = DTYPES[config.dtype]
        order = SiteOrder(theory.shape)
        self.register_buffer("_sites", torch.tensor(order.sites), persistent=False)
        self.register_buffer("_places", torch.tensor(np.argsort(order.sites)), persistent=False)
        mass = base_mass_for(theory, config.base_mass)
        self.base = build_base(config.base, theory.shape, dtype, mass, learned=config.base_learned)
        self.layers = torch.nn.ModuleList(
            LAYERS[layer["kind"]](order, layer_config(layer), z2=config.z2) for layer in config.layers * config.repeat
        )
        self.to(dtype)

    _sites: Tensor
    _places: Tensor

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Map base draws to fields; see `TransportFlow.forward`."""
        field = latent.flatten(1).index_select(1, self._sites)
        log_det = latent.new_zeros(len(latent), dtype=torch.float64)
        for layer in self._sequence():
            field, change = layer(field)
            log_det = log_det + change
        return field.index_select(1, self._places).reshape(-1, *self.shape), log_det

    def inverse(self, field: Tensor) -> tuple[Tensor, Tensor]:
        """Map fields to base draws; see `TransportFlow.inverse`."""
        latent = field.flatten(1).index_select(1, self._sites)
        log_det = field.new_zeros(len(field), dtype=torch.float64)
        for layer in reversed(self._sequence()):
            latent, change = layer.inverse(latent)
            log_det = log_det + change
        return latent.index_select(1, self._places).reshape(-1, *self.shape), log_det

    def _sequence(self) -> list[Layer]:
        return [layer for layer in self.layers if isinstance(layer, Layer)]

    def _transferable(self, other: Flow) -> dict[str, torch.nn.Parameter]:
        weights = super()._transferable(other)
        if other.theory.shape == self.theory.shape:
            return weights
        # Fully connected networks count sites: on another lattice of as many sites these are others.
        dense = {name for name, module in self.named_modules() if isinstance(module, torch.nn.Linear)}
        return {name: weight for name, weight in weights.items() if name.rpartition(".")[0] not in dense}

    def start_from(self, other: Flow) -> list[str]:
        """Take over weights; those that belong to momenta are interpolated. See `Flow.start_from`."""
        taken = super().start_from(other)
        given = dict(other.named_modules())
        for name, module in self.named_modules():
            counterpart = given.get(name)
            if isinstance(module, SizeDependent) and counterpart is not None and type(counterpart) is type(module):
                module.take_over(counterpart)
                own = [f"{name}.{parameter}" for parameter, _ in module.named_parameters()]
                taken += [parameter for parameter in own if parameter not in taken]
        return taken
