"""The report of a data check: counts and findings, as text, JSON or an HTML page."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from transfer.common import display
from transfer.common.errors import InputError
from transfer.common.pages import data_uri, render
from transfer.common.tasks import MULTI, REGRESSION, SINGLE
from transfer.common.text import plural
from transfer.images.folder_scan import names_by_reason

MIN_DIFFERENT = 3
"""Minimum number of different images per class: one each for training, validation and test."""

IMBALANCE = 5.0
"""Ratio of the training images in the largest and the smallest class. Above it, the report suggests class weights."""

MAX_SHOWN = 5
"""Maximum number of names in the text of a finding, and of pairs on a page."""

# Keys in reports of version 0.1, and their names today.
_OLD_KEYS = {
    "turned": "rotated",
    "same": "duplicates",
    "split_groups": "shared_groups",
    "odd": "outliers",
    "format_tells": "format_leak",
    "few": "small_classes",
}


class DuplicateSet(NamedTuple):
    """Images that are duplicates of each other, with their classes and the source's splits."""

    names: tuple[str, ...]
    classes: tuple[str, ...]
    splits: tuple[str, ...]
    # Whether the files are equal byte for byte; if not, they are near-duplicates.
    exact: bool


class Finding(NamedTuple):
    """A property of the data that can harm training or evaluation."""

    kind: str
    text: str
    # The images, groups or classes with this property.
    names: tuple[str, ...]
    # Whether it needs action; if not, it is a hint.
    serious: bool

    def to_text(self) -> str:
        """Return the text and the first names, one per line."""
        more = [f"and {len(self.names) - MAX_SHOWN:,} more"] if len(self.names) > MAX_SHOWN else []
        return "\n    ".join([self.text, *self.names[:MAX_SHOWN], *more])


@dataclass(frozen=True)
class DataReport:
    """The result of checking a data set; `load_data` makes it.

    Attributes:
        name: Name of the data set.
        class_names: Names of the classes, in the order of the labels.
        counts: Number of images in use by split, for each class.
        total: Number of readable images.
        skipped: Name and reason of each image that cannot be used.
        ignored: Names of files that are not images.
        formats: Number of images by file format.
        modes: Number of images by channels, as Pillow names them (`"RGB"`, `"L"`, ...).
        rotated: Number of images that EXIF data rotate or mirror.
        widths: Minimum, median and maximum, in pixels.
        heights: Minimum, median and maximum, in pixels.
        duplicates: Sets of exact duplicates and near-duplicates.
        groups: Number of groups, such as patients; 0 if the images have no groups.
        shared_groups: Groups with images in several splits of the source.
        outliers: Name and reason of each image with an unusual format, size or range of values.
        blank: Names of images with a single color.
        format_leak: Two classes with different usual file formats, in words; otherwise empty.
        small_classes: Classes with fewer than `MIN_DIFFERENT` different images, if the splits are drawn.
        notes: Sentences on how the source was read, and whether each needs action.
        pixel_range: Values that become 0 and 255 in images with more than 8 bits per channel; empty without any.
        low_contrast: Images whose values differ by at most an eighth of the range.
        out_of_range: Name and reason of each image with values far outside `pixel_range`.
        more_pages: Names of files with several pages or frames; one page of each is used.
        task: What the labels are: `"single"`, `"multi"` or `"regression"`.
        images: Number of images in use by split.
        label_numbers: Number of images in use with 0, 1, 2, ... labels; empty unless the task is `"multi"`.
        bands: Limits of bands of numbers, one more than bands; empty unless the task is `"regression"`.
        band_counts: Number of images in use by split, for each band of numbers.
        values: Minimum, median and maximum of the numbers in use; empty unless the task is `"regression"`.

    Example:
        >>> from transfer.images.datasets import load_data
        >>> report = load_data("emoji").report
        >>> report.formats, report.small_classes
        ({'PNG': 494}, ())
    """

    name: str
    class_names: tuple[str, ...]
    counts: Mapping[str, tuple[int, ...]]
    total: int
    skipped: tuple[tuple[str, str], ...]
    ignored: tuple[str, ...]
    formats: Mapping[str, int]
    modes: Mapping[str, int]
    rotated: int
    widths: tuple[int, int, int]
    heights: tuple[int, int, int]
    duplicates: tuple[DuplicateSet, ...]
    groups: int
    shared_groups: tuple[str, ...]
    outliers: tuple[tuple[str, str], ...]
    blank: tuple[str, ...]
    format_leak: str
    small_classes: tuple[str, ...]
    notes: tuple[tuple[str, bool], ...] = ()
    pixel_range: tuple[float, ...] = ()
    low_contrast: tuple[str, ...] = ()
    out_of_range: tuple[tuple[str, str], ...] = ()
    more_pages: tuple[str, ...] = ()
    task: str = SINGLE
    images: Mapping[str, int] = field(default_factory=dict)
    label_numbers: tuple[int, ...] = ()
    bands: tuple[float, ...] = ()
    band_counts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    values: tuple[float, ...] = ()

    @property
    def row_names(self) -> tuple[str, ...]:
        """The classes, labels or bands of numbers."""
        if self.task != REGRESSION:
            return self.class_names
        return tuple(f"{low:.6g} to {high:.6g}" for low, high in pairwise(self.bands))

    @property
    def row_counts(self) -> Mapping[str, tuple[int, ...]]:
        """The number of images in use by split, for each of `row_names`."""
        return self.band_counts if self.task == REGRESSION else self.counts

    @property
    def contents(self) -> str:
        """The number of classes or labels in words, or the name of the numbers."""
        return contents(self.task, self.class_names)

    @property
    def conflicts(self) -> list[DuplicateSet]:
        """Duplicates with different labels."""
        return [one for one in self.duplicates if len(set(one.classes)) > 1]

    @property
    def shared(self) -> list[DuplicateSet]:
        """Duplicates in several splits of the source."""
        return [one for one in self.duplicates if len(set(one.splits)) > 1]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings, serious ones first."""
        return (
            *(Finding(kind, text, tuple(names), True) for kind, text, names in _problems(self)),
            *(Finding(kind, text, tuple(names), False) for kind, text, names in _hints(self)),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all values and findings as dictionaries, tuples and numbers, ready for JSON."""
        findings = [finding._asdict() for finding in self.findings]
        duplicates = [one._asdict() for one in self.duplicates]
        return {**asdict(self), "duplicates": duplicates, "findings": findings}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DataReport:
        """Rebuild a report from the values of `to_dict`, also after a round trip through JSON.

        Raises:
            InputError: The values are not those of a report.
        """
        try:
            given = {_OLD_KEYS.get(k, k): _as_tuples(v) for k, v in values.items() if k != "findings"}
            return cls(**{**given, "duplicates": tuple(DuplicateSet(**one) for one in given["duplicates"])})
        except (TypeError, KeyError, ValueError) as error:
            raise InputError(
                f"Expected the report of a data check. Received other values: {error}. Check the data again."
            ) from None

    def to_json(self) -> str:
        """Return the values of `to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n"

    def to_text(self) -> str:
        """Return a table for the terminal, followed by the findings."""
        facts = "\n".join(f"{name:9} {value}" for name, value in self.facts.items())
        lines = [f"{'!' if finding.serious else '-'} {finding.to_text()}" for finding in self.findings]
        table = self._table()
        return f"{table.to_text()}\n\n{facts}\n\n{chr(10).join(lines) or 'No problems found.'}\n"

    def _table(self) -> display.Table:
        header = f"{self.name}: {self.contents}"
        return class_table(header, self.row_names, self.row_counts, self.images)

    def __repr__(self) -> str:
        serious = sum(finding.serious for finding in self.findings)
        return display.one_line(
            self,
            f"{display.quoted(self.name)}: {self.contents}; {plural(self.total, 'image')}, "
            f"{len(self.skipped):,} skipped; {plural(len(self.findings), 'finding')}, {serious:,} serious",
        )

    def _repr_html_(self) -> str:
        """Return the counts and the findings for a notebook."""
        findings = [f"{'Problem' if one.serious else 'Hint'}: {one.text}" for one in self.findings]
        table = self._table()
        return display.to_html(table, *(findings or ["No problems found."]))

    def to_html(self, image: Callable[[str], np.ndarray | None] | None = None) -> str:
        """Return a self-contained HTML page.

        Args:
            image: Returns a thumbnail by its name, uint8 of shape (height, width, 3), or None. The page
                shows thumbnails of duplicates and outliers; without this function it shows none.
        """
        return str(render("page.html", title=f"Data: {self.name}", parts=[self.to_part(image)]))

    def to_part(self, image: Callable[[str], np.ndarray | None] | None = None) -> str:
        """Return the main section of the page of `to_html`, which explains the argument."""
        galleries = []
        for title, captions in _galleries(self):
            shown = [
                (data_uri(pixels), caption)
                for name, caption in captions
                if image is not None and (pixels := image(name)) is not None
            ]
            if shown:
                galleries.append((title, shown))
        return render("data.html", report=self, galleries=galleries, most=MAX_SHOWN)

    @property
    def facts(self) -> dict[str, str]:
        """Formats, channels, sizes and similar facts, in words."""
        facts = {
            "formats": _listed(self.formats),
            "channels": _listed(self.modes),
            "labels": _per_image(self.label_numbers),
            "numbers": "{:.6g} to {:.6g}, median {:.6g}".format(*np.array(self.values)[[0, 2, 1]])
            if self.values
            else "",
            "widths": _range(*self.widths),
            "heights": _range(*self.heights),
            "rotated": f"{plural(self.rotated, 'image')}, by EXIF data" if self.rotated else "",
            "range": _pixel_range(self.pixel_range) if self.pixel_range else "",
            "groups": f"{self.groups:,}" if self.groups else "",
            "ignored": plural(len(self.ignored), "other file") if self.ignored else "",
        }
        return {name: text for name, text in facts.items() if text}


def _as_tuples(value: Any) -> Any:
    """Convert lists, as JSON has them, to tuples at any depth."""
    if isinstance(value, list | tuple):
        return tuple(map(_as_tuples, value))
    return {key: _as_tuples(one) for key, one in value.items()} if isinstance(value, dict) else value


def _problems(report: DataReport) -> Iterator[tuple[str, str, Sequence[str]]]:
    """Yield kind, text and names of each serious finding."""
    for text, serious in report.notes:
        if serious:
            yield "source", text, ()
    too_high = "in more than one of the provided splits: measured accuracy will be too high."
    yield from _skipped_images(report.skipped)
    if conflicts := report.conflicts:
        have, fix = ("has", "its label") if len(conflicts) == 1 else ("have", "their labels")
        text = f"{plural(len(conflicts), 'image')} {have} conflicting labels: used for training only. Please fix {fix}."
        yield "conflicting_labels", text, _equations(conflicts)
    if shared := report.shared:
        text = f"Found {plural(len(shared), 'image')} {too_high} Remove them from train, or provide unsplit data."
        yield "shared_images", text, _equations(shared)
    if report.shared_groups:
        text = f"Found {len(report.shared_groups)} of {plural(report.groups, 'group')} {too_high}"
        yield "shared_groups", f"{text} Keep each group in one split.", report.shared_groups
    if report.small_classes:
        text = (
            f"Found {len(report.small_classes)} of {report.contents} with fewer than {MIN_DIFFERENT} "
            "different images, too few for training, validation and test. Please add images."
        )
        yield "small_classes", text, report.small_classes
    if report.out_of_range:
        text = f"Found {plural(len(report.out_of_range), 'image')} with values far outside the range: mostly clipped."
        yield "out_of_range", text, _with_reasons(report.out_of_range)
    yield from _dull_images(report, serious=True)
    by_form: dict[str, list[str]] = {}
    for name in report.class_names:
        form = "".join(filter(str.isalnum, name.casefold())) or name
        by_form.setdefault(str(int(form)) if form.isdecimal() else form, []).append(name)
    if similar := [" = ".join(map(repr, names)) for names in by_form.values() if len(names) > 1]:
        text = "Some class names differ only in case, spaces, punctuation or zeros. Merge those that mean the same."
        yield "similar_class_names", text, similar


def _hints(report: DataReport) -> Iterator[tuple[str, str, Sequence[str]]]:
    """Yield kind, text and names of each finding that is a hint."""
    for text, serious in report.notes:
        if not serious:
            yield "source", text, ()
    train = np.array(report.counts.get("train", ()) if report.task != REGRESSION else ())
    if len(train) and train.max() >= IMBALANCE * max(train.min(), 1):
        least, most = (report.class_names[i] for i in (train.argmin(), train.argmax()))
        ratio = f"{train.max() / max(train.min(), 1):.0f} times as many training images as"
        text = f"Class {most} has {ratio} class {least}. Consider --class-weights."
        if report.task == MULTI:
            text = f"Label {most} has {ratio} label {least}."
        yield "imbalance", text, ()
    for kind, exact in (("exact", True), ("near", False)):
        if sets := [one for one in report.duplicates if one.exact == exact]:
            noun = "pair" if all(len(one.names) == 2 for one in sets) else "set"
            stay = "it stays" if len(sets) == 1 else f"each {noun} stays"
            text = f"Found {plural(len(sets), noun)} of {kind}{' ' if exact else '-'}duplicates"
            text += "." if set(sets) & set(report.shared) else f"; {stay} in one split."
            yield f"{kind}_duplicates", text, _equations(sets)
    if report.outliers:
        text = (
            f"Found {plural(len(report.outliers), 'image')} with an unusual format, size or range of values."
        )
        yield "outliers", f"{text} Please check.", _with_reasons(report.outliers)
    yield from _dull_images(report, serious=False)
    if report.more_pages:
        text = f"Found {plural(len(report.more_pages), 'file')} with several pages or frames; one of each is used."
        yield "more_pages", text, report.more_pages
    if report.format_leak:
        text = f"File formats reveal the class: {report.format_leak}. The network may learn the format."
        yield "format_leak", f"{text} Save all images in one format.", ()


def _dull_images(report: DataReport, *, serious: bool) -> Iterator[tuple[str, str, Sequence[str]]]:
    """Yield findings on images of a single color or of little contrast; half of all images are serious."""
    where = "the range" if report.pixel_range else "0 to 255"
    for kind, names, text in (
        ("blank", report.blank, "with a single color."),
        (
            "low_contrast",
            report.low_contrast,
            f"that use at most an eighth of {where}, such as nearly black ones. Please check.",
        ),
    ):
        if names and (2 * len(names) >= report.total > 2) == serious:
            yield kind, f"Found {plural(len(names), 'image')} {text}", names


def _skipped_images(skipped: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str, Sequence[str]]]:
    """Yield a finding for each format that needs an installation, and one for the other skipped images."""
    groups = names_by_reason(skipped)
    for reason in [reason for reason in groups if "pip install" in reason]:
        names = groups.pop(reason)
        yield "formats", f"Skipped {plural(len(names), 'image')}: {reason}.", names
    count = sum(map(len, groups.values()))
    if count:
        frequent = [f"{reason}: {len(names):,}" for reason, names in groups.items() if len(names) > 1][:3]
        reasons = f" ({'; '.join(frequent)})" if frequent else ""
        others = [one for one in skipped if one[1] in groups]
        yield (
            "skipped",
            f"Skipped {plural(count, 'image')} that cannot be used{reasons}.",
            _with_reasons(others),
        )


def _pixel_range(pixel_range: Sequence[float]) -> str:
    low, high = (f"{value:,.6g}" for value in pixel_range)
    return f"{low} to {high} in the training images become 0 to 255"


def _with_reasons(pairs: Sequence[tuple[str, str]]) -> list[str]:
    return [f"{name} ({reason})" for name, reason in pairs]


def _equations(sets: Sequence[DuplicateSet]) -> list[str]:
    return [" = ".join(one.names) for one in sets]


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _range(least: int, median: int, most: int) -> str:
    return f"{least:,} to {most:,} pixels, median {median:,}" if least < most else f"{most:,} pixels"


def _per_image(numbers: Sequence[int]) -> str:
    """Return the number of images without labels, with one label, two and so on."""
    return ", ".join(f"{number} in {plural(count, 'image')}" for number, count in enumerate(numbers) if count)


def contents(task: str, class_names: Sequence[str]) -> str:
    """Return the number of classes or labels in words, or the name of the numbers."""
    if task == REGRESSION:
        return f"numbers ({class_names[0]})"
    return f"{len(class_names):,} {'labels' if task == MULTI else 'classes'}"


def class_table(
    header: str, names: Sequence[str], counts: Mapping[str, Sequence[int]], images: Mapping[str, int]
) -> display.Table:
    """Return the number of images by class and split; of many classes, only the largest and smallest."""
    columns = [*counts.values()]
    rows = [(one, *(f"{column[i]:,}" for column in columns)) for i, one in enumerate(names)]
    if len(rows) > display.MAX_ROWS:
        order = np.argsort(-np.sum(columns, axis=0), kind="stable")
        rows = [rows[i] for i in order]
    table = display.Table((header, *counts), rows).shortened()
    sums = [sum(column) for column in columns]
    totals = [images.get(split, total) for split, total in zip(counts, sums, strict=True)]
    # An image with several labels is in several rows.
    last = "total" if totals == sums else "images"
    return table._replace(rows=[*table.rows, (last, *(f"{n:,}" for n in totals))])


def _galleries(report: DataReport) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield the title of each gallery, and the names and captions of its images."""
    agreeing = [one for one in report.duplicates if len(set(one.classes)) == 1]
    for title, sets in (
        ("Conflicting labels", report.conflicts),
        ("Images in several splits", report.shared),
        ("Duplicates", agreeing),
    ):
        yield title, [(name, name) for one in sets[:MAX_SHOWN] for name in one.names[:2]]
    outliers = report.outliers[: 2 * MAX_SHOWN]
    yield "Unusual format or size", [(name, f"{name}: {reason}") for name, reason in outliers]
