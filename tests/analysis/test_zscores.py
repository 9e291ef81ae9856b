from __future__ import annotations

import math

import numpy as np
import pytest

from flowmc_analysis.errors import AnalysisError
from flowmc_analysis.estimate import Estimate
from flowmc_analysis.zscores import compare_estimates, family_p_value, judge, z_score

__all__: list[str] = []


@pytest.mark.parametrize("size", [1, 3, 20])
def test_family_p_value_is_uniform_for_true_expectations(rng: np.random.Generator, size: int) -> None:
    repeats = 2000
    p = np.sort([family_p_value(z) for z in rng.normal(size=(repeats, size))])
    distance = np.max(np.abs(p - (np.arange(repeats) + 0.5) / repeats))
    assert distance < 1.95 / math.sqrt(repeats)  # Kolmogorov-Smirnov, 1e-3


def test_family_p_value_in_the_far_tail_and_at_zero() -> None:
    # 2 Phi(-10), and its hundredfold: no cancellation
    assert family_p_value([10.0]) == pytest.approx(1.5239706048321e-23, rel=1e-9)
    assert family_p_value([-10.0] + [0.0] * 99) == pytest.approx(1.5239706048321e-21, rel=1e-9)
    assert family_p_value([0.0, 0.0]) == 1.0
    assert family_p_value([math.inf, 0.0]) == 0.0
    assert math.isnan(family_p_value([math.nan, 50.0]))


def test_judge_names_the_worst() -> None:
    family = [z_score("quiet", 1.0, 1.1, 0.2), z_score("loud", 0.5, 0.0, 0.1), z_score("mild", 2.0, 1.0, 0.8)]
    verdict = judge(family)
    assert not verdict.passed
    assert verdict.worst.name == "loud"
    assert verdict.count == 3
    assert str(verdict).startswith(
        "FAIL: 3 z-scores, family p ≤ 1.7e-06 (level 0.001); worst loud: 0.50(10), expected 0"
    )
    passed = judge(family[:1])
    assert passed.passed
    assert (
        str(passed) == "pass: 1 z-score, family p = 0.62 (level 0.001); worst quiet: 1.00(20), expected 1.1, z = -0.50"
    )


def test_one_large_z_among_many_is_no_alarm_and_alone_is_one() -> None:
    outlier = z_score("outlier", 3.6, 0.0, 1.0)
    assert not judge([outlier]).passed
    assert judge([outlier] + [z_score(f"n{i}", 0.1, 0.0, 1.0) for i in range(9)]).passed


def test_an_unknown_error_fails_the_family() -> None:
    verdict = judge([z_score("good", 0.0, 0.0, 1.0), z_score("stuck", 1.0, 1.1, math.nan)])
    assert not verdict.passed
    assert verdict.worst.name == "stuck"
    assert "FAIL" in str(verdict)


def test_zero_errors() -> None:
    assert z_score("exact", 1.0, 1.0, 0.0).z == 0
    assert z_score("wrong", 0.0, 1.0, 0.0).z == -math.inf
    assert math.isnan(z_score("nan", math.nan, 1.0, 0.0).z)


def test_comparing_estimates_adds_errors_in_quadrature() -> None:
    score = compare_estimates("chi", Estimate(1.0, 0.3), Estimate(2.0, 0.4))
    assert (score.value, score.expected) == (1.0, 2.0)
    assert score.error == pytest.approx(0.5)
    assert score.z == pytest.approx(-2.0)


def test_an_empty_family_is_refused() -> None:
    with pytest.raises(AnalysisError, match="no z-scores"):
        judge([])
