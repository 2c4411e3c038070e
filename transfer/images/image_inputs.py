"""Find the single images in the input of `predict`, and decode each of them."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import PIL.Image

from transfer.common.errors import InputError, nearest, one_line
from transfer.images.array_pixels import CHANNELS, batch_problem, scale_problem, shape_problem, value_problem
from transfer.images.array_source import Dataset, rank_of, refuse_endless
from transfer.images.datasets import ImageData
from transfer.images.decoding import BadImageError, Size, deep_extent, inspect_image, is_deep, to_rgb_array
from transfer.images.folder_scan import FolderScan
from transfer.images.formats import READABLE
from transfer.images.pixel_range import PixelRange
from transfer.images.splitting import Split


class SupportsArray(Protocol):
    """A tensor, or anything else that NumPy converts to an array."""

    def __array__(self) -> np.ndarray: ...


Image = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | PIL.Image.Image | SupportsArray
"""One image: a path, an encoded image, an open file, a Pillow image, or an array or tensor with values 0 to 255."""

_ENCODED = (bytes, bytearray, memoryview)
_URL = re.compile("[A-Za-z][A-Za-z0-9+.-]+:/|data:")
_LONGEST_PATH = 4096  # bytes


def find_images(source: Any) -> Iterator[Any]:
    """Yield the images of an input; raise an error if it has none."""
    if (text := path_of(source)) is not None:
        yield from _files(text)
    elif isinstance(source, Split):
        yield from (source.images[i] for i in range(len(source)))
    elif isinstance(source, Dataset):
        refuse_endless(source)
        yield from (image for element in source.as_numpy_iterator() for image in _expand(element))
    elif _is_one(source):
        yield from _expand(source)
    else:
        _refuse_others(source)
        array = as_array(source)
        if array is not None and array.dtype.kind not in "OSU":
            yield from _checked_images(array)
        else:
            yield from (image for item in source for image in _expand(item))


def _is_one(value: Any) -> bool:
    """Return whether a value that is neither a path nor an array is one image."""
    return isinstance(value, (*_ENCODED, PIL.Image.Image)) or hasattr(value, "read")


def _refuse_others(source: Any) -> None:
    """Raise an error if a source that is not a path holds no images, and say what to pass."""
    pair = source if isinstance(source, (tuple, list)) and len(source) == 2 else ()
    if hasattr(source, "columns") or isinstance(source, Mapping):
        advice = "Pass one column of it, such as table['path']."
    elif isinstance(source, ImageData):
        advice = "Pass one of its splits, such as data.test."
    elif hasattr(source, "predict_on_batch") or hasattr(source, "class_names"):  # a model or a run
        advice = "The run comes first: predict(run, images)."
    elif [*map(rank_of, pair)] in ([3, 1], [4, 1], [4, 2]):
        advice = "Pass the images without their labels; evaluate takes both."
    elif isinstance(source, Iterable) or as_array(source) is not None:
        return
    else:
        advice = "Pass a list of images."
    raise InputError(
        "Expected images: a file, a folder or a pattern such as 'photos/*.jpg', an array, a tensor, a Pillow image, "
        "encoded bytes, or a sequence or tf.data.Dataset of these. "
        f"Received: {'None' if source is None else type(source).__name__}. {advice}"
    )


def as_array(value: Any) -> np.ndarray | None:
    """Return an array or a tensor of any library as an array; None for other values."""
    if isinstance(value, PIL.Image.Image) or not hasattr(value, "__array__"):
        return None
    try:
        array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)  # for PyTorch
    except Exception:  # each library raises its own errors, such as for symbolic tensors
        return None
    return array.astype("float32") if array.dtype.name == "bfloat16" else array


def _expand(item: Any) -> Iterator[Any]:
    """Yield the images of an item: those of a folder, a pattern or a batch, or the item itself."""
    if (
        isinstance(item, tuple) and len(item) in (2, 3) and not _is_image(item[1])
    ):  # (image, label), or with a weight
        item = item[0]
    if isinstance(item, Mapping) and "image" in item:  # as in tensorflow_datasets
        item = item["image"]
    text, array = path_of(item), None if _is_one(item) else as_array(item)
    if text is not None:
        try:
            yield from _files(text)
        except InputError:  # decoding reports it, so that one missing file does not stop the others
            yield item
    elif hasattr(item, "read"):
        yield _read(item)
    elif array is not None and array.dtype.kind in "OSU":
        yield from (image for one in array.reshape(-1).tolist() for image in _expand(one))
    elif array is not None:
        yield from array if _is_batch(array) else [array]
    else:
        yield item


def _is_image(value: Any) -> bool:
    """Return whether a value beside an image is another image, and not its label."""
    text = path_of(value)
    return os.path.isfile(text) if text is not None else _is_one(value) or rank_of(value) > 2


def _is_batch(array: np.ndarray) -> bool:
    """Return whether an array holds a batch of images."""
    # Without channels, only square images are clear: (145, 145, 200) is one image of 200 bands.
    gray = (
        array.ndim == 3
        and array.shape[0] not in CHANNELS
        and array.shape[1] == array.shape[2] > max(CHANNELS)
    )
    return (array.ndim == 4 or gray) and not batch_problem(array.shape)


def _read(file: Any) -> bytes | BadImageError:
    """Read an open file from its beginning; return the reason if that fails."""
    try:
        if hasattr(file, "seek"):
            file.seek(0)
        content = file.read()
    except Exception as error:  # closed, or text that is not UTF-8
        return BadImageError(f"a file that cannot be read: {one_line(error)}")
    if not isinstance(content, bytes):
        return BadImageError("a file that does not return bytes; open it with mode 'rb'")
    return content


def path_of(value: Any) -> str | None:
    """Return the text of a path, or None; bytes are a path only if that file exists."""
    if isinstance(value, bytes):
        is_short = len(value) <= _LONGEST_PATH and b"\0" not in value
        return os.fsdecode(value) if is_short and os.path.isfile(value) else None
    return os.fsdecode(value) if isinstance(value, str | os.PathLike) else None


def _files(text: str) -> list[str]:
    """Return the images of a path: those of a folder, those that match a pattern, or the file itself."""
    place = os.path.expanduser(text)
    if os.path.isfile(place):
        return [place]
    if os.path.isdir(place):
        if files := _list_images(place):
            return files
        raise InputError(f"Expected images ({READABLE}) in {place}. Found none.")
    if _URL.match(text):
        raise InputError(f"Expected a file or a folder. Received a URL: {text}. Download the image first.")
    if glob.has_magic(place):
        if found := sorted(glob.glob(place, recursive=True)):
            folders = [path for path in found if os.path.isdir(path)]
            return sorted({*found}.difference(folders).union(*map(_list_images, folders)))
        raise InputError(f"Expected files that match {text!r}. Found none. Check the folder and the pattern.")
    raise InputError(
        f"Expected an image or a folder of images. Received a path that does not exist: {place}.{_hint(place)}"
    )


def _list_images(folder: str) -> list[str]:
    """Return the images at any depth of a folder, and the files that look like images of another format."""
    scan = FolderScan(Path(folder))
    images = scan.images(Path(folder))
    return [*images, *(os.path.join(folder, name) for name, _ in scan.skipped)]


def _hint(place: str) -> str:
    """Return a sentence with files of similar names, or nothing."""
    folder, name = os.path.split(place)
    try:
        near = nearest(name, os.listdir(folder or "."), most=3)
    except OSError:
        return ""
    return f" Did you mean {', '.join(os.path.join(folder, one) for one in near)}?" if near else ""


def _checked_images(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the image or the images of an array; their values are checked together."""
    is_batch = _is_batch(array)
    if (
        problem := batch_problem(array.shape)
        if array.ndim == 4
        else ""
        if is_batch
        else shape_problem(array.shape)
    ):
        raise InputError(problem if array.ndim == 4 else f"Expected an image. Received {problem}.")
    images = array if is_batch else [array]
    if is_deep(array):  # the range of the run decides
        yield from images
        return
    if problem := _values_problem(array, several=is_batch):
        raise InputError(f"Expected pixels from 0 to 255. Received {problem}.")
    # In 8 bits, a dark image of the batch does not look like one that was scaled to 1.
    yield from (np.rint(image).astype("uint8") for image in images)


def _values_problem(pixels: np.ndarray, *, several: bool = False) -> str:
    """Return the problem with the values of images. One image of 8 bits may be dark, any may be black."""
    is_sure = not pixels.any() or (pixels.dtype == np.uint8 and not several)
    return value_problem(pixels) or ("" if is_sure else scale_problem(pixels.max()))


def decode_image(
    image: Any, size: Size, *, resize: str = "stretch", pixel_range: PixelRange | None = None
) -> tuple[np.ndarray, str]:
    """Decode an image to RGB in uint8, and return why its range of values is not that of the training images."""
    array = _pixels_of(image)
    if array is None:
        decoded = inspect_image(_decodable(image), size, resize=resize, pixel_range=pixel_range)
        pixels, extent = decoded.pixels, decoded.extent
    else:
        has_range = is_deep(array) and pixel_range is not None
        if problem := shape_problem(array.shape) or ("" if has_range else _values_problem(array)):
            raise BadImageError(problem)
        pixels = to_rgb_array(array, size, resize=resize, pixel_range=pixel_range)
        extent = deep_extent(array)
    return pixels, pixel_range.mismatch(extent) if pixel_range and extent else ""


def _decodable(image: Any) -> Path | bytes | PIL.Image.Image:
    """Return the image in a form that the decoder reads, or raise `BadImageError`."""
    if isinstance(image, BadImageError):
        raise image
    if (text := path_of(image)) is not None:
        return _existing_file(text)
    if isinstance(image, PIL.Image.Image):
        return image
    if isinstance(image, _ENCODED):
        return bytes(image)
    raise BadImageError(f"not an image but {'None' if image is None else type(image).__name__}")


def _pixels_of(image: Any) -> np.ndarray | None:
    """Return an array, a tensor or nested lists as an array; None for other images."""
    if path_of(image) is not None:  # also text of NumPy, which is an array
        return None
    return _nested(image) if isinstance(image, list) else as_array(image)


def _nested(rows: list[Any]) -> np.ndarray | None:
    """Return an image that was converted to lists of numbers, with channels."""
    try:
        array = np.asarray(rows)
    except ValueError:  # of different lengths
        return None
    return array if array.ndim == 3 else None


def _existing_file(text: str) -> Path:
    """Return the path of a file; raise `BadImageError` if there is none."""
    place = os.path.expanduser(text)
    if os.path.isfile(place):  # false for text that no path can be
        return Path(place)
    if _URL.match(text):
        raise BadImageError("a URL; download the image first")
    if os.path.isdir(place):
        raise BadImageError("a folder without images")
    raise BadImageError("not a file" if os.path.exists(place) else "no such file")
