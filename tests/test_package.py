"""The package as a whole: its name for pip, version, metadata, and what `help`, `dir` and wrong names show."""

import configparser
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import transfer
from transfer.__main__ import main
from transfer.common.errors import DISTRIBUTION, install_hint
from transfer.common.public_names import groups

ROOT = Path(__file__).parents[1]
CONFIG = configparser.ConfigParser()
CONFIG.read(ROOT / "setup.cfg", encoding="utf-8")
EXTRAS = CONFIG["options.extras_require"]
TEXTS = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for folder in ("transfer", "tests", "docs", "notebooks", ".")
    for path in (ROOT / folder).glob("*" if folder == "." else "**/*")
    if path.suffix in (".py", ".pyi", ".md", ".html", ".ipynb", ".yml", ".yaml", ".toml")
}
# In a checkout of the repository, pip installs the folder itself. These files say so, at most this often.
FROM_A_CHECKOUT = {"README.md": 1, "CONTRIBUTING.md": 1, "docs/index.md": 1, "tests/test_docs.py": 1}


def other_installations(text: str) -> list[str]:
    """Return advice that installs the other project `transfer`, or the folder in which the user happens to be."""
    extra = "|".join(EXTRAS)
    quoted = rf"""(?:\btransfer|\.)\\?\[(?:{extra})\b"""
    return re.findall(rf"""{quoted}|pip install (?:-\S+ )*\\?["']?transfer(?![-\w])""", text)


@pytest.mark.parametrize(
    "text", ['pip install ".[lite]"', "pip install transfer", 'pip install -U "transfer[jax]"']
)
def test_advice_to_install_something_else_is_found(text):
    assert other_installations(text) and not other_installations(install_hint("lite"))


def test_all_advice_installs_this_package():
    assert len(TEXTS) > 300
    for name, text in TEXTS.items():
        if name != "tests/test_package.py":
            assert len(other_installations(text)) <= FROM_A_CHECKOUT.get(name, 0), name
            assert set(re.findall(rf"{DISTRIBUTION}\\?\[(\w+)", text)) <= set(EXTRAS), name


def test_the_name_and_the_version_are_defined_once():
    metadata = CONFIG["metadata"]
    assert (metadata["name"], metadata["version"]) == (DISTRIBUTION, "attr: transfer.__version__")
    assert re.search(r"^## (\S+)", TEXTS["CHANGELOG.md"], re.MULTILINE).group(1) == transfer.__version__


def test_every_package_is_installed():
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "transfer").glob("**/__init__.py")}
    assert set(CONFIG["options"]["packages"].split()) == {".".join(one.parts) for one in folders} | {
        "transfer.data"
    }


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_the_command_prints_the_version(flag, capsys):
    assert main([flag]) == 0
    assert capsys.readouterr().out == f"transfer {transfer.__version__}\n"


def test_dir_lists_the_public_names_and_the_version():
    assert set(dir(transfer)) == {*transfer.__all__, "__version__"}


def test_help_lists_each_public_name_in_its_group_with_one_line():
    text = inspect.getdoc(transfer)
    listed = re.findall(r"^    (\w+): \S.*$", text, re.MULTILINE)
    assert sorted(listed) == sorted(transfer.__all__)
    assert listed == [name for _, names in groups() for _, name in names]
    assert f"    fit: {inspect.getdoc(transfer.fit).splitlines()[0]}" in text
    assert all(f"\n{heading}\n" in text for heading, _ in groups())


def test_help_and_dir_import_nothing():
    code = (
        "import sys, transfer; transfer.__doc__; dir(transfer); print({'keras', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_misspelled_name_suggests_the_right_one():
    with pytest.raises(AttributeError, match=r"'load_dta'\. Did you mean 'load_data'\?$"):
        transfer.load_dta  # noqa: B018
    code = "import transfer; transfer.load_dta"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.count("Did you mean") == 1  # Python adds nothing to it
    assert not hasattr(transfer, "__wrapped__")


@pytest.mark.slow
def test_type_checkers_see_the_types_of_public_names(tmp_path):
    api = pytest.importorskip("mypy.api")
    script = tmp_path / "script.py"
    script.write_text(
        "import keras\nimport transfer\n\nbase: keras.Model\n"
        'model = transfer.small_similar(base, 3, cut="all")\n'
        'reveal_type(transfer.fit(model, transfer.load_data("photos")))\n'
        'transfer.small_similar(base, "three")\n'
    )
    printed, _, _ = api.run(["--config-file", str(ROOT / "setup.cfg"), str(script)])
    assert re.search(r':6: .*Revealed type is ".*TrainingLog"', printed)
    assert re.search(r':7: error: .*expected "int"', printed) and printed.count("error: ") == 1
