"""Training for several theories at once: a flow for every lattice learns on some, with one set of weights.

A step's loss is the mean of those of the theories that take part in it, each over a batch of its own. Which do may change
on the way: from small lattices to large ones, for example.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flowmc.errors import ConfigError, FlowmcError, ParameterError
from flowmc.flows import Flow, OperatorFlow
from flowmc.theories import Theory, from_description

__all__ = ["Companion", "check_also", "companions", "other_theories", "takes_part"]

PERIOD = ("begin", "end")


@dataclass(frozen=True)
class Companion:
    """Another theory that a flow is trained for.

    Parameters
    ----------
    flow
        The flow on the theory's lattice; it shares the weights.
    theory
        The theory.
    begin, end
        Fractions of the steps between which it takes part.
    """

    flow: Flow
    theory: Theory
    begin: float
    end: float

    def takes_part(self, step: int, steps: int) -> bool:
        """Return whether it does in a step, counted from 1, of so many."""
        return takes_part(step, steps, self.begin, self.end)


def takes_part(step: int, steps: int, begin: float, end: float) -> bool:
    """Return whether a step, counted from 1, lies between two fractions of all steps.

    >>> [takes_part(step, 4, 0.5, 1.0) for step in (1, 2, 3, 4)]
    [False, False, True, True]
    """
    return begin * steps < step <= end * steps


def check_also(also: tuple[Mapping[str, Any], ...], begin: float) -> None:
    """Check when theories take part in a training: the own one from ``begin`` on, and in each step some.

    Raises
    ------
    ParameterError
        If a fraction is out of range, or there are steps without a theory.
    """
    periods = [(begin, 1.0), *((entry.get("begin", 0.0), entry.get("end", 1.0)) for entry in also)]
    for start, end in periods:
        numbers = all(isinstance(edge, int | float) and not isinstance(edge, bool) for edge in (start, end))
        if not (numbers and 0 <= start < end <= 1):
            raise ParameterError(
                got=f"a theory that takes part from {start} to {end} of the steps",
                expected="fractions of the steps, 0 <= begin < end <= 1",
                fix="correct `begin` or `end` in [training] or [[training.also]]",
            )
    covered = 0.0
    for start, end in sorted(periods):
        if start > covered:
            raise ParameterError(
                got=f"no theory to train for between {covered} and {start} of the steps",
                expected="at least one in each step",
                fix="lower `begin`, or raise the `end` of a theory in [[training.also]]",
            )
        covered = max(covered, end)


def other_theories(theory: Theory, also: tuple[Mapping[str, Any], ...]) -> list[Theory]:
    """Return the other theories that a training is for.

    Parameters
    ----------
    theory
        The theory whose entries the others change.
    also
        Their different entries, and when they take part.

    Raises
    ------
    ConfigError
        If an entry is none of a theory, or changes nothing.
    """
    made = []
    for number, entry in enumerate(also, start=1):
        where = f"[[training.also]] number {number}"
        changes = {key: value for key, value in entry.items() if key not in PERIOD}
        own = theory.describe()
        if unknown := sorted(set(changes) - set(own)):
            raise ConfigError(
                got=f"{unknown} in {where}",
                expected=f"entries of [theory], of {sorted(own)}, or of {list(PERIOD)}",
                fix="correct or remove them",
            )
        try:
            other = from_description({**own, **changes})
        except FlowmcError as error:
            raise ConfigError(got=f"{error.got}, in {where}", expected=error.expected, fix=error.fix) from error
        if other == theory:
            raise ConfigError(
                got=f"{where}, which is the theory of [theory]",
                expected="another lattice or other couplings",
                fix="change an entry, or remove it",
            )
        made.append(other)
    return made


def companions(flow: Flow, theory: Theory, also: tuple[Mapping[str, Any], ...]) -> list[Companion]:
    """Return the other theories that a flow is trained for, each with its flow; parameters as for `other_theories`.

    Raises
    ------
    ParameterError, ConfigError, TheoryMismatchError
        If the flow is one for a single lattice, or a theory none that it can be trained for.
    """
    others = other_theories(theory, also)
    if not others:
        return []
    if not isinstance(flow, OperatorFlow):
        raise ParameterError(
            got=f"[[training.also]] with a {flow.kind!r} flow, which belongs to one theory",
            expected='a flow of kind "operator"',
            fix="train for one theory after the other, by `start_from`",
        )
    return [
        Companion(flow.on(other), other, entry.get("begin", 0.0), entry.get("end", 1.0))
        for other, entry in zip(others, also, strict=True)
    ]
