"""Read weights from PyTorch files of the old format, without PyTorch and without running their code.

Such a file holds four pickles (a magic number, a version, facts about the machine, the state dict), a fifth pickle with
the keys of the storages, and then each storage: its number of elements in 8 bytes and its elements, all little-endian.
A pickle can name any function and have it called. The unpickler below therefore knows only the operations and the
names that a state dict needs. Everything that the file claims is checked before it is used.
"""

from __future__ import annotations

import math
import mmap
import os
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from transfer.common.errors import InputError

_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
_TYPES = {"Double": "<f8", "Float": "<f4", "Half": "<f2", "Long": "<i8", "Int": "<i4"}
_DTYPES = {f"torch.{name}Storage": np.dtype(code) for name, code in _TYPES.items()}
_DICT, _TENSOR = "collections.OrderedDict", "torch._utils._rebuild_tensor_v2"
_OPERATIONS = (
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT BINUNICODE "
    "SHORT_BINUNICODE EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS "
    "BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD BINPERSID"
)
_OPERATION_NAMES = {ord(op.code): op.name for op in pickletools.opcodes}
_MOST_READS = 4_000_000  # up to three per operation; a network of 400 tensors needs 11 thousand operations
_MOST_AXES = 32
# Tensors may overlap in a storage, so a small file could ask for huge arrays. Together they may take this many
# times the size of the file, plus a constant number of bytes.
_GROWTH, _SLACK = 4, 1 << 20
_REMEDY = (
    "Save it again with torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False), "
    "or download it again if it came over the network."
)
_OTHER_FORMATS = {
    b"PK": (
        "expected PyTorch's old format, received a zip archive, PyTorch's format since 1.6.",
        "Convert it with PyTorch: torch.save(torch.load(path, weights_only=True), new_path, "
        "_use_new_zipfile_serialization=False).",
    ),
    b"\x89HDF": (
        "expected a PyTorch state dict, received an HDF5 file.",
        "If Keras saved it, rename it to end in .h5 or .weights.h5.",
    ),
}


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read the tensors of a state dict that PyTorch saved in its old format (not a zip archive)."""
    path = Path(path)
    if not path.is_file():
        problem = "is not a file" if path.exists() else "does not exist"
        raise InputError(f"Expected a PyTorch weights file (.pth), but '{path}' {problem}. Check the path.")
    try:
        with path.open("rb") as file:
            start = file.read(8)
            _require(start, "expected a PyTorch state dict, received an empty file.")
            for first_bytes, (problem, remedy) in _OTHER_FORMATS.items():
                _require(not start.startswith(first_bytes), problem, remedy)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _read(data)
    except _RefusedError as error:
        raise InputError(f"Cannot read the weights in '{path}': {error}") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"Cannot read '{path}': {reason}. Check its permissions and its disk.") from None


class _RefusedError(Exception):
    """Reports a file that must not be trusted; the caller adds the file's name."""


def _require(condition: object, problem: str, remedy: str = _REMEDY) -> None:
    if not condition:
        raise _RefusedError(f"{problem} {remedy}")


def _kind(value: object) -> str:
    return type(value).__name__.lstrip("_").lower()


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype
    size: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Name(str):
    """Stands for an allowed global of the file, which is never imported."""


class _Dict(dict[str, Any]):
    """Takes strings as keys only, because hashing nested tuples can take forever."""

    def __setitem__(self, key: str, value: Any) -> None:
        _require(type(key) is str, f"expected text as the keys of a dict, received {_kind(key)}.")
        super().__setitem__(key, value)


class _Reader:
    """Reads a file for the unpickler, never past its end, and limits the number of reads."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.reads, self.readline = data, 0, data.readline

    def read(self, size: int) -> bytes:
        self.reads += 1
        _require(self.reads <= _MOST_READS, "it has far more operations than a state dict needs.")
        content = self.data.read(size)
        if len(content) < size:
            raise EOFError
        return content


class _Operations(dict[int, Callable[[Any], None]]):
    """The allowed pickle operations by their code."""

    def __missing__(self, code: int) -> Any:
        _require(
            False, f"it uses the pickle operation {_OPERATION_NAMES[code]}, which a state dict does not need."
        )


# This extends the unpickler written in Python. The one in C cannot be restricted to some operations, and its memo table
# grows with the largest index in the file.
class _Unpickler(pickle._Unpickler):
    """Builds dicts, lists, tuples, numbers, strings and tensors; refuses everything else."""

    stack: list[Any]
    read: Callable[[int], bytes]

    def __init__(self, reader: _Reader, storages: dict[str, _Storage] | None) -> None:
        super().__init__(reader)
        self.size, self.storages = len(reader.data), storages

    def find_class(self, module: str, name: str) -> _Name:
        full = f"{module}.{name}"
        _require(
            full in (_DICT, _TENSOR, *_DTYPES),
            f"it asks for {full[:80]!r}, which a state dict does not need, and nothing of it was run.",
            "If you trust its source, load it with PyTorch and save model.state_dict() alone with "
            "_use_new_zipfile_serialization=False; otherwise delete it.",
        )
        return _Name(full)

    def persistent_load(self, pid: Any) -> _Storage:
        if self.storages is None:
            raise _RefusedError(f"a part other than the state dict refers to a storage. {_REMEDY}")
        fits = type(pid) is tuple and len(pid) == 6 and type(pid[0]) is str and pid[0] == "storage"
        _require(fits, "it holds a reference that is not to a storage of 6 fields.")
        _, kind, key, _, count, view = pid
        known = type(kind) is _Name and kind in _DTYPES and type(key) is str
        _require(known, "a storage has no known type or no key.")
        _require(view is None, "a storage is a view of another, which was possible only before PyTorch 0.4.")
        _check_numbers("number of elements of a storage", count)
        storage = _Storage(key, _DTYPES[kind], count)
        claim = f"a storage claims {count} elements, more than the file's {self.size} bytes can hold."
        _require(count * storage.dtype.itemsize <= self.size, claim)
        same = self.storages.setdefault(key, storage) == storage
        _require(same, f"storage {key[:80]!r} has two different sizes or types.")
        return storage

    def load_empty_dictionary(self) -> None:
        self.stack.append(_Dict())

    def load_frame(self) -> None:
        self.read(8)  # the size of a frame, which only says how much to read ahead

    def load_reduce(self) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        fits = type(function) is _Name and type(args) is tuple
        _require(fits, "it calls something that is not a function.")
        _require(function not in _DTYPES, f"it calls {function}, which is no function.")
        empty = function != _DICT or not args
        _require(empty, "expected an empty OrderedDict, filled afterwards; received one with arguments.")
        self.stack.append(_Dict() if function == _DICT else _tensor(args))

    def load_build(self) -> None:
        # Only the attributes of an OrderedDict (its _metadata) are set in this way. They are not needed.
        attributes = self.stack.pop()
        fits = type(attributes) is _Dict and type(self.stack[-1]) is _Dict
        _require(fits, "it sets the state of something other than an OrderedDict.")


_Unpickler.dispatch = _Operations(
    {
        code: getattr(_Unpickler, load.__name__)
        for code, load in pickle._Unpickler.dispatch.items()
        if _OPERATION_NAMES[code] in _OPERATIONS.split()
    }
)


def _load(reader: _Reader, part: str, storages: dict[str, _Storage] | None = None) -> Any:
    """Load the next pickle; `part` names it in errors."""
    try:
        return _Unpickler(reader, storages).load()
    except (_RefusedError, OSError):
        raise
    except Exception:  # damaged pickles make the unpickler raise errors of many kinds
        where = f"{part} is cut short or damaged (byte {reader.data.tell()} of {len(reader.data)})"
        raise _RefusedError(f"expected PyTorch's old format, but {where}. {_REMEDY}") from None


def _tensor(args: tuple[Any, ...]) -> _Tensor:
    """Return the tensor that the arguments describe, if it lies within its storage."""
    fits = len(args) in (6, 7) and type(args[0]) is _Storage
    _require(fits, "expected a tensor of 6 or 7 fields, the first its storage; received something else.")
    storage, offset, shape, strides = args[:4]
    fits = type(shape) is tuple and type(strides) is tuple and len(shape) == len(strides)
    _require(fits, "a tensor's shape and strides are not two tuples of one length.")
    _require(len(shape) <= _MOST_AXES, f"a tensor has {len(shape)} axes; expected at most {_MOST_AXES}.")
    _check_numbers("offset of a tensor", offset)
    _check_numbers("size of a tensor", *shape)
    _check_numbers("stride of a tensor", *strides)
    last = sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    end = offset + (1 + last if all(shape) else 0)
    reach = f"a tensor of shape {shape} reaches to element {end} of storage {storage.key[:80]!r}"
    countable = math.prod(max(n, 1) for n in shape) < 1 << 60
    _require(end <= storage.size and countable, f"{reach}, which has {storage.size}.")
    return _Tensor(storage, offset, shape, strides)


def _check_numbers(what: str, *values: Any) -> None:
    """Refuse anything but ints from 0 to 2**63 - 1."""
    for value in values:
        _require(type(value) is int, f"expected a whole number as the {what}, received {_kind(value)}.")
        _require(0 <= value < 1 << 63, f"the {what} is negative or far too large.")


def _read(data: mmap.mmap) -> dict[str, np.ndarray]:
    """Read a file, from its first pickle to its last storage."""
    reader = _Reader(data)
    for part, expected in (("the magic number", _MAGIC), ("the format's version", _VERSION)):
        number = _load(reader, part)
        found = type(number) is int and number == expected
        _require(found, f"expected {expected} as {part} of PyTorch's old format, received something else.")
    facts = _load(reader, "the facts about the machine")
    _require(type(facts) is _Dict, "expected a dict of facts about the machine as its third part.")
    declared: dict[str, _Storage] = {}
    state = _load(reader, "the state dict", declared)
    _check_state(state, len(data))
    keys = _load(reader, "the keys of the storages")
    texts = type(keys) is list and all(type(key) is str for key in keys)
    _require(texts, "expected a list of texts as the keys of the storages.")
    same = len(keys) == len(declared) and set(keys) == set(declared)
    _require(same, "its storages are not those that its state dict uses.")
    storages = {key: _read_storage(data, declared[key]) for key in keys}
    return {name: _array(tensor, storages[tensor.storage.key]) for name, tensor in state.items()}


def _check_state(state: Any, size: int) -> None:
    """Refuse anything but a dict of tensors, and tensors that take too much memory for a file of `size` bytes."""
    _require(type(state) is _Dict, f"expected a state dict of tensors, received {_kind(state)}.")
    for name, value in state.items():
        problem = f"expected tensors only, but {name[:80]!r} is of type {_kind(value)}."
        _require(type(value) is _Tensor, problem, "A checkpoint may hold the weights deeper inside.")
    claimed = sum(math.prod(tensor.shape) * tensor.storage.dtype.itemsize for tensor in state.values())
    claim = f"its tensors together claim far more memory than its {size} bytes can fill."
    _require(claimed <= _GROWTH * size + _SLACK, claim)


def _read_storage(data: mmap.mmap, storage: _Storage) -> np.ndarray:
    """Read the elements of a storage from the current position."""
    count, size = int.from_bytes(data.read(8), "little"), storage.size * storage.dtype.itemsize
    content = data.read(size)
    where = f"storage {storage.key[:80]!r} is cut short or damaged (byte {data.tell()} of {len(data)})."
    _require(count == storage.size and len(content) == size, where)
    return np.frombuffer(content, storage.dtype)


def _array(tensor: _Tensor, storage: np.ndarray) -> np.ndarray:
    """Copy a tensor out of its storage; its bounds were checked before."""
    native = storage.dtype.newbyteorder("=")
    if not all(tensor.shape):
        return np.empty(tensor.shape, native)
    # The stride of an axis with one element is never used and may be any number.
    steps = [step if n > 1 else 0 for n, step in zip(tensor.shape, tensor.strides, strict=True)]
    start = storage[tensor.offset :]
    view = np.lib.stride_tricks.as_strided(start, tensor.shape, [n * storage.itemsize for n in steps])
    return np.array(view, native, order="C")
