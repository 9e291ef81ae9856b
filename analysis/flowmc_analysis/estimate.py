r"""The one result type of the analysis: a value with its error and where the error comes from.

The integrated autocorrelation time is in the convention :math:`\tau_{int} = \tfrac12 + \sum_{t\ge1}\rho(t)`, white
noise being 1/2, so that :math:`n_{eff} = N / (2\tau_{int})` and :math:`\sigma^2 = 2\tau_{int}\,\Gamma(0)/N`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal

from flowmc_analysis.errors import AnalysisError

__all__ = ["Estimate", "format_value_error"]

# Outside these decades of the leading digit a common power of ten is printed.
_LOWEST_PLAIN_EXPONENT = -4
_HIGHEST_PLAIN_EXPONENT = 6


@dataclass(frozen=True)
class Estimate:
    """A value with its statistical error.

    Prints as ``value(error)`` with two significant digits of the error, see `format_value_error`.

    Parameters
    ----------
    value
        The estimate, already corrected for ``bias``.
    error
        One standard deviation; NaN where the data do not determine it (the reason is then in ``warnings``).
    tau_int
        Integrated autocorrelation time in units of the samples' spacing, 0.5 convention (white noise = 0.5).
        NaN where it has no meaning, infinite for a chain that never moved.
    tau_int_error
        One standard deviation of ``tau_int``.
    n_eff
        Number of independent samples that would give the same error.
    bias
        Estimated bias of the plain estimator; it has been subtracted from ``value``. Zero where none is subtracted.
    warnings
        Reasons to distrust the numbers above, one sentence each; empty if none is known.

    Raises
    ------
    AnalysisError
        If ``error`` is negative.

    Examples
    --------
    >>> from flowmc_analysis.estimate import Estimate
    >>> print(Estimate(0.12341, 0.0056))
    0.1234(56)
    """

    value: float
    error: float
    tau_int: float = math.nan
    tau_int_error: float = math.nan
    n_eff: float = math.nan
    bias: float = 0.0
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.error < 0:
            raise AnalysisError(
                got=f"error = {self.error}", expected="a standard deviation >= 0", fix="pass the error without its sign"
            )

    def __str__(self) -> str:
        return format_value_error(self.value, self.error)

    def to_dict(self) -> dict[str, float | list[str] | None]:
        """Give the fields for JSON, which has no NaN or infinity: those become ``None``."""

        def number(x: float) -> float | None:
            return float(x) if math.isfinite(x) else None

        return {
            "value": number(self.value),
            "error": number(self.error),
            "tau_int": number(self.tau_int),
            "tau_int_error": number(self.tau_int_error),
            "n_eff": number(self.n_eff),
            "bias": number(self.bias),
            "warnings": list(self.warnings),
        }


def format_value_error(value: float, error: float) -> str:
    """Print a value and its error in the particle physicists' short form.

    The error has two significant digits and the value as many decimals. Errors below one are given in units of the
    value's last digit, larger ones with their decimal point. Numbers below 1e-4 or from 1e7 on carry a common power
    of ten. An error of zero prints as ``(0)`` behind all digits of the value; a NaN or infinite error behind six.

    Examples
    --------
    >>> format_value_error(0.12341, 0.0056), format_value_error(12.34, 4.5), format_value_error(1.0, 0.0)
    ('0.1234(56)', '12.3(4.5)', '1.0(0)')
    >>> format_value_error(0.012, 0.56), format_value_error(1.23456e-9, 4.5e-12), format_value_error(1234.0, 450.0)
    ('0.01(56)', '1.2346(45)e-09', '1230(450)')
    """
    value, error = float(value), float(error)
    if error == 0 and math.isfinite(value):
        return f"{value!r}(0)"
    if not math.isfinite(value) or not math.isfinite(error):
        return f"{value:.6g}({error:.2g})"
    # Round the error once and for all, so that 0.0996 has the two digits 10 of 0.10.
    exact_value, rounded_error = Decimal(value), Decimal(f"{error:.1e}")
    error_exponent = rounded_error.adjusted()
    leading = max(error_exponent, Decimal(f"{value:.5e}").adjusted() if value else error_exponent)
    if _LOWEST_PLAIN_EXPONENT <= leading <= _HIGHEST_PLAIN_EXPONENT:
        return _plain(exact_value, rounded_error, decimals=1 - error_exponent)
    mantissa = _plain(exact_value.scaleb(-leading), rounded_error.scaleb(-leading), 1 - error_exponent + leading)
    return f"{mantissa}e{leading:+03d}"


def _plain(value: Decimal, error: Decimal, decimals: int) -> str:
    if decimals <= 0:
        step = Decimal(1).scaleb(-decimals)
        return f"{(value / step).quantize(Decimal(1)) * step:.0f}({error:.0f})"
    if decimals == 1:  # the error lies between 1 and 10
        return f"{value:.1f}({error:.1f})"
    return f"{value:.{decimals}f}({error.scaleb(decimals):.0f})"
