"""Make the images of README and docs: `python docs/make_images.py [RUN]`.

Without RUN it draws the four cases. RUN is the folder of a run: its report is captured with Chromium.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageChops

import transfer

IMAGES = Path(__file__).parent / "images"
NUM_CLASSES = 8


def draw_four_cases() -> Image.Image:
    """Draw the demonstration network in each case, two by two."""
    base = transfer.load_backbone("DemoCNN")
    drawings = []
    for case in transfer.Case:
        init = "random" if case == "large-different" else "pretrained"
        cut = "conv2" if case == "small-different" else None
        figure = transfer.lesson_drawing(transfer.build(case, base, NUM_CLASSES, init=init, cut=cut), base)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=80)
        drawings.append(Image.open(file).convert("RGB"))
    width, height = drawings[0].size
    sheet = Image.new("RGB", (2 * width, 2 * height), "white")
    for number, drawing in enumerate(drawings):
        sheet.paste(drawing, (number % 2 * width, number // 2 * height))
    return sheet.crop(ImageChops.difference(sheet, Image.new("RGB", sheet.size, "white")).getbbox())


def screenshot(page: Path, *, width: int = 1100, height: int = 1300) -> Image.Image:
    """Return the top of a page as Chromium shows it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "page.png"
        flags = ["--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={width},{height}"]
        subprocess.run(["chromium", *flags, f"--screenshot={file}", page.resolve().as_uri()], check=True)
        return Image.open(file).convert("RGB")


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    draw_four_cases().quantize(64).save(IMAGES / "four-cases.png", optimize=True)
    if len(sys.argv) > 1:
        screenshot(Path(sys.argv[1]) / "report.html").quantize(128).save(IMAGES / "report.png", optimize=True)
