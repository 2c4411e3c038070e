"""Recognize files that are not a source of labeled images, and advise on each kind."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

_SORT = "Pass a folder with a sub-folder of images per class, or a CSV list with the columns path and label."
_KINDS = {
    "an archive": (
        (".zip", ".tar", ".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".7z", ".rar"),
        "Unpack it, and pass the folder or the list in it.",
    ),
    "a spreadsheet": (
        (".xlsx", ".xls", ".xlsm", ".xlsb", ".ods", ".numbers"),
        "Save it as CSV in UTF-8; in Excel, choose 'CSV UTF-8'.",
    ),
    "arrays in a NumPy file": (
        (".npz", ".npy"),
        "Load them in Python with numpy.load, and call transfer.load_data((images, labels)).",
    ),
    "arrays in an HDF5 or MATLAB file, or the weights of a model": (
        (".h5", ".hdf5", ".hdf", ".mat"),
        "Load arrays in Python, and call transfer.load_data((images, labels)); a model belongs to --model.",
    ),
    "TFRecord": (
        (".tfrecord", ".tfrecords", ".tfrec", ".record"),
        "Read it in Python as a tf.data.Dataset of (image, label), and pass that to transfer.load_data.",
    ),
    "a pickle": (
        (".pkl", ".pickle", ".joblib"),
        "Load it in Python, and call transfer.load_data((images, labels)).",
    ),
    "a model": (
        (".keras", ".pt", ".pth", ".onnx", ".tflite", ".pb", ".safetensors"),
        "A model belongs to --model.",
    ),
    "a database": ((".db", ".sqlite", ".sqlite3", ".mdb", ".lmdb"), "Export it as files. " + _SORT),
    "a table that is neither CSV nor Parquet": (
        (".feather", ".arrow", ".orc", ".avro", ".rds", ".sas7bdat", ".dta"),
        "Save it as CSV or Parquet.",
    ),
    "annotations in XML": ((".xml",), "Such files usually describe boxes for object detection. " + _SORT),
    "a document": ((".pdf", ".doc", ".docx", ".html", ".htm", ".md"), _SORT),
    "a video": ((".mp4", ".avi", ".mov", ".mkv", ".webm"), "Save its frames as images. " + _SORT),
    "a program": ((".py", ".ipynb", ".exe", ".sh"), _SORT),
}
_KIND_OF = {suffix: (kind, remedy) for kind, (suffixes, remedy) in _KINDS.items() for suffix in suffixes}


def other_file(path: Path) -> tuple[str, str] | None:
    """Return the kind of a file and the advice, if it is neither an image nor a list of images."""
    suffix = path.suffix.lower()
    if suffix in (".yaml", ".yml"):
        return _yaml_file(path)
    if suffix in (".json", ".jsonl", ".ndjson"):
        return _json_file(path)
    with suppress(OSError):
        if suffix == ".csv" and zipfile.is_zipfile(path):  # a spreadsheet or an archive that was renamed
            return "a spreadsheet or an archive named .csv", "Unpack it, or save it as CSV in UTF-8."
    return _KIND_OF.get(suffix)


def _yaml_file(path: Path) -> tuple[str, str]:
    """Return the kind of a YAML file and the advice: a YOLO data set, the options of a run, or another file."""
    import yaml

    values: Any = None
    with suppress(OSError, ValueError, yaml.YAMLError):  # ValueError: not UTF-8
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        return "a YAML file", _SORT
    if {"model", "data"} <= values.keys():
        return "the options of a run", "Pass them with --config."
    if not {"train", "val", "names", "nc"} & values.keys():
        return "a YAML file", _SORT
    for folder in _train_folders(path, values):
        with suppress(OSError):
            if any(child.is_dir() and child.name not in ("images", "labels") for child in folder.iterdir()):
                place = folder.parent if folder.name != path.parent.name else folder
                return "the description of a YOLO data set", f"Pass its folder instead: {str(place)!r}."
    return (
        "the description of a YOLO data set for object detection",
        f"This package trains classifiers. {_SORT}",
    )


def _train_folders(path: Path, values: dict[str, Any]) -> Iterator[Path]:
    """Yield the places that the entries `path` and `train` of a YOLO data set can mean."""
    base, train = values.get("path"), values.get("train")
    if isinstance(train, str):
        yield path.parent / (base if isinstance(base, str) else "") / train
        yield path.parent / train


def _json_file(path: Path) -> tuple[str, str]:
    """Return the kind of a JSON file and the advice; annotations of COCO have known keys at either end."""
    texts = [""]
    with suppress(OSError), path.open("rb") as file:
        texts.append(file.read(2**20).decode("utf-8", "replace"))
        file.seek(max(0, path.stat().st_size - 2**20))
        texts.append(file.read().decode("utf-8", "replace"))
    if any(f'"{key}"' in text for text in texts for key in ("bbox", "annotations", "segmentation", "shapes")):
        return "annotations of COCO or a similar format", (
            f"They describe object detection, which this package does not train. {_SORT}"
        )
    return "JSON", "Save it as a CSV list with the columns path and label, for example with pandas."
