"""The sentences at the top of a report: whether ensembles agree, whether monitors are quiet, and what casts doubt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from flowmc_analysis.monitors import OF_WEIGHTS
from flowmc_analysis.tables import format_number

if TYPE_CHECKING:
    from flowmc_analysis.comparison import Comparison
    from flowmc_analysis.ensemble import EnsembleAnalysis

__all__ = ["Headline", "State", "headlines"]


class State(StrEnum):
    """How a headline is to be read."""

    GOOD = "good"
    ATTENTION = "attention"
    """Nothing failed, but something could not be checked or casts doubt on part of the results."""
    BAD = "bad"


@dataclass(frozen=True)
class Headline:
    """One sentence at the top of a report.

    Parameters
    ----------
    state
        How it is to be read.
    sentence
        What it says.
    """

    state: State
    sentence: str


def headlines(analyses: Sequence[EnsembleAnalysis], comparison: Comparison | None = None) -> tuple[Headline, ...]:
    """Give the headlines of a report.

    Parameters
    ----------
    analyses
        The ensembles.
    comparison
        Their comparison, if there is one.
    """
    found = [] if comparison is None else [_agreement(comparison)]
    for analysis in analyses:
        found.append(_monitors(analysis))
        found += _doubts(analysis)
    return tuple(found)


def _agreement(comparison: Comparison) -> Headline:
    verdict = comparison.verdict
    claim = "agree" if verdict.passed else "DISAGREE"
    sentence = (
        f"{', '.join(comparison.labels)} {claim}: the largest of {verdict.count} z-scores is"
        f" {format_number(verdict.worst.z, '+.2f')} ({verdict.worst.name}, {comparison.worst_pair})."
        f" {_chance(verdict.p_text, verdict.count)}; below {verdict.level:g} the ensembles would disagree."
    )
    return Headline(State.GOOD if verdict.passed else State.BAD, sentence)


def _chance(p_text: str, count: int) -> str:
    bound = " (an upper bound, Šidák's, because the scores are correlated)" if count > 1 else ""
    return f"If all is right, one this large or larger comes with probability {p_text}{bound}"


def _monitors(analysis: EnsembleAnalysis) -> Headline:
    void = [monitor for monitor in analysis.monitors if monitor.void]
    reasons = "; ".join(dict.fromkeys(monitor.void for monitor in void))
    names = ", ".join(monitor.name for monitor in void)
    not_judged = f"{len(void)} void ({names}): {reasons}" if void else ""
    family = analysis.verdict
    if family is None:
        return Headline(State.ATTENTION, f"{analysis.label}: no monitor could be judged; {not_judged or 'none ran'}.")
    noun = "identity" if family.count == 1 else "identities"
    sentence = (
        f"Monitors of {analysis.label}: {family.count} {noun} {'quiet' if family.passed else 'RAISED'}, {family.p_text},"
        f" largest: {family.worst.name}, z = {format_number(family.worst.z, '+.2f')}"
    )
    state = State.GOOD if family.passed else State.BAD
    if state is State.GOOD and any(monitor.name in OF_WEIGHTS for monitor in void):
        state = State.ATTENTION
    return Headline(state, f"{sentence}; {not_judged}." if void else f"{sentence}.")


def _doubts(analysis: EnsembleAnalysis) -> Iterator[Headline]:
    if analysis.mode_drop_alarm:
        yield Headline(State.BAD, f"{analysis.label}: the flow misses regions that the chains visit (mode drop).")
    yield from (Headline(State.ATTENTION, f"{analysis.label}: {doubt}.") for doubt in analysis.doubts)
