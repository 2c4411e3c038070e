"""A figure, explanation or page that fails is logged and left out; the run stays complete."""

import importlib
import inspect
import pkgutil
import shutil
from pathlib import Path

import pytest

import transfer
from transfer.adviser.label_issues import label_issues_of
from transfer.cases.builders import small_similar
from transfer.config import TrainConfig
from transfer.evaluation.evaluate import evaluate
from transfer.images.datasets import load_data
from transfer.networks.backbones import load_backbone
from transfer.results import run_writer
from transfer.results.finished_runs import load_run
from transfer.results.run_figures import run_drawings
from transfer.results.run_metrics import collect_metrics
from transfer.training.fit import fit

FIGURES = {
    "learning_curves",
    "network",
    "confusion_matrix",
    "classes",
    "predictions",
    "blocks",
}


def drawing_functions():
    """Return module and name of every function that returns figures, and of every explanation."""
    found = []
    for info in pkgutil.walk_packages(transfer.__path__, "transfer."):
        if not info.name.startswith(("transfer.results.", "transfer.evaluation.", "transfer.training.")):
            continue
        module = importlib.import_module(info.name)
        for name, function in inspect.getmembers(module, inspect.isfunction):
            draws = "Figure" in str(function.__annotations__.get("return"))
            explains = info.name.endswith("explanations") and not name.startswith("_")
            if function.__module__ == info.name and (draws or explains):
                found.append((info.name, name))
    return found


@pytest.fixture(scope="module")
def results(shuffled_folder, tmp_path_factory):
    """A trained model whose images may be removed."""
    folder = tmp_path_factory.mktemp("figures") / "data"
    shutil.copytree(shuffled_folder, folder)
    data = load_data(folder)
    model = small_similar(load_backbone("DemoCNN", image_size=48), data.num_classes)
    training, evaluation = fit(model, data), evaluate(model, data)
    assert len(evaluation.mistakes)
    return run_writer.RunResults(
        model=model,
        config=TrainConfig(data=str(folder), model="DemoCNN", case="small-similar"),
        data=data,
        training=training,
        evaluation=evaluation,
        metrics={**collect_metrics(model, data, training, evaluation), "model": "DemoCNN"},
        label_issues=label_issues_of(evaluation),
        seconds=1.0,
    )


def written(folder, results):
    """Write a run; return the names of its figures."""
    folder.mkdir()
    run_writer.write_run(folder, results)
    run_writer.write_report(folder, run_drawings(results), thumbnail=results.data.thumbnail)
    assert load_run(folder).class_names == results.data.class_names
    assert not [path.name for path in folder.iterdir() if "partial" in path.name]
    return {path.stem for path in folder.glob("*.png")}


def test_the_list_of_drawing_functions_has_those_of_a_run():
    names = {name for _, name in drawing_functions()}
    assert names >= {
        "confusion_matrix",
        "networks_by_blocks",
        "heat_sheet",
        "grad_cam",
        "strongest_responses",
    }


@pytest.mark.parametrize(("module", "name"), drawing_functions())
def test_a_drawing_function_that_fails_loses_only_its_figures(
    module, name, results, tmp_path, monkeypatch, caplog
):
    def fail(*args, **options):
        raise MemoryError(f"no memory for {name}")

    monkeypatch.setattr(importlib.import_module(module), name, fail)
    missing = (FIGURES | {"mistakes"}) - written(tmp_path / "run", results)
    page = (tmp_path / "run" / "report.html").read_text()
    assert all(f'alt="{word}' not in page for word in missing) and (tmp_path / "run" / "README.md").is_file()
    lines = [record.getMessage() for record in caplog.records if "Left out" in record.getMessage()]
    assert all(f"no memory for {name}" in line and "\n" not in line for line in lines)


def test_fonts_that_cannot_be_read_lose_only_the_figures(results, tmp_path, monkeypatch):
    monkeypatch.setattr("matplotlib.backends.backend_agg.get_font", lambda *args, **options: 1 / 0)
    assert not written(tmp_path / "run", results)
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize("name", ["write_page", "write_card"])
def test_a_page_that_fails_does_not_lose_the_other_files(name, results, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(run_writer, name, lambda *args: 1 / 0)
    assert written(tmp_path / "run", results) >= FIGURES
    assert "ZeroDivisionError" in caplog.text


def test_ctrl_c_in_a_figure_is_not_a_failed_figure(results, tmp_path, monkeypatch):
    def interrupted(*args):
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("TensorFlow hides the interrupt")

    monkeypatch.setattr("transfer.evaluation.evaluation_plots.confusion_matrix", interrupted)
    with pytest.raises(KeyboardInterrupt):
        written(tmp_path / "run", results)
    assert load_run(tmp_path / "run").metrics["num_classes"] == 3


def test_missing_images_lose_only_the_figures_that_show_them(results, tmp_path, caplog):
    shutil.rmtree(results.config.data)  # last: the other tests need the images
    figures = written(tmp_path / "run", results)
    assert figures == FIGURES - {"predictions", "blocks"}
    assert Path(results.config.data).name in caplog.text and "is gone" in caplog.text
    assert (tmp_path / "run" / "report.html").is_file()
