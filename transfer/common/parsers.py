"""Parsers of the commands: flags from dataclasses, in groups with titles, and usage errors in one line."""

from __future__ import annotations

import argparse
import re
import sys
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NoReturn

from transfer.common.errors import InputError, nearest
from transfer.common.old_names import OLD_OPTIONS

HINTS = {
    "arch": "model",
    "augmentation": "augment",
    "backbone": "model",
    "batch": "batch-size",
    "bs": "batch-size",
    "dataset": "data",
    "device": "strategy",
    "dir": "data",
    "folder": "data",
    "img-size": "image-size",
    "imgsz": "image-size",
    "lr": "learning-rate",
    "method": "case",
    "network": "model",
    "rate": "learning-rate",
    "run": "output",
    "save-dir": "output",
    "size": "image-size",
    "time": "time-budget",
    "wd": "weight-decay",
}
"""Names of options in other programs, and the names here."""

_KINDS = {"int": "a whole number", "float": "a number", "int_or_float": "a number"}


def int_or_float(text: str) -> int | float:
    """Return a whole number as an int, another number as a float."""
    return int(text) if re.fullmatch(r"[+-]?\d+", text.strip()) else float(text)


@dataclass(frozen=True)
class OptionTexts:
    """How `--help` shows options: the values of some, the placeholders of others, and notes after their texts."""

    choices: Mapping[str, Collection[str]]
    metavars: Mapping[str, str]
    notes: Mapping[str, str]
    # Options that take several values, which become one text with commas.
    several: Collection[str] = ()


class Parser(argparse.ArgumentParser):
    """A parser without abbreviations; a usage error is one line, with the nearest option."""

    def __init__(self, command: str, description: str, **options: Any) -> None:
        super().__init__(
            prog=f"python -m transfer.{command}", description=description, allow_abbrev=False, **options
        )
        self.first: tuple[str, ...] = ()

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse all arguments; positional ones may stand between the flags."""
        words = self.plain_words(args)
        self._check_flags(words)
        parsed, rest = self.parse_known_intermixed_args(words, namespace)
        if rest:
            self.error(f"Unexpected argument {rest[0]!r}.{self._as_flag(rest[0])} See {self.prog} --help.")
        return parsed

    def plain_words(self, args: Sequence[str] | None) -> list[str]:
        """Return the arguments with old names and the older forms of true and false replaced."""
        words = list(sys.argv[1:] if args is None else args)
        booleans = {name for name, action in self._flags().items() if _is_boolean(action)}
        old = {f"--{key}".replace("_", "-"): f"--{new}".replace("_", "-") for key, new in OLD_OPTIONS.items()}
        old |= {f"--no{name[2:]}": f"--no-{name[2:]}" for name in booleans if not name.startswith("--no-")}
        found: list[str] = []
        while words:
            word = words.pop(0)
            if word == "--":
                return [*found, word, *words]
            name, equals, value = word.partition("=")
            name = old.get(name, name)
            if name in booleans and not equals and words and words[0].lower() in ("true", "false"):
                equals, value = "=", words.pop(0)
            if name in booleans and equals and value.lower() in ("true", "false"):
                found.append(name if value.lower() == "true" else f"--no-{name[2:]}")
            else:
                found.append(name + equals + value)
        return found

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with code 2."""
        self.exit(2, f"{self._plain(message)}\n")

    def format_help(self) -> str:
        """Return the help, with the most important options first."""
        text = super().format_help()
        if not self.first:
            return text
        known = {action.dest: action.help or "" for action in self._actions}
        lines = [f"  --{name.replace('_', '-'):<14}{known[name].split('. ')[0]}\n" for name in self.first]
        start = text.index("\npositional arguments:\n")
        return text[:start] + "\nmost important options:\n" + "".join(lines) + text[start:]

    def add_place(self) -> None:
        """Add the data as a positional argument, the same as `--data`; `take_place` reads it."""
        self.add_argument("place", nargs="?", metavar="DATA", help="the same as --data")

    def add_dataclass(self, options: type[Any], title: str, texts: OptionTexts) -> None:
        """Add a flag for each field of a dataclass that has none yet; parsing leaves out flags that are not given."""
        group, hints = self.add_argument_group(title), typing.get_type_hints(options)
        known = {action.dest for action in self._actions}
        for field in fields(options):
            if field.name in known:
                continue
            shown: dict[str, Any] = {"help": _help(options, field, texts), "default": argparse.SUPPRESS}
            kinds = set(typing.get_args(hints[field.name]) or (hints[field.name],)) - {types.NoneType}
            if kinds == {bool}:
                shown["action"] = argparse.BooleanOptionalAction
            else:
                shown["type"] = int_or_float if kinds == {int, float} else kinds.pop()
                usual = {str: "TEXT", int: "N"}.get(shown["type"], "X")
                shown["metavar"] = texts.metavars.get(field.name, usual)
                if field.name in texts.several:
                    shown["nargs"] = "+"
                if field.name in texts.choices:
                    shown["metavar"] = "{" + ",".join(texts.choices[field.name]) + "}"
            group.add_argument("--" + field.name.replace("_", "-"), dest=field.name, **shown)

    def _flags(self) -> dict[str, argparse.Action]:
        return dict(self._option_string_actions)

    def _check_flags(self, words: Sequence[str]) -> None:
        """Exit with an error at the first flag that does not exist, before all other checks."""
        for number, word in enumerate(words):
            if word == "--":
                return
            name = word.partition("=")[0]
            if re.match(r"--?[A-Za-z]", name) and name not in self._flags():
                self.error(f"Unknown option {name}. {self._suggestion(name)}")
            following = words[number + 1] if number + 1 < len(words) else "-"
            if word == "--resume" and word in self._flags() and not following.startswith("-"):
                self.error(_no_value("--resume", following))

    def _suggestion(self, name: str) -> str:
        """Return the nearest options as a question, or where to find all of them."""
        plain = name.lstrip("-").replace("_", "-").lower()
        known = [flag[2:] for flag in self._flags() if flag.startswith("--")]
        hinted = [one for one in (plain, HINTS.get(plain)) if one in known]
        found = (
            hinted or nearest(plain, known, most=2) or [flag for flag in known if flag.startswith(plain)][:2]
        )
        if found:
            return f"Did you mean {' or '.join('--' + flag for flag in found)}?"
        return f"See {self.prog} --help."

    def _as_flag(self, word: str) -> str:
        """Return a question for a word that lacks the dashes of a flag."""
        flag = "--" + word.partition("=")[0]
        return f" Did you mean {flag}?" if flag in self._flags() else ""

    def _plain(self, message: str) -> str:
        """Return an error of argparse in the words of this package."""
        patterns: dict[str, Callable[..., str]] = {
            r"argument (?:\S+, )*(\S+?)(?:/\S+)?: expected (?:one|at least one) argument": self._lacks_value,
            r"argument (?:\S+, )*(\S+?): invalid (\w+) value: (.*)": lambda name, kind, value: (
                f"Expected {_KINDS.get(kind, 'another value')} for {name}. Received: {value}."
            ),
            r"argument (?:\S+, )*(\S+?): invalid choice: '(.*)' \(choose from (.*)\)": _bad_choice,
            r"argument (.*): ignored explicit argument '(.*)'": lambda names, value: _no_value(
                names.replace("/", ", ").split(", ")[0], value
            ),
            r"the following arguments are required: (.*)": lambda names: (
                f"Missing: {names}. See {self.prog} --help."
            ),
            r"one of the arguments (.*) is required": lambda names: f"Expected {names.replace(' ', ' or ')}.",
            r"argument (.*): not allowed with argument (.*)": lambda one, other: (
                f"Expected {one} or {other}, not both."
            ),
        }
        for pattern, shown in patterns.items():
            if match := re.fullmatch(pattern, message, re.DOTALL):
                return shown(*match.groups())
        return message[:1].upper() + message[1:]

    def _lacks_value(self, name: str) -> str:
        action = self._flags().get(name)
        metavar = action.metavar or action.dest.upper() if action is not None else "VALUE"
        return f"Expected a value after {name}: {name} {metavar}. See {self.prog} --help."


def take_place(given: dict[str, Any]) -> dict[str, str]:
    """Take the positional data out of parsed arguments and return them as the option `data`."""
    place = given.pop("place")
    if place is None:
        return {}
    named = given.pop("data", None) or place
    if named != place:
        raise InputError(f"Expected the data once. Received: {place!r} and --data {named}.")
    return {"data": place}


def _is_boolean(action: argparse.Action) -> bool:
    return isinstance(action, argparse.BooleanOptionalAction)


def _no_value(name: str, value: str) -> str:
    """Return the error for a value after a flag that takes none."""
    if name == "--resume":
        return f"--resume takes no value: use --output {value} --resume."
    return f"{name} takes no value. Received: {value!r}."


def _bad_choice(name: str, value: str, valid: str) -> str:
    known = re.findall(r"[^', ]+", valid)
    near = nearest(value, known)
    return f"Unknown value {value!r} for {name}. " + (
        f"Did you mean {near[0]!r}?" if near else f"Expected {', '.join(known)}."
    )


def _help(options: type[Any], field: Any, texts: OptionTexts) -> str:
    """Return the comment above a field, its default, and its note, for argparse."""
    from simple_parsing.docstring import get_attribute_docstring

    text = " ".join(get_attribute_docstring(options, field.name).help_string.split())
    for quoted in ('`"', '"`', "`"):  # texts from docstrings
        text = text.replace(quoted, "'" if len(quoted) == 2 else "")
    default = "" if field.default is None else f"(default: {field.default})"
    parts = (text[:1].upper() + text[1:], texts.notes.get(field.name, ""), default)
    return " ".join(filter(None, parts)).replace("%", "%%")
