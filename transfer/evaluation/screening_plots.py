"""Figure of a screening: sensitivity against specificity, with reference points."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from transfer.common.errors import InputError
from transfer.common.figures import COLORS, new_figure, without_math
from transfer.evaluation.metrics import percent_range
from transfer.evaluation.screening import Screening

_MARKERS = "osD^vP*X"


def sensitivity_plot(
    screening: Screening,
    *,
    references: Sequence[tuple[str, float, float]] = (),
    specificity: float | None = 0.9,
    title: str | None = None,
) -> Figure:
    """Draw specificity against sensitivity, as figure 3 of Esteva et al. (2017), doi:10.1038/nature21056."""
    for reference in references:
        if len(reference) != 3 or isinstance(reference, str) or not all(0 <= x <= 1 for x in reference[1:]):
            raise InputError(
                "Expected references of a name, a sensitivity and a specificity from 0 to 1. Received: "
                f"{reference!r}."
            )
    figure = new_figure(5.6, 5.6)
    axes = figure.add_subplot()
    low, high = screening.auc_interval
    label = f"model: AUC {screening.auc:.2f} ({screening.confidence:.0%} interval {low:.2f}-{high:.2f})"
    axes.plot(screening.sensitivity, screening.specificity, color="#4a7fb0", linewidth=2, label=label)
    if specificity is not None:
        point = screening.sensitivity_at(specificity)
        start, end = point.sensitivity_interval
        axes.plot([start, end], [point.specificity] * 2, color=COLORS["new"], linewidth=1.5)
        interval = percent_range(point.sensitivity_interval)
        mark = f"sensitivity {point.sensitivity:.0%} ({interval}) at specificity {point.specificity:.0%}"
        axes.plot(point.sensitivity, point.specificity, "o", color=COLORS["new"], label=mark)
    for number, (name, x, y) in enumerate(references):
        marker = _MARKERS[number % len(_MARKERS)]
        axes.plot(x, y, marker, color="#555555", markerfacecolor="none", label=name)
    axes.set(
        xlabel="sensitivity", ylabel="specificity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal"
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(color="#dddddd")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    counts = f"{screening.truth.sum():,} positive and {(~screening.truth).sum():,} negative images"
    axes.set_title(title or f"{', '.join(screening.positive)}: {counts}", loc="left", fontsize=11)
    axes.legend(frameon=False, loc="lower left", fontsize=9)
    return without_math(figure)
