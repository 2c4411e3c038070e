"""`python -m transfer.features --list`: list the contents of the feature cache; `--clear` empties it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from transfer.common import streams
from transfer.common.errors import InputError
from transfer.common.parsers import Parser
from transfer.common.text import plural
from transfer.frozen import compiled_networks
from transfer.frozen.feature_cache import FeatureCache
from transfer.images.check_cache import delete_check_cache


@streams.command
def main(arguments: Sequence[str] | None = None) -> int:
    """List or clear the feature cache and return the exit code."""
    options = _parser().parse_args(arguments)
    cache = FeatureCache()
    try:
        if options.clear:
            freed = (
                cache.clear() + delete_check_cache(cache.folder) + compiled_networks.delete_all(cache.folder)
            )
            streams.print_text(f"Removed {freed / 1e6:,.1f} MB from {cache.folder}.\n")
        else:
            streams.print_text(_listing(cache))
    except InputError as error:
        streams.print_text(f"{error}\n", sys.stderr)
        return 2
    return 0


def _parser() -> Parser:
    flags = Parser(
        "features",
        "List or clear the cache of features, compiled networks and file checks.",
    )
    action = flags.add_mutually_exclusive_group(required=True)
    action.add_argument("--list", action="store_true", help="list the cached features, the oldest first")
    action.add_argument(
        "--clear", action="store_true", help="delete all cached features, compiled networks and file checks"
    )
    return flags


def _listing(cache: FeatureCache) -> str:
    stores = cache.stores()
    lines = [
        f"{store.key[:12]}  {store.rows:>10,} images  {store.bytes / 1e6:>9,.1f} MB  "
        + ", ".join(store.about.values())
        for store in stores
    ]
    compiled = compiled_networks.sizes(cache.folder)
    if compiled:
        lines.append(f"{plural(len(compiled), 'compiled network')}, {sum(compiled) / 1e6:,.1f} MB")
    total = sum(store.bytes for store in stores)
    return "\n".join([*lines, f"{total / 1e6:,.1f} MB of {cache.limit / 1e6:,.0f} in {cache.folder}"]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
