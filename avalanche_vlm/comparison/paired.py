"""How far two methods are apart, seed by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from avalanche_vlm._checks import check_number, check_type


@final
@dataclass(frozen=True)
class PairedDifference:
    """A mean difference of two methods in the same seeds, with its interval.

    Attributes:
        mean: of the differences; NaN of no pair.
        half_width: half of the confidence interval around it; NaN of fewer than two pairs.
        pairs: number of seeds that both have.
    """

    mean: float
    half_width: float
    pairs: int

    def text(self, scale: float = 1.0) -> str:
        """Return it as text; of one or two pairs without an interval, and with their number.

        Args:
            scale: factor of what is written, 100 for percent.

        >>> PairedDifference(0.021, 0.004, 3).text(100)
        '+2.1 ± 0.4'
        >>> PairedDifference(0.021, math.nan, 1).text(100)
        '+2.1 (1 pair)'
        """
        if self.pairs == 0:
            return "–"
        mean = f"{scale * self.mean:+.1f}"
        if self.pairs > 2:
            return f"{mean} ± {scale * self.half_width:.1f}"
        return f"{mean} ({self.pairs} pair{'s' if self.pairs > 1 else ''})"


def paired_difference(
    first: Mapping[Any, float], second: Mapping[Any, float], *, confidence: float = 0.95
) -> PairedDifference:
    r"""Return the mean difference of two methods in the same seeds, and its interval.

    .. math:: \bar d \pm t_{n-1, (1+c)/2} \frac{s_d}{\sqrt n}

    with the n differences d of the seeds that both have, their mean, their standard deviation s and the
    quantile of Student's t. Seeds that share a class order and an initial model differ less between
    methods than methods do between seeds, so that this interval is narrower than those of the means.
    Three pairs give wide ones: t is 4.3 there.

    Args:
        first: a number for each seed; NaN for one that has none.
        second: likewise.
        confidence: c, between 0 and 1.

    Raises:
        ValueError: ``confidence`` is not between 0 and 1.

    >>> paired_difference({0: 0.5, 1: 0.7, 2: 0.9}, {0: 0.4, 1: 0.6, 2: 0.8}).text(100)
    '+10.0 ± 0.0'

    References:
        Student: The Probable Error of a Mean. Biometrika 6(1), 1908.
    """
    check_type("first", first, Mapping)
    check_type("second", second, Mapping)
    check_number("confidence", confidence, above=0.0, below=1.0)
    pairs = [(value, second[seed]) for seed, value in first.items() if seed in second]
    differences = [a - b for a, b in pairs if a == a and b == b]  # NaN is not measured
    count = len(differences)
    if count < 2:
        return PairedDifference(statistics.fmean(differences) if differences else math.nan, math.nan, count)
    from scipy.stats import t as student_t  # slow to import

    quantile = float(student_t.ppf((1 + confidence) / 2, count - 1))
    half_width = quantile * statistics.stdev(differences) / math.sqrt(count)
    return PairedDifference(statistics.fmean(differences), half_width, count)
