"""The report of a data check as text, JSON and an HTML page."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest
from helpers.data_reports import duplicates, report

from transfer.common.errors import install_hint
from transfer.images.data_report import DataReport

CHANGES = {
    "skipped": ({"skipped": (("a.jpg", "empty"),)}, True, "Skipped 1 image that", "a.jpg (empty)"),
    "formats": (
        {"skipped": tuple((f"{i}.dcm", f"DICOM needs pydicom: {install_hint('formats')}") for i in range(214))}, True,
        f"Skipped 214 images: DICOM needs pydicom: {install_hint('formats')}.", "3.dcm",
    ),
    "source": ({"notes": (("The classes are years.", True),)}, True, "The classes are years.", "years"),
    "conflicting_labels": (
        {"duplicates": (duplicates("a", "b", classes=["cat", "dog"]),)}, True,
        "1 image has conflicting labels: used for training only. Please fix its label.", "a = b",
    ),
    "shared_images": (
        {"duplicates": (duplicates("a", "b", splits=["train", "test"]),)}, True,
        "1 image in more than one of the provided splits", "a = b",
    ),
    "shared_groups": ({"shared_groups": ("ann", "bob"), "groups": 9}, True, "2 of 9 groups in more than one", "ann"),
    "small_classes": ({"small_classes": ("dog",)}, True, "1 of 2 classes with fewer than 3", "dog"),
    "similar_class_names": (
        {"class_names": ("Fire bus", "fire_bus")}, True, "differ only in case", "'Fire bus' = 'fire_bus'"
    ),
    "imbalance": ({"counts": {"train": (70, 10)}}, False, "Class cat has 7 times as many", "--class-weights"),
    "exact_duplicates": (
        {"duplicates": (duplicates("a", "b"), duplicates("c", "d"))}, False,
        "Found 2 pairs of exact duplicates; each pair stays in one split.", "c = d",
    ),
    "near_duplicates": (
        {"duplicates": (duplicates("a", "b", "c", exact=False),)}, False,
        "Found 1 set of near-duplicates; it stays in one split.", "a = b = c",
    ),
    "outliers": (
        {"outliers": (("a.gif", "GIF among JPEG"),)}, False, "1 image with an unusual format", "a.gif (GIF among JPEG)"
    ),
    "blank": ({"blank": ("a", "b")}, False, "2 images with a single color", "a"),
    "format_leak": ({"format_leak": "cat is nearly all PNG"}, False, "reveal the class: cat", "nearly all PNG"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "changes", "serious", "sentence", "example"), [(k, *v) for k, v in CHANGES.items()]
)
def test_every_finding_is_in_text_json_and_page(kind, changes, serious, sentence, example):
    made = report(**changes)
    finding = next(f for f in made.findings if f.kind == kind)
    assert finding.serious is serious
    line = next(line for line in made.to_text().splitlines() if sentence in line)
    assert line.startswith("! " if serious else "- ") and example in made.to_text()
    assert kind in [f["kind"] for f in json.loads(made.to_json())["findings"]]
    assert example in text_of(made.to_html())


def test_serious_findings_come_first():
    made = report(outliers=(("a", "x"),), skipped=(("b", "empty"),), blank=("c",), small_classes=("dog",))
    assert [f.serious for f in made.findings] == [True, True, False, False]


def test_long_lists_are_cut_in_text_and_whole_in_json():
    made = report(skipped=tuple((f"{i}.jpg", "empty") for i in range(1000)))
    assert "4.jpg" in made.to_text() and "5.jpg" not in made.to_text() and "and 995 more" in made.to_text()
    assert len(json.loads(made.to_json())["skipped"]) == 1000
    assert "and 800 more" in made.to_html()


def test_the_table_adds_up():
    lines = report().to_text().splitlines()
    assert lines[0].split() == ["photos:", "2", "classes", "train", "val", "test"]
    assert lines[1].split() == ["cat", "10", "1", "2"] and lines[3].split() == ["total", "18", "2", "4"]


def test_of_many_classes_the_largest_and_smallest_are_shown():
    counts = tuple(range(1, 101))
    text = report(class_names=tuple(f"c{i}" for i in range(100)), counts={"train": counts}).to_text()
    assert "c99" in text and "c0 " in text and "c50" not in text and "5,050" in text


def test_facts_are_in_the_text():
    text = report(rotated=3, groups=7, ignored=("a.txt", "b.txt")).to_text()
    for fact in ("JPEG 24", "RGB 20, L 4", "10 to 4,000 pixels, median 20", "3 images, by EXIF data", "groups    7",
                 "2 other files"):  # fmt: skip
        assert fact in text


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.words, self.images = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attributes))

    def handle_data(self, data):
        self.words.append(data)


def parsed(html) -> Page:
    page = Page()
    page.feed(html)
    return page


def text_of(html) -> str:
    return " ".join(" ".join(parsed(html).words).split())


def test_names_cannot_break_the_page():
    nasty = "<script>alert(1)</script>&\"'.jpg"
    html = report(skipped=((nasty, "empty"),), class_names=("<b>cat", "dog"), name="<i>").to_html()
    assert "script" not in parsed(html).tags and nasty in text_of(html)


def test_the_page_shows_images_of_interest_and_needs_nothing_else():
    made = report(duplicates=(duplicates("a", "b", "c"),), outliers=(("o", "GIF among JPEG"), ("gone", "x")))
    images = {name: np.full((8, 8, 3), 9, "uint8") for name in "abo"}
    page = parsed(made.to_html(images.get))
    assert [image["alt"] for image in page.images] == ["a", "b", "o: GIF among JPEG"]
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.images)
    assert not {"script", "link"} & set(page.tags)
    assert not parsed(made.to_html()).images


def test_a_page_without_training_images_is_complete():
    assert "photos" in report(counts={"train": (0, 0), "val": (0, 0), "test": (0, 0)}).to_html()


def test_duplicates_in_several_splits_do_not_claim_to_stay_in_one():
    made = report(duplicates=(duplicates("a", "b", splits=["train", "test"]), duplicates("c", "d")))
    assert "Found 2 pairs of exact duplicates.\n" in made.to_text()


def test_reports_of_version_0_1_can_be_read():
    made = report(
        rotated=2, duplicates=(duplicates("a", "b"),), shared_groups=("g",), outliers=(("o", "x"),),
        format_leak="cat is nearly all PNG", small_classes=("dog",),
    )  # fmt: skip
    values = json.loads(made.to_json())
    assert DataReport.from_dict(values) == made
    old = {"rotated": "turned", "duplicates": "same", "shared_groups": "split_groups", "outliers": "odd",
           "format_leak": "format_tells", "small_classes": "few"}  # fmt: skip
    assert DataReport.from_dict({old.get(key, key): value for key, value in values.items()}) == made


@pytest.mark.parametrize("kind", ["blank", "low_contrast"])
def test_images_without_contrast_are_serious_if_they_are_half_of_all(kind):
    few, many = (report(**{kind: tuple(f"{i}.png" for i in range(count))}) for count in (11, 12))
    assert [(one.kind, one.serious) for one in few.findings] == [(kind, False)]
    assert [(one.kind, one.serious) for one in many.findings] == [(kind, True)]
