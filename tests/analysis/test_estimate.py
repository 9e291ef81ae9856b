from __future__ import annotations

import json
import math
import pickle

import pytest

from flowmc_analysis.errors import AnalysisError, NonFiniteError
from flowmc_analysis.estimate import Estimate, format_value_error

__all__: list[str] = []


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.12341, 0.0056, "0.1234(56)"),
        (12.34, 4.5, "12.3(4.5)"),
        (-0.5, 0.12, "-0.50(12)"),
        (1234.0, 450.0, "1230(450)"),
        (123.4, 45.0, "123(45)"),
        # rounding that changes the number of digits of the error or of the value
        (0.5, 0.0996, "0.50(10)"),
        (5.0, 0.996, "5.0(1.0)"),
        (5.0, 9.96, "5(10)"),
        (100.0, 99.6, "100(100)"),
        (9.9999999, 0.001, "10.0000(10)"),
        # error above the value
        (0.012, 0.56, "0.01(56)"),
        (0.0, 0.1, "0.00(10)"),
        (4.0, 123456.0, "0(120000)"),
        # powers of ten
        (1.23456e-9, 4.5e-12, "1.2346(45)e-09"),
        (-3.2e-7, 2e-9, "-3.200(20)e-07"),
        (1e9, 3.4e3, "1.0000000(34)e+09"),
        (0.0, 1e-9, "0.0(1.0)e-09"),
        (1e-310, 1e-312, "1.000(10)e-310"),
        # no error, no number
        (1.0, 0.0, "1.0(0)"),
        (0.1, 0.0, "0.1(0)"),
        (1.2345678, math.nan, "1.23457(nan)"),
        (1.2345678, math.inf, "1.23457(inf)"),
        (math.nan, 0.1, "nan(0.1)"),
        (math.nan, math.nan, "nan(nan)"),
        (-math.inf, 0.0, "-inf(0)"),
    ],
)
def test_prints_value_and_error_with_two_digits_of_the_error(value: float, error: float, text: str) -> None:
    assert format_value_error(value, error) == text
    assert str(Estimate(value, error)) == text


@pytest.mark.parametrize("exponent", range(-8, 9))
@pytest.mark.parametrize("error", [0.10, 0.37, 0.94, 0.996, 1.0])
def test_printed_numbers_are_the_rounded_ones(error: float, exponent: int) -> None:
    value, error = 7.654321 * 10.0**exponent, error * 10.0**exponent
    text, _, power = format_value_error(value, error).partition("e")
    scale = 10.0 ** float(power or 0)
    head, _, tail = text.rstrip(")").partition("(")
    decimals = len(head.partition(".")[2])
    printed_error = float(tail) if "." in tail else float(tail) * 10.0**-decimals
    assert abs(printed_error * scale - error) <= 0.0501 * error
    assert abs(float(head) * scale - value) <= 0.51 * 10.0**-decimals * scale * (1 if decimals else error / scale)


def test_to_dict_is_valid_json_and_has_no_nan() -> None:
    estimate = Estimate(1.5, math.nan, math.inf, math.nan, 0.0, warnings=("the chain never moved",))
    text = json.dumps(estimate.to_dict(), allow_nan=False)
    assert json.loads(text) == {
        "value": 1.5,
        "error": None,
        "tau_int": None,
        "tau_int_error": None,
        "n_eff": 0.0,
        "bias": 0.0,
        "warnings": ["the chain never moved"],
    }


def test_a_negative_error_is_refused() -> None:
    with pytest.raises(AnalysisError, match=r"got: error = -1\.0"):
        Estimate(0.0, -1.0)


def test_errors_keep_their_parts_and_survive_pickling() -> None:
    error = pickle.loads(pickle.dumps(NonFiniteError(got="a", expected="b", fix="c")))
    assert isinstance(error, NonFiniteError)
    assert (error.got, error.expected, error.fix) == ("a", "b", "c")
    assert str(error) == "got: a\nexpected: b\nfix: c"
