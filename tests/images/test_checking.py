"""The check of images, and the report that it makes."""

import io

import numpy as np
import pytest
from PIL import Image

from transfer.images import checking
from transfer.images.checking import CheckedImage, check, check_images, make_report
from transfer.images.duplicates import find_duplicates
from transfer.images.splitting import SourceData, Split


def encoded(seed=0, size=(40, 30), kind="PNG", **options) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype="uint8")
    stream = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(stream, kind, **options)
    return stream.getvalue()


def upright(value) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def test_a_good_image_is_described():
    found = check(encoded(size=(40, 30), kind="JPEG"))
    assert found.problem == "" and len(found.digest) == 64 and len(found.hash) == 64
    assert found[3:8] == ("JPEG", "RGB", 40, 30, False)


def test_sizes_are_those_after_rotation():
    found = check(encoded(size=(40, 30), kind="JPEG", exif=upright(6)))
    assert (found.width, found.height, found.rotated) == (30, 40, True)
    assert not check(encoded(kind="JPEG", exif=upright(1))).rotated


def test_rotating_an_image_by_exif_keeps_it_a_duplicate():
    """A phone's photo is a duplicate of the same photo rotated by a program."""
    image = Image.open(io.BytesIO(encoded(size=(400, 300))))
    stream, turned = io.BytesIO(), image.transpose(Image.Transpose.ROTATE_90)
    turned.save(stream, "JPEG", exif=upright(6), quality=95)
    digests, hashes = zip(*[(c.digest, c.hash) for c in (check(encoded(size=(400, 300))), check(stream.getvalue()))],
                          strict=True)  # fmt: skip
    assert find_duplicates(digests, hashes).tolist() == [0, 0]


@pytest.mark.parametrize(("pixels", "mode"), [
    (np.full((4, 6), 9, "uint8"), "L"), (np.full((4, 6, 1), 9.0), "L"), (np.full((4, 6, 3), 9, "uint8"), "RGB"),
])  # fmt: skip
def test_arrays_are_described(pixels, mode):
    found = check(pixels)
    assert found[3:8] == ("array", mode, 6, 4, False)
    assert (found.low, found.high, found.single_color, found.extent) == (9, 9, True, None)


def test_results_keep_the_order_of_images_over_many_chunks(monkeypatch):
    monkeypatch.setattr(checking, "_CHUNK", 3)
    contents = [encoded(seed) if seed % 4 else b"broken" for seed in range(11)]
    assert check_images(contents) == [check(content) for content in contents]


def test_folders_devices_and_large_files_are_not_read(tmp_path, monkeypatch):
    assert check(str(tmp_path)).problem == "not a file"
    assert check("/dev/zero").problem == "not a file"
    (tmp_path / "large.png").write_bytes(encoded())
    monkeypatch.setattr(checking, "MAX_BYTES", 10)
    assert "are more than 10" in check(str(tmp_path / "large.png")).problem


# The report


def report_of(labels, *, parts=("train",), names=None, groups=(), skipped=(), **fields):
    """A report of made-up results; `fields` are lists with a value per image."""
    count = len(labels)
    names = names or [f"{i:02}.png" for i in range(count)]
    defaults = {
        "digest": [str(i) for i in range(count)], "hash": [bytes([i % 256, i // 256]) * 16 for i in range(count)],
        "format": ["JPEG"] * count, "mode": ["RGB"] * count, "width": [40] * count, "height": [30] * count,
    }  # fmt: skip
    values = {**defaults, **fields}
    checked = [CheckedImage("", **{key: value[i] for key, value in values.items()}) for i in range(count)]
    ends = np.linspace(0, count, len(parts) + 1).astype(int)
    found, by_part, ids = {}, {}, {}
    numbers = fields.get("numbers") or find_duplicates(values["digest"], [b""] * count)
    for part, start, end in zip(parts, ends, ends[1:], strict=False):
        found[part] = Split(
            names[start:end], np.array(labels[start:end]), names[start:end], list(groups[start:end])
        )
        by_part[part], ids[part] = checked[start:end], np.asarray(numbers)[start:end]
    classes = [f"class{i}" for i in range(max(labels) + 1)]
    return make_report(
        "made", SourceData(found, classes, skipped), checked=by_part, duplicate_ids=ids, splits=found
    )


def kinds(report):
    return [finding.kind for finding in report.findings]


def test_clean_data_have_no_findings():
    report = report_of([0, 1] * 10)
    assert report.findings == () and report.total == 20 and report.counts == {"train": (10, 10)}
    assert "No problems found." in report.to_text()


def test_formats_channels_and_sizes_are_counted():
    report = report_of(
        [0, 1] * 3,
        format=["PNG"] * 2 + ["JPEG"] * 4,
        mode=["L"] + ["RGB"] * 5,
        width=[10, 20, 30, 40, 50, 60],
    )
    assert list(report.formats.items()) == [("JPEG", 4), ("PNG", 2)]
    assert report.modes == {"RGB": 5, "L": 1}
    assert report.widths == (10, 35, 60) and report.heights == (30, 30, 30)


def test_duplicates_conflicts_and_shared_images_are_distinguished():
    digests = ["a", "a", "b", "b", "c", "d", "e", "f", "g", "h", "i", "c"]
    labels = [0, 0, 0, 1, 0, 1, 0, 1, 0, 1, 0, 0]
    report = report_of(labels, parts=("train", "test"), digest=digests)
    assert kinds(report) == ["conflicting_labels", "shared_images", "exact_duplicates"]
    conflict, shared, copies = report.findings
    assert conflict.names == ("02.png = 03.png",) and shared.names == ("04.png = 11.png",)
    assert len(copies.names) == 3 and all(one.exact for one in report.duplicates)


def test_near_duplicates_are_distinguished_from_exact_ones():
    numbers = [0, 0, 1, 2, 3, 4]
    ids = {"train": np.array(numbers)}
    part = Split(list("abcdef"), np.array([0, 0, 0, 1, 1, 1]), list("abcdef"))
    checked = {"train": [CheckedImage("", str(i), bytes([i]) * 32, "PNG", "RGB", 9, 9) for i in range(6)]}
    report = make_report(
        "made",
        SourceData({"train": part}, ["x", "y"]),
        checked=checked,
        duplicate_ids=ids,
        splits={"train": part},
    )
    assert [(one.names, one.exact) for one in report.duplicates] == [(("a", "b"), False)]
    assert "near_duplicates" in kinds(report) and "exact_duplicates" not in kinds(report)


def test_groups_in_two_provided_splits_are_reported():
    groups = ["ann", "bob", "cem", "dan", "ann", "eve"]
    report = report_of([0, 1] * 3, parts=("train", "test"), groups=groups)
    (finding,) = report.findings
    assert finding.kind == "shared_groups" and finding.names == ("ann",) and finding.serious
    assert report.groups == 5


def test_classes_with_too_few_different_images_are_reported():
    report = report_of([0] * 5 + [1, 1, 1] + [2, 2, 2, 2], digest=[*"abcde", *"fgg", *"hijk"])
    few = next(f for f in report.findings if f.kind == "small_classes")
    assert few.names == ("class1",), "three images, two of them different"


@pytest.mark.parametrize(("small", "found"), [(4, True), (5, False)])
def test_imbalance_is_reported_from_five_times_on(small, found):
    assert ("imbalance" in kinds(report_of([0] * 24 + [1] * small))) is found


def test_rare_formats_and_extreme_sizes_are_outliers():
    formats = ["JPEG"] * 198 + ["GIF", "JPEG"]
    report = report_of([0, 1] * 100, format=formats, width=[40] * 199 + [4000])
    (finding,) = report.findings
    assert finding.kind == "outliers" and not finding.serious
    assert finding.names == ("198.png (GIF among JPEG)", "199.png (4000x30 pixels)")
    assert report_of([0, 1] * 20, format=["JPEG"] * 30 + ["PNG"] * 10).outliers == (), "a quarter is not rare"


def test_formats_that_reveal_the_class_are_reported():
    report = report_of([0] * 20 + [1] * 20, format=["JPEG"] * 20 + ["PNG"] * 20)
    assert report.format_leak == "class0 is nearly all JPEG, class1 is nearly all PNG"
    assert report_of([0, 1] * 20, format=(["JPEG"] * 2 + ["PNG"] * 2) * 10).format_leak == ""


def test_blank_images_are_reported():
    report = report_of([0, 1] * 3, single_color=[True] + [False] * 5)
    assert report.blank == ("00.png",)
