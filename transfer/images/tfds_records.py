"""How the images of a prepared tensorflow_datasets data set are read: one by one, from where they are."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from transfer.common.errors import InputError, one_line
from transfer.images.splitting import Split
from transfer.images.temporary_store import TemporaryStore

_BATCH = 64  # records in memory at a time


class RecordRun(NamedTuple):
    """Records in a row of one file."""

    split: str
    # Number of the first record in its split.
    first: int
    size: int
    file: str
    skip: int


def make_reader(
    tfds: Any, builder: Any, keys: tuple[str, str], runs: Sequence[RecordRun]
) -> Callable[[str, Sequence[RecordRun]], Split]:
    """Choose how to read images, by the files that there are."""
    files = sorted({run.file for run in runs})
    missing = [file for file in files if not os.path.isfile(file)]
    file_format = getattr(builder.info.file_format, "value", "")
    # No file at all: they are elsewhere than on disks, as in a bucket, or made up, as by tfds.testing.mock_data.
    if file_format not in ("tfrecord", "array_record") or len(missing) == len(files):
        return partial(_read_rows, tfds, builder, keys)
    if missing:
        raise _bad_file(missing[0], "missing")
    if file_format == "array_record":
        return partial(_read_source, tfds, builder, keys)
    return partial(_read_files, _indices(runs, keys[1]), keys[0])


class _Images(Sequence[bytes]):
    """The images in records, each read when it is asked for."""

    def __init__(self, records: Sequence[bytes], image: str) -> None:
        self.records, self.image = records, image

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: Any) -> Any:
        record = self.records[range(len(self))[i]]  # an IndexError past the end, whatever the records raise
        return _features(record)[self.image].bytes_list.value[0]


def _features(record: bytes) -> Any:
    import tensorflow as tf

    return tf.train.Example.FromString(record).features.feature


class _Index(NamedTuple):
    """Where in a TFRecord file the records are, and their labels."""

    starts: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray


class _Records(Sequence[bytes]):
    """Records in TFRecord files."""

    def __init__(self, files: Sequence[str], which: np.ndarray, where: _Index) -> None:
        self.files, self.which, self.where = files, which, where

    def __len__(self) -> int:
        return len(self.which)

    def __getitem__(self, i: Any) -> Any:
        with open(self.files[self.which[i]], "rb", buffering=0) as file:
            return os.pread(file.fileno(), int(self.where.lengths[i]), int(self.where.starts[i]))


def _read_files(indices: Mapping[str, _Index], image: str, _: str, runs: Sequence[RecordRun]) -> Split:
    index = _Index(
        *(
            np.concatenate([indices[run.file][column][run.skip : run.skip + run.size] for run in runs])
            for column in range(3)
        )
    )
    which = np.repeat(np.arange(len(runs)), [run.size for run in runs])
    images = _Images(_Records([run.file for run in runs], which, index), image)
    return Split(images, index.labels, _names(runs))


def _indices(runs: Sequence[RecordRun], label: str) -> dict[str, _Index]:
    """Read every file once, as far as it is needed."""
    needed: dict[str, int] = {}
    for run in runs:
        needed[run.file] = max(needed.get(run.file, 0), run.skip + run.size)
    with _bar(sum(needed.values())) as bar:
        return {file: _index(file, count, label, bar) for file, count in needed.items()}


def _index(file: str, count: int, label: str, bar: Any) -> _Index:
    import tensorflow as tf

    spec = {label: tf.io.FixedLenFeature([], tf.int64)}
    records = tf.data.TFRecordDataset(file).take(count).batch(_BATCH)
    rows = records.map(lambda r: (tf.strings.length(r), tf.io.parse_example(r, spec)[label]))
    lengths, labels = [np.zeros(0, "int64")], [np.zeros(0, "int64")]
    try:
        for some_lengths, some_labels in rows.as_numpy_iterator():
            lengths.append(some_lengths.astype("int64"))
            labels.append(some_labels)
            bar.update(len(some_labels))
    except tf.errors.OpError as error:
        raise _bad_file(file, "damaged or truncated") from error
    length = np.concatenate(lengths)
    if len(length) < count:
        raise _bad_file(file, f"truncated, with {len(length)} records where {count} are needed")
    # A record is its length (8 bytes), a checksum of that (4), the data, and a checksum of these (4).
    ends = np.cumsum(length + 16)
    return _Index(ends - 4 - length, length, np.concatenate(labels))


def _bad_file(file: str, problem: str) -> InputError:
    return InputError(
        f"Expected whole files in {os.path.dirname(file)}. Received: {os.path.basename(file)} is {problem}. Copy the "
        "folder again, or take it away and prepare it again."
    )


def _read_source(
    tfds: Any, builder: Any, keys: tuple[str, str], expression: str, runs: Sequence[RecordRun]
) -> Split:
    """Read array_record files, which tensorflow_datasets finds any record in."""
    image, label = keys
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    try:
        records = builder.as_data_source(split=expression, deserialize_method=raw)
        with _bar(len(records)) as bar:
            labels = np.zeros(len(records), "int64")
            for i in range(len(records)):
                labels[i] = _features(records[i])[label].int64_list.value[0]
                bar.update()
    # The files' library raises RuntimeError and others.
    except Exception as error:
        raise _bad_file(runs[0].file, f"damaged, or a file beside it ({one_line(error)})") from error
    return Split(_Images(records, image), labels, _names(runs))


def _read_rows(
    tfds: Any, builder: Any, keys: tuple[str, str], expression: str, runs: Sequence[RecordRun]
) -> Split:
    """Copy what tensorflow_datasets gives row by row to a temporary file."""
    image, label = keys
    names = _names(runs)
    decoders = tfds.decode.PartialDecoding(dict.fromkeys(keys, True), {image: tfds.decode.SkipDecoding()})
    # In the order of the records, and not kept in memory.
    config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
    images, labels = TemporaryStore(), array("q")
    try:
        rows = builder.as_dataset(split=expression, decoders=decoders, read_config=config)
        with _bar(len(names)) as bar:
            for _, row in zip(names, tfds.as_numpy(rows), strict=False):  # made-up data may be fewer
                images.append(bytes(row[image]))
                labels.append(int(row[label]))
                bar.update()
    except InputError:
        raise
    # What the reader of the format raises, if there is one.
    except Exception as error:
        raise _bad_file(runs[0].file, f"not to be read, or a file beside it ({one_line(error)})") from error
    return Split(images, np.array(labels, "int64"), names[: len(labels)])


def _names(runs: Sequence[RecordRun]) -> list[str]:
    return [f"{run.split}/{i}" for run in runs for i in range(run.first, run.first + run.size)]


def _bar(total: int) -> Any:
    return tqdm(total=total, desc="reading", unit=" images", delay=2)
