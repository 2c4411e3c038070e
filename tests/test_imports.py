"""The rules for imports between packages, for the use of TensorFlow and matplotlib, and for the length of code."""

import ast
import importlib.util
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import transfer

PACKAGE = Path(transfer.__file__).parent

# A package imports itself and the packages above it. `config` and `parsing` are single modules.
LAYERS = [
    "common",
    "distributed",
    "images",
    "networks",
    "cases",
    "frozen",
    "training",
    "config",
    "parsing",
    "evaluation",
    "adviser",
    "anytime",
    "results",
    "exporters",
    "lesson",
]
COMMANDS = {
    "__init__",
    "__main__",
    "advice",
    "beam_features",
    "datasets",
    "evaluate",
    "export",
    "features",
    "predict",
    "report",
    "train",
}
TENSORFLOW = {"distributed", "images", "frozen", "exporters"}
LIGHT = ["advice", "cases.policies", "config", "datasets", "predict", "train"]
LIGHT += ["common.errors", "frozen.feature_cache", "frozen.heads", "adviser.probes", "images.splitting"]


def modules() -> dict[str, ast.Module]:
    """Parse every module; the keys are dotted names without `transfer`."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def layer(module: str) -> str:
    """Return the first part of a dotted name."""
    return module.split(".")[0]


def imported(tree: ast.AST):
    """Yield the name of every import, including imports inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def edges() -> set[tuple[str, str]]:
    """Return pairs of a module and a package that it imports."""
    return {
        (module, name.split(".")[1])
        for module, tree in modules().items()
        for name in imported(tree)
        if name.startswith("transfer.")
    }


def importers_of(library: str) -> set[str]:
    """Return the modules that import a library when they run; imports for annotations do not count."""
    found = set()
    for module, tree in modules().items():
        annotations = [
            n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"
        ]
        names = Counter(imported(tree))
        names.subtract(name for node in annotations for name in imported(node))
        if any(layer(name) == library for name in names.elements()):
            found.add(module)
    return found


def test_every_module_is_in_a_known_package():
    assert {layer(module) for module in modules()} == set(LAYERS) | COMMANDS


@pytest.mark.parametrize("package", LAYERS)
def test_a_package_imports_only_those_above_it(package):
    allowed = set(LAYERS[: LAYERS.index(package) + 1])
    wrong = {edge for edge in edges() if layer(edge[0]) == package and edge[1] not in allowed}
    assert not wrong


def test_only_commands_set_the_memory_allocator():
    """A library must not change malloc for the program that uses it."""
    allocator = "transfer.common.allocator"
    users = {
        module for module, tree in modules().items() if any(n.startswith(allocator) for n in imported(tree))
    }
    assert {"train", "advice"} <= users <= COMMANDS


def test_no_package_imports_a_command():
    assert not {edge for edge in edges() if edge[1] in COMMANDS and layer(edge[0]) not in COMMANDS}


def test_only_four_packages_import_tensorflow():
    """Keras has no function for gradients, so one module of `networks` uses TensorFlow."""
    found = importers_of("tensorflow") | importers_of("tensorflow_datasets")
    allowed = {"networks.gradients", "common.keras_private"}
    assert {layer(module) for module in found - allowed} <= TENSORFLOW


def test_only_one_module_uses_private_keras_and_tensorflow_names():
    """A leading underscore is allowed for attributes of our own classes and for a few names of Python."""
    ours = {"_asdict", "_replace", "_fields", "_Unpickler"}
    trees = modules()
    del trees["common.keras_private"]
    wrong = {
        f"{module}:{node.lineno} {node.attr}"
        for module, tree in trees.items()
        for own in [ours | {one.attr for one in ast.walk(tree) if _is_of_self(one)}]
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and _is_private(node.attr) and node.attr not in own
    }
    modules_of = ("tensorflow.python", "keras.src")
    wrong |= {
        f"{module} {n}" for module, tree in trees.items() for n in imported(tree) if n.startswith(modules_of)
    }
    assert not wrong


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _is_of_self(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in ("self", "cls")
    )


def test_only_plotting_modules_import_matplotlib():
    plotting = {m for m in importers_of("matplotlib") if m.endswith("plots")}
    assert importers_of("matplotlib") - plotting == {"common.figures", "lesson.drawings"}


def test_only_the_package_of_the_builders_compiles():
    """Keras ignores flags that change after `compile`, so the code that sets flags also compiles."""
    calls = {
        module
        for module, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in {"compile", "compile_from_config"}
        and not (isinstance(node.func.value, ast.Name) and node.func.value.id == "re")
    }
    assert calls == {"cases.builders", "cases.compiling"}


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_import_without_tensorflow_keras_or_matplotlib(module):
    code = f"import sys, transfer.{module}; print(sorted({{'tensorflow', 'keras', 'matplotlib'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_command_loads_only_the_libraries_that_it_uses():
    """Keras imports scikit-learn and matplotlib, and TensorFlow imports JAX, although the first steps need none."""
    code = (
        "import sys, transfer.distributed.strategies as strategies\n"
        "strategies.start_quietly(repeatable=True)\n"
        "import transfer.images.datasets, transfer.networks.backbones, transfer.cases.builders, transfer.training.fit\n"
        "unused = 'sklearn scipy.stats scipy.sparse.csgraph matplotlib pyarrow pandas jax openvino'\n"
        "print(sorted({'keras', *unused.split()} & set(sys.modules)))"
    )
    if importlib.util.find_spec("pandas") is not None:  # Keras imports it, and it imports pyarrow
        code = code.replace("pyarrow pandas ", "")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['keras']"


def test_every_exported_name_loads():
    assert len(transfer.__all__) > 20
    for name in transfer.__all__:
        assert getattr(transfer, name) is not None
    with pytest.raises(AttributeError):
        transfer.no_such_name  # noqa: B018


def test_importing_a_command_does_not_hide_the_function_of_the_same_name():
    code = (
        "import transfer.predict, transfer.evaluate, transfer\n"
        "from transfer.evaluate import main\n"
        "from transfer import evaluate\n"
        "print(*[callable(one) for one in (transfer.predict, transfer.evaluate, evaluate, main)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True True True True"


def test_files_and_functions_stay_short():
    for module, tree in modules().items():
        path = PACKAGE.joinpath(*module.split(".")).with_suffix(".py")
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 450, module
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = (node.end_lineno - body[0].lineno + 1) if body else 0
                assert lines <= 50, f"{module}.{node.name} has {lines} lines"
