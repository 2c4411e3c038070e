"""Hostile files: nothing crashes or hangs, skipped files are reported, and no good image is lost."""

import csv
import io
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.hostile_files import COLORS, HEIC_PROBLEM, bmp, chunk, encode, make_corpus, solid, texture
from PIL import Image

from transfer.common.errors import InputError
from transfer.datasets import main
from transfer.images import decoding
from transfer.images.checking import check, check_images
from transfer.images.datasets import load_data
from transfer.images.decoding import RESIZES, decode
from transfer.images.folder_scan import printable
from transfer.images.folder_source import find_source

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")
SCRIPT = Path(__file__).parents[1] / "helpers" / "hostile_files.py"
ENCODED = {
    "JPEG": encode(texture(40, 30), "JPEG"),
    "progressive JPEG": encode(texture(40, 30), "JPEG", progressive=True),
    "CMYK JPEG": encode(texture(40, 30, "CMYK"), "JPEG"),
    "MPO": encode(texture(40, 30), "MPO", save_all=True, append_images=[texture(40, 30)]),
    "PNG": encode(texture(40, 30)),
    "palette PNG": encode(texture(40, 30, "P"), transparency=3),
    "16-bit PNG": encode(Image.fromarray(np.asarray(texture(40, 30, "L"), "uint16") * 257)),
    "APNG": encode(texture(40, 30), save_all=True, append_images=[texture(40, 30, seed=1)]),
    "GIF": encode(texture(40, 30, "P"), "GIF"),
    "animated GIF": encode(texture(40, 30), "GIF", save_all=True, append_images=[texture(40, 30, seed=1)]),
    "BMP": encode(texture(40, 30), "BMP"),
    "RLE BMP": bmp(16, 16, 8, b"\x10\1\0\0" * 16 + b"\0\1", palette=bytes(1024), compression=1),
    "WebP": encode(texture(40, 30), "WEBP"),
    "lossless WebP": encode(texture(40, 30, "RGBA"), "WEBP", lossless=True),
    "animated WebP": encode(texture(40, 30), "WEBP", save_all=True, append_images=[texture(40, 30, seed=1)]),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("hostile") / "corpus")


def run(*command, timeout=120, **options):
    """Run a command in a process with a timeout, so that a hang or a crash fails only one test."""
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", *map(str, command)],
        capture_output=True,
        timeout=timeout,
        text=True,
        errors="backslashreplace",
        **options,
    )


# The corpus


def test_every_file_has_the_expected_outcome(tmp_path):
    done = run(SCRIPT, tmp_path / "corpus")
    wrong = [line for line in done.stdout.splitlines() if "**unexpected**" in line]
    assert done.returncode == 0 and not wrong, "\n".join(wrong) + done.stderr[-2000:]
    kinds, files, grown = map(
        int, re.search(r"(\d+) kinds, (\d+) files.*grew by (\d+) MB", done.stdout).groups()
    )
    assert kinds > 200 and files > 4000
    assert grown < 300, "MB: something was unpacked, or a large file was read"


def test_the_corpus_detects_wrong_pixels(tmp_path, monkeypatch):
    """If images were decoded wrongly, the expectations of the corpus would fail."""
    from helpers import hostile_files

    cases = [case for case in make_corpus(tmp_path) if case.kind in ("JPEG, YCCK", "EXIF: orientation 8")]
    monkeypatch.setattr(decoding, "_to_rgb", lambda image, turn: Image.new("RGB", image.size, "pink"))
    for case, outcomes in hostile_files.outcomes_of(cases):
        assert not any(hostile_files.as_expected(case, outcome) for outcome in outcomes)
    assert len(cases) == 2


def test_the_command_exits_with_0_or_2_for_every_folder(corpus, capsys):
    roots = sorted({case.root for case in corpus}, key=lambda root: root.name == "files")
    for root in roots:
        refused = any("refused" in case.expected for case in corpus if case.root == root)
        code = main([str(root)])
        out, err = capsys.readouterr()
        assert code == (2 if refused else 0), root
        assert "Traceback" not in out + err
        assert bool(out) != refused and bool(re.match("Expected|Unknown", err)) == refused


def test_the_files_that_the_command_writes_can_be_read_again(corpus, tmp_path):
    root = next(case.root for case in corpus)
    files = {kind: tmp_path / f"out.{kind}" for kind in ("json", "html", "csv")}
    done = run("-m", "transfer.datasets", root, "--json", files["json"], "--html", files["html"],
               "--write-split", files["csv"])  # fmt: skip
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    report = json.loads(files["json"].read_text("utf-8"))
    assert report["class_names"] == sorted(COLORS)
    page = files["html"].read_text("utf-8")
    assert "<script>alert" not in page
    with files["csv"].open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    data = load_data(root)
    assert len(rows) - 1 == report["total"] == sum(map(len, data.splits.values()))
    assert len({name for name, *_ in rows}) == len(rows)
    for name, why in data.skipped:
        assert why and name.encode("utf-8").decode("utf-8").isprintable()
        assert [name, why] in report["skipped"]
    again = load_data(root, split_file=files["csv"])
    for split, part in data.splits.items():
        assert list(again.splits[split].names) == list(part.names)
        assert list(again.splits[split].images) == list(part.images)
        assert again.splits[split].labels.tolist() == part.labels.tolist()


def test_strict_stops_at_the_skipped_files(corpus):
    with pytest.raises(InputError, match=r"Received \d{4} that cannot: .*more\."):
        load_data(next(case.root for case in corpus), strict=True)


@pytest.mark.skipif(os.name != "posix", reason="needs the permissions of POSIX")
def test_files_without_read_permission_are_reported(tmp_path):
    """Run in a process as another user, since permissions do not stop root."""
    import tempfile

    with tempfile.TemporaryDirectory() as made:
        top = Path(made) / "data"
        for name in ("a", "b"):
            for i in range(5):
                path = top / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encode(texture(16, 16, seed=10 * i + (name == "b"))))
        (top / "a/odd name").write_bytes(encode(texture(16, 16, seed=99)))
        (top / "b/closed").mkdir()
        (top / "b/half/inner").mkdir(parents=True)
        (top / "b/half/a.png").write_bytes(b"")
        (top / "b/link.png").symlink_to(top / "b/closed/x.png")
        os.chmod(made, 0o755)
        for closed in ("a/0.png", "a/odd name", "b/closed"):
            (top / closed).chmod(0)
        (top / "b/half").chmod(0o644 if os.getuid() == 0 else 0o444)
        code = f"""
import json, os
from transfer.images.datasets import load_data
os.environ["TRANSFER_CACHE"] = os.devnull  # no cache; checking the emoji loads modules that the other user could not
load_data("emoji")
if os.getuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    open({str(top / "a/0.png")!r})
except PermissionError:
    print(json.dumps(load_data({str(top)!r}).skipped))
"""
        done = run("-c", code)
        (top / "b/half").chmod(0o755)
        (top / "b/closed").chmod(0o755)
    assert done.returncode == 0, done.stderr
    if not done.stdout:
        pytest.skip("permissions stop no user here")
    assert dict(json.loads(done.stdout)) == {
        "a/0.png": "permission denied",
        "a/odd name": "permission denied",
        "b/closed": "permission denied",
        "b/link.png": "permission denied",
        "b/half/a.png": "permission denied",
        "b/half/inner": "permission denied",
    }


# Files


@pytest.mark.parametrize("kind", ENCODED)
def test_no_change_of_a_file_raises(kind):
    content = ENCODED[kind]
    assert not check(content).problem
    rng, read = np.random.default_rng(0), 0
    for _ in range(300):
        found = check(mutated(content, rng))
        assert bool(found.problem) != bool(found.digest and found.width and found.height and found.format)
        read += not found.problem
    assert read < 250, "most changes damage the file, so the check should fail often"


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """Change, remove, repeat or overwrite bytes, more often near the beginning."""
    changed = bytearray(content)
    for _ in range(rng.integers(1, 6)):
        if len(changed) < 2:
            break
        place = int(len(changed) * rng.random() ** 2)
        length = int(rng.integers(1, 9))
        what = rng.integers(6)
        if what == 0:
            changed[place] = rng.integers(256)
        elif what == 1:
            del changed[place : place + length]
        elif what == 2:
            changed[place:place] = changed[place : place + 4 * length]
        elif what == 3:
            changed[place : place + length] = b"\xff" * length
        elif what == 4:
            changed[place : place + length] = bytes(length)
        else:
            del changed[place + length :]
    return bytes(changed)


@pytest.mark.parametrize("kind", ["JPEG", "progressive JPEG", "PNG", "16-bit PNG", "GIF", "BMP", "WebP"])
def test_a_truncated_image_is_complete_or_refused(kind):
    """Test it at the full size, and at a smaller scale of decoding."""
    content = ENCODED[kind]
    whole = {size: decode(content, size) for size in ((30, 40), (4, 4))}
    for n in range(0, len(content), 1 + len(content) // 400):
        for size, pixels in whole.items():
            try:
                assert np.array_equal(decode(content[:n], size), pixels), n
            except InputError:
                continue


@pytest.mark.parametrize(("content", "why"), [
    (b"II*\0" + bytes(99), "broken at its beginning, or TIFF with unusual channels (such as 64-bit or more than 4)"),
    (b"\0\0\0\x18ftypheic" + bytes(99), HEIC_PROBLEM),
    (b"\xff\xd8\xff\xf7" + bytes(99), "JPEG-LS is not supported: save it as JPEG or PNG"),
    (b"II*\0\x10\0\0\0CR\2\0" + bytes(99), "camera raw is not supported: save it as JPEG or PNG"),
    (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(99), "JPEG XL is not supported: save it as JPEG or PNG"),
    (b"\n<!DOCTYPE HTML><html>", "not an image but a web page"),
    (b"<?xml version='1.0'?><svg/>", "SVG is not supported: save it as JPEG or PNG"),
    (b"\x89PNG\r\n\x1a\n" + bytes(99), "broken at its beginning"),
    (ENCODED["JPEG"][:-300], "image file is truncated"),
    (ENCODED["JPEG"][:10], "image file is truncated"),
    (ENCODED["WebP"][:99], "image file is truncated or broken"),
])  # fmt: skip
def test_reasons_are_plain(content, why, tmp_path):
    assert check(content).problem == why
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(InputError, match=re.escape(f"a.jpg: {why}. Expected JPEG")):
        decode(tmp_path / "a.jpg", (8, 8))


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (1, 1)])
def test_very_thin_images_stay_visible(size, resize):
    pixels = decode(encode(solid((220, 40, 30), size=size)), (64, 64), resize=resize)
    assert (pixels.reshape(-1, 3) == (220, 40, 30)).all(axis=1).sum() >= 64


def test_large_images_are_decoded_one_at_a_time(monkeypatch):
    """Each may need gigabytes of memory, and there are as many threads as cores."""
    here, most, to_rgb = [], [], decoding._to_rgb

    def slow(image, turn):
        here.append(1)
        most.append(len(here))
        time.sleep(0.05)
        here.pop()
        return to_rgb(image, turn)

    monkeypatch.setattr(decoding, "_to_rgb", slow)
    for large, together in ((10**9, 4), (10, 1)):
        most.clear()
        monkeypatch.setattr(decoding, "_LARGE", large)
        threads = [threading.Thread(target=check, args=(ENCODED["PNG"],)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert max(most) == together or (together > 1 and max(most) > 1)


def test_pipes_and_devices_are_refused(tmp_path):
    """A manifest may name them, or one may replace a file after the folder was listed."""
    os.mkfifo(tmp_path / "pipe.jpg")
    assert check_images([str(tmp_path / "pipe.jpg"), "/dev/zero"])[0].problem == "not a file"


# Names


@pytest.mark.parametrize(("name", "printed"), [
    ("a b.png", "a b.png"),
    ("Cafe\u0301", "Caf\u00e9"),
    ("क्\u200cष 👩\u200d🔬 a\u00a0b \u3000", "क्\u200cष 👩\u200d🔬 a\u00a0b \u3000"),
    ("a\nb\r\t\x1b[31m\x7f", r"a\nb\r\t\x1b[31m\x7f"),
    ("\u202egnp.exe\u2028\ufeff", r"\u202egnp.exe\u2028\ufeff"),
    (os.fsdecode(b"caf\xe9"), r"caf\xe9"),
    ("\ud800", r"\ud800"),
    ("\U0001fadf \U000e0063", "\U0001fadf \U000e0063"),  # newer than some versions of Python know
])  # fmt: skip
def test_names_are_printed_the_same_on_every_system(name, printed):
    assert printable(name) == printed == printable(printed)
    printed.encode("utf-8")


@pytest.mark.parametrize(
    "kind", ["pipe", "dangling", "loop", "image", "gone", "/dev/zero", "a\0b", "x" * 5000]
)
def test_invalid_sources_are_refused_at_once(kind, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "image").write_bytes(ENCODED["PNG"])
    with pytest.raises(InputError, match=r"(?i)expected|cannot") as caught:
        load_data(str(tmp_path / kind))
    text = str(caught.value)
    assert text.count("Expected") <= 1 and f"Did you mean '{tmp_path / kind}'" not in text


def test_an_image_as_a_source_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(ENCODED["PNG"])
    with pytest.raises(InputError, match=r"Received an image: .*Pass the folder that contains it") as caught:
        find_source(str(tmp_path / "a.png"))
    assert str(caught.value).count("Expected") == 1


def test_links_above_the_data_are_not_followed(tmp_path):
    for name in ("a", "b", "../beside/c"):
        for i in range(4):
            path = tmp_path / "data" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(texture(16, 16, seed=10 * i + len(name) + (name == "b"))))
    (tmp_path / "data/a/up").symlink_to(tmp_path)
    (tmp_path / "entry").symlink_to(tmp_path / "data")
    for way in ("data", "entry"):
        data = load_data(tmp_path / way)
        assert data.report.total == 8
        assert data.skipped == (("a/up", "a link to a folder that contains it"),)


def test_images_outside_the_splits_are_reported(tmp_path):
    for i, name in enumerate(("train/a", "train/b", "test", "unlabeled/x", ".")):
        for k in range(4):
            path = tmp_path / name / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(texture(16, 16, seed=10 * i + k)))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("about these")
    data = load_data(tmp_path)
    assert dict(data.skipped) == {
        **{f"unlabeled/x/{k}.png": "outside the folders of splits and classes" for k in range(4)},
        **{f"{k}.png": "not in the folder of a class" for k in range(4)},
    }
    (finding,) = [finding for finding in data.report.findings if finding.kind == "source"]
    assert finding.text.startswith("Not used: 4 images in 'test'") and not finding.serious


def test_errors_list_the_skipped_files(tmp_path):
    for name in ("a/1.png", "b/1.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(encode(texture(16, 16)))
    (tmp_path / "c").mkdir()
    (tmp_path / "c/photo.psd").write_bytes(b"")
    with pytest.raises(InputError, match=r"none in: c\..* Skipped: c/photo\.psd \(PSD is not supported"):
        load_data(tmp_path)


def test_16_bit_grey_can_be_transparent():
    values = np.full((4, 4), 30_000, "uint16")
    values[:2] = 500
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "PNG")
    content = stream.getvalue()
    content = content[:33] + chunk(b"tRNS", (500).to_bytes(2, "big")) + content[33:]
    pixels = decode(content, (4, 4))
    assert (pixels[:2] == 255).all() and (pixels[2:] == round(30_000 / 257)).all()
