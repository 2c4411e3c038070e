"""The options: flags, YAML and defaults come from the same dataclasses and agree."""

import dataclasses
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from transfer.cases.policies import Case
from transfer.common.errors import InputError
from transfer.config import TrainConfig, load_config, save_config
from transfer.parsing import parse_advice_arguments, parse_arguments, parse_check_arguments
from transfer.training.option_table import situations_text

OTHER = TrainConfig(
    data="tfds:tf_flowers",
    data_dir="/data/Käse 図",
    model="MobileNetV2",
    custom_objects="my_layers.py",
    weights="none",
    preprocessing="torch",
    case="large-similar",
    time_budget="1h",
    average=True,
    cut="block_3",
    unfreeze_from="block_2",
    lora=4,
    init="random",
    image_size=64,
    epochs=7,
    folds=4,
    batch_size=5,
    learning_rate=1e-3,
    loss="huber",
    augment="strong",
    flip="no",
    class_weights=True,
    solver="sgd",
    dropout=0.25,
    label_smoothing=0.1,
    views=3,
    engine="keras",
    strategy="mirrored",
    tfds_split="train[:50%]",
    path_column="image_id",
    label_column="dx",
    split_column="fold",
    group_column="patient,lesion",
    task="ordinal",
    class_order="low,medium,high",
    val=30,
    test=0.4,
    few_shot=5,
    near_duplicates=False,
    split="split.csv",
    resize="pad",
    seed=11,
    strict=True,
    output="runs/x",
    layer_decay=0.5,
    gradual_unfreezing=0.2,
    weight_decay=0.01,
    clip_norm=1.0,
    ema=0.9,
    mix="cutmix",
    batchnorm="adapted",
    optimizer="rmsprop",
    schedule="steps",
    decay_factor=4.0,
    decay_every=3,
    resume=True,
    calibrate=True,
    checkpoint_every="5m",
    precision="mixed_bfloat16",
    steps_per_execution=4,
    find_learning_rate=True,
)
"""Every option differs from its default."""

NAMES = [field.name for field in dataclasses.fields(TrainConfig)]


@pytest.fixture
def yaml_file(tmp_path):
    def write(text) -> Path:
        path = tmp_path / "run.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def flag(name) -> str:
    return "--" + name.replace("_", "-")


def test_the_other_configuration_is_other_everywhere():
    assert all(getattr(OTHER, name) != getattr(TrainConfig(), name) for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_a_flag_with_dashes(name):
    value = getattr(OTHER, name)
    arguments = (
        [flag(name)] if value is True else [flag(name), str(value).lower() if value is False else str(value)]
    )
    assert parse_arguments(arguments) == dataclasses.replace(TrainConfig(), **{name: value})


def test_without_flags_everything_has_its_default():
    assert parse_arguments([]) == TrainConfig()


def test_several_models_are_one_option_and_data_may_follow_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    config = parse_arguments(["--model", "EfficientNetLite0", "EfficientNetLite1", "photos"])
    assert config.models == ("EfficientNetLite0", "EfficientNetLite1") and config.data == "photos"
    assert parse_arguments(shlex.split(config.command)[3:]) == config
    for several in ("A,B", "auto"):
        with pytest.raises(InputError, match="Expected one model"):
            TrainConfig(model=several, case="1")


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_read_from_yaml(name, yaml_file, tmp_path):
    save_config(OTHER, tmp_path / "all.yaml")
    lines = (tmp_path / "all.yaml").read_text(encoding="utf-8").splitlines()
    path = yaml_file(next(line for line in lines if line.startswith(f"{name}:")))
    assert load_config(path) == dataclasses.replace(TrainConfig(), **{name: getattr(OTHER, name)})


@pytest.mark.parametrize("config", [TrainConfig(), OTHER], ids=["defaults", "others"])
def test_yaml_goes_round(config, tmp_path):
    save_config(config, tmp_path / "run.yaml")
    assert load_config(tmp_path / "run.yaml") == config


def test_yaml_is_readable_and_in_order(tmp_path):
    save_config(OTHER, tmp_path / "run.yaml")
    text = (tmp_path / "run.yaml").read_text(encoding="utf-8")
    assert [line.split(":")[0] for line in text.splitlines()] == NAMES
    assert "Käse 図" in text


@pytest.mark.parametrize("text", ["none", "1e-3", "yes", "007", "a: b", "#x", "~", ""])
def test_texts_that_yaml_would_misread_go_round(text, tmp_path):
    config = TrainConfig(cut=text)
    save_config(config, tmp_path / "run.yaml")
    assert load_config(tmp_path / "run.yaml") == config


def test_paths_are_saved_as_text(tmp_path):
    save_config(TrainConfig(data=tmp_path), tmp_path / "run.yaml")
    assert load_config(tmp_path / "run.yaml").data == str(tmp_path)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("learning_rate: 1e-3", 0.001),
        ("learning_rate: 1", 1.0),
        ("learning-rate: 0.5", 0.5),
        ("epochs: 1e1", 10),
        ("epochs: 3.0", 3),
        ("epochs: null", None),
        ("seed: 1152921504606846977", 1152921504606846977),
        ("strict: yes", True),
        ("model: 50", "50"),
        ("output: 2024-01-01", "2024-01-01"),
    ],
)
def test_yaml_values_take_the_type_of_their_option(line, value, yaml_file):
    name = line.split(":")[0].replace("-", "_")
    found = getattr(load_config(yaml_file(line)), name)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "---\n"])
def test_an_empty_file_leaves_the_defaults(text, yaml_file):
    assert load_config(yaml_file(text)) == TrainConfig()


def test_options_of_version_0_1_are_read_under_their_new_names(yaml_file):
    read = load_config(yaml_file("depth_rate: 0.3\nthaw: 0.5\nlook_alikes: false\n"))
    assert read == TrainConfig(layer_decay=0.3, gradual_unfreezing=0.5, near_duplicates=False)


def test_unknown_options_are_refused_with_the_nearest(yaml_file):
    with pytest.raises(
        InputError, match=r"Unknown option 'lerning_rate'\. Did you mean 'learning_rate'.*run\.yaml"
    ):
        load_config(yaml_file("seed: 1\nlerning_rate: 0.1"))


@pytest.mark.parametrize("line", [
    "seed: many", "seed: 1.5", "seed: .inf", "seed: true", "seed: null", "seed: [1]", "epochs: 1.5",
    f"learning_rate: 1{'0' * 400}",
    "learning_rate: fast", "learning_rate: true", "learning_rate: [0.1]", "strict: 1", "strict: maybe",
    "data: null", "data: [a, b]", "data: {a: b}", "case: off", "batch_size: null",
])  # fmt: skip
def test_values_of_the_wrong_type_are_refused_by_name(line, yaml_file):
    name = line.split(":")[0]
    with pytest.raises(InputError, match=rf"Expected \w+.* for {name} in .*run\.yaml\. Received: "):
        load_config(yaml_file(line))


@pytest.mark.parametrize(("name", "value"), [
    ("image_size", 0), ("epochs", 0), ("epochs", -3), ("batch_size", 0), ("seed", -1),
    ("learning_rate", 0.0), ("learning_rate", -1.0), ("learning_rate", float("nan")),
    ("learning_rate", float("inf")), ("augment", "heavy"), ("optimizer", "rmspop"), ("schedule", "step"),
    ("decay_factor", 0.16), ("decay_every", 0), ("precision", "half"), ("flip", "maybe"),
])  # fmt: skip
def test_values_out_of_range_are_refused_wherever_they_come_from(name, value, yaml_file):
    written = {"inf": ".inf", "nan": ".nan"}.get(str(value), value)
    for give in (
        lambda: TrainConfig(**{name: value}),
        lambda: parse_arguments([f"{flag(name)}={value}"]),
        lambda: load_config(yaml_file(f"{name}: {written}")),
    ):
        with pytest.raises(InputError, match=rf"{name.replace('augment', 'augmentation')}.*{value}"):
            give()


def test_views_without_augmentation_are_refused():
    with pytest.raises(InputError, match="views=3, augment='none'"):
        parse_arguments(["--views", "3", "--augment", "none"])


@pytest.mark.parametrize(
    ("text", "kind"), [("[]", "list"), ("- seed", "list"), ("0", "int"), ("false", "bool"), ("hello", "str")]
)
def test_files_that_are_no_mapping_are_refused(text, kind, yaml_file):
    with pytest.raises(InputError, match=rf"Expected options as 'name: value' lines .* Received: {kind}"):
        load_config(yaml_file(text))


@pytest.mark.parametrize(
    "text", ["seed: [", "\tseed: 1", "a: b: c", b"\xff\xfe\xff", "\0", "data: !!python/name:os.system"]
)
def test_files_that_are_no_yaml_are_refused(text, yaml_file):
    with pytest.raises(InputError, match=r"Cannot read the options in .*run\.yaml"):
        load_config(yaml_file(text))


def test_missing_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"Cannot read the options in .*gone\.yaml: .*No such file"):
        parse_arguments(["--config", str(tmp_path / "gone.yaml")])
    with pytest.raises(InputError, match="Cannot read the options"):
        load_config(tmp_path)


def test_flags_override_the_file(yaml_file):
    path = str(yaml_file("seed: 5\nstrict: true\nlearning_rate: 1e-3\nepochs: 3\n"))
    read = TrainConfig(seed=5, strict=True, learning_rate=0.001, epochs=3)
    assert parse_arguments(["--config", path]) == read
    for arguments in (["--config", path, "--seed", "0"], ["--seed", "0", f"--config={path}"]):
        assert parse_arguments(arguments) == dataclasses.replace(read, seed=0), "even a default's own value"
    assert parse_arguments(["--config", path, "--nostrict"]).strict is False


@pytest.mark.parametrize(("line", "error"), [
    ("--epoch 3", "Unknown option --epoch. Did you mean --epochs?"),
    ("--dat photos", "Unknown option --dat. Did you mean --data?"),
    ("--batch_size 3", "Unknown option --batch_size. Did you mean --batch-size?"),
    ("--lr 0.1", "Unknown option --lr. Did you mean --learning-rate?"),
    ("--batch 8", "Unknown option --batch. Did you mean --batch-size?"),
    ("--img-size 96", "Unknown option --img-size. Did you mean --image-size?"),
    ("--dir photos", "Unknown option --dir. Did you mean --data?"),
    ("--nope", "Unknown option --nope. See python -m transfer.train --help."),
    ("--conf x.yaml", "Unknown option --conf. Did you mean --config?"),
    ("photos more", "Unexpected argument 'more'. See python -m transfer.train --help."),
    ("photos seed=3", "Unexpected argument 'seed=3'. Did you mean --seed? See python -m transfer.train --help."),
    ("--seed 1.5", "Expected a whole number for --seed. Received: '1.5'."),
    ("--val half", "Expected a number for --val. Received: 'half'."),
    ("--epochs none", "Expected a whole number for --epochs. Received: 'none'."),
    ("--seed", "Expected a value after --seed: --seed N. See python -m transfer.train --help."),
    ("--config", "Expected a value after --config: --config FILE. See python -m transfer.train --help."),
    ("--strict=5", "--strict takes no value. Received: '5'."),
    ("--resume runs/x", "--resume takes no value: use --output runs/x --resume."),
    ("--resume=runs/x", "--resume takes no value: use --output runs/x --resume."),
])  # fmt: skip
def test_a_usage_error_is_one_line_with_the_nearest_option(line, error, capsys):
    with pytest.raises(SystemExit) as left:
        parse_arguments(line.split())
    assert left.value.code == 2
    assert capsys.readouterr().err == f"{error}\n"


def test_the_data_may_stand_anywhere_on_the_command_line():
    expected = TrainConfig(data="photos", seed=3)
    for line in (
        "photos --seed 3",
        "--seed 3 photos",
        "--data photos --seed 3",
        "photos --data=photos --seed 3",
    ):
        assert parse_arguments(line.split()) == expected
    for parse in (parse_advice_arguments, parse_check_arguments):
        assert parse(["--seed", "3", "photos"])[0].data == "photos"
    with pytest.raises(InputError, match=r"Expected the data once\. Received: 'photos' and --data other"):
        parse_arguments(["photos", "--data", "other"])


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_case_has_a_number(number, yaml_file):
    name = ("small-similar", "small-different", "large-similar", "large-different")[number - 1]
    assert parse_arguments([f"--case={number}"]).case == name
    assert load_config(yaml_file(f"case: {number}")).case == name
    assert Case.parse(number) is Case.parse(str(number)) is Case(name)


def test_switches_have_a_form_with_no_and_the_older_forms_work():
    for line in (
        "--no-near-duplicates",
        "--nonear-duplicates",
        "--near-duplicates=False",
        "--look-alikes false",
    ):
        assert parse_arguments(line.split()) == TrainConfig(near_duplicates=False)
    assert parse_arguments(["--thaw=0.5"]) == TrainConfig(gradual_unfreezing=0.5)
    assert parse_advice_arguments([])[0].trial and not parse_advice_arguments(["--no-trial"])[0].trial


def test_the_command_of_options_has_those_options():
    assert parse_arguments(shlex.split(OTHER.command)[3:]) == OTHER


def test_help_describes_every_option_and_its_default(capsys):
    with pytest.raises(SystemExit) as left:
        parse_arguments(["--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert "YAML file with these options; flags override it" in text
    groups = [
        f"{name} options:"
        for name in ("data", "model", "case", "training", "fine-tuning", "output", "device")
    ]
    assert sorted(groups, key=text.index) == groups
    assert text.index("most important options:") < text.index("--tfds-split")
    options = text[text.index("data options:") :].split("\n  --")
    described = {option.split()[0].strip(","): " ".join(option.split()[1:]) for option in options}
    for name in NAMES:
        words = described[flag(name).removeprefix("--")]
        assert len(words.split()) > 4, f"{name} has no description"
        if getattr(TrainConfig(), name) is not None:
            assert f"(default: {getattr(TrainConfig(), name)})" in words
    assert "--augment {none,light,standard,strong}" in text and "--checkpoint-every TIME" in text
    assert described["strict"].startswith("--no-strict ")
    for name, note in situations_text().items():
        assert note.replace(" ", "") in described[flag(name).removeprefix("--")].replace(" ", "")


@pytest.mark.parametrize(("line", "ignored"), [
    ("--case 1 --augment strong --weight-decay 0.1", {"augment", "weight_decay"}),
    ("--case 1 --augment strong --views 4", set()),
    ("--case 1 --learning-rate 0.1 --batch-size 8", set()),  # the size of the features decides
    ("--case 2 --learning-rate 0.1 --batch-size 8 --solver exact", {"learning_rate", "batch_size"}),
    ("--case 1 --learning-rate 0.1 --epochs 3", set()),
    ("--case 1 --unfreeze-from block6a --ema 0.9 --learning-rate 0.1", set()),
    ("--case 1 --time-budget 9m", {"time_budget"}),
    ("--case 3 --ema 0.9 --decay-every 3", {"decay_every"}),
    ("--case 3 --ema 0.9 --decay-every 3 --schedule steps", set()),
    ("--case 3 --augment none --flip no", {"flip"}),
    ("--case 4 --init random --solver sgd --batchnorm adapted --ema 0.9", {"solver", "batchnorm"}),
    ("--case 4 --solver sgd --batchnorm adapted", set()),
    ("--augment strong --ema 0.9 --time-budget 9m", set()),  # decided after the choice
])  # fmt: skip
def test_options_without_effect_are_known_before_the_training(line, ignored):
    config = parse_arguments(line.split())
    assert set(config.ignored) == ignored
    assert config.without_ignored().given.keys() == config.given.keys() - ignored


def test_help_waits_for_no_heavy_library():
    code = (
        "import sys; from transfer.parsing import parse_arguments\n"
        "try: parse_arguments(['--help'])\n"
        "finally: print(*{'tensorflow', 'keras', 'sklearn', 'matplotlib', 'scipy'} & {*sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "--seed" in done.stdout
    assert not done.stderr.split()


def test_the_recipe_of_the_notebook_is_a_configuration(monkeypatch):
    place = Path(__file__).parents[1] / "notebooks" / "esteva.yaml"
    read = parse_arguments(["--config", str(place), "--data", "lesions.csv"])
    assert (read.data, read.model, read.image_size, read.case) == (
        "lesions.csv", "InceptionV3", 299, "large-different",
    )  # fmt: skip
    assert (read.optimizer, read.learning_rate, read.init) == ("rmsprop", 0.001, "pretrained")
    recipe = read.recipe
    assert (recipe.schedule, recipe.decay_factor, recipe.decay_every) == ("steps", 16, 30)
    assert recipe.batchnorm == "live" and read.epochs > recipe.decay_every


def test_a_configuration_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().seed = 1
