"""Color profiles (ICC version 2) of wide gamuts, which Pillow cannot make."""

from __future__ import annotations

import struct

# Red, green and blue in XYZ, adapted to D50.
_PRIMARIES = {
    "Adobe RGB": ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)),
    "Display P3": ((0.51512, 0.24119, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)),
}
_WHITE = (0.9642, 1.0, 0.8249)


def matrix_profile(space: str, *, gamma: float = 2.19921875) -> bytes:
    """Return the profile of "Adobe RGB", "Display P3" or "grey", with a power law."""
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))
    text = space.encode() + b"\0"
    description = b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(78)
    tags = {b"desc": description, b"cprt": b"text" + bytes(4) + b"none\0", b"wtpt": _xyz(_WHITE)}
    if space == "grey":
        tags[b"kTRC"] = curve
    else:
        for name, primary in zip((b"rXYZ", b"gXYZ", b"bXYZ"), _PRIMARIES[space], strict=True):
            tags[name] = _xyz(primary)
        tags |= {b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}
    place, table, body = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += name + struct.pack(">II", place + len(body), len(data))
        body += data
    kind = b"GRAY" if space == "grey" else b"RGB "
    head = struct.pack(">I4sI4s4s4s", place + len(body), bytes(4), 0x02100000, b"mntr", kind, b"XYZ ")
    head += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + _xyz(_WHITE)[8:]
    return head.ljust(128, b"\0") + table + body


def _xyz(values: tuple[float, float, float]) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65536) for value in values))
