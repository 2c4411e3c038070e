"""`find_images` reads images in every usual form, and `decode_image` never takes wrong values for pixels."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from helpers.tables import DataFrame, Series
from PIL import Image

from transfer.common.errors import InputError
from transfer.images.datasets import load_data
from transfer.images.decoding import BadImageError
from transfer.images.image_inputs import decode_image, find_images
from transfer.images.pixel_range import PixelRange

SIZE = (12, 10)
RGB = np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype("uint8")
GRAY = RGB[..., 0]
PHOTO = Image.fromarray(RGB)


def encoded(image=PHOTO, **options):
    stream = io.BytesIO()
    image.save(stream, "PNG", **options)
    return stream.getvalue()


def decoded(source):
    return [decode_image(image, SIZE)[0] for image in find_images(source)]


def problems(source):
    """Return the problem of each image, empty for readable ones."""
    found = []
    for image in find_images(source):
        try:
            decode_image(image, SIZE)
            found.append("")
        except BadImageError as error:
            found.append(str(error))
    return found


@pytest.fixture
def folder(tmp_path):
    for name in ("b/2.png", "b/1.PNG", "a/no_extension", "a/it's [1].png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encoded())
    (tmp_path / "b/notes.txt").write_text("no image")
    return tmp_path


def sources(name, folder):
    import tensorflow as tf

    file, pixels = str(folder / "b/2.png"), tf.data.Dataset.from_tensor_slices
    return {
        "a path": lambda: file,
        "a Path": lambda: Path(file),
        "a path as bytes": lambda: file.encode(),
        "a list": lambda: [file],
        "a Series": lambda: Series([file]),
        "an array of paths": lambda: np.array([file]),
        "a pattern": lambda: f"{folder}/b/*.png",
        "a pattern in a list": lambda: [f"{folder}/**/2.*"],
        "a name like a pattern": lambda: folder / "a/it's [1].png",
        "bytes": lambda: encoded(),
        "a bytearray": lambda: [bytearray(encoded())],
        "a memoryview": lambda: memoryview(encoded()),
        "an open file": lambda: open(file, "rb"),
        "a stream at its end": lambda: [_at_end(io.BytesIO(encoded()))],
        "a Pillow image": lambda: PHOTO,
        "a lazy Pillow image": lambda: [Image.open(file)],
        "a palette image": lambda: PHOTO.quantize(256).convert("P") and Image.open(file).convert("RGBA"),
        "an array": lambda: RGB,
        "int64": lambda: [RGB.astype("int64")],
        "float64": lambda: [RGB.astype("float64")],
        "a batch": lambda: RGB[None],
        "a batch in a list": lambda: [RGB[None]],
        "nested lists": lambda: [RGB.tolist()],
        "a generator": lambda: (RGB for _ in range(1)),
        "pairs with labels": lambda: [(RGB, 3)],
        "a tensor": lambda: tf.constant(RGB),
        "tensors": lambda: [tf.constant(RGB, "float32")],
        "bfloat16": lambda: [tf.constant(RGB.astype("float32") // 2 * 2, "bfloat16")],
        "a data set": lambda: pixels(RGB[None]),
        "a data set of batches": lambda: pixels(RGB[None]).batch(4),
        "a data set with labels": lambda: pixels((RGB[None], [3])).batch(1),
        "a data set of dicts": lambda: pixels({"image": RGB[None], "label": [3]}),
        "a data set of files": lambda: pixels([file]).batch(1),
        "encoded images in a data set": lambda: pixels([encoded()]),
    }[name]()


def _at_end(stream):
    stream.seek(0, 2)
    return stream


@pytest.mark.parametrize("name", [
    "a path", "a Path", "a path as bytes", "a list", "a Series", "an array of paths", "a pattern",
    "a pattern in a list",
    "a name like a pattern", "bytes", "a bytearray", "a memoryview", "an open file", "a stream at its end",
    "a Pillow image", "a lazy Pillow image", "a palette image", "an array", "int64", "float64", "a batch",
    "a batch in a list", "nested lists", "a generator", "pairs with labels", "a tensor", "tensors", "a data set",
    "a data set of batches", "a data set with labels", "a data set of dicts", "a data set of files",
    "encoded images in a data set",
])  # fmt: skip
def test_an_image_is_read_from(name, folder):
    [image] = decoded(sources(name, folder))
    np.testing.assert_array_equal(image, RGB)


def test_low_precision_is_read(folder):
    [image] = decoded(sources("bfloat16", folder))
    np.testing.assert_allclose(image.astype(int), RGB, atol=2)


@pytest.mark.parametrize("shape", [(10, 10), (10, 10, 1)])
def test_gray_images_alone_and_in_batches(shape):
    gray = RGB[:10, :, 0].reshape(shape)
    for source, count in ((gray, 1), (np.stack([gray] * 5), 5), ([gray], 1)):
        images = [decode_image(image, (10, 10))[0] for image in find_images(source)]
        assert len(images) == count and all((image == RGB[:10, :, :1]).all() for image in images)


@pytest.mark.parametrize("shape", [(64, 64, 13), (145, 145, 200), (2, 2, 7)])
def test_an_image_of_many_bands_is_not_a_batch_of_gray_images(shape):
    [problem] = problems([np.zeros(shape)])
    assert f"an array of shape {shape}" in problem
    with pytest.raises(InputError, match="not \\(height, width, 3\\)"):
        list(find_images(np.zeros(shape)))


def test_transparency_is_white_and_orientation_is_applied():
    clear = np.dstack([RGB, np.zeros(SIZE, "uint8")])
    assert all((image == 255).all() for image in decoded([clear, Image.fromarray(clear)]))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned = Image.open(io.BytesIO(encoded(exif=exif)))
    np.testing.assert_array_equal(decoded([turned])[0], RGB[::-1, ::-1])
    assert turned.getexif()[0x0112] == 3, "the user's image does not change"


def test_folders_are_searched_for_images_of_any_name(folder):
    expected = ["a/it's [1].png", "a/no_extension", "b/1.PNG", "b/2.png"]
    for source in (folder, [folder], [folder / "a", folder / "b"], f"{folder}/[ab]"):
        assert [Path(image).relative_to(folder).as_posix() for image in find_images(source)] == expected


def test_files_of_other_formats_in_a_folder_are_reported(tmp_path):
    (tmp_path / "1.png").write_bytes(encoded())
    (tmp_path / "2.psd").write_bytes(b"8BPS" + bytes(40))
    assert [bool(problem) for problem in problems(tmp_path)] == [False, True]


def test_splits_of_data_are_read(color_folder):
    data = load_data(color_folder)
    assert [Path(path).relative_to(color_folder).as_posix() for path in find_images(data.test)] == list(
        data.test.names
    )


@pytest.mark.parametrize(("image", "problem"), [
    (RGB / 255, r"a maximum of 1; multiply by 255"),
    ((RGB / 255).astype("float16"), "multiply by 255"),
    (RGB / 240, "a maximum of 1.06.*; multiply by 255"),
    (RGB / 127.5 - 1, r"rescale them by \(image \+ 1\) \* 127.5"),
    (RGB / 255 - 0.5, "rescale"),
    (RGB - 128.0, "values from -128.0 to .* rescale or clip"),
    (RGB > 99, "True and False; multiply by 255"),
    (RGB.astype("int64") // 128, "multiply by 255"),
    (RGB.astype("uint16") * 257, "more than 8 bits"),
    (RGB * 1e9, "rescale"),
    (np.where(RGB > 250, np.nan, 9.0), "NaN or infinite"),
    (np.where(RGB > 250, np.inf, 9.0), "NaN or infinite"),
    (RGB.astype(complex), "type complex128"),
    (np.moveaxis(RGB, -1, 0), r"\(3, 12, 10\), with the channels first; move them last by np.moveaxis\(image, 0, -1\)"),
    (RGB[..., :2], r"an array of shape \(12, 10, 2\), not \(height, width, 3\)"),
    (RGB[0], r"an array of shape \(10, 3\)"),
    (np.zeros((0, 8, 3)), r"an array of shape \(0, 8, 3\)"),
    (np.float32(3), "an array of shape"),
    (RGB[0].tolist(), "not an image but list"),
    (None, "not an image but None"),
    (7, "not an image but int"),
    (float("nan"), "not an image but float"),
    (io.StringIO("text"), "open it with mode 'rb'"),
    (b"?", "not an image of a known format"),
    (b"", "not an image|empty"),
    ("no/such.png", "no such file"),
    ("https://example.com/cat.jpg", "a URL; download the image first"),
    (Path("https://example.com/cat.jpg"), "a URL; download the image first"),
    ("*.nothing", "no such file"),
    ("x" * 5000, "no such file"),
    ("a\0b.png", "no such file"),
])  # fmt: skip
def test_one_bad_image_does_not_stop_the_others(image, problem):
    [bad, good] = problems([image, RGB])
    assert re.search(problem, bad) and good == ""


def test_16_bit_arrays_use_the_range_of_the_training_images():
    deep = RGB.astype("uint16") * 16  # 12 bits
    for image in (deep, *find_images(deep), *find_images(deep[None])):
        np.testing.assert_array_equal(decode_image(image, SIZE, pixel_range=PixelRange(0, 255 * 16))[0], RGB)
        with pytest.raises(BadImageError, match="more than 8 bits"):
            decode_image(image, SIZE)
    assert "use at most 1/8" in decode_image(RGB.astype("uint16"), SIZE, pixel_range=PixelRange(0, 65535))[1]


def test_black_images_and_dark_images_in_8_bits_are_images():
    dark = np.ones((*SIZE, 3), "uint8")
    assert problems([np.zeros((*SIZE, 3)), dark, dark * 0]) == ["", "", ""]
    batch = np.stack([RGB.astype("float32"), np.full((*SIZE, 3), 0.6, "float32")])
    assert [image.max() for image in decoded(batch)] == [RGB.max(), 1], "the images of a batch have one range"
    assert decoded(dark)[0].max() == 1


@pytest.mark.parametrize(("source", "message"), [
    (RGB[None] / 255, "Expected pixels from 0 to 255. Received a maximum of 1; multiply by 255"),
    (RGB / 255, "multiply by 255"),
    (np.ones((3, *SIZE, 3), "uint8"), "multiply by 255"),
    (np.moveaxis(RGB, -1, 0), "channels first"),
    (np.moveaxis(RGB[None], -1, 1), r"The channels are first: .*np.moveaxis\(images, 1, -1\)"),
    (np.zeros((2, 2, *SIZE, 3)), r"Received.* \(2, 2, 12, 10, 3\)"),
    (None, "Received: None. Pass a list"),
    (5, "Received: int. Pass a list"),
    ({"path": "a.png"}, "Received: dict. Pass one column"),
    (DataFrame({"path": ["a.png"]}), r"Pass one column of it, such as table\['path'\]"),
    ((RGB[None], np.array([1])), "without their labels; evaluate takes both"),
    ((RGB[None], [1]), "without their labels"),
    ("https://example.com/cat.jpg", "a URL: https://example.com/cat.jpg. Download"),
    ("*.nothing", "files that match '\\*.nothing'. Found none"),
    ("/no/such/folder", "does not exist"),
])  # fmt: skip
def test_sources_without_images_are_refused_with_a_remedy(source, message):
    with pytest.raises(InputError, match=message):
        list(find_images(source))


def test_more_sources_without_images(color_folder, tiny, folder):
    import tensorflow as tf

    data = load_data(color_folder)
    for source, message in (
        (data, "such as data.test"),
        (tiny, "The run comes first"),
        (tf.data.Dataset.from_tensors(RGB).repeat(), "Received an infinite one"),
        (folder / "b/2.pgn", r"does not exist: .* Did you mean .*2\.png"),
    ):
        with pytest.raises(InputError, match=message):
            list(find_images(source))


def test_two_images_are_not_images_and_labels():
    assert problems((RGB, GRAY)) == ["", ""] and problems([GRAY, RGB]) == ["", ""]


def test_a_tuple_of_images_in_a_list_does_not_lose_all_but_the_first(folder):
    files = tuple(map(str, sorted(folder.rglob("*.png"))[:2]))
    for given in ([files], [(RGB, RGB)], [(RGB, Image.fromarray(RGB))]):
        assert problems(given) == ["not an image but tuple"]
    assert problems([(RGB, 1), (RGB, "cat")]) == ["", ""]
