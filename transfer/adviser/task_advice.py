"""Advice for images with several labels or with a number: the layers of the head, its score, and the training time."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras

from transfer.adviser.estimates import minimum_seconds
from transfer.adviser.sample_features import SampleFeatures
from transfer.adviser.similarity import Similarity, measure_similarity
from transfer.adviser.trials import Trial, time_fine_tuning
from transfer.cases.cuts import ALL_LAYERS, cuts_of, keeps_whole
from transfer.cases.policies import POLICIES, SMALL_DATA, Case, frozen_case, rule_of_thumb
from transfer.common import display
from transfer.common.tasks import TASK
from transfer.common.text import format_duration
from transfer.frozen.head_choice import candidate_cuts
from transfer.frozen.task_heads import TaskHeadChoice, choose_task_head
from transfer.images.datasets import ImageData
from transfer.networks.graphs import analyze
from transfer.training.schedules import BATCH_SIZE, epochs_for

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class TaskAdvice:
    """The recommended head for images with several labels or a number, and the measurements that it rests on."""

    data: str
    model: str
    task: str
    image_size: tuple[int, int]  # height and width in pixels at which the network ran
    num_train: int
    num_sampled: int
    heads: TaskHeadChoice
    whole: bool  # whether the best head sees the last layer
    similarity: Similarity | None
    trial: Trial | None
    seconds_fine_tuning: float | None  # a lower bound without a trial; None if the features were cached
    seconds: float

    @property
    def case(self) -> Case:
        """Case of the recommended head."""
        return frozen_case(whole=self.whole)

    @property
    def fine_tuning_case(self) -> Case:
        """Case of fine-tuning; unknown similarity counts as different."""
        return Case.LARGE_SIMILAR if self._similar else Case.LARGE_DIFFERENT

    @property
    def data_case(self) -> Case:
        """Case of the data by the rule of thumb."""
        return rule_of_thumb(self.num_train, self._similar)

    @property
    def cut(self) -> str:
        """Layers of the best head, as the option `cut`."""
        return ",".join(self.heads.best.cuts)

    @property
    def _similar(self) -> bool:
        return self.similarity is not None and self.similarity.similar

    @property
    def reason(self) -> str:
        """Sentences on the data, the best head, and the time of fine-tuning."""
        tuning = f"fine-tuning (case {POLICIES[self.fine_tuning_case].number})"
        bound = "" if self.trial else "at least "
        time = f"; it takes {bound}about {format_duration(self.seconds_fine_tuning)} here"
        return (
            f"{self.data_sentence} {self.head_sentence} Only training shows whether {tuning} is better"
            f"{time if self.seconds_fine_tuning else ''}. The train command with --case auto tries both if the time "
            "budget allows it."
        )

    @property
    def data_sentence(self) -> str:
        """A sentence on the size and the similarity of the data."""
        count = self.num_train
        size = "small" if count < SMALL_DATA else "large"
        kind = "similar to" if self._similar else "different from"
        if self.similarity is None:
            kind = "of unknown similarity to"
        return (
            f"Your data: {size} ({count:,} training images), {kind} the pre-training data; that is case "
            f"{POLICIES[self.data_case].number} by the rule of thumb."
        )

    @property
    def head_sentence(self) -> str:
        """A sentence on the best head."""
        best = self.heads.best
        return (
            f"Best head on the frozen network: {best.name} (case {POLICIES[self.case].number}), "
            f"{TASK[self.task].metric_name} {best.score:.3f} +- {best.standard_error:.3f} on out-of-fold predictions "
            f"of {self.num_sampled:,} images."
        )

    @property
    def metrics(self) -> dict[str, Any]:
        """The values for `metrics.json`."""
        score = self.similarity.score if self.similarity is not None else None
        best = self.heads.best
        return {
            "similarity": score,
            "expected_score": best.score,
            "expected_standard_error": best.standard_error,
        }

    def to_text(self) -> str:
        """Return the advice as lines of text."""
        height, width = self.image_size
        lines = [
            f"Data: {self.data}, {self.num_train:,} training images, task {self.task}.",
            f"Network: {self.model} at {width} x {height} pixels.",
            "",
            self.reason,
            "",
            self._table().to_text(),
            "",
            f"The advice took {format_duration(self.seconds)}.",
            "",
        ]
        return "\n".join(lines)

    def _table(self) -> display.Table:
        rows = [
            (
                f"{'->' if one is self.heads.best else '  '} {one.name}",
                f"{one.score:.3f}",
                f"{one.standard_error:.3f}",
                f"{one.loss:.4g}",
            )
            for one in self.heads.candidates
        ]
        return display.Table(("Head on", TASK[self.task].metric_name, "standard error", "loss"), rows)

    def __repr__(self) -> str:
        best = self.heads.best
        text = f"head on {best.name}, {TASK[self.task].metric_name} {best.score:.3f}"
        return display.one_line(self, f"{display.quoted(self.data)} with {self.model}: {text}")

    def _repr_html_(self) -> str:
        """Return the recommendation and the heads for a notebook."""
        return display.to_html(self.reason, self._table())

    def to_dict(self) -> dict[str, Any]:
        """Return the advice as a dictionary for JSON."""
        return {
            "data": self.data,
            "model": self.model,
            "task": self.task,
            "image_size": list(self.image_size),
            "data_case": str(self.data_case),
            "case": str(self.case),
            "cut": self.cut,
            "metric": TASK[self.task].metric,
            "expected_score": self.heads.best.score,
            "standard_error": self.heads.best.standard_error,
            "reason": self.reason,
            "similarity": None if self.similarity is None else self.similarity.score,
            "heads": [
                {
                    "name": one.name,
                    "cuts": list(one.cuts),
                    "score": one.score,
                    "standard_error": one.standard_error,
                    "loss": one.loss,
                }
                for one in self.heads.candidates
            ],
            "seconds_fine_tuning": self.seconds_fine_tuning,
            "seconds": round(self.seconds, 2),
        }

    def to_json(self) -> str:
        """Return the advice as JSON text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"

    def plot(self) -> Figure:
        """Draw the score of the head on each choice of layers."""
        from transfer.adviser.advice_plots import head_scores_plot

        return head_scores_plot(self)


def advise_task(
    data: ImageData,
    base: keras.Model,
    sample: SampleFeatures,
    *,
    trial: bool = True,
    preprocessing: str | None = None,
    balanced: bool = False,
    seed: int = 0,
) -> TaskAdvice:
    """Choose the layers of a head by out-of-fold predictions, and estimate the time of fine-tuning."""
    start, network = time.perf_counter(), analyze(base)
    heads = choose_task_head(
        sample.taps,
        sample.labels,
        data.task,
        candidates=candidate_cuts(cuts_of(network, ALL_LAYERS)),
        groups=sample.images.groups,
        balanced=balanced,
        seed=seed,
    )
    timing = None
    if trial:
        options: dict[str, Any] = {"num_classes": data.num_classes, "task": data.task}
        options |= {"image_size": sample.image_size, "preprocessing": preprocessing, "seed": seed}
        timing = time_fine_tuning(sample.images, base, **options)
    steps = epochs_for(len(data.train), BATCH_SIZE, init="pretrained") * -(-len(data.train) // BATCH_SIZE)
    needed = minimum_seconds(sample.seconds_per_image, steps) if sample.seconds_per_image else None
    if timing is not None:
        needed = timing.seconds_start + steps * timing.seconds_per_step
    return TaskAdvice(
        data=data.name,
        model=base.name,
        task=data.task,
        image_size=sample.image_size,
        num_train=len(data.train),
        num_sampled=len(sample.labels),
        heads=heads,
        whole=keeps_whole(network, heads.best.cuts),
        similarity=measure_similarity(sample, base.name, base=base),
        trial=timing,
        seconds_fine_tuning=needed,
        seconds=time.perf_counter() - start,
    )
