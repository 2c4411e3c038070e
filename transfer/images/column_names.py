"""Interpret a column of a list by its name and its cells."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cached_property

from transfer.images.cells import FLAGS, known, number_in, split_in
from transfer.images.split_words import rest_of, split_of

MAX_SHOWN = 5
_MAX_VALUES = 1_000  # different cells that are counted in a column


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Names of path columns, without spaces and in lower case, best first.
_PATHS = (
    _words("path paths filepath filepaths imagepath imgpath fullpath relativepath relpath uri"),
    _words("file files filename filenames fname imagefile imagefilename imgfile imgfilename"),
    _words("image images img photo imageuri picture"),
    _words("imagename imgname photoname"),
    _words("imageid imageids imageindex imgid idcode isicid photoid imagekey pictureid"),
    _words("id ids uuid key"),
    _words("url imageurl imgurl link"),  # refused, with advice
)

_PATH_WORDS = _words("image img photo picture file path name full relative rel absolute abs")

_LABELS = _words("label labels class classes category categories target targets y")
_LABEL_EXTRAS = _words("name text str id idx index no code true gold image img title finding encoded main")
# Label columns that are used if no column is called label, class, category or target.
_TOPICS = _words(
    "dx diagnosis breed species finding findings cultivar variety disease pathology emotion genre"
)
_TOPICS |= _words("tag tags annotation annotations groundtruth gt grade level severity taxon")

# Columns of numbers that are the label of a regression if no column has a name for labels.
_QUANTITIES = _words(
    "age price value score rating weight height length width size area volume amount count quantity"
)
_QUANTITIES |= _words("distance depth angle temperature speed bmi")
_UNITS = _words("years months days kg g cm mm m usd eur deg degrees c in avg mean total true")

_SPLIT_NAMES = _words(
    "split splits set subset usage phase partition fold dataset data mode stage purpose role"
)
_SPLIT_NAMES |= _words(
    "train training val valid validation test testing dev eval or and cv type kind name image"
)
_SPLIT_NAMES |= _words("sample part portion assignment is for use used ml kfold")
_FLAG_NAMES = _words("is in for use used as flag image img set split data sample row only")

# Columns of people or other wholes, and columns of their parts.
_WHOLES = _words("group patient subject participant person individual proband volunteer donor user writer")
_WHOLES |= _words("author artist photographer speaker mrn household subj pat")
_WHOLES |= _words("patienten patientennummer paciente pacientes paziente pacjent pasien пациент 患者 환자")
_PARTS = _words("lesion video clip session sequence seq specimen biopsy")
# These are groups only with a word such as id: without it, they may hold classes or descriptions.
_WHOLES_WITH_ID = _words("animal owner client customer product item object plant tree family identity case")
_PARTS_WITH_ID = _words(
    "study exam examination series visit scan slide volume acquisition encounter accession"
)
_PARTS_WITH_ID |= _words("location event burst scene eye leaf track tracklet cluster location")
_ID_WORDS = _words("id ids uid uids guid uuid no nr num number idx code key hash instance")
_JOINED_ID = re.compile("(.+?)_?(id|uid|guid|uuid|nr|no|num|number|idx|code)$")

_CODE = re.compile(r"(?=.*[A-Za-z])(?=.*\d)[\w.:/-]+")  # such as P012
# "PatientID" is two words, and so is "patient_id".
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_a-zA-Z]+")


class Column:
    """The name of a column, and how often each of its cells occurs."""

    def __init__(self, name: str) -> None:
        self.name = name.strip()
        self.counts: dict[str, int] = {}
        self.is_full = False

    def add(self, cell: str) -> None:
        """Count a cell; of very different cells only the first thousand are counted."""
        cell = cell.strip()
        if cell in self.counts:
            self.counts[cell] += 1
        elif len(self.counts) < _MAX_VALUES:
            self.counts[cell] = 1
        else:
            self.is_full = True

    @cached_property
    def words(self) -> tuple[str, ...]:
        """The words of the name, in lower case."""
        return tuple(word.lower() for word in _WORD.findall(self.name))

    @property
    def joined(self) -> str:
        """The name without spaces and punctuation, in lower case."""
        return "".join(self.words)

    @property
    def filled(self) -> dict[str, int]:
        """The counts of the cells that are not empty."""
        return {cell: count for cell, count in self.counts.items() if cell}

    @property
    def is_constant(self) -> bool:
        """Whether more than one row has a cell, and all have the same."""
        return [count > 1 for count in self.counts.values()] == [True]

    @cached_property
    def is_flag(self) -> bool:
        """Whether the cells mean yes or no."""
        return bool(self.filled) and all(cell.lower() in FLAGS for cell in self.counts)

    @cached_property
    def splits(self) -> dict[str, int]:
        """The number of rows of each split, "" for empty cells; empty if a cell is not the word of a split."""
        found: dict[str, int] = {}
        for cell, count in self.counts.items():
            if (split := split_in(cell)) is None:
                return {}
            found[split] = found.get(split, 0) + count
        return found if set(found) - {""} else {}

    @property
    def split_note(self) -> str:
        """A sentence on the words that mean a split under another name; empty if there are none."""
        words = {cell: split_in(cell) for cell in self.filled} if self.splits else {}
        if all(cell.lower() == split for cell, split in words.items()):
            return ""
        return f"Splits: {', '.join(f'{cell!r} is {split}' for cell, split in list(words.items())[:6])}."

    @property
    def flagged_split(self) -> str:
        """The split that a flag such as `is_valid` marks, by its name; "" if it is not one."""
        split = split_of(self.name)
        return split if split and self.is_flag and set(rest_of(self.name)) <= _FLAG_NAMES else ""

    @property
    def repeats(self) -> bool:
        """Whether cells occur more than once."""
        return len(self.filled) > 1 and any(count > 1 for count in self.filled.values())

    @property
    def is_number(self) -> bool:
        """Whether all cells are numbers."""
        return bool(self.filled) and all(number_in(cell) is not None for cell in self.filled)

    @property
    def is_fraction(self) -> bool:
        """Whether all cells are numbers from 0 to 1."""
        return self.is_number and all(0 <= (number_in(cell) or 0) <= 1 for cell in self.filled)

    @property
    def is_quantity(self) -> bool:
        """Whether the cells are numbers, and the name is that of a quantity, such as "age" or "weight_kg"."""
        words = set(self.words)
        # Decimal commas are an error later on, which says how to correct them.
        cells = [cell.replace(",", ".") for cell in self.filled if known(cell)]
        return (
            bool(words & _QUANTITIES)
            and words <= _QUANTITIES | _UNITS
            and all(number_in(cell) is not None for cell in cells)
        )

    @property
    def is_whole(self) -> bool:
        """Whether the column has the name of a group without a word such as id, and cells that are numbers."""
        return self.is_number and bool({*self.words[-1:]} & (_WHOLES_WITH_ID | _PARTS_WITH_ID))

    @property
    def is_code(self) -> bool:
        """Whether the column has the name of an id, or all cells are letters with digits, such as P012."""
        last = self.words[-1] if self.words else ""
        by_name = last in _ID_WORDS or bool(_JOINED_ID.fullmatch(last))
        return by_name or all(_CODE.fullmatch(cell) for cell in self.filled)


def path_columns(columns: Sequence[Column]) -> list[int]:
    """Return the columns with a name for paths, best first."""
    found = [i for names in _PATHS for i, column in enumerate(columns) if column.joined in names]
    longer = [
        i for i, column in enumerate(columns) if set(column.words) <= _PATH_WORDS and len(column.words) > 2
    ]
    return [*dict.fromkeys((*longer, *found))]


def label_columns(columns: Sequence[Column]) -> list[int]:
    """Return the columns with the best kind of name for labels."""

    def is_label(column: Column) -> bool:
        words = set(column.words)
        return column.joined in _LABELS or (bool(words & _LABELS) and words <= _LABELS | _LABEL_EXTRAS)

    labels = [i for i, column in enumerate(columns) if is_label(column)]
    return labels or [i for i, column in enumerate(columns) if _is_topic(column)]


def _is_topic(column: Column) -> bool:
    *_, last = [word for word in column.words if word not in _ID_WORDS | {"name"}] or [""]
    if column.words[:1] == ("no",):  # one of several columns of findings
        return False
    return column.joined in _TOPICS or (last in _TOPICS and len(column.words) < 3)


def has_split_name(column: Column) -> bool:
    """Return whether all words of the name are used for columns of splits."""
    return bool(column.words) and (
        set(column.words) <= _SPLIT_NAMES or column.joined in ("datasplit", "traintest", "traintestsplit")
    )


def rank(column: Column) -> int | None:
    """Return 0 for a column of groups such as patients, 1 for parts of these such as lesions, None for others."""
    words = list(column.words)
    if len(words) == 1 and (match := _JOINED_ID.fullmatch(words[0])):
        words = list(match.groups())
    core = list(words)
    while core and core[-1] in _ID_WORDS:
        core.pop()
    if len(core) > 1 and core[0] in ("id", "uid"):
        core.pop(0)
    if len(core) > 1 and core[-1] == "name" and core[-2] in _WHOLES - {"group"}:
        core.pop()
    if not core or column.is_constant or (column.is_flag and len(column.filled) > 1):
        return None
    with_id = len(core) < len(words)
    if core[-1] in _WHOLES or (with_id and core[-1] in _WHOLES_WITH_ID):
        return 0
    return 1 if core[-1] in _PARTS or (with_id and core[-1] in _PARTS_WITH_ID) else None


def quoted_list(names: Iterable[str], *, limit: int = MAX_SHOWN) -> str:
    """Return the first names in quotes, and the number of the others."""
    names = [*names]
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(quoted, names[:limit])) + more


def quoted(text: str) -> str:
    """Return a text in quotes, shortened to 80 characters."""
    return repr(text if len(text) <= 80 else text[:80] + "...")
