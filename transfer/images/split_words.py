"""Words that mean a split, in names of folders and columns and in cells of lists."""

from __future__ import annotations

import re

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "testing", "tst", "holdout", "heldout"), "test"),
}
"""Words in lower case, and the split that each means."""

SPLITS = tuple(dict.fromkeys(SPLIT_WORDS.values()))

# "TrainSet" and "train_set" are two words; digits and other characters separate words.
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_]+")
# Words that may be joined to the word of a split: "trainset", "testdata".
_JOINED = re.compile("(.+?)(sets?|data|dataset|images?|imgs?|split|samples?|folder|dir)$")


def split_of(text: str) -> str | None:
    """Return the split that a name means, such as "test" for "seg_test" or "TestSet"; None if it is not clear."""
    splits = {split for word in _words(text) if (split := SPLIT_WORDS.get(word))}
    return splits.pop() if len(splits) == 1 else None


def rest_of(text: str) -> tuple[str, ...]:
    """Return the words of a name without those that mean a split: ("seg",) for "seg_train"."""
    return tuple(word for word in _words(text) if word not in SPLIT_WORDS)


def _words(text: str) -> list[str]:
    """Return the words of a name in lower case, with "trainset" as "train" and "set"."""
    words: list[str] = []
    for word in _WORD.findall(re.sub("(?i)h([oe])ld[-_ ]out", r"h\1ldout", text)):
        word = word.lower()
        match = _JOINED.fullmatch(word)
        words += match.groups() if match and word not in SPLIT_WORDS and match[1] in SPLIT_WORDS else [word]
    return words
