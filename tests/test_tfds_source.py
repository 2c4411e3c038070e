"""`tfds:NAME`, with data sets that tensorflow_datasets itself prepares here, from drawings and without a network."""

import io
import os
import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from PIL import Image

from transfer import tfds_source
from transfer.datasets import load_data
from transfer.errors import InputError
from transfer.tfds_source import read_tfds

NAMES = ["ant", "bee", "cat"]
NOWHERE = "http://127.0.0.1:1"


def drawing(number, channels=3) -> np.ndarray:
    picture = np.full((10, 14, channels), 20 * (number % 3), "uint8")
    picture[:, :, 0] = number
    return picture


def encoded(number) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(drawing(number)).save(stream, "PNG")
    return stream.getvalue()


def make_builder(name, *, splits, image=None, label=None, keys=("image", "label"), rows=None, fails=None):
    """A class of tensorflow_datasets that draws its pictures."""
    import tensorflow_datasets as tfds

    image = image or tfds.features.Image(shape=(None, None, 3))
    label = label or tfds.features.ClassLabel(names=NAMES)
    channels = image.shape[-1]

    def info(self):
        features = tfds.features.FeaturesDict({"image": image, "label": label, "file": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=keys)

    def split_generators(self, manager):
        if fails:
            raise fails
        return {split: self._generate_examples(start, count) for split, (start, count) in splits.items()}

    def generate_examples(self, start, count):
        for i in range(start, start + count):
            yield (
                f"{i:03}",
                {"image": drawing(i, channels), "label": NAMES[i % 3], "file": str(i), **(rows or {})},
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
    """A folder of prepared data sets whose code is not known to tensorflow_datasets, as copied from elsewhere."""
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
            make_builder("Texts", splits={"train": (0, 3)}, keys=("file", "label")),
            make_builder("Triples", splits={"train": (0, 3)}, keys=("image", "label", "file")),
            make_builder("Tagged", splits={"train": (0, 3)}, label=several, rows={"label": ["ant", "bee"]}),
            make_builder("Shorts", splits={"train": (0, 3)}, image=shorts, rows={"image": bright}),
            make_builder("Floats", splits={"train": (0, 3)}, image=floats, rows={"image": single}),
        ):  # fmt: skip
            made(data_dir=folder).download_and_prepare()
    return folder


@pytest.fixture
def registered(request):
    """A data set that tensorflow_datasets knows and can prepare, and has not."""
    name = "Draws" + re.sub(r"\W", "", request.node.name.title().replace("_", ""))[:40]
    make_builder(name, splits={"train": (0, 12)}, fails=getattr(request, "param", None))
    return re.sub(r"(?<!^)([A-Z]+)", r"_\1", name).lower()


@pytest.fixture
def offline(monkeypatch):
    """As without a network, wherever the tests run."""
    monkeypatch.setattr(tfds_source, "_HOST", NOWHERE)


@pytest.fixture
def online(monkeypatch):
    """A server that answers, with an error as good as any, on this machine."""

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
    parts, names = read_tfds("colors", data_dir=prepared)
    assert names == NAMES and sorted(parts) == ["test", "train"]
    assert [len(parts["train"]), len(parts["test"])] == [30, 9]
    for part, start in ((parts["train"], 0), (parts["test"], 100)):
        numbers = []
        for i, label in enumerate(part.labels):
            pixels = part.picture(i, (10, 14))
            numbers.append(int(pixels[0, 0, 0]))
            assert np.array_equal(pixels, drawing(numbers[-1])) and label == numbers[-1] % 3
        assert sorted(numbers) == list(range(start, start + len(part)))


def test_the_order_is_the_same_every_time(prepared):
    first, second = (read_tfds("colors", data_dir=prepared)[0]["train"] for _ in range(2))
    assert first.pictures == second.pictures and first.names == second.names
    assert first.names[:2] == ["train/0", "train/1"]


def test_grey_pictures_become_rgb(prepared):
    part = read_tfds("greys", data_dir=prepared)[0]["train"]
    pixels = [part.picture(i, (10, 14)) for i in range(30)]
    assert all((p == p[0, 0, 0]).all() and p.shape == (10, 14, 3) for p in pixels)
    assert sorted(int(p[0, 0, 0]) for p in pixels) == list(range(30))


def test_16_bit_pictures_keep_their_scale(prepared):
    part = read_tfds("shorts", data_dir=prepared)[0]["train"]
    assert (part.picture(0, (4, 4)) == 100).all()


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("colors", (27, 3, 9)), ("greys", (21, 3, 6)), ("jpegs", (21, 3, 6)), ("validated", (27, 3, 6))],
)
def test_missing_splits_are_drawn(name, sizes, prepared, offline):
    data = load_data(f"tfds:{name}", data_dir=prepared, download=False)
    assert (len(data.train), len(data.val), len(data.test)) == sizes
    assert data.class_names == tuple(NAMES) and data.name == name and not data.skipped


def test_classes_without_names_are_numbers(prepared):
    parts, names = read_tfds("numbered", data_dir=prepared)
    assert names == ["0", "1", "2"] and set(parts["train"].labels) == {1}


def test_a_version_may_be_asked_for(prepared):
    assert len(read_tfds("colors:1.0.0", data_dir=prepared)[0]["train"]) == 30
    with pytest.raises(InputError, match=r"tfds:colors:2\.0\.0|Unknown data set 'tfds:colors:2"):
        read_tfds("colors:2.0.0", data_dir=prepared)


def test_splits_without_labels_are_ignored_and_train_is_needed(prepared, caplog):
    with pytest.raises(
        InputError, match=r"Expected a split 'train' with labels in tfds:contest\. Received: test"
    ):
        read_tfds("contest", data_dir=prepared)
    assert "Ignored the split 'test' of tfds:contest" in caplog.text


@pytest.mark.parametrize("name", ["unsupervised", "texts", "triples", "tagged", "floats"])
def test_data_sets_that_are_not_pictures_with_one_label_are_refused(name, prepared):
    with pytest.raises(
        InputError, match=f"pictures with one label each. Received: tfds:{name} .*Choose a data"
    ):
        read_tfds(name, data_dir=prepared)


@pytest.mark.parametrize("name", ["glue", "coco", "celeb_a"])
def test_known_data_sets_of_another_kind_are_refused_before_any_download(name, tmp_path, offline):
    with pytest.raises(
        InputError, match=f"pictures with one label each. Received: tfds:{name} with no labels"
    ):
        read_tfds(name, data_dir=tmp_path)


def test_unknown_names_list_the_nearest(tmp_path):
    with pytest.raises(InputError, match=r"Unknown data set 'tfds:tf_flower'\. Did you mean tfds:tf_flowers"):
        load_data("tfds:tf_flower", data_dir=tmp_path)
    with pytest.raises(InputError, match=r"'tfds:zzzzzzzz'\. See tensorflow\.org/datasets/catalog"):
        read_tfds("zzzzzzzz", data_dir=tmp_path)


@pytest.mark.parametrize(
    "name", ["", "a:b:c", "mnist/nope", "mnist:9.9.9", "mnist:9", "huggingface:mnist", "no such"]
)
def test_names_that_cannot_be_opened_are_said_to_be_so(name, tmp_path, offline):
    with pytest.raises(InputError, match=f"'tfds:{name}'.*tensorflow.org/datasets/catalog"):
        read_tfds(name, data_dir=tmp_path)


@pytest.mark.parametrize("name", ["tf_flowers", "mnist", "emnist/letters"])
def test_without_a_network_the_error_comes_at_once_and_names_the_way_out(name, tmp_path, offline):
    start = time.perf_counter()
    with pytest.raises(InputError) as caught:
        load_data(f"tfds:{name}", data_dir=tmp_path)
    assert time.perf_counter() - start < 10
    text = str(caught.value)
    assert f"tfds:{name} is not prepared, and there is no network" in text
    assert "python -c" in text and f"fills {tmp_path}" in text
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_a_network_that_never_answers_is_not_waited_for(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(tfds_source, "_HOST", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(tfds_source, "_PATIENCE", 0.2)
        start = time.perf_counter()
        with pytest.raises(InputError, match=r"there is no network to download it \(.*(timed out|no answer)"):
            read_tfds("mnist", data_dir=tmp_path)
    assert time.perf_counter() - start < 3


def test_the_way_out_that_is_named_works(registered, tmp_path, offline):
    """The code of the error, run as it stands, prepares what the next call reads."""
    with pytest.raises(InputError, match="is not prepared and downloading is off") as caught:
        read_tfds(registered, data_dir=tmp_path, download=False)
    code = re.search(r'python -c "(.*?)"\.', str(caught.value))[1]
    place = re.search(r"It fills (\S+);", str(caught.value))[1]
    exec(compile(code, "remedy", "exec"), {})
    assert os.path.isdir(place)
    assert len(read_tfds(registered, data_dir=tmp_path, download=False)[0]["train"]) == 12


def test_what_is_not_prepared_is_prepared_where_there_is_a_network(registered, tmp_path, online):
    parts, names = read_tfds(registered, data_dir=tmp_path)
    assert len(parts["train"]) == 12 and names == NAMES
    package = os.path.dirname(__import__("tensorflow_datasets").__file__)
    assert not os.path.exists(os.path.join(package, "url_checksums", f"{registered}.txt"))


@pytest.mark.parametrize(
    "registered", [ImportError("install scipy"), AssertionError("fetch the archive\nby hand"), OSError("gone")],
    indirect=True, ids=["package", "manual", "server"],
)  # fmt: skip
def test_failed_preparations_say_why(registered, tmp_path, online):
    with pytest.raises(
        InputError, match=f"cannot prepare 'tfds:{registered}': (install|fetch the archive by|gone)"
    ):
        read_tfds(registered, data_dir=tmp_path)


def test_long_reasons_are_cut():
    assert len(tfds_source._short(ValueError("word " * 1000))) < 450
    assert tfds_source._short(ValueError()) == "ValueError"
