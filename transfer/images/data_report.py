"""What the check of the data found: counted, judged in plain words, as text, JSON or a page."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from transfer.common.errors import InputError
from transfer.common.pages import data_uri, render

FEWEST = 3
"""Different images that a class needs to be in train, val and test."""

IMBALANCE = 5.0
"""Times as many images to train on in the largest class as in the smallest, from which class weights are advised."""

MOST_SHOWN = 5
"""Names or pairs of images that a finding shows where space is short."""


class DuplicateSet(NamedTuple):
    """Images that show the same."""

    names: tuple[str, ...]
    classes: tuple[str, ...]
    splits: tuple[str, ...]
    # Their content is the same, byte for byte.
    exact: bool


class Finding(NamedTuple):
    """Something that whoever trains on the data should know."""

    kind: str
    text: str
    names: tuple[str, ...]
    serious: bool

    def to_text(self) -> str:
        """Give the sentence and the first names, a line each."""
        more = [f"and {len(self.names) - MOST_SHOWN:,} more"] if len(self.names) > MOST_SHOWN else []
        return "".join([self.text, *(f"\n    {name}" for name in [*self.names[:MOST_SHOWN], *more])])


@dataclass(frozen=True)
class DataReport:
    """What the check of the data found.

    Attributes:
        name: of the data.
        class_names: in the order of the labels.
        counts: images of each class that are used, per split.
        total: images that can be read.
        skipped: what cannot be used, by name, with the reason.
        ignored: files that are no images.
        formats: how many there are of each format.
        modes: how many of each kind of channels, in Pillow's words.
        turned: how many are stored on their side, mirrored or upside down, as their EXIF data say.
        widths: least, median and most, in pixels.
        heights: the same.
        same: images that show the same.
        groups: how many groups, such as patients, there are; 0 where images have none.
        split_groups: groups that the source has in several splits.
        odd: images whose format or size is unlike the others', with what is odd.
        blank: images of one color.
        format_tells: a sentence where a class can be told by its files' format; else empty.
        few: classes with fewer than `FEWEST` different images, where splits are drawn.
    """

    name: str
    class_names: tuple[str, ...]
    counts: Mapping[str, tuple[int, ...]]
    total: int
    skipped: tuple[tuple[str, str], ...]
    ignored: tuple[str, ...]
    formats: Mapping[str, int]
    modes: Mapping[str, int]
    turned: int
    widths: tuple[int, int, int]
    heights: tuple[int, int, int]
    same: tuple[DuplicateSet, ...]
    groups: int
    split_groups: tuple[str, ...]
    odd: tuple[tuple[str, str], ...]
    blank: tuple[str, ...]
    format_tells: str
    few: tuple[str, ...]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What should be known, the serious first."""
        found = [*_serious(self), *_hints(self)]
        return tuple(sorted(found, key=lambda finding: not finding.serious))

    def to_dict(self) -> dict[str, Any]:
        """Give everything as plain lists and dictionaries, the findings too."""
        findings = [finding._asdict() for finding in self.findings]
        same = [one._asdict() for one in self.same]
        return {**asdict(self), "same": same, "findings": findings}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DataReport:
        """Take what `to_dict` gave, by way of JSON perhaps.

        Raises:
            InputError: it is something else.
        """
        try:
            given = {key: _as_tuples(value) for key, value in values.items() if key != "findings"}
            return cls(**{**given, "same": tuple(DuplicateSet(**one) for one in map(dict, given["same"]))})
        except (TypeError, KeyError, ValueError) as error:
            raise InputError(f"Expected the report of a check of data. Received another: {error}.") from None

    def to_json(self) -> str:
        """Give everything as JSON."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n"

    def to_text(self) -> str:
        """Give the table for a terminal."""
        facts = "\n".join(f"{name:9} {value}" for name, value in self.facts.items())
        lines = [f"{'!' if finding.serious else '-'} {finding.to_text()}" for finding in self.findings]
        verdict = "\n".join(lines) or "Nothing to complain about."
        return f"{_table(self)}\n\n{facts}\n\n{verdict}\n"

    def to_html(self, image: Callable[[str], np.ndarray | None] | None = None) -> str:
        """Give a page that needs nothing else.

        Args:
            image: gives a small image by its name, uint8 of shape (height, width, 3), or None; those of
                interest are shown.
        """
        return str(render("page.html", title=f"Data: {self.name}", parts=[self.to_part(image)]))

    def to_part(self, image: Callable[[str], np.ndarray | None] | None = None) -> str:
        """Give the part of a page that `to_html` is made of; its argument is the same."""
        galleries = []
        for title, names, captions in _galleries(self):
            shown = [
                (data_uri(pixels), caption)
                for name, caption in zip(names, captions, strict=True)
                if image is not None and (pixels := image(name)) is not None
            ]
            if shown:
                galleries.append((title, shown))
        return render("data.html", report=self, galleries=galleries, most=MOST_SHOWN)

    @property
    def facts(self) -> dict[str, str]:
        """Formats, channels, sizes and the like, in words."""
        others = len(self.ignored)
        return {
            "formats": _listed(self.formats),
            "channels": _listed(self.modes),
            "widths": "{} to {} pixels, median {}".format(*(self.widths[i] for i in (0, 2, 1))),
            "heights": "{} to {} pixels, median {}".format(*(self.heights[i] for i in (0, 2, 1))),
            **({"turned": f"{self.turned:,} set upright, as their EXIF data say"} if self.turned else {}),
            **({"groups": str(self.groups)} if self.groups else {}),
            **({"ignored": f"{others:,} other file{'s' * (others > 1)}"} if others else {}),
        }


def _as_tuples(value: Any) -> Any:
    """Make tuples of JSON's lists again, at any depth."""
    if isinstance(value, list | tuple):
        return tuple(map(_as_tuples, value))
    return {key: _as_tuples(one) for key, one in value.items()} if isinstance(value, dict) else value


def _serious(report: DataReport) -> Iterable[Finding]:
    if report.skipped:
        yield Finding(
            "skipped",
            f"{_images(report.skipped)} skipped: cannot be used.",
            tuple(f"{name} ({why})" for name, why in report.skipped),
            True,
        )
    conflicts = [one for one in report.same if len(set(one.classes)) > 1]
    if conflicts:
        yield Finding(
            "conflict",
            f"{_images(conflicts)} under two labels or more: only trained on, never measured on. Decide on one.",
            tuple(" = ".join(one.names) for one in conflicts),
            True,
        )
    shared = [one for one in report.same if len(set(one.splits)) > 1]
    if shared:
        yield Finding(
            "shared",
            f"{_images(shared)} in several of the splits that the data came with: figures measured so flatter. "
            "Take them out of train, or let the split be drawn.",
            tuple(" = ".join(one.names) for one in shared),
            True,
        )
    if report.split_groups:
        yield Finding(
            "group",
            f"{len(report.split_groups)} of {report.groups} groups in several of the splits that the data came with: "
            "figures measured so flatter.",
            report.split_groups,
            True,
        )
    if report.few:
        yield Finding(
            "few",
            f"{len(report.few)} of {len(report.class_names)} classes have fewer than {FEWEST} different images, too "
            "few to train, validate and test on each. Add some.",
            report.few,
            True,
        )
    yield from _alike(report.class_names)


def _alike(class_names: Sequence[str]) -> Iterable[Finding]:
    by_form: dict[str, list[str]] = {}
    for name in class_names:
        by_form.setdefault("".join(filter(str.isalnum, name.casefold())) or name, []).append(name)
    alike = tuple(" = ".join(map(repr, names)) for names in by_form.values() if len(names) > 1)
    if alike:
        yield Finding(
            "alike",
            "Classes whose names differ only in case, spaces or signs. Merge them if they are one.",
            alike,
            True,
        )


def _hints(report: DataReport) -> Iterable[Finding]:
    train = np.array(report.counts.get("train", ()))
    if len(train) and train.max() >= IMBALANCE * max(train.min(), 1):
        least, most = (report.class_names[i] for i in (train.argmin(), train.argmax()))
        yield Finding(
            "imbalance",
            f"{most} has {train.max() / max(train.min(), 1):.0f} times as many images to train on as {least}. "
            "--class-weights makes up for it.",
            (),
            False,
        )
    for kind, what, found in (
        ("copies", "there more than once, byte for byte", [one for one in report.same if one.exact]),
        ("near", "there more than once in slightly other form", [o for o in report.same if not o.exact]),
    ):
        if found:
            yield Finding(
                kind,
                f"{_images(found)} {what}: kept on one side of a split that is drawn.",
                tuple(" = ".join(one.names) for one in found),
                False,
            )
    if report.odd:
        yield Finding(
            "odd",
            f"{_images(report.odd)} unlike the others: worth a look.",
            tuple(f"{name} ({what})" for name, what in report.odd),
            False,
        )
    if report.blank:
        yield Finding("blank", f"{_images(report.blank)} of one color.", report.blank, False)
    if report.format_tells:
        yield Finding(
            "format",
            f"The files' format gives classes away: {report.format_tells}. A network may learn that instead. "
            "Save all in one format.",
            (),
            False,
        )


def _images(items: Sequence[Any]) -> str:
    return "1 image is" if len(items) == 1 else f"{len(items):,} images are"


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _table(report: DataReport) -> str:
    """Images by class and split; of many classes the largest and the smallest."""
    splits = list(report.counts)
    totals = np.array([report.counts[split] for split in splits]).sum(axis=0)
    rows = [
        (name, *(report.counts[split][i] for split in splits)) for i, name in enumerate(report.class_names)
    ]
    if len(rows) > 20:
        order = np.argsort(-totals, kind="stable")
        hidden = ("...", *("" for _ in splits))
        rows = [*(rows[i] for i in order[:10]), hidden, *(rows[i] for i in order[-9:])]
    sums = [sum(report.counts[split]) for split in splits]
    title = f"{report.name}: {len(report.class_names)} classes"
    lines = [(title, *splits), *rows, ("together", *sums)]
    width = max(len(str(line[0])) for line in lines)
    return "\n".join(
        f"{line[0]:{width}}"
        + "".join(f"{cell:>9,}" if isinstance(cell, int) else f"{cell:>9}" for cell in line[1:])
        for line in lines
    )


def _galleries(report: DataReport) -> Iterable[tuple[str, list[str], list[str]]]:
    """Which images are worth seeing: title, names, captions."""
    for title, chosen in (
        ("The same image under two labels", [s for s in report.same if len(set(s.classes)) > 1]),
        ("The same image in two splits", [s for s in report.same if len(set(s.splits)) > 1]),
        ("The same image more than once", [s for s in report.same if len(set(s.classes)) == 1]),
    ):
        some = chosen[:MOST_SHOWN]
        names = [name for one in some for name in one.names[:2]]
        yield title, names, names
    yield (
        "Unlike the others",
        [name for name, _ in report.odd[: 2 * MOST_SHOWN]],
        [f"{name}: {what}" for name, what in report.odd[: 2 * MOST_SHOWN]],
    )
