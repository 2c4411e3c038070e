"""Read images of a prepared tensorflow_datasets data set one by one, without copying them if possible."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from transfer.common.errors import InputError, one_line
from transfer.common.streams import progress_bar
from transfer.common.tasks import MULTI, REGRESSION
from transfer.images.image_sequences import LazySequence, TemporaryImages
from transfer.images.splitting import Split

if TYPE_CHECKING:
    import tensorflow as tf
    from tensorflow_datasets.core import DatasetBuilder

_BATCH = 64  # records in memory at a time


class RecordRange(NamedTuple):
    """Consecutive records of one file."""

    split: str
    first: int  # index of the first record in its split
    size: int
    file: str
    skip: int  # index of the first record in its file


class LabelFeature(NamedTuple):
    """The feature of a data set that holds the label."""

    key: str
    # What it holds: "single" (a class), "multi" (a sequence of classes) or "regression" (a number).
    task: str
    # Names of the classes; empty for numbers.
    names: Sequence[str] = ()
    # Whether numbers are whole.
    whole: bool = False

    def to_array(self, rows: Sequence[Any]) -> np.ndarray:
        """Return the labels of records, each a sequence of numbers, as those of a split; -1 is no label."""
        if self.task == REGRESSION:
            return np.array([row[0] for row in rows], "float64")
        if self.task != MULTI:
            return np.array([row[0] for row in rows], "int64")
        columns = np.zeros((len(rows), len(self.names)), "int8")
        for i, row in enumerate(rows):
            columns[i, [label for label in row if label >= 0]] = 1
        return columns

    def in_record(self, record: bytes) -> Sequence[Any]:
        """Return the numbers of the label in a record."""
        feature = _features(record)[self.key]
        is_float = self.task == REGRESSION and not self.whole
        return [*(feature.float_list.value if is_float else feature.int64_list.value)]

    def in_batch(self, records: tf.Tensor) -> tf.Tensor:
        """Return the numbers of the label in a batch of records, with -1 where a sequence is shorter than others."""
        import tensorflow as tf

        if self.task == MULTI:
            sparse = tf.io.parse_example(records, {self.key: tf.io.VarLenFeature(tf.int64)})[self.key]
            return tf.sparse.to_dense(sparse, default_value=-1)
        kind = tf.float32 if self.task == REGRESSION and not self.whole else tf.int64
        return tf.io.parse_example(records, {self.key: tf.io.FixedLenFeature([1], kind)})[self.key]


def make_reader(
    builder: DatasetBuilder, image: str, label: LabelFeature, ranges: Sequence[RecordRange]
) -> Callable[[str, Sequence[RecordRange]], Split]:
    """Return the function that reads an expression and its records from the files of a data set."""
    files = sorted({r.file for r in ranges})
    missing = [file for file in files if not os.path.isfile(file)]
    file_format = getattr(builder.info.file_format, "value", "")
    # There are no local files: they are in a bucket, or tfds.testing.mock_data invents the data.
    if file_format not in ("tfrecord", "array_record") or len(missing) == len(files):
        return partial(_read_rows, builder, image, label)
    if missing:
        raise _bad_file(missing[0], "missing")
    if file_format == "array_record":
        return partial(_read_array_records, builder, image, label)
    return partial(_read_tfrecords, _index_files(ranges, label), image)


def _features(record: bytes) -> Mapping[str, tf.train.Feature]:
    import tensorflow as tf

    return tf.train.Example.FromString(record).features.feature


def _image(records: Sequence[bytes], key: str, i: int) -> bytes:
    return _features(records[i])[key].bytes_list.value[0]


class _Index(NamedTuple):
    """The offset and length in bytes, and the label, of each record in a TFRecord file."""

    starts: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray


def _record(files: Sequence[str], file_ids: np.ndarray, index: _Index, i: int) -> bytes:
    with open(files[file_ids[i]], "rb", buffering=0) as file:
        return os.pread(file.fileno(), int(index.lengths[i]), int(index.starts[i]))


def _read_tfrecords(indices: Mapping[str, _Index], key: str, _: str, ranges: Sequence[RecordRange]) -> Split:
    """Return images that are read from TFRecord files when they are indexed."""
    parts = [[column[r.skip : r.skip + r.size] for column in indices[r.file]] for r in ranges]
    index = _Index(*map(np.concatenate, zip(*parts, strict=True)))
    file_ids = np.repeat(np.arange(len(ranges)), [r.size for r in ranges])
    records = LazySequence(len(file_ids), partial(_record, [r.file for r in ranges], file_ids, index))
    return Split(LazySequence(len(records), partial(_image, records, key)), index.labels, _names(ranges))


def _index_files(ranges: Sequence[RecordRange], label: LabelFeature) -> dict[str, _Index]:
    """Read each file once, up to the last record that is needed."""
    counts: dict[str, int] = {}
    for r in ranges:
        counts[r.file] = max(counts.get(r.file, 0), r.skip + r.size)
    with _progress_bar(sum(counts.values())) as bar:
        return {file: _index_file(file, count, label, bar) for file, count in counts.items()}


def _index_file(file: str, count: int, label: LabelFeature, bar: Any) -> _Index:
    import tensorflow as tf

    records = tf.data.TFRecordDataset(file).take(count).batch(_BATCH)
    rows = records.map(lambda r: (tf.strings.length(r), label.in_batch(r)))
    lengths, labels = [np.zeros(0, "int64")], [label.to_array([])]
    try:
        for batch_lengths, batch_labels in rows.as_numpy_iterator():
            lengths.append(batch_lengths.astype("int64"))
            labels.append(label.to_array(batch_labels))
            bar.update(len(batch_labels))
    except tf.errors.OpError as error:
        raise _bad_file(file, "damaged or truncated") from error
    length = np.concatenate(lengths)
    if len(length) < count:
        raise _bad_file(file, f"truncated, with {len(length)} of {count} records")
    # A record is its length (8 bytes), a checksum of that (4), the data, and a checksum of the data (4).
    ends = np.cumsum(length + 16)
    return _Index(ends - 4 - length, length, np.concatenate(labels))


def _bad_file(file: str, problem: str) -> InputError:
    return InputError(
        f"Expected complete files in {os.path.dirname(file)}. Received: {os.path.basename(file)} is {problem}. Copy "
        "the folder again, or delete it and prepare it again."
    )


def _read_array_records(
    builder: DatasetBuilder,
    image: str,
    label: LabelFeature,
    expression: str,
    ranges: Sequence[RecordRange],
) -> Split:
    """Return images that tensorflow_datasets reads from array_record files when they are indexed."""
    import tensorflow_datasets as tfds

    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    try:
        records = builder.as_data_source(split=expression, deserialize_method=raw)
        labels = []
        with _progress_bar(len(records)) as bar:
            for i in range(len(records)):
                labels.append(label.in_record(records[i]))
                bar.update()
    except Exception as error:  # RuntimeError and others, from the library that reads these files
        raise _bad_file(
            ranges[0].file, f"damaged, or another file in this folder is ({one_line(error)})"
        ) from error
    images = LazySequence(len(records), partial(_image, records, image))
    return Split(images, label.to_array(labels), _names(ranges))


def _read_rows(
    builder: DatasetBuilder,
    image: str,
    label: LabelFeature,
    expression: str,
    ranges: Sequence[RecordRange],
) -> Split:
    """Copy the encoded images of any other format to a temporary file."""
    import tensorflow_datasets as tfds

    names = _names(ranges)
    decoders = tfds.decode.PartialDecoding(
        {image: True, label.key: True}, {image: tfds.decode.SkipDecoding()}
    )
    # Read in the order of the records, and do not cache the data in memory.
    config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
    images, labels = TemporaryImages(), []
    try:
        rows = builder.as_dataset(split=expression, decoders=decoders, read_config=config)
        with _progress_bar(len(names)) as bar:
            for _, row in zip(names, tfds.as_numpy(rows), strict=False):  # mock_data may have fewer rows
                images.append(bytes(row[image]))
                labels.append(np.atleast_1d(row[label.key]).tolist())
                bar.update()
    except InputError:
        raise
    except Exception as error:  # readers of other formats raise errors of many classes
        raise _bad_file(
            ranges[0].file, f"unreadable, or another file in this folder is ({one_line(error)})"
        ) from error
    return Split(images, label.to_array(labels), names[: len(labels)])


def _names(ranges: Sequence[RecordRange]) -> list[str]:
    return [f"{r.split}/{i}" for r in ranges for i in range(r.first, r.first + r.size)]


def _progress_bar(total: int) -> Any:
    return progress_bar(total=total, desc="reading", unit=" images", delay=2)
