"""Pages on finished runs: one by itself, several side by side, and the card that goes with the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from transfer.cases.policies import POLICIES, Case
from transfer.common.errors import InputError
from transfer.common.figures import png_of
from transfer.common.pages import data_uri, render
from transfer.evaluation.evaluate import Evaluation
from transfer.evaluation.metrics import compare_right
from transfer.results.run_records import RunRecord

Thumbnail = Callable[[str], np.ndarray | None]

UNFAIR = 0.05
"""Difference of mean confidence and accuracy from which on it is said."""

CAPTIONS = {
    "four_cases": "Where these data are among the four cases, beside sets that are known.",
    "layer_curve": "How well each layer of the network tells the classes.",
    "network": "The network by blocks: what is frozen, what trains, what is new, what was cut away.",
    "learning_curves": "How training went.",
    "confusion_matrix": "Which class was taken for which; rows are true classes.",
    "classes": "Precision and recall by class, the worst first.",
    "calibration": "How often the model is right, by how sure it is.",
    "mistakes": "The surest mistakes, and where the model looked.",
    "predictions": "Test images with what the model takes them for.",
    "blocks": "What some filters of some blocks respond to most.",
}


def run_page(record: RunRecord, *, thumbnail: Thumbnail | None = None) -> str:
    """Make the page of one run."""
    found = record.evaluation
    sections = {"network": "Network", "advice": "Why this case", "test": "Test", "mistakes": "Mistakes"}
    sections |= {"blocks": "Blocks", "training": "Training", "data": "Data", "again": "Once more"}
    there: dict[str, Any] = {"advice": record.advice, "test": found, "mistakes": found, "data": record.data}
    there["blocks"] = record.figures.get("blocks")
    part = render(
        "run.html",
        record=record,
        lead=_lead(record),
        tiles=_tiles(record),
        sections=[(key, text) for key, text in sections.items() if there.get(key, True) is not None],
        figures={
            name: (data_uri(content), alt_text(name, found, _lead(record)), CAPTIONS[name])
            for name, content in record.figures.items()
        },
        advice=record.advice,
        choices=_choices(record.advice) if record.advice else [],
        found=found,
        verdict=verdict(found) if found else "",
        confused=found.confused[:10] if found else [],
        label_issues=record.details.get("label_issues", [])[:50],
        costs=_costs(record),
        data_part=record.data.to_part(thumbnail) if record.data else "",
        command=dataclasses.replace(record.config, output=None, split=None).command,
        options=[(k, v) for k, v in dataclasses.asdict(record.config).items() if v is not None],
        versions=sorted(record.metrics.get("versions", {}).items()),
    )
    return str(render("page.html", title=_title(record), parts=[part]))


def _title(record: RunRecord) -> str:
    policy = POLICIES[Case.parse(record.metrics["case"])]
    return f"{record.name}: case {policy.number}, {record.metrics['case']}"


def _lead(record: RunRecord) -> str:
    policy, cuts = POLICIES[Case.parse(record.metrics["case"])], record.metrics.get("cuts", [])
    where = (
        f", with a head that sees {len(cuts)} layers"
        if len(cuts) > 1
        else f", cut at {record.metrics['cut']}"
    )
    return f"{record.config.model} on {record.config.data}{where}: {policy.idea}."


def _tiles(record: RunRecord) -> list[tuple[str, str, str]]:
    metrics, found = record.metrics, record.evaluation
    tiles = []
    if found is not None:
        low, high = found.interval
        tiles.append(("test accuracy", f"{found.accuracy:.1%}", f"{low:.1%} to {high:.1%} (95%)"))
        tiles.append(("macro F1", f"{found.macro.f1:.1%}", "every class counts the same"))
        tiles.append(("log loss", f"{found.loss:.3f}", f"calibration error {found.calibration.error:.3f}"))
    counts = f"{metrics['num_val']:,} for validation, {metrics['num_test']:,} for the test"
    tiles.append(("trained on", f"{metrics['num_train']:,} images", counts))
    tiles.append(("time", in_seconds(metrics["seconds_total"]), "all in all"))
    if metrics.get("peak_memory_mb"):
        tiles.append(("memory", f"{metrics['peak_memory_mb'] / 1024:.1f} GB", "at most"))
    return tiles


def in_seconds(seconds: float) -> str:
    """Say how long something took."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = int(seconds // 60)
    return f"{minutes} min {int(seconds % 60)} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _choices(advice: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for one in advice["cases"]:
        low, high = one["interval"]
        rows.append(
            {
                "case": f"{POLICIES[Case.parse(one['case'])].number} {one['case']}",
                "action": one.get("action") or one["source"],
                "expected": f"{one['expected_accuracy']:.1%}",
                "interval": f"{low:.0%} to {high:.0%}",
                "time": "not measured" if one["seconds"] is None else in_seconds(one["seconds"]),
                "chosen": one["case"] == advice["case"] and one["cut"] == advice["cut"],
            }
        )
    return rows


def verdict(found: Evaluation) -> str:
    """Say in words how good a model is, and how honest."""
    low, high = found.interval
    sure = float(found.probabilities.max(axis=1).mean())
    count = len(found.labels)
    whose = f"Of {count:,} images" + ("" if found.seen else " that training never saw")
    text = (
        f"{whose}, {found.accuracy:.1%} are named rightly; the accuracy is {low:.1%} to {high:.1%} with 95% "
        f"confidence. On the whole the model is {sure:.0%} sure"
    )
    if found.seen:
        flatter = f"{found.seen:,} of them were trained or validated on, so that these figures flatter"
        return f"{text}. {flatter}: take them out."
    if abs(sure - found.accuracy) > UNFAIR:
        return f"{text}, too {'much' if sure > found.accuracy else 'little'}: --calibrate mends that."
    return f"{text}, which is honest."


def _costs(record: RunRecord) -> list[tuple[str, str]]:
    metrics = record.metrics
    rows = [
        ("forward passes over the frozen part", in_seconds(metrics["seconds_features"])),
        ("training", in_seconds(metrics["seconds_training"])),
        ("all in all, with reading, advice and test", in_seconds(metrics["seconds_total"])),
        ("parameters that train", f"{metrics['trainable_parameters']:,}"),
    ]
    if metrics.get("temperature") is not None:
        rows.append(("temperature of the probabilities", f"{metrics['temperature']:.2f}"))
    if metrics.get("engine"):
        rows.append(("what ran the frozen part", metrics["engine"]))
    if metrics.get("peak_memory_mb"):
        rows.append(("memory at most", f"{metrics['peak_memory_mb']:,.0f} MB"))
    return rows


def evaluation_page(
    title: str, found: Evaluation, label_issues: Sequence[Any], figures: Mapping[str, Any]
) -> str:
    """Make the page of an evaluation by itself."""
    shown = {
        name: (data_uri(png_of(figure)), alt_text(name, found), CAPTIONS[name])
        for name, figure in figures.items()
    }
    part = render(
        "test.html",
        found=found,
        verdict=verdict(found),
        confused=found.confused[:10],
        label_issues=label_issues,
        figures=shown,
    )
    return str(render("page.html", title=title, parts=[part]))


def alt_text(name: str, found: Evaluation | None, lead: str = "") -> str:
    """Say what an image of a run shows, for those who do not see it."""
    if name == "confusion_matrix" and found is not None:
        pairs = ", ".join(f"{c.label} for {c.predicted} ({c.images})" for c in found.confused[:3])
        return f"Confusion matrix: accuracy {found.accuracy:.1%}. Most often: {pairs or 'no mistake'}."
    if name == "calibration" and found is not None:
        points = zip(found.calibration.confidence, found.calibration.accuracy, strict=True)
        listed = "; ".join(f"{sure:.0%} sure, {right:.0%} right" for sure, right in points)
        return f"Reliability diagram, calibration error {found.calibration.error:.3f}: {listed}."
    if name == "classes" and found is not None:
        worst = sorted((c for c in found.by_class if c.images), key=lambda c: c.f1)[:3]
        return (
            "Precision and recall by class. Worst: "
            + ", ".join(f"{c.name} (F1 {c.f1:.0%})" for c in worst)
            + "."
        )
    if name == "network":
        return f"Drawing of the network: {lead}"
    return CAPTIONS[name]


def comparison_page(records: Sequence[RunRecord]) -> str:
    """Lay several runs side by side."""
    if len(records) < 2:
        raise InputError(f"Expected two runs or more to compare. Received: {len(records)}.")
    names = _different([record.name for record in records])
    best = max((r.evaluation.accuracy for r in records if r.evaluation), default=None)
    options = [dataclasses.asdict(record.config) for record in records]
    differing = [key for key in options[0] if len({repr(one[key]) for one in options}) > 1]
    shown = ("confusion_matrix", "learning_curves", "network")
    part = render(
        "comparison.html",
        names=names,
        rows=_compared(records),
        best=[r.evaluation is not None and r.evaluation.accuracy == best for r in records],
        options=[(key, [one[key] for one in options]) for key in differing],
        pairs=_pairs(records, names),
        figures=[
            (CAPTIONS[name], [(data_uri(r.figures[name]), alt_text(name, r.evaluation, _lead(r)), label) for r, label in
             zip(records, names, strict=True) if name in r.figures])
            for name in shown
        ],
    )  # fmt: skip
    return str(render("page.html", title="Runs side by side", parts=[part]))


def _different(names: Sequence[str]) -> list[str]:
    return [f"{name} ({i + 1})" if names.count(name) > 1 else name for i, name in enumerate(names)]


def _compared(records: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    def of(name: str, say: Callable[[RunRecord], str]) -> tuple[str, list[str]]:
        return name, [say(record) for record in records]

    def test(say: Callable[[Any], str]) -> Callable[[RunRecord], str]:
        return lambda record: say(record.evaluation) if record.evaluation else "no test images"

    return [
        of("test accuracy", test(lambda e: f"{e.accuracy:.1%}")),
        of("95% of such tests", test(lambda e: f"{e.interval[0]:.1%} to {e.interval[1]:.1%}")),
        of("macro F1", test(lambda e: f"{e.macro.f1:.1%}")),
        of("log loss", test(lambda e: f"{e.loss:.3f}")),
        of("calibration error", test(lambda e: f"{e.calibration.error:.3f}")),
        of("network", lambda r: r.config.model),
        of("case", lambda r: str(r.metrics["case"])),
        of("cut", _cut),
        of("images to train on", lambda r: f"{r.metrics['num_train']:,}"),
        of("images in the test", lambda r: f"{r.metrics['num_test']:,}"),
        of("time all in all", lambda r: in_seconds(r.metrics["seconds_total"])),
        of("memory at most", lambda r: f"{r.metrics.get('peak_memory_mb') or float('nan'):,.0f} MB"),
    ]


def _cut(record: RunRecord) -> str:
    layers = len(record.metrics.get("cuts") or ())
    return f"{layers} layers" if layers > 1 else str(record.metrics["cut"])


def _pairs(records: Sequence[RunRecord], names: Sequence[str]) -> list[str]:
    """Compare each run with the best on the images that both were tested on."""
    tested = [(r.evaluation, name) for r, name in zip(records, names, strict=True) if r.evaluation]
    if len(tested) < 2:
        return []
    first, first_name = max(tested, key=lambda pair: pair[0].accuracy)
    said = []
    for other, name in tested:
        if other is first:
            continue
        places = {image: i for i, image in enumerate(other.names)}
        both = [(i, places[image]) for i, image in enumerate(first.names) if image in places]
        if not both or first.class_names != other.class_names:
            said.append(f"{first_name} and {name} were tested on other images: their figures do not compare.")
            continue
        mine, yours = (np.array(side) for side in zip(*both, strict=True))
        right = (first.labels == first.predictions)[mine], (other.labels == other.predictions)[yours]
        gained, lost, chance = compare_right(*right)
        sure = "no more than chance would give" if chance > 0.05 else "more than chance would give"
        said.append(
            f"Of {len(both):,} images that both were tested on, {first_name} alone names {gained:,} rightly and "
            f"{name} alone {lost:,}: {sure} (McNemar's exact test, p = {chance:.2g})."
        )
    return said


def model_card(record: RunRecord) -> str:
    """Write the card that goes with the model: what it is, for what, how good, and where it ends."""
    import yaml

    found = record.evaluation
    header: dict[str, Any] = {"library_name": "keras", "pipeline_tag": "image-classification"}
    header["tags"] = ["image-classification", "transfer-learning", "keras", record.config.model]
    if found is not None:
        results = [("accuracy", found.accuracy), ("f1", found.macro.f1)]
        result = {
            "task": {"type": "image-classification"},
            "dataset": {"name": record.config.data, "type": "imagefolder", "split": "test"},
            "metrics": [{"type": kind, "value": round(value, 4)} for kind, value in results],
        }
        header["model-index"] = [{"name": record.name, "results": [result]}]
    weak = sorted((c for c in found.by_class if c.images), key=lambda c: c.f1)[:5] if found else []
    text = render(
        "card.md",
        header=yaml.safe_dump(header, sort_keys=False, allow_unicode=True),
        record=record,
        lead=_lead(record),
        found=found,
        weak=weak,
        findings=[f.text for f in record.data.findings] if record.data else [],
        size=record.metrics.get("image_size"),
        versions=", ".join(f"{k} {v}" for k, v in sorted(record.metrics.get("versions", {}).items())),
        command=record.config.command,
    )  # fmt: skip
    quoted = str(text).rstrip() + "\n"
    return quoted.replace("&#39;", "'").replace("&#34;", '"')  # quotes mean nothing in Markdown
