"""Find class names that distinguish left and right: their mirrored images may belong to another class."""

# ruff: noqa: RUF001 (words of other alphabets)

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

# The rule: augmentation must not flip images if one of these holds.
# 1. Most names are characters: digits, letters, digit words, Roman numerals ("7", "letter_b", "0 - zero", "IV").
# 2. Swapping the two sides in a name gives another name: "turn_left" and "turn_right", "eye_l" and "eye_r".
# 3. A name is only a side and generic words, also without its counterpart: "left" beside "straight".
# So "right_whale", "copyright" and "west_highland_terrier" are no problem unless a "left_whale" exists.

_SIDES = (
    (r"left|\blft\b", r"right|\brgh?t\b"),
    (
        r"\bl(?=(?:[a-z]|hs|cc|mlo|ca|ll|ul|hand|arm|leg|eye|ear|foot|vot|paren|bracket|brace|arrow)?\b)",
        r"\br(?=(?:[a-z]|hs|cc|mlo|ca|ll|ul|hand|arm|leg|eye|ear|foot|vot|paren|bracket|brace|arrow)?\b)",
    ),
    (r"\bo[sgi]\b", r"\bod\b"),  # eyes: oculus sinister or dexter, and the French and Spanish forms
    (r"east(?!er)", r"west(?!er)"),  # "eastern" and "western" mostly belong to names of species
    (r"(?:counter|anti|contra) ?clockwise|\bc?ccw\b|\bacw\b", r"clockwise|\bcw\b"),
    (r"\bport(?:side)?\b", r"\bstarboard\b"),
    (r"babord|backbord|bakboord|\bbabor\b", r"tribord|steuerbord|stuurboord|\bestribor\b"),
    (r"\bforehand\b", r"\bbackhand\b"),
    (r"sinistral|\blevo|\blaevo", r"dextral|\bdextro"),
    (r"\bless\b|\blt\b|\bleq\b|\ble\b", r"\bgreater\b|\bgt\b|\bgeq\b|\bge\b"),
    (r"\brot\w* 90\b|\b90 deg\w*", r"\brot\w* 270\b|\b270 deg\w*"),
    (r"\bwaxing\b|\bfirst quarter", r"\bwaning\b|\b(?:third|last) quarter"),  # the moon
    (
        r"\bs (?=twist|wise|spiral)|(?<=spiral )s\b|\bltr\b",
        r"\bz (?=twist|wise|spiral)|(?<=spiral )z\b|\brtl\b",
    ),
    (r"\b3 (?=o ?clock)", r"\b9 (?=o ?clock)"),
    (r"\b(?:driver|near) ?side\b", r"\b(?:passenger|off) ?side\b"),  # of cars
    (r"[<(\[{«/←⬅⇐👈]", r"[>)\]}»\\→➡⇒👉]"),
    (r"link(?:s|e[rsn]?)", r"recht(?:s|e[rsn]?)"),
    (r"\bli\b", r"\bre\b"),
    (r"\bost\b|nordost|südost|suedost", r"\bwest\b|nordwest|südwest|suedwest"),
    (r"gegen ?(?:den )?uhrzeigersinn", r"(?:im )?uhrzeigersinn"),
    (r"gauche", r"droite?"),
    (r"\best\b", r"\bo(?:uest|vest)\b"),
    (r"anti ?horai?r[eioa]+", r"horai?r[eioa]+"),
    (r"izquierd[ao]|\bizq\b", r"derech[ao]|\bder\b"),
    (r"\beste\b|\bleste\b", r"\boeste\b"),
    (r"esquerd[ao]|\besq\b", r"direit[ao]|\bdir\b"),
    (r"sinistr[aoie]|\bsx\b|\bsin\b", r"destr[aoie]|\bdx\b|\bdes\b"),
    (r"stang\w*", r"dreapt\w*|drept\w*"),
    (r"vanster", r"hoger"),
    (r"venstre", r"h(?:ø|o|j|y)+re"),
    (r"vasen|vasem\w+", r"oikea\w*"),
    (r"l(?:ew|ev)[oaye]?\b|lijev[oai]", r"praw[oay]?\b|prav[oaye]?\b|desn[oai]"),
    (r"\bsola?\b", r"\bsaga?\b"),
    (r"\bbal(?:ra|oldal\w*)?\b", r"\bjobb(?:ra|oldal\w*)?\b"),
    (r"\bhidari\b", r"\bmigi\b"),
    (r"\bkiri\b", r"\bkanan\b"),
    (r"\btrai\b", r"\bphai\b"),
    (r"лев|лів", r"прав"),
    (r"چپ", r"راست"),
    (r"восток|восточн", r"запад"),
    (r"αριστερ", r"δεξι"),
    (r"左", r"右"),
    (r"东|東", r"西"),
    (r"왼|좌", r"오른|우"),
    (r"שמאל", r"ימין"),
    (r"يسار|ايسر", r"يمين|ايمن"),
    (r"ซาย", r"ขวา"),
    (r"ब(?=[एयई])", r"द(?=[एयई])"),
)
"""Opposite words, as patterns for names in lower case without accents. Short words must stand alone."""

_SIDE_WORD = (
    r"left|right|(?:north|south)?(?:east|west)|(?:counter|anti|contra)?clockwise|mirrored|flipped|"
    r"links|rechts|gauche|droite|izquierda|derecha|sinistra|destra|esquerda|direita|"
    r"лев(?:о|ыи|ая|ое)|[нв]а?лево|прав(?:о|ыи|ая|ое)|[нв]а?право|[向往]?[左右][转轉拐折手眼边侧側方]?"
)
"""Words that are a problem without their counterpart."""

_GENERIC = (
    "turn|turns|turned|turning|arrow|arrows|hand|handed|hands|arm|side|sided|sides|ward|wards|bound|facing|face|faces|"
    "eye|eyes|ear|foot|leg|knee|lung|kidney|breast|lane|curve|bend|keep|go|move|swipe|point|points|pointing|look|"
    "looking|gaze|head|tilt|lean|steer|merge|exit|rotate|rotated|rotation|spin|wave|sign|direction|view|most"
)
_SIDE = re.compile(rf"(?:{_GENERIC})?(?:{_SIDE_WORD})(?:{_GENERIC})*")  # also "turnleft" and "lefthand"
_NEUTRAL = re.compile(
    rf"{_GENERIC}|a|an|and|at|for|from|in|no|of|on|only|or|the|to|with|ahead|dangerous|sharp|slight|hard|straight|"
    r"forward|up|down|top|bottom|upper|lower|front|back|north|south|counter|anti|\d+"
)

_KIND_OF_CHARACTER = re.compile(
    "digits?|number|numeral|letters?|char|characters?|glyph|kanji|hiragana|katakana|"
    "upper|lower|uppercase|lowercase|capital|small|big|sign|asl|roman|greek"
)
_CHARACTER = re.compile(
    r"\w|\d+|(?=.)x{0,3}(?:ix|iv|v?i{0,3})|"  # Roman numerals up to 39
    "zero|one|two|three|four|five|six|seven|eight|nine|ten|null|eins|zwei|drei|vier|funf|sechs|sieben|acht|neun|zehn|"
    "un|deux|trois|quatre|cinq|sept|huit|neuf|dix|cero|uno|dos|tres|cuatro|cinco|seis|siete|ocho|nueve|diez|"
    "due|tre|quattro|cinque|sei|sette|otto|nove|dieci|um|dois|quatro|sete|oito|dez|nul|een|twee|drie|vijf|zes|zeven|"
    "negen|tien|alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|omicron|pi|rho|sigma|tau|"
    "upsilon|phi|chi|psi|omega"
)
_NO_CHARACTER = re.compile(
    "space|del|delete|nothing|none|blank|empty|background|unknown|others?|noise|comma|dot|period|point|plus|minus|"
    "equals?|times|div|add|sub|mul|slash|dash|hyphen"
)


def flip_problem(class_names: Sequence[str]) -> str:
    """Return why mirrored images may belong to another class, by the class names; empty if nothing suggests it."""
    words = [_words(name) for name in class_names]
    others = [own for own in words if not all(map(_NO_CHARACTER.fullmatch, own))]
    characters = sum(map(_is_character, others))
    if characters >= 2 and 2 * characters > len(others):
        return "the classes are digits or letters"
    if pair := next(_swapped(class_names), None):
        return f"the classes {pair[0]!r} and {pair[1]!r} would swap"
    correct = {("right",)} if ["wrong"] in words else set()  # not a side
    for name, own in zip(class_names, words, strict=True):
        if _is_side(own) and tuple(own) not in correct:
            return f"the class {name!r} is a direction"
    return ""


def flips_are_safe(class_names: Sequence[str]) -> bool:
    """Return whether mirrored images keep their class, by the names of the classes."""
    return not flip_problem(class_names)


def _words(name: str) -> list[str]:
    """Return the words of a name in lower case without accents; camel case and numbers are split."""
    name = re.sub(
        r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", unicodedata.normalize("NFKC", str(name))
    )
    letters = (c for c in unicodedata.normalize("NFKD", name.lower()) if unicodedata.category(c)[0] != "M")
    return re.findall(r"[^\W\d_]+|\d+", unicodedata.normalize("NFC", "".join(letters)))


def _is_character(words: list[str]) -> bool:
    """Return whether a name is a digit, number or letter, such as "7", "letter_b" or "0 - zero"."""
    own = [word for word in words if not _KIND_OF_CHARACTER.fullmatch(word)]
    characters = sum(bool(_CHARACTER.fullmatch(word)) for word in own)
    if not characters or sum(map(str.isdigit, own)) > 1:  # two numbers are a range, such as "20-29"
        return False
    return characters == len(own) or bool(re.match("letter|char|digit|numeral", words[0]))


def _is_side(words: list[str]) -> bool:
    """Return whether a name is only a side and generic words, such as "left" or "keep_right"."""
    others = [word for word in words if not _SIDE.fullmatch(word)]
    return len(others) < len(words) and all(map(_NEUTRAL.fullmatch, others))


def _swapped(class_names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield pairs of classes whose names differ only in the side."""
    texts = [" ".join(map(_compass, _words(name))) or str(name) for name in class_names]
    for left, right in _SIDES:
        either = re.compile(rf"(?P<left>{left})|(?P<right>{right})")
        if not any(map(either.search, texts)):
            continue
        for key_of in (list, sorted):
            keys = [tuple(key_of(_marked(either, text, "<", ">"))) for text in texts]
            first = {key: name for key, name in reversed([*zip(keys, class_names, strict=True)])}
            for own, name, text in zip(keys, class_names, texts, strict=True):
                other = tuple(key_of(_marked(either, text, ">", "<")))
                if other != own and other in first:
                    yield name, first[other]


def _compass(word: str) -> str:
    """Spell the east and west of a compass point out, such as that of "ne"."""
    return word.replace("e", "east").replace("w", "west") if re.fullmatch("[nsew]{1,3}", word) else word


def _marked(either: re.Pattern[str], text: str, left: str, right: str) -> list[str]:
    """Return the words of a name with marks for its sides, and without its numbers."""
    words = either.sub(lambda found: left if found["left"] else right, text).split()
    return [word for word in words if not word.isdigit()] or words
