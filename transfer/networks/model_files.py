"""Save models for every version of Keras that `setup.cfg` allows, and load those of other programs."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras

from transfer.common.errors import InputError, install_hint, one_line
from transfer.networks.model_forms import format_of

log = logging.getLogger(__name__)

CustomObjects = Mapping[str, Any] | str | Path | None
"""Custom layers: classes by name, or a module that defines them."""

# Keys that versions of Keras after the oldest that setup.cfg allows have added to the configurations of layers, with
# the default of their constructors. Older versions refuse a file with an unknown key, so a key that holds its default
# is left out. All other defaults are written: some differ between versions, such as those of the optimizer Muon.
# A test compares the constructors of the oldest and the installed version with this table.
_ADDED = {
    "input_axes": None,
    "output_axes": None,
    "quantization_config": None,
    "renorm": False,
    "renorm_clipping": None,
    "renorm_momentum": 0.99,
    "sliding_window": None,
    "use_gate": False,
    "oov_method": "floormod",
    "salt": None,
    "native_serialization_platforms": None,
    "adam_weight_decay": 0.004,
    "rms_rate": 0.2,
    "ignore_class": None,
    "quantization_layer_structure": None,
}
_CONFIG, _METADATA = "config.json", "metadata.json"  # entries of a .keras file


def save_model(model: keras.Model, path: Path) -> None:
    """Save a model as a `.keras` file that every version of Keras since the oldest of `setup.cfg` loads."""
    rewritten = path.with_name(f"{path.name}.rewritten")
    try:
        model.save(path)
        _rewrite(path, rewritten, lambda config: _for_all_versions(_without_own_compilation(config)))
        os.replace(rewritten, path)
    finally:
        rewritten.unlink(missing_ok=True)


def _rewrite(source: Path, target: Path, change: Callable[[Any], Any]) -> None:
    """Copy a `.keras` file with a changed configuration."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            if entry.filename == _CONFIG:
                new.writestr(entry, json.dumps(change(json.loads(old.read(entry)))))
            else:
                with old.open(entry) as reader, new.open(entry, "w", force_zip64=True) as writer:
                    shutil.copyfileobj(reader, writer, 2**20)


def _without_own_compilation(config: dict[str, Any]) -> dict[str, Any]:
    """Leave out the loss, the metrics and the optimizer if loading them would need code other than Keras'."""
    own = _needs_code(config.get("compile_config"))
    return {key: value for key, value in config.items() if not (own and key == "compile_config")}


def _needs_code(value: Any) -> bool:
    """Return whether a configuration has a class or function that is not one of Keras."""
    if isinstance(value, list):
        return any(map(_needs_code, value))
    if not isinstance(value, dict):
        return False
    kind, module = value.get("class_name"), value.get("module")
    if kind == "function":
        return not any(hasattr(place, str(value["config"])) for place in (keras.losses, keras.metrics))
    outside = kind is not None and str(module).split(".")[0] != "keras"
    return outside or any(map(_needs_code, value.values()))


def _for_all_versions(value: Any) -> Any:
    """Return a model's configuration without the keys that older versions of Keras refuse."""
    if isinstance(value, list):
        return [_for_all_versions(item) for item in value]
    if not isinstance(value, dict):
        return value
    value = {key: _for_all_versions(item) for key, item in value.items()}
    config = value.get("config")
    if isinstance(config, dict) and str(value.get("module", "")).split(".")[0] == "keras":
        value["config"] = {k: v for k, v in config.items() if k not in _ADDED or v != _ADDED[k]}
    return value


def saved_model(path: str | Path, *, custom_objects: CustomObjects = None, module: str = "") -> keras.Model:
    """Load a whole model that was saved with Keras; errors suggest `module` for its custom layers."""
    file = Path(path)
    if not file.exists():
        raise InputError(f"Expected a model file. Received: {str(path)!r}, which does not exist.")
    objects = find_objects(custom_objects)
    kind = format_of(file)
    try:
        if kind == "keras" and (file.is_dir() or file.suffix == ".keras"):
            return keras.models.load_model(file, compile=False, custom_objects=objects)
        return _load_adapted(file, kind, objects)
    except Exception as first:  # layers of other programs may raise anything
        if _names_missing_class(first) is None:
            try:
                return _load_adapted(file, kind, objects)
            except Exception as error:
                log.debug("The adapted model does not load either: %s", error)
        raise _explained(first, file, kind, module) from first


def _load_adapted(file: Path, kind: str, objects: Mapping[str, Any]) -> keras.Model:
    """Load a copy of a model, under the right suffix and with a configuration that this version of Keras reads."""
    if file.is_dir():
        return keras.models.load_model(file, compile=False, custom_objects=objects)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / f"model.{kind}"
        if kind == "keras":
            _rewrite(file, copy, _for_all_versions)
        else:
            shutil.copyfile(file, copy)
            _modernize(copy)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Do not pass an `input_shape`")
            return keras.models.load_model(copy, compile=False, custom_objects=objects)


def _modernize(file: Path) -> None:
    """Change the configuration in an HDF5 file of Keras 2 to what Keras 3 reads."""
    import h5py

    with h5py.File(file, "r+") as opened:
        text = opened.attrs.get("model_config")
        if text is not None:
            text = json.dumps(json.loads(text))
            for name in set(re.findall(r'"name": ("[^"]*/[^"]*")', text)):  # Keras 3 allows no slash in names
                text = text.replace(name, name.replace("/", "_"))
            opened.attrs["model_config"] = json.dumps(_modern(json.loads(text))).encode()


def _modern(value: Any) -> Any:
    """Return a configuration of Keras 2 in the terms of Keras 3."""
    if isinstance(value, list):
        return [_modern(item) for item in value]
    if not isinstance(value, dict):
        return value
    value = {key: _modern(item) for key, item in value.items()}
    name, config = value.get("class_name"), value.get("config")
    if not isinstance(config, dict) or not isinstance(name, str):
        return value
    if name in ("Policy", "PolicyV1"):  # such as mixed_float16
        return config.get("name")
    if name in ("Functional", "Model", "Sequential"):
        for key in ("input_layers", "output_layers"):  # Keras 3 takes a list of one for a list
            if len(config.get(key, ())) == 1:
                config[key] = config[key][0]
        return {"class_name": "Functional" if name == "Model" else name, "config": config}
    layer = getattr(keras.layers, name, None)
    if inspect.isclass(layer) and re.match(r"(tf_)?keras\b|None", str(value.get("module"))):
        value.pop("module", None)  # Keras 2 has other modules
        known = _parameters(layer)
        shape = config.pop("batch_input_shape", None)
        if shape is not None:
            config |= {"batch_shape": shape} if name == "InputLayer" else {"input_shape": shape[1:]}
        config = {k: v for k, v in config.items() if k in known or not _is_default_of_keras_2(k, v)}
        if isinstance(config.get("axis"), list) and len(config["axis"]) == 1:
            config["axis"] = config["axis"][0]
        value["config"] = config
    return value


def _parameters(kind: type) -> set[str]:
    """Return the names of all arguments that a layer's constructors take."""
    names = {"input_shape", "batch_shape"}
    for base in kind.__mro__:
        if "__init__" in vars(base):
            names |= set(inspect.signature(base.__init__).parameters)  # type: ignore[misc]
    return names


def _is_default_of_keras_2(key: str, value: Any) -> bool:
    """Return whether a key that Keras 3 does not know changes nothing."""
    return not value or (key, value) in (("groups", 1), ("fused", True))


def find_objects(custom_objects: CustomObjects) -> dict[str, Any]:
    """Return custom layers and functions by name; a module is imported, which runs its code."""
    if custom_objects is None:
        return {}
    if isinstance(custom_objects, Mapping):
        return dict(custom_objects)
    if not isinstance(custom_objects, str | Path):
        raise InputError(
            "Expected custom_objects as the name or the path of a Python module, or as a dictionary of classes by "
            f"name. Received: {type(custom_objects).__name__}."
        )
    found = vars(_module(str(custom_objects), os.getcwd()))
    return {name: value for name, value in found.items() if _is_own(name, value)}


def _is_own(name: str, value: Any) -> bool:
    outside = ("keras", "tensorflow", "builtins", "typing", "numpy")
    callables = inspect.isclass(value) or inspect.isfunction(value)
    return callables and not name.startswith("_") and str(value.__module__).split(".")[0] not in outside


@functools.cache
def _module(name: str, folder: str) -> Any:
    """Import a module by its name or the path of its file, as a program in this folder would."""
    log.info("Importing %s, which defines custom layers.", name)
    path = Path(name).expanduser()
    try:
        sys.path.insert(0, folder)
        if not name.endswith(".py") and not path.is_file():
            return importlib.import_module(name)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise ImportError("it is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(path.stem, module)
        spec.loader.exec_module(module)
        return module
    except Exception as error:  # the module's own code may raise anything
        raise InputError(
            f"Cannot import the custom objects {name!r}: {type(error).__name__}: {one_line(error)}. Expected the name "
            "of a Python module, or the path of a .py file, that defines the layers."
        ) from error
    finally:
        sys.path.remove(folder)


def _names_missing_class(error: Exception) -> str | None:
    """Return the class or function that Keras cannot find, or None for another error."""
    found = re.search(r"(?:Could not locate (?:class|function)|Unknown (?:layer|\w+):?) '(\w+)'", str(error))
    return found[1] if found and not hasattr(keras.layers, found[1]) else None


def _explained(error: Exception, file: Path, kind: str, module: str) -> InputError:
    """Return an error that explains why a model does not load, with advice."""
    text, name, version = str(error), _names_missing_class(error), _version_of(file, kind)
    if kind == "keras" and (version or "").startswith("2."):
        return InputError(
            f"{file} was written by Keras {version}, and Keras {keras.__version__} reads only .h5 files of Keras 2. In "
            "the program that wrote it, save the model as mine.h5, and pass that file."
        )
    if "No model config found" in text:
        return InputError(
            f"{file} holds weights without their network. Pass it as --weights with the name of its network as "
            "--model, such as --model ResNet50; or save the whole model: model.save('mine.keras')."
        )
    if "Lambda" in text and "arbitrary code" in text:
        return InputError(
            f"{file} has a Lambda layer, which holds code of its own that is not run. Replace it by a layer of Keras, "
            "such as Rescaling, or by a layer class in a module that you pass with --custom-objects; then save again."
        )
    if "parent module keras_hub" in text:
        return InputError(
            f"{file} has layers of KerasHub, which is not installed. Install the extra hub: {install_hint('hub')}."
        )
    if name in ("TFOpLambda", "SlicingOpLambda", "TensorFlowOpLayer"):
        return InputError(
            f"{file} uses operations of TensorFlow, which Keras 3 cannot load from files of Keras 2. Build the network "
            "with layers of Keras 3, load its weights, and save it as .keras."
        )
    if name is not None:
        return InputError(
            f"{file} needs {name!r}, which Keras does not have. Pass the Python module that defines it, which runs "
            f"its code: --custom-objects {module or 'MODULE'} (in Python: custom_objects=...)."
        )
    reason = one_line(ValueError(text.rpartition("Exception encountered: ")[2]))
    written = f", which Keras {version} wrote" if version else ""
    newer = version is not None and _numbers(version) > _numbers(keras.__version__)
    update = f' Update Keras: pip install "keras>={version}".' if newer else ""
    return InputError(f"Keras {keras.__version__} cannot load {file}{written}: {reason}.{update}")


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")[:3] if part.isdigit()]


def _version_of(file: Path, kind: str) -> str | None:
    """Return the version of Keras that wrote a file, or None if it does not say."""
    try:
        if kind == "h5":
            import h5py

            with h5py.File(file) as opened:
                found = opened.attrs.get("keras_version")
                return found.decode() if isinstance(found, bytes) else found
        if file.is_dir():
            return str(json.loads((file / _METADATA).read_text())["keras_version"])
        with zipfile.ZipFile(file) as archive:
            return str(json.loads(archive.read(_METADATA))["keras_version"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
