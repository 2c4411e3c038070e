"""Parsers of the commands: flags from dataclasses, in groups with titles."""

from __future__ import annotations

import re
from typing import Any


def make_parser(program: str, description: str) -> Any:
    """Return a parser of dataclasses whose help has a titled group for each."""
    import simple_parsing

    class Parser(simple_parsing.ArgumentParser):
        """A parser that names its groups after the dataclasses, and can list some options first."""

        first: tuple[str, ...] = ()

        def add_argument_group(self, *args: Any, **kwargs: Any) -> Any:
            title = kwargs.pop("title", args[0] if args else None) or ""
            name = title.partition(" [")[0]
            plain = (
                name.removesuffix("Options").removesuffix("Config").lower().replace("recipe", "fine-tuning")
            )
            group = super().add_argument_group(f"{plain} options" if plain != name else title)
            add = group.add_argument

            def add_with_value(*names: str, **options: Any) -> Any:
                # Simple-parsing makes the value optional where the default is None: `--output` alone would be ignored.
                return add(*names, **(options if "action" in options else {**options, "nargs": None}))

            setattr(group, "add_argument", add_with_value)  # noqa: B010 (mypy allows no other way)
            return group

        def format_help(self) -> str:
            text = re.sub(r"\s+\(default:\s+None\)", "", super().format_help())
            known = {action.dest.split(".")[-1]: action.help or "" for action in self._actions}
            if not set(self.first) & set(known):
                return text
            lines = [f"  --{name.replace('_', '-'):<14}{known[name].split('. ')[0]}\n" for name in self.first]
            start = text.index("\noptions:\n")
            return text[:start] + "\nmost important options:\n" + "".join(lines) + text[start:]

    return Parser(
        prog=f"python -m {program}",
        description=description,
        allow_abbrev=False,
        add_option_string_dash_variants=simple_parsing.DashVariant.DASH,
        argument_generation_mode=simple_parsing.ArgumentGenerationMode.FLAT,
    )
