"""The layout of the package as a law: who may import whom, and where TensorFlow and matplotlib may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import transfer

PACKAGE = Path(transfer.__file__).parent

# Rooms by floor; a room imports rooms of lower floors only.
FLOORS = [
    {"errors"},
    {"allocator", "clusters", "commands", "files"},
    {
        "augmentation",
        "cases",
        "export_check",
        "figures",
        "graphs",
        "pages",
        "pictures",
        "probes",
        "row_files",
        "run_folders",
        "sampling",
        "schedules",
        "scores",
        "shapes",
        "softmax_regression",
        "tables",
        "workers",
    }
    | {"openvino_runtime", "spool", "torch_file", "weight_files"},
    {
        "boundary",
        "curves",
        "data_report",
        "demo_cnn",
        "duplicates",
        "efficientnet_lite",
        "evaluation_plots",
        "export_serving",
        "exported_runtimes",
        "engines",
        "gradients",
        "heads",
        "shelf",
    }
    | {"jax_devices", "order", "recipes", "surgery"},
    {"backbones", "cache", "check_memory", "config", "explain", "python_batches", "splitting", "strategy"},
    {
        "array_source",
        "checking",
        "cuts",
        "explanation_plots",
        "manifest",
        "sources",
        "split_file",
        "tfds_records",
    },
    {"tfds_source"},
    {"datasets", "feature_shelf", "pipeline", "shared_pass"},
    {"feature_shards", "features", "runs", "validation"},
    {"beam_runner", "builders", "evaluation", "export_folders", "export_formats", "looks"},
    {
        "beam_features",
        "block_rates",
        "class_tree",
        "predictions",
        "screening",
        "transferability",
        "similarity",
        "suspects",
        "trials",
    },
    {"demo_plots", "expectations", "records", "screening_plots"},
    {"advice_report", "run_pages"},
    {"adviser"},
    {"checkpoints", "comparison", "plots", "training_plots"},
    {"training_run"},
    {"head_training", "review", "tail_training"},
    {"fine_tuning"},
    {"training"},
    {"rate_finder", "report"},
    {"advice", "evaluate", "export", "predict", "train"},
]
TENSORFLOW = {
    "clusters",
    "engines",
    "gradients",
    "strategy",
    "pipeline",
    "augmentation",
    "tfds_records",
    "tfds_source",
    "features",
    "export_formats",
    "export_serving",
    "exported_runtimes",
}
LIGHT = [
    "advice",
    "cache",
    "cases",
    "config",
    "datasets",
    "errors",
    "heads",
    "predict",
    "probes",
    "splitting",
    "train",
]


def rooms():
    return {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.glob("*.py"))}


def imported(tree):
    """Every module that a room names in an import, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            if node.module == "transfer":
                yield from (f"transfer.{alias.name}" for alias in node.names)


def edges():
    for room, tree in rooms().items():
        for module in imported(tree):
            if module.startswith("transfer."):
                yield room, module.split(".")[1]


def floor(room):
    return next(i for i, names in enumerate(FLOORS) if room in names)


def test_every_room_has_a_floor():
    assert set(rooms()) - {"__init__"} == set().union(*FLOORS)


@pytest.mark.parametrize(("room", "other"), sorted(set(edges())))
def test_imports_go_down(room, other):
    assert floor(other) < floor(room)


def test_tensorflow_is_imported_by_its_rooms_alone():
    found = {
        room
        for room, tree in rooms().items()
        for m in imported(tree)
        if m.split(".")[0].startswith("tensorflow")
    }
    assert found <= TENSORFLOW


def test_matplotlib_is_imported_by_rooms_of_plots_alone():
    assert {room for room, tree in rooms().items() for m in imported(tree) if m.startswith("matplotlib")} == {
        "demo_plots",
        "evaluation_plots",
        "explanation_plots",
        "figures",
        "plots",
        "screening_plots",
        "training_plots",
    }


def test_only_builders_and_training_compile():
    """Flags that change after `compile` are ignored, so whoever compiles must be whoever sets flags; training
    compiles nothing but its own copy of the head, of the tail behind a frozen part, and of a model for soft labels."""
    calls = {
        room
        for room, tree in rooms().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in {"compile", "compile_from_config"}
        and not (isinstance(node.func.value, ast.Name) and node.func.value.id == "re")
    }
    assert calls == {"builders", "head_training", "training_run"}


@pytest.mark.parametrize("room", LIGHT)
def test_light_rooms_import_without_tensorflow_keras_or_matplotlib(room):
    code = f"import sys, transfer.{room}; print(sorted({{'tensorflow', 'keras', 'matplotlib'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_table_of_contents_loads_every_name():
    assert len(transfer.__all__) > 20
    for name in transfer.__all__:
        assert getattr(transfer, name) is not None
    with pytest.raises(AttributeError):
        transfer.no_such_name  # noqa: B018


def test_importing_a_command_does_not_hide_the_function_of_its_name():
    code = (
        "import transfer.predict, transfer.evaluate, transfer\n"
        "from transfer.evaluate import main\n"
        "from transfer import evaluate\n"
        "print(*[callable(one) for one in (transfer.predict, transfer.evaluate, evaluate, main)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True True True True"


def test_files_and_functions_stay_short():
    for room, tree in rooms().items():
        assert len((PACKAGE / f"{room}.py").read_text(encoding="utf-8").splitlines()) <= 450, room
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = (node.end_lineno - body[0].lineno + 1) if body else 0
                assert lines <= 50, f"{room}.{node.name} has {lines} lines"
