"""Reports are complete, safe, self-contained and accessible; some tests need a browser."""

import csv
import json
import re
import shlex
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers.images import STRANGE

from transfer.common.pages import render
from transfer.parsing import parse_arguments
from transfer.report import main
from transfer.results.file_names import FIGURES
from transfer.results.model_card import model_card
from transfer.results.prediction_files import read_predictions, write_predictions
from transfer.results.run_comparison import comparison_page
from transfer.results.run_pages import evaluation_page, run_page
from transfer.results.run_records import read_record

BROWSERS = ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome")
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")


class Page(HTMLParser):
    """Tags with their attributes, and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


OTHER_TASKS = {"labels", "co_occurrence", "values", "head_scores"}
"""Figures of tasks other than single labels."""


@pytest.fixture(scope="module")
def page(strange_run):
    return Page((strange_run / "report.html").read_text())


def test_every_part_of_the_run_is_on_its_page(page, strange_run):
    ids = {attributes.get("id") for attributes in page.all("section")}
    assert ids == {"network", "advice", "test", "mistakes", "blocks", "training", "data", "reproduce"}
    assert {a["href"] for a in page.all("a")} == {f"#{name}" for name in ids}
    metrics = json.loads((strange_run / "metrics.json").read_text())
    assert f"{metrics['test_accuracy']:.1%}" in page.text
    for word in ("python -m transfer.train", "keras", "MB", "estimated", "Precision", *STRANGE):
        assert word.lower() in page.text.lower()


def test_the_page_loads_nothing_else(strange_run, page):
    for attributes in (attributes for _, attributes in page.tags):
        for name in ("src", "href", "srcset", "action", "data"):
            assert attributes.get(name, "#").startswith(("data:image/png;base64,", "#"))
        assert not any(name.startswith("on") for name in attributes)
    assert not page.all("script") and not page.all("link") and not page.all("iframe")
    text = (strange_run / "report.html").read_text()
    assert "@import" not in text and "url(" not in text


def test_names_are_text_and_never_markup(page, strange_run):
    tags = {tag for tag, _ in page.tags}
    assert "b" not in tags and "i" not in tags
    assert all("onerror" not in attributes and "onmouseover" not in attributes for _, attributes in page.tags)
    html = (strange_run / "report.html").read_text()
    assert "<b onmouseover" not in html and "&lt;b onmouseover" in html
    card = (strange_run / "README.md").read_text()
    assert "<b onmouseover" not in card and "&lt;b onmouseover" in card


def test_every_image_has_a_description_and_every_table_a_header(page):
    assert len(page.all("img")) >= len(set(FIGURES) - OTHER_TASKS) - 2
    assert all(len(image.get("alt", "")) > 10 for image in page.all("img"))
    assert all(head.get("scope") in ("row", "col") for head in page.all("th"))
    assert page.all("html") == [{"lang": "en"}] and len(page.all("main")) == len(page.all("h1")) == 1
    assert any("width=device-width" in meta.get("content", "") for meta in page.all("meta"))


def test_a_run_has_exactly_the_known_figures(strange_run):
    assert {file.stem for file in strange_run.glob("*.png")} == set(FIGURES) - OTHER_TASKS - {"calibration"}


def test_the_page_says_why_a_small_test_set_has_no_reliability_diagram(page, strange_run):
    assert len(read_record(strange_run).evaluation.labels) < 100
    assert "reliability diagram (calibration) needs 100 images or more" in page.text


def test_the_command_on_the_page_repeats_the_training(strange_run):
    record = read_record(strange_run)
    page = Page(run_page(record))
    assert record.config.command.split()[2] == "transfer.train"
    line = next(line for line in page.text.splitlines() if line.startswith("python -m transfer.train"))
    assert parse_arguments(shlex.split(line)[3:]) == record.config


def test_csv_files_hold_no_formulas(strange_run):
    for name in ("predictions.csv", "split.csv"):
        with (strange_run / name).open(newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert any("=" in cell for cell in cells)
        assert not any(cell.startswith(("=", "+", "-", "@")) for cell in cells)


def test_wrong_labels_are_reported_as_label_issues(strange_run):
    found = json.loads((strange_run / "evaluation.json").read_text())
    assert found["accuracy"] == json.loads((strange_run / "metrics.json").read_text())["test_accuracy"]
    for one in found["label_issues"]:
        number = int(re.findall(r"\d+", one["name"])[-1])
        assert number % 9 == 4  # these are mislabeled


def test_the_report_is_written_again_from_the_files(strange_run, tmp_path, capsys):
    copy = Path(shutil.copytree(strange_run, tmp_path / "strange"))
    before = (copy / "report.html").read_text()
    (copy / "report.html").unlink()
    assert main([str(copy)]) == 0
    assert (copy / "report.html").read_text() == before
    (copy / "advice.json").unlink()
    (copy / "blocks.png").unlink()
    assert main([str(copy)]) == 0
    ids = {attributes.get("id") for attributes in Page((copy / "report.html").read_text()).all("section")}
    assert "advice" not in ids and "blocks" not in ids and "test" in ids


def test_a_report_without_the_images_of_the_data_is_written_with_a_warning(strange_run, tmp_path, capsys):
    copy = Path(shutil.copytree(strange_run, tmp_path / "strange"))
    config = yaml.safe_load((copy / "config.yaml").read_text())
    (copy / "config.yaml").write_text(yaml.safe_dump({**config, "data": "gone"}))
    assert main([str(copy)]) == 0
    assert "shows no images" in capsys.readouterr().err


def test_runs_are_compared(strange_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    other = Path(shutil.copytree(strange_run, tmp_path / "other"))
    config = yaml.safe_load((other / "config.yaml").read_text())
    (other / "config.yaml").write_text(yaml.safe_dump({**config, "seed": 7}))
    found = read_predictions(other / "predictions.csv")
    worse = np.concatenate([found.probabilities[:-6], np.roll(found.probabilities[-6:], 1, axis=1)])
    write_predictions(other / "predictions.csv", replace(found, probabilities=worse))
    assert main([str(strange_run), str(other)]) == 0
    page = Page(Path("comparison.html").read_text())
    assert "seed" in page.text and "7" in page.text and "McNemar" in page.text
    assert len([image for image in page.all("img") if "Confusion" in image["alt"]]) == 2
    first, second = (read_record(place).evaluation.accuracy for place in (strange_run, other))
    assert f"{first:.1%}" in page.text and f"{second:.1%}" in page.text
    twice = comparison_page([read_record(strange_run)] * 2)
    assert "strange (1)" in twice and "strange (2)" in twice


def test_a_folder_that_is_not_a_run_gets_no_report(tmp_path, capsys):
    assert main([str(tmp_path / "nothing")]) == 2
    assert "model.keras" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.json", {}),
        ("metrics.json", {"case": "small-similar", "cut": 3}),
        ("data.json", {"name": "x"}),
        ("advice.json", {"reason": ""}),
        ("evaluation.json", {"label_issues": 7}),
        ("evaluation.json", {"label_issues": [{"name": "x"}]}),
    ],
)
def test_files_with_missing_values_are_reported_and_change_nothing(
    name, content, strange_run, tmp_path, capsys
):
    copy = Path(shutil.copytree(strange_run, tmp_path / "strange"))
    (copy / name).write_text(json.dumps(content))
    before = (copy / "report.html").read_bytes(), (copy / "README.md").read_bytes()
    assert main([str(copy)]) == 2
    messages = capsys.readouterr().err.strip().splitlines()
    assert str(copy) in messages[-1] or "report of a data check" in messages[-1]
    assert ((copy / "report.html").read_bytes(), (copy / "README.md").read_bytes()) == before
    assert main([str(copy), str(strange_run), "--output", str(tmp_path / "both.html")]) in (0, 2)
    assert not list(tmp_path.glob(".both*"))


def test_a_run_without_a_test_has_a_page_and_a_card(color_folder, tmp_path):
    from transfer.train import main as train

    quick = ["--image-size", "32", "--case", "small-similar", "--strategy", "default", "--test", "0"]
    assert train(["--data", str(color_folder), *quick, "--output", str(tmp_path / "run")]) == 0
    page = Page((tmp_path / "run" / "report.html").read_text())
    ids = {attributes.get("id") for attributes in page.all("section")}
    assert ids == {"network", "training", "data", "reproduce"}
    assert "no test images" in (tmp_path / "run" / "README.md").read_text()
    assert "no test images" in comparison_page([read_record(tmp_path / "run")] * 2)


def test_the_card_has_the_header_that_hubs_read(strange_run):
    card = model_card(read_record(strange_run))
    _, header, body = card.split("---\n", 2)
    found = yaml.safe_load(header)
    assert found["library_name"] == "keras" and found["pipeline_tag"] == "image-classification"
    (result,) = found["model-index"][0]["results"]
    accuracy = json.loads((strange_run / "metrics.json").read_text())["test_accuracy"]
    assert result["metrics"][0] == {"type": "accuracy", "value": round(accuracy, 4)}
    for heading in ("Intended use", "Data", "Evaluation", "Limits", "Training"):
        assert f"## {heading}" in body
    assert f"{accuracy:.1%}" in body and "95% interval" in body


def test_templates_escape_what_they_show():
    assert "&lt;i&gt;" in render("page.html", title="<i>", parts=["<i>"]) and "<i>" not in render(
        "page.html", title="<i>", parts=["<i>"]
    )


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    place = next((p for p in BROWSERS if Path(p).exists()), None)
    if place is None:
        pytest.skip("no Chromium")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=place, args=list(QUIET))
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(strange_run, tmp_path_factory):
    record = read_record(strange_run)
    folder = tmp_path_factory.mktemp("pages")
    texts = {
        "run": run_page(record),
        "comparison": comparison_page([record, record]),
        "evaluation": evaluation_page("strange", record.evaluation, (), {}),
    }
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text)
    return folder


@pytest.mark.parametrize("name", ["run", "comparison", "evaluation"])
@pytest.mark.parametrize(("scheme", "width"), [("light", 1100), ("dark", 1100), ("light", 390)])
def test_in_a_browser(name, scheme, width, browser, pages):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    requests, messages = [], []
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: messages.append(message.text))
    page.on("dialog", lambda dialog: messages.append(dialog.message))
    page.goto(f"file://{pages / name}.html")
    assert page.evaluate("document.documentElement.scrollWidth") <= width  # nothing sticks out
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == [] and messages == []
    assert len(page.screenshot()) > 5000
    page.close()
