"""Merge exact copies of an image that each have one of its labels, such as in folders of several classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from transfer.common.text import plural
from transfer.images.split import SourceData

Item = TypeVar("Item")


def merge_copies(
    data: SourceData, checked: Mapping[str, Sequence[Item]]
) -> tuple[SourceData, dict[str, list[Item]]]:
    """Return checked data in which each image is there once per split, with the labels of all its copies."""
    parts, results, count = {}, {}, 0
    for split, part in data.parts.items():
        first: dict[str, int] = {}
        labels = part.labels.copy()
        for i in sorted(range(len(part)), key=part.names.__getitem__):
            labels[first.setdefault(part.digests[i], i)] |= part.labels[i]
        kept = sorted(first.values())
        count += len(part) - len(kept)
        parts[split] = replace(part, labels=labels).take(kept)
        results[split] = [checked[split][i] for i in kept]
    if not count:
        return data, {split: [*own] for split, own in checked.items()}
    text = f"Merged {plural(count, 'image')} with exact copies: each image has the labels of all its copies."
    return replace(data, parts=parts, notes=[*data.notes, (text, False)]), results
