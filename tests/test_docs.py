"""What README and docs say is true: their flags parse, their Python runs, their links and files exist."""

from __future__ import annotations

import importlib
import re
import shlex
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from transfer.__main__ import COMMANDS
from transfer.images.decoding import decode
from transfer.images.folder_source import embedded_folder
from transfer.networks.families import HUB_FAMILIES
from transfer.parsing import parse_advice_arguments, parse_arguments, parse_check_arguments
from transfer.training.option_table import APPLIES, Situation

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
PAGES["README.md"] = README
PARSERS = {"train": parse_arguments, "datasets": parse_check_arguments, "advice": parse_advice_arguments}
NOT_OURS = {"logdir", "ntasks", "no-deps", "direct-running-mode", "direct-num-workers", "runner"}


def blocks(language: str) -> list[tuple[str, str]]:
    """List (page, block of code)."""
    pattern = re.compile(rf"```{language}\n(.*?)```", re.DOTALL)
    return [(page, block) for page, text in PAGES.items() for block in pattern.findall(text)]


def commands() -> list[str]:
    """List every command line of ours in README and docs."""
    lines = [line for _, block in blocks("sh") for line in block.replace("\\\n", " ").splitlines()]
    return [
        c.split(" > ")[0].strip() for line in lines for c in re.split(r"&&|\|", line) if "-m transfer." in c
    ]


def help_of(command: str, capsys: pytest.CaptureFixture) -> str:
    with pytest.raises(SystemExit):
        importlib.import_module(f"transfer.{command}").main(["--help"])
    return capsys.readouterr().out


def test_the_readme_begins_with_the_two_commands_and_is_short():
    first = [block.strip() for page, block in blocks("sh") if page == "README.md"][:2]
    assert first == ["pip install . && python -m transfer.train", 'pip install ".[test]" && pytest']
    assert len(README.splitlines()) <= 200


def test_links_and_images_exist():
    for page, text in PAGES.items():
        folder = ROOT if page == "README.md" else ROOT / "docs"
        for target in re.findall(r"\]\(([^)#]+?)(?:#[\w-]+)?\)", text):
            if not target.startswith("http"):
                assert (folder / target).is_file(), f"{page}: {target}"


def test_every_page_is_in_the_navigation_and_in_the_readme():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in PAGES.keys() - {"README.md"}:
        assert f": {page}" in navigation and f"(docs/{page})" in README, page


def test_the_api_reference_lists_every_exported_name():
    stub = (ROOT / "transfer" / "__init__.pyi").read_text(encoding="utf-8")
    exported = {
        f"transfer.{module}.{name}"
        for module, name in re.findall(r"^from \.([\w.]+) import (\w+) as", stub, re.MULTILINE)
    }
    assert set(re.findall(r"^::: (\S+)$", PAGES["api.md"], re.MULTILINE)) == exported


def test_the_packages_of_the_design_page_exist_in_this_order():
    from test_imports import LAYERS

    table = re.findall(r"^\| `(\w+)` \|", PAGES["design.md"], re.MULTILINE)
    assert table == LAYERS


def test_the_commands_parse():
    found = set()
    for command in commands():
        words = shlex.split(re.sub(r"^TF_CONFIG='[^']*' ", "", re.sub(r"\$\(.*?\)", "x", command)))
        name = words[words.index("-m") + 1].removeprefix("transfer.")
        given = words[words.index("-m") + 2 :]
        found.add(name)
        if name in PARSERS:
            assert PARSERS[name](given)
        elif name != "beam_features":  # its flags are partly Beam's
            assert vars(importlib.import_module(f"transfer.{name}")._parser().parse_args(given))
    assert found == set(COMMANDS)


def table_of_options() -> str:
    """Return the table of options as Markdown."""
    lines = ["| option | " + " | ".join(Situation) + " |", "|---" * (1 + len(Situation)) + "|"]
    for name, row in APPLIES.items():
        cells = [row.get(situation, "") for situation in Situation]
        cells = [re.sub(r"(--\S+)", r"`\1`", cell) for cell in cells]
        lines.append(f"| `--{name.replace('_', '-')}` | " + " | ".join(cells) + " |")
    return "\n".join(lines).replace("|  |", "| |").replace("|  |", "| |")


def test_the_table_of_options_is_that_of_the_code():
    table = table_of_options()
    assert table in PAGES["fine-tuning.md"], f"docs/fine-tuning.md should have this table:\n\n{table}"


def test_the_table_of_networks_is_that_of_the_benchmark(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests" / "benchmarks")
    networks = importlib.import_module("networks")
    rows = networks.frozen.stored(ROOT / "tests" / "benchmarks" / "results" / "networks.jsonl")
    assert networks.table(rows) in PAGES["networks.md"], "copy what networks.py show prints"


def test_the_families_of_kerashub_are_listed():
    rows = re.findall(r"^\| `(\w+)` \|.*\| `(\w+)` \|$", PAGES["networks.md"], re.MULTILINE)
    assert dict(rows) == {name: family.preprocessing for name, family in HUB_FAMILIES.items()}


def test_flags_that_are_mentioned_exist(capsys):
    known = " ".join(help_of(command, capsys) for command in COMMANDS)
    scripts = " ".join(
        path.read_text()
        for path in (ROOT / "tests").rglob("*.py")
        if path.parent.name in ("benchmarks", "scripts")
    )
    for page, text in PAGES.items():
        for flag in set(re.findall(r"`[^`\n]*?--([a-z-]+)", text)) - NOT_OURS:
            assert re.search(rf"--{flag}[ ,]", known) or f'"--{flag}"' in scripts, f"{page}: --{flag}"


def test_scripts_that_are_mentioned_exist():
    for page, text in PAGES.items():
        for path in re.findall(r"\b(?:tests|notebooks)/[\w/]+\.(?:py|yaml)", text):
            assert (ROOT / path).is_file(), f"{page}: {path}"


def resize_for_plain_keras(name):
    """Run the lines of the quick start that read and resize an image, to 96 x 64 pixels."""
    block = next(text for page, text in blocks("python") if page == "index.md" and "ImageOps" in text)
    lines = [line for line in block.splitlines() if line.startswith(("from PIL", "size", "image"))]
    values = {"model": SimpleNamespace(input_shape=(None, 96, 64, 3))}
    exec("\n".join(lines).replace("image.png", str(name)), values)
    assert len(lines) == 5
    return np.asarray(values["image"])


@pytest.mark.parametrize(("name", "orientation"), [("image.png", 1), ("image.jpg", 6)])
def test_the_resizing_for_plain_keras_is_that_of_training(name, orientation, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (90, 60, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).resize((1200, 900)).save(name, exif=exif)
    assert np.array_equal(resize_for_plain_keras(name), decode(name, (96, 64)))


def test_plain_keras_reads_the_emoji_as_training_does():
    for file in sorted(embedded_folder().rglob("*.png"))[::20]:
        assert np.array_equal(resize_for_plain_keras(file), decode(file, (96, 64)))


@pytest.mark.slow
def test_the_python_runs(tmp_path, monkeypatch, capsys):
    from transfer.train import main

    monkeypatch.chdir(tmp_path)
    main(["--case", "small-similar", "--output", "runs/emoji-auto-1"])
    Image.open(embedded_folder() / "face" / "u1f600-grinning-face.png").save("image.png")
    printed, programs = {}, {}
    for page, block in blocks("python"):
        if page == "python.md":
            continue
        capsys.readouterr()
        exec(block, programs.setdefault(page, {}))  # the blocks of a page are one program
        printed[page] = printed.get(page, "") + capsys.readouterr().out
    assert "90% interval" in printed["advice.md"]
    assert printed["index.md"].splitlines()[-1] == "face"
    assert printed["cases.md"].splitlines()[-1] == "block4c_add"
    assert -1 <= float(printed["evaluation.md"].splitlines()[-1]) <= 1
    assert Path("heat.png").stat().st_size > 10_000 and Path("layers.png").stat().st_size > 10_000
    assert printed["README.md"].splitlines()[-1] == "face" and Path("runs/mine/report.html").is_file()
    assert re.search(r"accuracy:? [67]\d\.\d%", printed["README.md"], re.IGNORECASE)


@pytest.mark.slow
def test_the_whole_way_in_python_runs(tmp_path, monkeypatch, capsys):
    """The blocks of the page are one program. Parts that need packages of an extra run where they are installed."""
    monkeypatch.chdir(tmp_path)
    program = {}
    for page, block in blocks("python"):
        if page != "python.md" or ("to_dataframe" in block and find_spec("pandas") is None):
            continue
        if find_spec("tensorboard") is None:
            block = block.replace('TensorBoard("logs")', 'CSVLogger("log.csv")')
        exec(block, program)
    assert program["run"].class_names == program["classes"]
    assert Path("runs/shapes/report.html").stat().st_size > 100_000
    assert all(Path(name).stat().st_size > 10_000 for name in ("learning_curves.png", "confusion.png"))
    assert "same class for" in capsys.readouterr().out
