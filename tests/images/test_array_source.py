"""Arrays and `tf.data.Dataset`s become splits of labeled images."""

import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers.images import COLORS
from helpers.tables import DataFrame, Series
from PIL import Image

from transfer.common.errors import InputError
from transfer.images.array_source import read_arrays

SIZE = (8, 8)


def noise(count=12, shape=(8, 8, 3), seed=0, dtype="uint8"):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape)).astype(dtype)


def labels(count=12, classes=2):
    return np.arange(count) % classes


def as_dataset(x, y):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((x, y))


# Arrays


@pytest.mark.parametrize("shape", [(8, 8, 3), (8, 8, 1), (8, 8)])
@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32"])
@pytest.mark.parametrize("column", [False, True])
def test_arrays_are_read(shape, dtype, column):
    x, y = noise(shape=shape, dtype=dtype), labels()
    found = read_arrays((x, y[:, None] if column else y))
    part = found.parts["train"]
    assert found.class_names == ["0", "1"] and list(found.parts) == ["train"]
    assert part.labels.tolist() == y.tolist() and part.names == [str(i) for i in range(12)]
    for i in range(12):
        rgb = np.broadcast_to(x[i].reshape(8, 8, -1), (8, 8, 3))
        assert np.array_equal(part.image(i, SIZE), rgb)


def test_arrays_with_a_test_set_are_read_as_keras_gives_them():
    train, test = (noise(), labels(classes=3)), (noise(5, seed=1), np.array([2, 1, 0, 1, 2]))
    found = read_arrays((train, test), class_names=["ant", "bee", "cat"])
    assert found.class_names == ["ant", "bee", "cat"] and list(found.parts) == ["train", "test"]
    assert found.parts["test"].labels.tolist() == [2, 1, 0, 1, 2]
    assert np.array_equal(found.parts["test"].images, test[0])
    assert found.parts["train"].names[:2] == ["train/0", "train/1"]
    assert found.parts["test"].names == [f"test/{i}" for i in range(5)]


def test_lists_are_accepted_as_arrays():
    x, y = noise(), labels()
    found = read_arrays([list(x), y.tolist()])
    assert (
        np.array_equal(found.parts["train"].images, x) and found.parts["train"].labels.tolist() == y.tolist()
    )
    assert len(read_arrays(([*x[:2]], [0, 1])).parts["train"]) == 2, "two images are not two splits"


def test_a_dict_names_the_splits():
    given = {"test": (noise(4), labels(4)), "train": (noise(), labels()), "val": (noise(3), labels(3))}
    found = read_arrays(given)
    assert {split: len(part) for split, part in found.parts.items()} == {"train": 12, "val": 3, "test": 4}
    assert found.parts["val"].names == ["val/0", "val/1", "val/2"]
    assert read_arrays({"train": (noise(), labels())}).parts["train"].names[0] == "0"


@pytest.mark.parametrize(("source", "message"), [
    ((noise(), labels(11)), r"12 images with labels of shape \(11,\)"),
    ((noise(), np.eye(2)[labels()] / 2), r"0 or 1 in each column .* other values, from 0 to 0\.5"),
    ((noise(), labels() - 1), r"whole numbers from 0.* Received: int64 with a minimum of -1"),
    ((noise(), labels() + 0.5), r"whole numbers .* Received: float64 with a minimum of 0\.5"),
    ((noise(), np.where(labels(), np.nan, 1)), "whole numbers .* Received: float64 with a minimum of nan"),
    ((noise(), np.array(["cat", None] * 6)), "a class name as the label of each image. Received: None"),
    ((noise(), np.array(["cat", " "] * 6)), "a class name as the label of each image. Received: ' '"),
    ((noise(), np.array(["cat", 3] * 6, object)), "a class name as the label of each image. Received: 3"),
    ((noise(dtype="float32") / 255, labels()), r"a maximum of 1; multiply by 255"),
    ((noise(dtype="float32") / 250, labels()), r"a maximum of 1\.02.*; multiply by 255"),
    ((noise() // 128, labels()), r"a maximum of 1; multiply by 255"),
    ((noise() > 99, labels()), "values True and False; multiply by 255"),
    ((noise(dtype="float32") / 127.5 - 1, labels()), r"rescale them by \(image \+ 1\) \* 127.5"),
    ((noise(dtype="float32") * 2 - 255, labels()), "pixels from 0 to 255, all finite. Received values from -255"),
    ((noise(dtype="int32") * 200, labels()), "pixels from 0 to 255.* more than 8 bits"),
    ((np.where(noise() > 250, np.nan, 9.0), labels()), "all finite. Received values that are NaN"),
    ((noise(shape=(8,)), labels()), r"shape \(N, H, W\).* Received: \(12, 8\)"),
    ((noise(shape=(3, 8, 8)), labels()), r"\(12, 3, 8, 8\)\. The channels are first: .*moveaxis\(images, 1, -1\)"),
    ((labels(), noise()), "the labels first. Swap them"),
    ((noise(), labels(), noise(5), labels(5)), "four arrays one by one. Group them in pairs"),
    ((noise(), noise(5), labels(), labels(5)), "four arrays one by one. Group them in pairs"),
    (["a.png", "b.png"], "a list of paths. Pass one folder, with train and test in it. Or write"),
    ((["a.png", "b.png"], [0, 1]), "a list of str. Write the paths and labels of the files to a CSV file"),
    ((np.array(["a.png", "b.png"]), [0, 1]), "Expected images of shape"),
    (([Image.new("P", (8, 8))] * 2, [0, 1]), "a list of Image"),
    (DataFrame({"path": ["a.png"], "label": [0]}), "DataFrame. Write its columns path and label to a CSV"),
    ((noise(shape=(2, 8, 8, 3)), labels()), r"Received: \(12, 2, 8, 8, 3\)"),
    ((noise(0), np.array([], int)), r"at least one\. Received: \(0, 8, 8, 3\)"),
    ((noise().astype(str), labels()), "values of type <U3; convert them"),
    (None, "Received: None"),
    (noise(), r"\(images, labels\), a tf\.data\.Dataset of .* Received: ndarray"),
    (([noise(1)[0], noise(1, (9, 9))[0]], [0]), "2 images with labels of shape"),
    (([noise(1)[0], noise(1, (9, 9, 7))[0]], [0, 1]), r"an array of shape \(9, 9, 7\)"),
    (([noise(1)[0], noise(1, (9, 9), dtype="f4")[0] * 9], [0, 1]), "more than 8 bits"),
    ({"train": (noise(), labels()), "test": (noise(2), ["a", "b"])}, "Received numbers and names. Use one kind"),
    ({"train": (noise(), labels()), "vall": 1}, r"Unknown split 'vall'\. Did you mean 'val'"),
    ({"image": noise(), "label": labels()}, "Unknown split 'image'.* Expected one of 'train', 'val', 'test'"),
    ({"test": (noise(), labels())}, "images for 'train'. Received: 'test'. Add the training"),
    ({}, "images for 'train'. Received: none"),
    ({"train": noise()}, "Expected a folder.* Received: ndarray"),
])  # fmt: skip
def test_invalid_arrays_are_refused_with_a_remedy(source, message):
    with pytest.raises(InputError, match=message):
        read_arrays(source)


@pytest.mark.parametrize(("names", "message"), [
    (["a"], "labels from 0 to 0.* Received a label 1"),
    (["a", "a"], "a different name for each class. Received: a, a"),
    ({0: "a", 1: "b"}, "class_names as a list, in the order of the labels. Received: a dict. Pass its values"),
    ({"a", "b"}, "class_names as a list, in the order of the labels. Received: a set"),
])  # fmt: skip
def test_class_names_that_do_not_match_the_labels_are_refused(names, message):
    with pytest.raises(InputError, match=message):
        read_arrays((noise(), labels()), class_names=names)


@pytest.mark.parametrize(("given", "names", "numbers"), [
    ([1, 2, 3, 1], ["1", "2", "3"], [0, 1, 2, 0]),
    ([0, 10, 2, 10], ["0", "2", "10"], [0, 2, 1, 2]),
    ([2.0, 1.0, 1.0, 2.0], ["1", "2"], [1, 0, 0, 1]),
    ([True, False, True, True], ["0", "1"], [1, 0, 1, 1]),
    (["dog", "cat ", "dog", "ant"], ["ant", "cat", "dog"], [2, 1, 2, 0]),
    (np.array([b"dog", b"cat", b"dog", b"cat"]), ["cat", "dog"], [1, 0, 1, 0]),
    (np.eye(3)[[2, 0, 1, 0]], ["0", "1", "2"], [2, 0, 1, 0]),
    (Series([7, 8, 7, 8]), ["7", "8"], [0, 1, 0, 1]),
    (Series(["b", "a", "b", "a"], dtype=object), ["a", "b"], [1, 0, 1, 0]),
    (np.array([3, 1, 3, 1], object), ["1", "3"], [1, 0, 1, 0]),
])  # fmt: skip
def test_labels_are_numbers_names_or_one_hot(given, names, numbers):
    found = read_arrays((noise(4), given))
    assert found.class_names == names and found.parts["train"].labels.tolist() == numbers
    assert found.parts["train"].labels.dtype == np.int64


def test_names_of_classes_choose_the_order_of_labels_that_are_names():
    found = read_arrays((noise(2), ["cat", "dog"]), class_names=["dog", "cat"])
    assert found.class_names == ["dog", "cat"] and found.parts["train"].labels.tolist() == [1, 0]
    with pytest.raises(InputError, match="Unknown class 'cat'"):
        read_arrays((noise(2), ["cat", "dog"]), class_names=["dog", "cats"])


def test_images_of_different_sizes_and_with_transparency_are_read():
    clear = np.full((8, 8, 4), 200, "uint8")
    clear[..., 3] = 0
    images = [noise(1)[0], noise(1, (9, 7))[0], clear]
    for given in (images, np.array([*images, None], object)[:3]):
        part = read_arrays((given, [0, 1, 0])).parts["train"]
        assert np.array_equal(part.image(0, SIZE), images[0])
        assert part.image(1, (9, 7))[..., 2].tolist() == images[1].tolist()
        assert (part.image(2, SIZE) == 255).all(), "transparent pixels are white, as in files"


def test_a_test_label_without_a_name_is_refused():
    with pytest.raises(InputError, match="Received a label 2"):
        read_arrays(((noise(), labels()), (noise(3), np.array([0, 1, 2]))), class_names="ab")


# Data sets


@pytest.mark.parametrize("shape", [(8, 8, 3), (8, 8, 1), (8, 8), (3, 8, 3), (8, 1)])
@pytest.mark.parametrize("batch", [None, 1, 5, 12])
@pytest.mark.parametrize("column", [False, True])
def test_data_sets_are_read_batched_or_not(shape, batch, column):
    x, y = noise(shape=shape), labels(classes=3)
    dataset = as_dataset(x, y[:, None] if column else y)
    found = read_arrays(dataset.batch(batch) if batch else dataset)
    part = found.parts["train"]
    assert part.labels.tolist() == y.tolist() and part.labels.dtype == np.int64
    assert found.class_names == ["0", "1", "2"] and part.names == [str(i) for i in range(12)]
    assert all(np.array_equal(part.images[i].reshape(shape), x[i]) for i in range(12))
    assert part.images[0].dtype == np.uint8
    assert np.array_equal(
        part.image(3, x.shape[1:3]), np.broadcast_to(x[3].reshape(*x.shape[1:3], -1), (*x.shape[1:3], 3))
    )


@pytest.mark.parametrize("dtype", ["float32", "float16", "int32"])
def test_pixels_are_rounded_to_integers(dtype):
    x = noise(dtype=dtype)
    shifted = np.clip(x + np.asarray(0.4, dtype), 0, 255)
    part = read_arrays(as_dataset(shifted, labels()).batch(4)).parts["train"]
    assert all(np.array_equal(part.images[i], x[i].astype("uint8")) for i in range(12))


def test_a_data_set_is_read_once_and_its_images_by_many_threads():
    import tensorflow as tf

    passes = []

    def draw():
        passes.append(1)
        yield from ((noise(1, (i + 1, 9, 3), seed=i)[0], i % 2) for i in range(40))

    signature = tf.TensorSpec((None, None, 3), tf.uint8), tf.TensorSpec((), tf.int32)
    part = read_arrays(tf.data.Dataset.from_generator(draw, output_signature=signature)).parts["train"]
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(part.images.__getitem__, [*range(40)] * 5))
    assert passes == [1]
    for i, image in enumerate(images):  # of different sizes
        assert np.array_equal(image, noise(1, (i % 40 + 1, 9, 3), seed=i % 40)[0])


def test_pairs_and_dicts_of_data_sets_are_splits():
    train, test = as_dataset(noise(), labels()), as_dataset(noise(5, seed=1), labels(5))
    found = read_arrays((train.batch(4), test))
    assert [len(part) for part in found.parts.values()] == [12, 5]
    assert found.parts["train"].names[11] == "train/11" and found.parts["test"].names[4] == "test/4"
    assert np.array_equal(found.parts["test"].images[4], noise(5, seed=1)[4])
    found = read_arrays({"val": test, "train": train, "test": (noise(2), [0, 1])})
    assert [(split, len(part)) for split, part in found.parts.items()] == [
        ("train", 12),
        ("val", 5),
        ("test", 2),
    ]


def test_class_names_of_data_sets_from_keras_are_used(color_folder):
    import keras

    train, val = keras.utils.image_dataset_from_directory(
        color_folder, image_size=(40, 40), batch_size=16, shuffle=False, validation_split=0.2, subset="both",
        seed=0, verbose=False,
    )  # fmt: skip
    found = read_arrays({"train": train, "val": val})
    assert found.class_names == ["blue", "green", "red"] and len(found.parts["train"]) == 72
    for part in found.parts.values():
        for i in range(len(part)):
            color = COLORS[found.class_names[part.labels[i]]]
            assert np.abs(part.image(i, (40, 40)).mean(axis=(0, 1)) - color).max() < 20
    assert read_arrays(train, class_names="xyz").class_names == ["x", "y", "z"]


def test_different_class_names_between_splits_are_refused():
    train, test = as_dataset(noise(), labels()), as_dataset(noise(), labels())
    train.class_names, test.class_names = ["ant", "bee"], ["bee", "ant"]
    with pytest.raises(
        InputError, match=r"same class names in every split\. Received: ant, bee in train and bee, ant in"
    ):
        read_arrays((train, test))
    assert read_arrays((train, test), class_names=["ant", "bee"]).class_names == ["ant", "bee"]


def test_infinite_data_sets_are_refused_at_once():
    def never():
        raise AssertionError("was read")

    for source in (as_dataset(noise(), labels()).repeat(), as_dataset(noise(), labels()).batch(4).repeat()):
        source.as_numpy_iterator = never
        with pytest.raises(InputError, match=r"data set that ends.*\.take\(N\)"):
            read_arrays(source)
    assert len(read_arrays(as_dataset(noise(), labels()).repeat().take(30)).parts["train"]) == 30


def test_every_split_is_validated_before_one_is_read():
    train, test = as_dataset(noise(), labels()), as_dataset(noise(), labels()).repeat()
    train.as_numpy_iterator = lambda: pytest.fail("was read")
    with pytest.raises(InputError, match="that ends"):
        read_arrays((train, test))


def elements(kind):
    import tensorflow as tf

    x, y = noise(), labels()
    return {
        "images alone": lambda: tf.data.Dataset.from_tensor_slices(x),
        "dicts": lambda: tf.data.Dataset.from_tensor_slices({"image": x, "label": y}),
        "weights": lambda: tf.data.Dataset.from_tensor_slices((x, y, y)),
        "nested": lambda: tf.data.Dataset.from_tensor_slices(({"image": x}, y)),
        "ragged": lambda: as_dataset(tf.ragged.stack([x[0], x[1, :4]]), [0, 1]),
        "scores": lambda: as_dataset(x, np.eye(2)[y] / 2),
        "probabilities": lambda: as_dataset(x, y.astype("float32") / 3),
        "no label": lambda: as_dataset(x, y - 1),
        "channels first": lambda: as_dataset(noise(shape=(3, 8, 8)), y).batch(4),
        "videos": lambda: as_dataset(noise(shape=(2, 8, 8, 3)), y).batch(2),
        "encoded": lambda: as_dataset(np.array([b"JPEG"] * 12), y),
        "batched twice": lambda: as_dataset(x, y).batch(2).batch(2),
        "fractions": lambda: as_dataset(x.astype("float32") / 255, y),
        "negative": lambda: as_dataset(x.astype("float32") - 128, y),
        "nan": lambda: as_dataset(np.where(x > 250, np.nan, 9.0), y),
        "empty": lambda: as_dataset(x, y).take(0),
    }[kind]()


@pytest.mark.parametrize(("kind", "message"), [
    ("images alone", r"data set of \(image, label\).* Received elements TensorSpec.*dataset\.map"),
    ("dicts", r"Received elements \{'image'"),
    ("weights", r"Received elements \(TensorSpec.*TensorSpec.*TensorSpec"),
    ("nested", r"Received elements \(\{'image'"),
    ("ragged", r"Received elements \(RaggedTensorSpec"),
    ("scores", "0 or 1 in each column of labels. Received other values, from 0 to 0.5"),
    ("probabilities", "whole numbers .* Received: float32"),
    ("no label", "a minimum of -1"),
    ("channels first", r"Received: \(4, 3, 8, 8\)\. The channels are first"),
    ("videos", r"Received: \(2, 2, 8, 8, 3\)"),
    ("encoded", "Expected images of shape"),
    ("batched twice", r"Received: \(2, 2, 8, 8, 3\)"),
    ("fractions", r"a maximum of 1; multiply by 255"),
    ("negative", "Received values from -128"),
    ("nan", "all finite. Received values that are NaN"),
    ("empty", "at least one image"),
])  # fmt: skip
def test_invalid_data_sets_are_refused_with_a_remedy(kind, message):
    with pytest.raises(InputError, match=message):
        read_arrays(elements(kind))


@pytest.mark.parametrize("batch", [None, 1, 5])
def test_labels_of_data_sets_may_be_one_hot_or_names(batch):
    x, y = noise(), labels(classes=3)
    for given, names in (
        (np.eye(3)[y], ["0", "1", "2"]),
        (np.array(["cat", "ant", "dog"])[y], ["ant", "cat", "dog"]),
    ):
        dataset = as_dataset(x, given)
        found = read_arrays(dataset.batch(batch) if batch else dataset)
        assert found.class_names == names
        expected = y if names[0] == "0" else np.array([1, 0, 2])[y]
        assert found.parts["train"].labels.tolist() == expected.tolist()


def test_a_black_image_among_others_is_accepted():
    x = noise()
    x[0] = 0
    assert len(read_arrays(as_dataset(x, labels())).parts["train"]) == 12


@pytest.mark.slow
def test_memory_does_not_grow_with_the_images():
    """3000 images of 100 KB, 300 MB, through a data set of batches."""
    code = """
        import resource
        import numpy as np
        import tensorflow as tf
        from transfer.images.array_source import read_arrays

        def draw(count):
            random = np.random.default_rng(0)
            for i in range(count):
                yield random.integers(0, 256, (183, 183, 3), "uint8"), i % 2

        def dataset(count):
            signature = tf.TensorSpec((183, 183, 3), tf.uint8), tf.TensorSpec((), tf.int64)
            return tf.data.Dataset.from_generator(draw, output_signature=signature, args=(count,)).batch(8)

        read_arrays(dataset(20))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        part = read_arrays(dataset(3000)).parts["train"]
        assert len(part) == 3000 and sum(len(part.images[i]) for i in range(3000)) == 3000 * 183
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout.split()[-1]) < 60
