"""Images of screening: sensitivity against specificity, beside points of reference."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import PercentFormatter

from transfer.common.errors import InputError
from transfer.common.figures import COLORS, new_figure
from transfer.evaluation.screening import Screening

_MARKERS = "osD^vP*X"


def sensitivity_plot(
    found: Screening,
    *,
    references: Sequence[tuple[str, float, float]] = (),
    specificity: float | None = 0.9,
    title: str | None = None,
) -> Figure:
    """Draw specificity against sensitivity, as Esteva et al. 2017 (doi:10.1038/nature21056, figure 3)
    do."""
    _check(references)
    figure = new_figure(5.6, 5.6)
    axes = figure.add_subplot()
    low, high = found.auc_interval
    label = f"model: area {found.auc:.2f} ({low:.2f} to {high:.2f})"
    axes.plot(found.sensitivity, found.specificity, color="#4a7fb0", linewidth=2, label=label)
    if specificity is not None:
        point = found.sensitivity_at(specificity)
        start, end = point.sensitivity_interval
        axes.plot([start, end], [point.specificity] * 2, color=COLORS["new"], linewidth=1.5)
        mark = f"sensitivity {point.sensitivity:.0%} ({start:.0%} to {end:.0%}) at {point.specificity:.0%}"
        axes.plot(point.sensitivity, point.specificity, "o", color=COLORS["new"], label=mark)
    for number, (name, sensitivity, at) in enumerate(references):
        marker = _MARKERS[number % len(_MARKERS)]
        axes.plot(sensitivity, at, marker, color="#555555", markerfacecolor="none", label=name)
    axes.set(
        xlabel="sensitivity", ylabel="specificity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal"
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(color="#dddddd")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    sides = f"{found.truth.sum():,} images against {(~found.truth).sum():,}"
    axes.set_title(title or f"{', '.join(found.positive)}: {sides}", loc="left", fontsize=11)
    axes.legend(frameon=False, loc="lower left", fontsize=9)
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # names with dollar signs are no formulas
    return figure


def _check(references: Sequence[tuple[str, float, float]]) -> None:
    for one in references:
        if len(one) != 3 or isinstance(one, str) or not all(0 <= share <= 1 for share in one[1:]):
            raise InputError(
                f"Expected references of a name, a sensitivity and a specificity from 0 to 1. Received: {one!r}."
            )
