"""Recognize the files and folders that Keras loads as models, and advise on all others."""

from __future__ import annotations

import zipfile
from pathlib import Path

from transfer.common.errors import InputError, nearest

_SAVE = "Save the model with Keras, model.save('mine.keras'), and pass that file."
_BY_NAME = "Pass it as --weights with the name of its network as --model, such as --model ResNet50."

_FORMS = {
    (".tflite", ".lite"): ("a TensorFlow Lite model, which can run but not train", _SAVE),
    (".onnx", ".ort"): ("an ONNX model, which can run but not train", _SAVE),
    (".pb", ".pbtxt", ".meta"): ("a graph of TensorFlow, which has no layers to slice", _SAVE),
    (".pt", ".pth", ".ckpt", ".safetensors", ".bin", ".tar.gz", ".pth.tar", ".msgpack", ".gguf", ".mar"): (
        "a file of another library, such as PyTorch, and holds weights without a network of Keras",
        "Pass PyTorch weights of an EfficientNetLite as --weights with its name as --model; convert others to .keras.",
    ),
    (".weights.h5", ".npz", ".npy", ".index", ".data-00000-of-00001", ".params"): (
        "a file of weights without their network",
        _BY_NAME,
    ),
    (".json", ".yaml", ".yml", ".prototxt", ".cfg"): (
        "a text file, which has no weights",
        "Load it in Keras with its weights, save the model as .keras, and pass that file.",
    ),
    (".mlmodel", ".mlpackage", ".xml", ".engine", ".plan", ".trt", ".caffemodel", ".dlc", ".rknn"): (
        "a model for another runtime, which can run but not train",
        _SAVE,
    ),
    (".pkl", ".pickle", ".joblib", ".dill"): ("a pickle, which runs code when it is opened", _SAVE),
    (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar"): (
        "an archive",
        "Unpack it, and pass the .keras file in it.",
    ),
    (".py", ".ipynb"): ("a program", "Run it, save its model as .keras, and pass that file."),
}

_MODELS = (".keras", ".h5", ".hdf5", ".hdf")


def is_place(name: str) -> bool:
    """Return whether a model's name is a path or an address rather than the name of a network."""
    if not name:
        return False
    looks_so = "/" in name or "\\" in name or _form_of(name) is not None or _has_suffix(name)
    return looks_so or Path(name).exists()


def _has_suffix(name: str) -> bool:
    return name.lower().endswith(_MODELS)


def _form_of(name: str) -> tuple[str, str] | None:
    """Return the kind of a file by its name, and the advice; the longest suffix decides."""
    lower = name.lower()
    ends = [(suffix, form) for suffixes, form in _FORMS.items() for suffix in suffixes]
    fitting = [(len(suffix), form) for suffix, form in ends if lower.endswith(suffix)]
    return max(fitting, default=(0, None), key=lambda pair: pair[0])[1]


def model_place(name: str) -> Path:
    """Return the path of a model that Keras can load; raise an error with advice for all others."""
    path = Path(name).expanduser()
    if "://" in name:
        raise InputError(
            f"Expected a file on this machine. Received the address {name!r}. Download the model, and pass its path."
        )
    if path.is_dir():
        return _model_in_folder(path)
    form = _form_of(name)
    if not path.exists():
        if form is None and not _has_suffix(name) and not path.parent.is_dir():
            raise InputError(
                f"No file has the name {name!r}. If it is a model of timm, Hugging Face or Kaggle, load it in Keras, "
                "save it as .keras, and pass that file. Or choose the name of a network of keras.applications."
            )
        near = nearest(path.name, [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else [])
        hint = f" Did you mean {str(path.parent / near[0])!r}?" if near else ""
        raise InputError(f"Expected a model file. Received: {name!r}, which does not exist.{hint}")
    if form is not None and not (zipfile.is_zipfile(path) and _is_keras_archive(path)):
        raise InputError(f"{name} is {form[0]}. {form[1]}")
    return path


def _is_keras_archive(path: Path) -> bool:
    """Return whether a zip file holds a model of Keras."""
    with zipfile.ZipFile(path) as archive:
        return {"config.json", "metadata.json"} <= set(archive.namelist())


def _model_in_folder(folder: Path) -> Path:
    """Return the model in a folder, such as that of a run; raise an error with advice for other folders."""
    names = {entry.name for entry in folder.iterdir()}
    if {"config.json", "metadata.json"} <= names and any(n.startswith("model.weights") for n in names):
        return folder  # an unpacked .keras file, which Keras loads
    if "model.keras" in names:
        return folder / "model.keras"
    if {"saved_model.pb", "saved_model.pbtxt"} & names:
        raise InputError(
            f"{folder} is a SavedModel, which has no layers to slice. In the program that wrote it, save the model "
            "with model.save('mine.keras'), and pass that file."
        )
    if names & {"pytorch_model.bin", "model.safetensors", "tf_model.h5", "flax_model.msgpack"}:
        raise InputError(
            f"{folder} is a model of Hugging Face Transformers, which has no layers of Keras 3. Choose the name of a "
            "network of keras.applications instead."
        )
    if "checkpoint" in names or any(name.endswith(".index") for name in names):
        raise InputError(
            f"{folder} holds checkpoints of TensorFlow, which are weights without their network. Load them in the "
            f"program that wrote them. {_SAVE}"
        )
    models = sorted(name for name in names if _has_suffix(name))
    hint = f"Did you mean {str(folder / models[0])!r}?" if models else _SAVE
    raise InputError(f"Expected a model file. Received: the folder {folder}. {hint}")


def format_of(path: Path) -> str:
    """Return the format of a model by its content, `keras` or `h5`; raise an error for a damaged file."""
    if path.is_dir() or zipfile.is_zipfile(path):
        if path.is_dir() or _is_keras_archive(path):
            return "keras"
        raise InputError(
            f"{path} is an archive without a model of Keras. Unpack it, and pass the model in it."
        )
    with open(path, "rb") as file:
        start = file.read(64)
    if start.startswith(b"\x89HDF\r\n"):
        return "h5"
    if start.startswith(b"version https://git-lfs"):
        raise InputError(f"{path} is a pointer of Git LFS, not the model. Get the file itself: git lfs pull.")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise InputError(f"{path} is a web page, not a model. Download the file itself.")
    if not start:
        raise InputError(f"{path} is empty. Download or save the model again.")
    what = "is cut off or damaged" if start.startswith(b"PK") else "is not a model of Keras"
    raise InputError(f"{path} {what}. Expected a .keras or .h5 file. Download or save the model again.")
