"""Loading of weights and models from files and downloads, with short errors in place of those of Keras."""

from __future__ import annotations

import contextlib
import re
import socket
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import keras

from transfer.common.errors import InputError, one_line, unknown

PATIENCE = 20.0
"""Seconds to wait for a server that does not answer. A download that makes progress may take longer."""


def download(make: Callable[[], keras.Model], name: str, *, instead: str) -> keras.Model:
    """Build a network whose constructor downloads weights; `instead` names one that needs no download."""
    try:
        with _patience():
            return make()
    except InputError:
        raise
    except Exception as error:  # Keras' downloader raises Exception itself
        reason = one_line(error)
        if isinstance(error, OSError) or re.search("URL fetch failure|Incomplete or corrupted", reason):
            raise InputError(
                f"The ImageNet weights of {name} cannot be downloaded: {reason}. Without a network connection, use a "
                f"weights file (weights=PATH), random weights (weights='none'), or {instead}, whose weights are "
                "installed."
            ) from error
        if isinstance(error, (ValueError, TypeError)):
            raise _refused(name, error) from error
        raise


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    """Limit the time to wait for a silent server, which Keras does not limit."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE if before is None else before)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def build(make: Callable[[], keras.Model], name: str) -> keras.Model:
    """Build a network; raise a short error if its constructor refuses an argument."""
    try:
        return make()
    except InputError:
        raise
    except (ValueError, TypeError) as error:
        raise _refused(name, error) from error


def _refused(name: str, error: Exception) -> InputError:
    return InputError(f"{name} refuses its arguments: {one_line(error)}")


def from_file(
    make: Callable[[bool], keras.Model],
    path: str,
    name: str,
    *,
    tops: Sequence[bool],
    whole: Callable[[], keras.Model],
) -> keras.Model:
    """Build a network with the weights of a file, for the first value of include_top in `tops` that fits."""
    if not Path(path).is_file():
        raise unknown("weights", path, ["imagenet", "none"], hint="No file has that name either.")
    problems = []
    for top in tops:
        model = make(top)
        problem = load(model, path)
        if problem is None:
            return model
        problems.append(problem)
    # The file may hold the network with its top, although the top is not wanted.
    if True not in tops and load(full := whole(), path) is None:
        kept = {layer.name: layer for layer in full.layers}
        for layer in model.layers:
            layer.set_weights(kept[layer.name].get_weights())
        return model
    with_shapes = [problem for problem in problems if "shape" in problem]  # these are the most informative
    raise InputError(f"The weights in {path} do not fit {name}: {(with_shapes or problems)[0]}")


def load(model: keras.Model, path: str | Path) -> str | None:
    """Load a weights file of Keras into a network; return what is wrong with the file, or None."""
    if not str(path).endswith((".h5", ".keras")):
        return "Keras reads .weights.h5, .h5 and .keras files only."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras warns of each layer that does not fit
            model.load_weights(path)
    except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
        return _problem(error)
    return None


def _problem(error: Exception) -> str:
    """Shorten an error of Keras, which may hold the values of weights and lists of all layers."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and "file signature not found" in text:
        return "it is not an HDF5 file."
    if counts := re.search(r"Model expected (\d+) layers, found (\d+)", text):
        return f"the network has {counts[1]} layers with weights, the file has {counts[2]}."
    layer = re.search(r"layer #\d+ \(named ([^)]*)\)|error message for object <\w+ name=([^,>]*)", text)
    shapes = re.search(r"variable\.shape=(\([^)]*\)), Received: value\.shape=(\([^)]*\))", text)
    shapes = shapes or re.search(
        r"expects shape (\([^)]*\))\. Received saved weight with shape (\([^)]*\))", text
    )
    if not layer:
        return one_line(error)
    number = re.search(r"A total of (\d+) objects", text)
    more = f" {int(number[1]) - 1} more layers do not fit either." if number and int(number[1]) > 1 else ""
    what = (
        f"weights of shape {shapes[1]}, the file holds {shapes[2]}."
        if shapes
        else "weights that the file lacks."
    )
    return f"layer {layer[1] or layer[2]!r} expects {what}{more}"
