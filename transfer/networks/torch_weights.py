"""Read weights from PyTorch files of the old format, without PyTorch and without running their code.

Such a file is four pickles (a magic number, a version, facts about the machine, the state dict),
a fifth with the keys of the storages, and then each storage: its count of elements in 8 bytes and
its elements, all little-endian. A pickle can name any function and have it called. So the pickles
are not handed to `pickle`: a small machine here knows the few operations that a state dict needs
and the few names below, and refuses the rest. All that the file says is checked before it is used.
"""

from __future__ import annotations

import math
import mmap
import os
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn, cast

import numpy as np

from transfer.common.errors import InputError

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_DTYPES = {
    "torch.DoubleStorage": "<f8",
    "torch.FloatStorage": "<f4",
    "torch.HalfStorage": "<f2",
    "torch.LongStorage": "<i8",
    "torch.IntStorage": "<i4",
}
_NAMES = {"collections.OrderedDict", "torch._utils._rebuild_tensor_v2", *_DTYPES}
_MOST_OPERATIONS = 2_000_000  # a network of 400 tensors needs 11 thousand
_MOST_AXES = 32
# Views may overlap, so a small file could ask for endless arrays: together they may take no more
# than this many times the size of the file, and a little.
_GROWTH, _SLACK = 4, 1 << 20
_MEND = (
    "Save it anew with torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False), "
    "or fetch the file again if it came over the network."
)


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read the tensors of a state dict that PyTorch saved in its old format (not a zip archive)."""
    path = Path(path)
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise InputError(f"Expected a PyTorch file of weights (.pth), but '{path}' {what}. Check the path.")
    try:
        with path.open("rb") as file:
            _check_head(file.read(8))
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _read(data)
    except _Refused as error:
        raise InputError(f"Cannot read the weights in '{path}': {error}") from None
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise InputError(f"Cannot read '{path}': {why}. Check its permissions and its disk.") from None


class _Refused(Exception):
    """The file is not to be trusted; the message lacks only the file's name."""


def _refuse(message: str, mend: str = _MEND) -> NoReturn:
    raise _Refused(f"{message} {mend}")


def _check_head(head: bytes) -> None:
    """Refuse the formats that are known by their first bytes."""
    if not head:
        _refuse("expected a PyTorch state dict, received an empty file.")
    if head.startswith(b"PK"):
        _refuse(
            "expected PyTorch's old format, received a zip archive, PyTorch's format since 1.6.",
            "With PyTorch, save it anew: torch.save(torch.load(path, weights_only=True), new_path, "
            "_use_new_zipfile_serialization=False).",
        )
    if head.startswith(b"\x89HDF"):
        _refuse(
            "expected a PyTorch state dict, received an HDF5 file.",
            "If Keras saved it, give it the ending .h5 or .weights.h5.",
        )


def _read(data: mmap.mmap) -> dict[str, np.ndarray]:
    """Read all of a file, from its first pickle to its last storage."""
    size = len(data)
    machine = _Machine(data, size)
    magic = machine.load("the magic number")
    if type(magic) is not int or magic != _MAGIC:
        _refuse("expected PyTorch's magic number at its start, received something else.")
    version = machine.load("the format's version")
    if type(version) is not int or version != _VERSION:
        _refuse(f"expected version {_VERSION} of PyTorch's old format, received another.")
    if not isinstance(machine.load("the facts about the machine"), dict):
        _refuse("expected a dict of facts about the machine as its third part.")
    state = _check_state(machine.load("the state dict", tensors=True), size)
    keys = machine.load("the keys of the storages")
    storages = _read_storages(data, keys, machine.storages)
    return {name: _array(tensor, storages[tensor.storage.key]) for name, tensor in state.items()}


@dataclass(frozen=True)
class _Name:
    """A global that the file names and that is allowed; never the real object."""

    name: str


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype
    count: int


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.storage.dtype.itemsize


class _Machine:
    """Runs the few pickle operations that make dicts, tuples, numbers, text and tensors."""

    def __init__(self, data: mmap.mmap, size: int) -> None:
        self.data, self.size = data, size
        self.storages: dict[str, _Storage] = {}
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []  # the stacks below each open mark
        self.memo: dict[int, Any] = {}
        self.operations = 0

    def load(self, what: str, *, tensors: bool = False) -> Any:
        """Run one pickle from where the file stands, and give what it leaves."""
        self.stack, self.marked, self.memo = [], [], {}
        try:
            for op, arg, _ in pickletools.genops(cast(IO[bytes], self.data)):
                self.operations += 1
                if self.operations > _MOST_OPERATIONS:
                    _refuse("it has far more operations than a state dict needs.")
                if op.name == "STOP":
                    break
                if op.name == "BINPERSID" and not tensors:
                    _refuse(f"{what} asks for a storage, which only the state dict may.")
                self.run(op.name, arg)
            return self.stack.pop()
        except (ValueError, IndexError, KeyError, OverflowError, MemoryError, Warning):
            # pickletools raises ValueError for all that is no pickle, and may warn of old text; the
            # others are an empty stack, an unknown memo, a length past what the machine can count.
            _refuse(
                f"expected PyTorch's old format, but {what} is cut short or damaged "
                f"(byte {self.data.tell()} of {self.size})."
            )

    def run(self, op: str, arg: Any) -> None:
        """Run one operation."""
        stack = self.stack
        if op in _PUSH_ARGUMENT:
            stack.append(arg)
        elif op in _PUSH_NEW:
            stack.append(_PUSH_NEW[op]())
        elif op in _TUPLES:
            self.push_tuple(_TUPLES[op])
        elif op in ("BINPUT", "LONG_BINPUT"):
            self.memo[arg] = stack[-1]
        elif op == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif op in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[arg])
        elif op == "MARK":
            self.marked.append(stack)
            self.stack = []
        elif op == "TUPLE":
            items = self.pop_mark()
            self.stack.append(tuple(items))
        elif op in ("APPEND", "APPENDS", "SETITEM", "SETITEMS"):
            self.fill(op)
        elif op in ("GLOBAL", "INST"):
            self.push_name(arg.replace(" ", "."))
        elif op == "STACK_GLOBAL":
            name, module = stack.pop(), stack.pop()
            if type(name) is not str or type(module) is not str:
                _refuse("it names a function by something that is not text.")
            self.push_name(f"{module}.{name}")
        elif op == "BINPERSID":
            stack.append(self.storage(stack.pop()))
        elif op == "REDUCE":
            args, function = stack.pop(), stack.pop()
            stack.append(_call(function, args))
        elif op == "BUILD":
            # Only the attributes of an OrderedDict come so (its _metadata): of no use here.
            attributes = stack.pop()
            if not isinstance(attributes, dict) or not isinstance(stack[-1], dict):
                _refuse("it sets the state of something other than an OrderedDict.")
        elif op not in ("PROTO", "FRAME"):
            _refuse(f"it uses the pickle operation {op}, which a state dict does not need.")

    def push_tuple(self, count: int) -> None:
        """Replace the last `count` items by a tuple of them."""
        if len(self.stack) < count:
            raise IndexError
        start = len(self.stack) - count
        self.stack[start:] = [tuple(self.stack[start:])]

    def pop_mark(self) -> list[Any]:
        """Give the items since the last mark, and go on with those below it."""
        items, self.stack = self.stack, self.marked.pop()
        return items

    def fill(self, op: str) -> None:
        """Put items into the list or the dict below them."""
        count = {"APPEND": 1, "SETITEM": 2}.get(op)
        if count is None:
            items = self.pop_mark()
        else:
            self.push_tuple(count)
            items = list(self.stack.pop())
        target = self.stack[-1]
        if op.startswith("APPEND"):
            if not isinstance(target, list):
                _refuse("it appends to something other than a list.")
            target.extend(items)
            return
        if not isinstance(target, dict) or len(items) % 2:
            _refuse("it sets items of something other than a dict.")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is not str:
                _refuse(f"expected text as the keys of a dict, received {type(key).__name__}.")
            target[key] = value

    def push_name(self, name: str) -> None:
        """Push the stand-in for an allowed global."""
        if name not in _NAMES:
            _refuse(
                f"it asks for {name[:80]!r}, which a state dict does not need, and nothing of it was run.",
                "If you trust where it came from, load it with PyTorch and save model.state_dict() alone "
                "with _use_new_zipfile_serialization=False; otherwise delete it.",
            )
        self.stack.append(_Name(name))

    def storage(self, pid: Any) -> _Storage:
        """Check what a persistent id says about a storage."""
        if type(pid) is not tuple or len(pid) != 6 or type(pid[0]) is not str or pid[0] != "storage":
            _refuse("it holds a reference that is not to a storage of 6 fields.")
        kind, key, count, view = pid[1], pid[2], pid[4], pid[5]
        if type(kind) is not _Name or kind.name not in _DTYPES or type(key) is not str:
            _refuse("a storage has no known type or no key.")
        if view is not None:
            _refuse("a storage is a view of another, which was possible only before PyTorch 0.4.")
        dtype = np.dtype(_DTYPES[kind.name])
        count = _count(count, "elements of a storage")
        if count * dtype.itemsize > self.size:
            _refuse(f"a storage claims {count} elements, more than the file's {self.size} bytes can hold.")
        storage = _Storage(key, dtype, count)
        if self.storages.setdefault(key, storage) != storage:
            _refuse(f"storage {key[:80]!r} has two different sizes or types.")
        return storage


_PUSH_ARGUMENT = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE"),
}
_PUSH_NEW: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _call(function: Any, args: Any) -> Any:
    """Do what the named function would: make an empty dict or describe a tensor."""
    if type(function) is not _Name or type(args) is not tuple:
        _refuse("it calls something that is not a function.")
    if function.name == "collections.OrderedDict":
        if args:
            _refuse("expected an empty OrderedDict, filled afterwards; received one with arguments.")
        return {}
    if function.name != "torch._utils._rebuild_tensor_v2":
        _refuse(f"it calls {function.name}, which is no function.")
    return _tensor(args)


def _tensor(args: tuple[Any, ...]) -> _Tensor:
    """Check that a tensor lies within its storage."""
    if len(args) not in (6, 7) or type(args[0]) is not _Storage:
        _refuse("expected a tensor of 6 or 7 fields, the first its storage; received something else.")
    storage, offset, shape, strides = args[:4]
    if type(shape) is not tuple or type(strides) is not tuple or len(shape) != len(strides):
        _refuse("a tensor's shape and strides are not two tuples of one length.")
    if len(shape) > _MOST_AXES:
        _refuse(f"a tensor has {len(shape)} axes; expected at most {_MOST_AXES}.")
    offset = _count(offset, "offset of a tensor")
    shape = tuple(_count(n, "size of a tensor") for n in shape)
    strides = tuple(_count(n, "stride of a tensor") for n in strides)
    end = offset
    if all(shape):
        end += 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if end > storage.count or math.prod(max(n, 1) for n in shape) >= 1 << 60:
        _refuse(
            f"a tensor of shape {shape} reaches to element {end} of storage {storage.key[:80]!r}, "
            f"which has {storage.count}."
        )
    return _Tensor(storage, offset, shape, strides)


def _count(value: Any, what: str) -> int:
    """Give a number that is an int of at most 63 bits; longer ones could take long to print."""
    if type(value) is not int:
        _refuse(f"expected a whole number as the {what}, received {type(value).__name__}.")
    if not 0 <= value < 1 << 63:
        _refuse(f"the {what} is negative or far too large.")
    return value


def _check_state(state: Any, size: int) -> dict[str, _Tensor]:
    """Refuse a state dict that holds other things than tensors, or too much of them."""
    if not isinstance(state, dict):
        _refuse(f"expected a state dict of tensors, received {type(state).__name__.lstrip('_')}.")
    for name, value in state.items():
        if type(value) is not _Tensor:
            _refuse(
                f"expected tensors only, but {name[:80]!r} is of type {type(value).__name__}: this may be "
                "a checkpoint that holds the weights deeper inside."
            )
    if sum(tensor.bytes for tensor in state.values()) > _GROWTH * size + _SLACK:
        _refuse(f"its tensors together claim far more memory than its {size} bytes can fill.")
    return state


def _read_storages(data: mmap.mmap, keys: Any, declared: dict[str, _Storage]) -> dict[str, np.ndarray]:
    """Read the storages, in the order of their keys."""
    if type(keys) is not list or not all(type(key) is str for key in keys):
        _refuse("expected a list of texts as the keys of the storages.")
    if len(keys) != len(set(keys)) or set(keys) != set(declared):
        _refuse("its storages are not those that its state dict uses.")
    storages = {}
    for key in keys:
        storage = declared[key]
        count = int.from_bytes(data.read(8), "little")
        content = data.read(storage.count * storage.dtype.itemsize)
        if count != storage.count or len(content) != storage.count * storage.dtype.itemsize:
            _refuse(f"storage {key[:80]!r} is cut short or damaged (byte {data.tell()} of {len(data)}).")
        storages[key] = np.frombuffer(content, storage.dtype)
    return storages


def _array(tensor: _Tensor, storage: np.ndarray) -> np.ndarray:
    """Copy a tensor out of its storage; its bounds were checked before."""
    native = storage.dtype.newbyteorder("=")
    if not all(tensor.shape):
        return np.empty(tensor.shape, native)
    # The stride of an axis of one element is never walked and may be any number.
    strides = [
        step * storage.itemsize if n > 1 else 0 for n, step in zip(tensor.shape, tensor.strides, strict=True)
    ]
    view = np.lib.stride_tricks.as_strided(storage[tensor.offset :], tensor.shape, strides)
    return np.array(view, native, order="C")
