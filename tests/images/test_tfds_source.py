"""`tfds:NAME`, with data sets that tensorflow_datasets prepares here from drawings, without a network."""

import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from helpers.images import COLORS

from transfer.common.errors import InputError, one_line
from transfer.images import tfds_source
from transfer.images.datasets import load_data
from transfer.images.tfds_source import read_tfds

NAMES = ["ant", "bee", "cat"]
FORMATS = ["tfrecord", "array_record", "parquet"]
NOWHERE = "http://127.0.0.1:1"


def drawing(number, channels=3) -> np.ndarray:
    image = np.full((10, 14, channels), 20 * (number % 3), "uint8")
    image[:, :, 0] = number
    return image


def make_builder(
    name,
    *,
    splits,
    image=None,
    label=None,
    keys=("image", "label"),
    rows=None,
    fails=None,
    more=None,
    unlabeled=(),
    value=None,
):
    """Return a builder class of tensorflow_datasets that draws its images."""
    import tensorflow_datasets as tfds

    image = image or tfds.features.Image(shape=(None, None, 3))
    label = label or tfds.features.ClassLabel(names=NAMES)
    channels = image.shape[-1]

    def info(self):
        features = tfds.features.FeaturesDict(
            {"image": image, "label": label, "file": tfds.features.Text(), **(more or {})}
        )
        return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=keys)

    def split_generators(self, manager):
        if fails:
            raise fails
        return {split: self._generate_examples(start, count) for split, (start, count) in splits.items()}

    def generate_examples(self, start, count):
        for i in range(start, start + count):
            yield (
                f"{i:03}",
                {
                    "image": drawing(i, channels),
                    "label": value(i) if value else -1 if i in unlabeled else NAMES[i % 3],
                    "file": str(i),
                    **(rows or {}),
                },
            )

    body = {
        "__module__": __name__,
        "VERSION": tfds.core.Version("1.0.0"),
        "_info": info,
        "_split_generators": split_generators,
        "_generate_examples": generate_examples,
    }
    return type(name, (tfds.core.GeneratorBasedBuilder,), body)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """Return a folder of prepared data sets that are not registered, as if copied from another machine."""
    import tensorflow_datasets as tfds

    features, folder = tfds.features, tmp_path_factory.mktemp("tfds")
    shorts = features.Image(shape=(None, None, 1), dtype=np.uint16)
    floats = features.Image(shape=(None, None, 1), dtype=np.float32)
    several = features.Sequence(features.ClassLabel(names=NAMES))
    bright, single = np.full((4, 4, 1), 25700, "uint16"), np.ones((4, 4, 1), "float32")
    with tfds.core.registered.skip_registration():
        for made in (
            make_builder("Colors", splits={"train": (0, 30), "test": (100, 9), "other": (200, 3)}),
            make_builder("Greys", splits={"train": (0, 30)}, image=features.Image(shape=(None, None, 1))),
            make_builder("Jpegs", splits={"train": (0, 30)}, image=features.Image(encoding_format="jpeg")),
            make_builder("Validated", splits={"train": (0, 30), "validation": (100, 6)}),
            make_builder("Numbered", splits={"train": (0, 30)}, label=features.ClassLabel(num_classes=3),
                         rows={"label": 1}),
            make_builder("Contest", splits={"test": (0, 3)}, rows={"label": -1}),
            make_builder("Unsupervised", splits={"train": (0, 3)}, keys=None),
            make_builder("Doubtful", splits={"train": (0, 3)}, keys=None,
                         more={"sort": features.ClassLabel(names=NAMES)}, rows={"sort": "ant"}),
            make_builder("Halved", splits={"train": (0, 30)}, unlabeled=range(0, 30, 3)),
            make_builder("Texts", splits={"train": (0, 3)}, keys=("file", "label")),
            make_builder("Triples", splits={"train": (0, 3)}, keys=("image", "label", "file")),
            make_builder("Tagged", splits={"train": (0, 3)}, label=several, rows={"label": ["ant", "bee"]}),
            make_builder("Weighed", splits={"train": (0, 30), "test": (100, 5)}, label=features.Scalar(np.float32),
                         value=lambda i: i + 0.5),
            make_builder("Shorts", splits={"train": (0, 3)}, image=shorts, rows={"image": bright}),
            make_builder("Floats", splits={"train": (0, 3)}, image=floats, rows={"image": single}),
        ):  # fmt: skip
            made(data_dir=folder).download_and_prepare()
    return folder


def prepare(folder, name, *, shards=3, file_format=None, train=30, test=9, **features):
    """Let tensorflow_datasets write a data set, in several files per split."""
    import tensorflow_datasets as tfds

    with tfds.core.registered.skip_registration():
        builder = make_builder(name, splits={"train": (0, train), "test": (100, test)}, **features)
        builder(data_dir=folder, file_format=file_format).download_and_prepare(
            download_config=tfds.download.DownloadConfig(num_shards=shards)
        )
    return folder / name.lower() / "1.0.0"


@pytest.fixture(scope="session")
def sharded(tmp_path_factory):
    """Write the same images as TFRecord, array_record and Parquet, in three files per split."""
    folder = tmp_path_factory.mktemp("sharded")
    for file_format in FORMATS:
        place = prepare(folder, file_format.replace("_", "").title(), file_format=file_format)
        assert len(list(place.glob("*-train.*"))) == 3
    return folder


def numbers(part):
    """Return the number that is drawn in each image."""
    return [int(part.image(i, (10, 14))[0, 0, 0]) for i in range(len(part))]


@pytest.fixture
def registered(request):
    """Return the name of a registered data set that is not prepared yet."""
    name = "Draws" + re.sub(r"\W", "", request.node.name.title().replace("_", ""))[:40]
    make_builder(name, splits={"train": (0, 12)}, fails=getattr(request, "param", None))
    return re.sub(r"(?<!^)([A-Z]+)", r"_\1", name).lower()


@pytest.fixture
def offline(monkeypatch):
    """Behave as without a network."""
    monkeypatch.setattr(tfds_source, "_HOST", NOWHERE)


@pytest.fixture
def online(monkeypatch):
    """Run a server on this machine that answers with an error, which shows that there is a network."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_error(404)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(tfds_source, "_HOST", f"http://127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    server.server_close()


def test_splits_labels_and_pixels_are_those_of_the_data_set(prepared, offline):
    found = read_tfds("colors", data_dir=prepared)
    parts = found.parts
    assert found.class_names == NAMES and sorted(parts) == ["test", "train"]
    assert [len(parts["train"]), len(parts["test"])] == [30, 9]
    for part, start in ((parts["train"], 0), (parts["test"], 100)):
        drawn = numbers(part)
        for i, label in enumerate(part.labels):
            assert np.array_equal(part.image(i, (10, 14)), drawing(drawn[i])) and label == drawn[i] % 3
        assert sorted(drawn) == list(range(start, start + len(part)))


def test_the_order_is_always_the_same(prepared):
    first, second = (read_tfds("colors", data_dir=prepared).parts["train"] for _ in range(2))
    assert list(first.images) == list(second.images) and first.names == second.names
    assert first.names[:2] == ["train/0", "train/1"]


def test_grey_images_become_rgb(prepared):
    part = read_tfds("greys", data_dir=prepared).parts["train"]
    pixels = [part.image(i, (10, 14)) for i in range(30)]
    assert all((p == p[0, 0, 0]).all() and p.shape == (10, 14, 3) for p in pixels)
    assert sorted(int(p[0, 0, 0]) for p in pixels) == list(range(30))


def test_16_bit_images_keep_their_scale(prepared):
    part = read_tfds("shorts", data_dir=prepared).parts["train"]
    assert (part.image(0, (4, 4)) == 100).all()


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("colors", (27, 3, 9)), ("greys", (21, 3, 6)), ("jpegs", (21, 3, 6)), ("validated", (27, 3, 6))],
)
def test_missing_splits_are_drawn(name, sizes, prepared, offline):
    data = load_data(f"tfds:{name}", data_dir=prepared, download=False)
    assert (len(data.train), len(data.val), len(data.test)) == sizes
    assert data.class_names == tuple(NAMES) and data.name == name and not data.skipped


def test_unnamed_classes_are_numbered(prepared):
    found = read_tfds("numbered", data_dir=prepared)
    assert found.class_names == ["0", "1", "2"] and set(found.parts["train"].labels) == {1}


def test_a_version_can_be_requested(prepared):
    assert len(read_tfds("colors:1.0.0", data_dir=prepared).parts["train"]) == 30
    with pytest.raises(InputError, match=r"tfds:colors:2\.0\.0|Unknown data set 'tfds:colors:2"):
        read_tfds("colors:2.0.0", data_dir=prepared)


def test_splits_without_labels_are_ignored_and_train_is_required(prepared, caplog):
    with pytest.raises(
        InputError, match=r"Expected a split 'train' with labels in tfds:contest\. Received: test"
    ):
        read_tfds("contest", data_dir=prepared)
    assert "Ignored the split 'test' of tfds:contest" in caplog.text


def test_the_only_image_and_label_features_are_used_without_supervised_keys(prepared):
    assert len(read_tfds("unsupervised", data_dir=prepared).parts["train"]) == 3


def test_images_without_labels_are_skipped_and_counted(prepared, caplog):
    with caplog.at_level(logging.INFO, "transfer"):
        part = read_tfds("halved", data_dir=prepared).parts["train"]
    assert "Skipped 10 of 30 images in 'train' of tfds:halved" in caplog.text
    assert len(part) == 20 and [n % 3 for n in numbers(part)] == part.labels.tolist()
    whole = read_tfds("colors", data_dir=prepared).parts["train"]  # written in the same order
    number_of = dict(zip(whole.names, numbers(whole), strict=True))
    assert [number_of[name] for name in part.names] == numbers(part), "names are those of records"


@pytest.mark.parametrize("name", ["doubtful", "texts", "triples", "floats"])
def test_data_sets_that_are_not_images_with_one_label_are_refused(name, prepared):
    with pytest.raises(
        InputError, match=f"images with classes or a number each. Received: tfds:{name} .*Choose a data"
    ):
        read_tfds(name, data_dir=prepared)


@pytest.mark.parametrize("name", ["glue", "coco", "celeb_a"])
def test_unsuitable_data_sets_are_refused_before_any_download(name, tmp_path, offline):
    with pytest.raises(
        InputError, match=f"images with classes or a number each. Received: tfds:{name} with no labels"
    ):
        read_tfds(name, data_dir=tmp_path)


def test_unknown_names_list_similar_ones(tmp_path):
    with pytest.raises(InputError, match=r"Unknown data set 'tfds:tf_flower'\. Did you mean tfds:tf_flowers"):
        load_data("tfds:tf_flower", data_dir=tmp_path)
    with pytest.raises(InputError, match=r"'tfds:zzzzzzzz'\. See tensorflow\.org/datasets/catalog"):
        read_tfds("zzzzzzzz", data_dir=tmp_path)


@pytest.mark.parametrize(
    "name", ["", "a:b:c", "mnist/nope", "mnist:9.9.9", "mnist:9", "huggingface:mnist", "no such"]
)
def test_invalid_names_are_reported(name, tmp_path, offline):
    with pytest.raises(InputError, match=f"'tfds:{name}'.*tensorflow.org/datasets/catalog"):
        read_tfds(name, data_dir=tmp_path)


@pytest.mark.parametrize("name", ["tf_flowers", "mnist", "emnist/letters"])
def test_without_a_network_the_error_is_immediate_and_names_a_remedy(name, tmp_path, offline):
    start = time.perf_counter()
    with pytest.raises(InputError) as caught:
        load_data(f"tfds:{name}", data_dir=tmp_path)
    assert time.perf_counter() - start < 10
    text = str(caught.value)
    assert f"tfds:{name} is not prepared, and there is no network" in text
    assert "python -c" in text and f"fills {tmp_path}" in text
    assert not list(tmp_path.iterdir()), "no file is left behind"


def test_a_network_that_never_answers_times_out(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(tfds_source, "_HOST", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(tfds_source, "_TIMEOUT", 0.2)
        start = time.perf_counter()
        with pytest.raises(InputError, match=r"there is no network to download it \(.*(timed out|no answer)"):
            read_tfds("mnist", data_dir=tmp_path)
    assert time.perf_counter() - start < 5


def test_the_remedy_in_the_error_works(registered, tmp_path, offline):
    """The code in the error prepares the data set that the next call reads."""
    with pytest.raises(InputError, match="is not prepared, and downloading is off") as caught:
        read_tfds(registered, data_dir=tmp_path, download=False)
    code = re.search(r'python -c "(.*?)"\.', str(caught.value))[1]
    place = re.search(r"It fills (\S+);", str(caught.value))[1]
    exec(compile(code, "remedy", "exec"), {})
    assert os.path.isdir(place)
    assert len(read_tfds(registered, data_dir=tmp_path, download=False).parts["train"]) == 12


def test_unprepared_data_sets_are_prepared_over_the_network(registered, tmp_path, online):
    found = read_tfds(registered, data_dir=tmp_path)
    assert len(found.parts["train"]) == 12 and found.class_names == NAMES
    package = os.path.dirname(__import__("tensorflow_datasets").__file__)
    assert not os.path.exists(os.path.join(package, "url_checksums", f"{registered}.txt"))


@pytest.mark.parametrize(
    "registered", [ImportError("install scipy"), AssertionError("fetch the archive\nby hand"), OSError("gone")],
    indirect=True, ids=["package", "manual", "server"],
)  # fmt: skip
def test_failed_preparation_reports_the_reason(registered, tmp_path, online):
    with pytest.raises(
        InputError, match=f"cannot prepare 'tfds:{registered}': (install|fetch the archive by|gone)"
    ):
        read_tfds(registered, data_dir=tmp_path)


def test_long_reasons_are_shortened():
    assert len(one_line(ValueError("word " * 1000))) < 450
    assert one_line(ValueError()) == "ValueError"


# Which images are read


def frames(sharded, name, expression):
    """Return the rows that tensorflow_datasets itself reads, in the order of the records."""
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=sharded)
    if name == "arrayrecord":
        rows = builder.as_data_source(split=expression)
    else:
        config = tfds.ReadConfig(interleave_cycle_length=1)
        rows = tfds.as_numpy(builder.as_dataset(split=expression, read_config=config))
    return [(row["image"], int(row["label"])) for row in rows]


@pytest.mark.parametrize("name", ["tfrecord", "arrayrecord", "parquet"])
@pytest.mark.parametrize("expression", [
    "train", "train[:80%]", "train[80%:]", "train[3:17]", "train[-5:]", "train[:10]+test[50%:]", 
    "test + train[25%:50%]", "all", "train[1shard]", "train[11:12]",
])  # fmt: skip
def test_expressions_select_the_same_as_in_tensorflow_datasets(name, expression, sharded):
    part = read_tfds(name, data_dir=sharded, split=expression).parts["train"]
    expected = frames(sharded, name, expression)
    assert len(part) == len(expected) > 0 and part.labels.tolist() == [label for _, label in expected]
    for i, (pixels, _) in enumerate(expected):
        assert np.array_equal(part.image(i, (10, 14)), pixels)
    assert len(set(part.names)) == len(part)


@pytest.mark.parametrize("name", ["tfrecord", "arrayrecord", "parquet"])
def test_the_name_of_an_image_does_not_depend_on_the_expression(name, sharded):
    whole = read_tfds(name, data_dir=sharded).parts
    assert [part.names for part in whole.values()] == [
        [f"{split}/{i}" for i in range(len(part))] for split, part in whole.items()
    ]
    content = {n: p for part in whole.values() for n, p in zip(part.names, part.images, strict=True)}
    part = read_tfds(name, data_dir=sharded, split="test[4:7]+train[9:24]").parts["train"]
    assert part.names == [f"test/{i}" for i in range(4, 7)] + [f"train/{i}" for i in range(9, 24)]
    assert [content[n] for n in part.names] == list(part.images)


@pytest.mark.parametrize("given", [
    "train=train[:60%],val=train[60%:80%],test=train[80%:]",
    " test = train[80%:] , train = train[:60%] , val = train[60%:80%] ",
    {"train": "train[:60%]", "val": "train[60%:80%]", "test": "train[80%:]"},
])  # fmt: skip
def test_splits_can_be_assigned(given, sharded):
    parts = read_tfds("tfrecord", data_dir=sharded, split=given).parts
    assert {split: len(part) for split, part in parts.items()} == {"train": 18, "val": 6, "test": 6}
    assert sorted(n for part in parts.values() for n in numbers(part)) == list(range(30))
    assert parts["val"].names[0] == "train/18"


def test_one_expression_is_split_into_three(sharded):
    data = load_data("tfds:tfrecord", data_dir=sharded, tfds_split="train+test", download=False)
    assert (len(data.train) + len(data.val) + len(data.test)) == 39 and len(data.test) and len(data.val)


@pytest.mark.parametrize(("given", "message"), [
    ("tran", r"Unknown split 'tran'\. Did you mean 'train'\? These are the splits of tfds:tfrecord"),
    ("train[:10]+tets[3:]", r"Unknown split 'tets'\. Did you mean 'test'"),
    ("zzz", r"Unknown split 'zzz'\. Expected one of 'train', 'test'"),
    ("", "Unknown split ''"),
    ("train[:x]", r"slices of them, such as 'train\[:80%\]'.*'train\[:x\]', which is not one of these.* train \(30 i"),
    ("train[", "is not one of these"),
    ("train[5]", "is not one of these"),
    ("train[::2]", "is not one of these"),
    ("all[:5]", "is not one of these"),
    ("train[:200%]", "is not one of these"),
    ("train[:31]", r"'train\[:31\]', which is not one of these\. "
                   r"The splits are: train \(30 images\), test \(9 images\)"),
    ("train[:0]", "has no images"),
    ("train[5:3]", "has no images"),
    ("train[5:3]+test", "has no images"),
    ("train=train,vall=test", r"Unknown split 'vall'\. Did you mean 'val'"),
    ("val=train,test=test", "an expression for the split 'train'"),
    ("train=train,train=test", r"each split once.* Join expressions with '\+'"),
    ("train=", "Unknown split ''"),
    ("train=train,", "Name each split"),
    ("train[:80%],test", r"several such as 'train=train\[:80%\],test=.*Received: 'train\[:80%\],test'\. Name each"),
    ({"train": "train", "dev": "test"}, "Unknown split 'dev'"),
    ({}, "an expression for the split 'train'"),
    ("train=train[:80%],test=train[70%:]", r"Received 3 that are in 'train' and 'test'\. Choose slices that do not"),
    ("train=train,val=test[:5],test=test[4:]", "Received 1 that are in 'val' and 'test'"),
    ("train=train,test=all", "Received 30 that are in 'train' and 'test'"),
    ("train[:10]+train[8:12]", "Received 2 that are in 'train' twice"),
    ("train+train", "Received 30 that are in 'train' twice"),
])  # fmt: skip
def test_wrong_splits_are_refused_with_a_remedy(given, message, sharded):
    with pytest.raises(InputError, match=message):
        read_tfds("tfrecord", data_dir=sharded, split=given)


def test_a_requested_split_must_have_labels(prepared):
    with pytest.raises(InputError, match="Received none in 'test'"):
        read_tfds("contest", data_dir=prepared, split="test")


def test_unknown_splits_are_refused_before_any_download(tmp_path, offline):
    with pytest.raises(InputError, match="Unknown split 'tset'"):
        read_tfds("mnist", data_dir=tmp_path, split="train=train,tset=test")


# How they are read


@pytest.mark.parametrize("name", ["tfrecord", "arrayrecord", "parquet"])
def test_eight_threads_read_the_same_as_one(name, sharded):
    part = read_tfds(name, data_dir=sharded).parts["train"]
    alone = [part.images[i] for i in range(30)]
    assert all(isinstance(image, bytes) for image in alone)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(part.images.__getitem__, [*range(30)] * 40))
    assert together == alone * 40


def test_more_files_than_can_be_open_are_read(tmp_path):
    import resource

    prepare(tmp_path, "Scattered", shards=30, train=30, test=30)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    part = read_tfds("scattered", data_dir=tmp_path).parts["train"]
    now = len(os.listdir("/dev/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (now + 10, limits[1]))
    try:
        assert sorted(numbers(part)) == list(range(30))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def cut_inside(path):
    path.write_bytes(path.read_bytes()[:-7])


def cut_between(path):
    """Cut at the end of a record, which leaves a valid file."""
    content = path.read_bytes()
    path.write_bytes(content[: 16 + int.from_bytes(content[:8], "little")])


def cut_header(path):
    content = path.read_bytes()
    path.write_bytes(content[: 16 + int.from_bytes(content[:8], "little") + 5])


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path):
    os.truncate(path, 0)


HARM = [
    *(("tfrecord", harm) for harm in (cut_inside, cut_between, cut_header, damage, empty, os.unlink)),
    *((name, harm) for name in ("arrayrecord", "parquet") for harm in (cut_inside, empty, os.unlink)),
]


@pytest.mark.parametrize(("name", "harm"), HARM)
def test_missing_and_damaged_files_are_reported(name, harm, sharded, tmp_path):
    shutil.copytree(sharded / name, tmp_path / name)
    (bad,) = tmp_path.glob(f"{name}/1.0.0/*-train.*-00001-of-00003")
    harm(bad)
    words = {"tfrecord": f"{bad.name} is (missing|truncated|damaged)"}.get(
        name, "another file in this folder|is missing"
    )
    with pytest.raises(InputError, match=f"complete files in {bad.parent}.*({words}).*prepare it again"):
        read_tfds(name, data_dir=tmp_path)
    if name == "tfrecord":
        assert len(read_tfds(name, data_dir=tmp_path, split="train[:10]").parts["train"]) == 10


@pytest.mark.parametrize("name", ["tfrecord", "arrayrecord", "parquet"])
def test_a_folder_without_record_files_is_reported(name, sharded, tmp_path):
    shutil.copytree(sharded / name, tmp_path / name, ignore=shutil.ignore_patterns("*-of-*"))
    with pytest.raises(InputError, match=f"complete files in {tmp_path}.*prepare it again"):
        read_tfds(name, data_dir=tmp_path)


def test_mock_data_of_tensorflow_datasets_is_read(sharded, tmp_path, offline):
    """`mock_data` needs the metadata with the splits, but no images."""
    import tensorflow_datasets as tfds

    shutil.copytree(sharded / "tfrecord", tmp_path / "tfrecord", ignore=shutil.ignore_patterns("*-of-*"))
    only = tfds.decode.PartialDecoding({"image": True, "label": True}, {"image": tfds.decode.SkipDecoding()})
    with tfds.testing.mock_data(num_examples=7, data_dir=tmp_path):
        rows = list(tfds.as_numpy(tfds.builder("tfrecord").as_dataset(split="train", decoders=only)))
        found = read_tfds("tfrecord", split="train[10:20]")
        few = read_tfds("tfrecord", split="train=train[:3],test=test")
    part = found.parts["train"]
    assert found.class_names == NAMES and part.names == [f"train/{i}" for i in range(10, 17)]
    assert part.labels.tolist() == [row["label"] for row in rows] and part.image(0, (10, 14)).std() > 0
    assert [len(part) for part in few.parts.values()] == [3, 7]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(part.images.__getitem__, [*range(7)] * 20))
    assert together == [row["image"] for row in rows] * 20


def test_data_of_the_image_folder_builder_is_read(color_folder, tmp_path):
    import tensorflow_datasets as tfds

    shutil.copytree(color_folder, tmp_path / "images" / "train")
    builder = tfds.ImageFolder(str(tmp_path / "images"))
    tfds.dataset_builders.store_as_tfds_dataset(
        name="painted", version="1.0.0", data_dir=tmp_path / "data",
        features=tfds.features.FeaturesDict({key: builder.info.features[key] for key in ("image", "label")}),
        split_datasets={"train": builder.as_dataset(split="train").map(
            lambda row: {"image": row["image"], "label": row["label"]}
        )},
    )  # fmt: skip
    found = read_tfds("painted", data_dir=tmp_path / "data", split="train=train[:80%],test=train[80%:]")
    assert found.class_names == sorted(COLORS) and [len(p) for p in found.parts.values()] == [72, 18]
    for part in found.parts.values():
        for i in range(len(part)):
            color = COLORS[found.class_names[part.labels[i]]]
            assert np.abs(part.image(i, (40, 40)).mean(axis=(0, 1)) - color).max() < 20


def test_arrays_stored_under_a_registered_name_are_read(tmp_path, offline):
    """The folder of the real Fashion-MNIST, written without a download."""
    import tensorflow_datasets as tfds

    builder = tfds.builder("fashion_mnist", data_dir=tmp_path)
    x = np.random.default_rng(0).integers(0, 256, (50, 28, 28, 1), "uint8")
    y = np.arange(50) % 10
    rows = {"train": (x[:40], y[:40]), "test": (x[40:], y[40:])}
    tfds.dataset_builders.store_as_tfds_dataset(
        name="fashion_mnist", version=builder.version, features=builder.info.features, data_dir=tmp_path,
        split_datasets={
            split: [(i, {"image": image, "label": label}) for i, (image, label) in enumerate(zip(*pair, strict=True))]
            for split, pair in rows.items()
        },
        disable_shuffling=True,
    )  # fmt: skip
    found = read_tfds("fashion_mnist", data_dir=tmp_path)
    assert len(found.class_names) == 10 and found.class_names[:2] == ["T-shirt/top", "Trouser"]
    for split, (images, labels) in rows.items():
        part = found.parts[split]
        assert part.labels.tolist() == labels.tolist()
        assert all(np.array_equal(part.image(i, (28, 28))[..., :1], image) for i, image in enumerate(images))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_images(tmp_path):
    """3000 records of 100 KB of noise, 300 MB."""
    code = """
        import resource, sys
        import numpy as np
        import tensorflow_datasets as tfds
        from transfer.images.tfds_source import read_tfds

        def rows(count):
            random = np.random.default_rng(0)
            for i in range(count):
                yield i, {"image": random.integers(0, 256, (183, 183, 3), "uint8"), "label": i % 2}

        features = {"image": tfds.features.Image(shape=(183, 183, 3)), "label": tfds.features.ClassLabel(num_classes=2)}
        if sys.argv[2] == "write":
            for name, count in (("small", 20), ("large", 3000)):
                tfds.dataset_builders.store_as_tfds_dataset(
                    name=name, version="1.0.0", features=tfds.features.FeaturesDict(features), data_dir=sys.argv[1],
                    split_datasets={"train": rows(count)}, disable_shuffling=True,
                )
        else:
            list(read_tfds("small", data_dir=sys.argv[1]).parts["train"].images)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            part = read_tfds("large", data_dir=sys.argv[1]).parts["train"]
            assert sum(len(image) for image in part.images) > 3e8
            print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
    """
    run = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    subprocess.run([*run, "write"], capture_output=True, check=True)
    done = subprocess.run([*run, "read"], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) < 60


# Several labels, and numbers


def subset(i) -> list[str]:
    """Return the labels of a drawing: from none to all."""
    return [name for bit, name in enumerate(NAMES) if i >> bit & 1]


@pytest.mark.parametrize("file_format", FORMATS)
def test_sequences_of_classes_are_several_labels(tmp_path, file_format):
    import tensorflow_datasets as tfds

    several = tfds.features.Sequence(tfds.features.ClassLabel(names=NAMES))
    prepare(tmp_path, "Tags", file_format=file_format, label=several, value=subset)
    found = read_tfds("tags", data_dir=tmp_path)
    train = found.parts["train"]
    assert found.task == "multi" and found.class_names == NAMES and train.labels.dtype == np.int8
    expected = [[name in subset(i) for name in NAMES] for i in numbers(train)]
    assert train.labels.tolist() == expected and len(train) == 30


@pytest.mark.parametrize("file_format", FORMATS)
def test_scalars_are_the_numbers_of_a_regression(tmp_path, file_format):
    import tensorflow_datasets as tfds

    for name, kind, value in (("Weights", np.float32, 0.5), ("Ages", np.int64, 2)):
        prepare(tmp_path, name, file_format=file_format, label=tfds.features.Scalar(kind),
                value=lambda i, value=value: i * value)  # fmt: skip
        found = read_tfds(name.lower(), data_dir=tmp_path, task="regression")
        train = found.parts["train"]
        assert found.task == "regression" and found.class_names == ["label"]
        assert train.labels.tolist() == [i * value for i in numbers(train)] and len(train) == 30


def test_numbers_need_the_task_regression(prepared):
    with pytest.raises(
        InputError, match=r"Expected classes .*Received numbers, 'label'\. Use --task regression"
    ):
        read_tfds("weighed", data_dir=prepared)
    data = load_data("tfds:weighed", data_dir=prepared, task="regression", near_duplicates=False)
    assert data.task == "regression" and len(data.test) == 5 and data.test.labels.min() == 100.5


def test_classes_are_labels_of_the_task_multi(prepared):
    data = load_data("tfds:colors", data_dir=prepared, task="multi", near_duplicates=False)
    assert data.task == "multi" and data.train.labels.sum(axis=1).tolist() == [1] * len(data.train)
