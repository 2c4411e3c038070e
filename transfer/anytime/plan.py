"""The plan of the anytime run: which step comes next, and how long it takes by the speeds of this machine."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transfer.anytime.speeds import Speeds
from transfer.evaluation.unknown import MAX_IMAGES
from transfer.training.schedules import BATCH_SIZE, MAX_EPOCHS, epochs_for

LARGER_IMAGES = 1.29
"""Image size of the step with larger images, as a multiple of the network's own size: 288 for 224 pixels."""

SIZE_STEP = 16
"""Image sizes are multiples of this number of pixels."""

TRAINING_SIZES = (1.0, 0.72, 0.58)
"""Image sizes of fine-tuning as fractions of the run's image size, the preferred one first: 224, 160 and 128 pixels."""

FINE_TUNING_STEPS = 100
"""Training steps of the first fine-tuning. On the tuning sets, 200 steps were not better, and 60 steps were worse."""

MIN_FINE_TUNING_STEPS = 50
"""Fewest training steps for which fine-tuning is worth its start-up time."""

LONGER_STEPS = 400
"""Training steps of the first longer fine-tuning. Each further one has twice as many."""

MORE_WORK = 1.5
"""Fine-tuning that was not kept is tried again if a larger budget allows this many times the work."""

STEP_IN_FORWARD_PASSES = 4.0
"""Time of a training step per image, in forward passes by the fastest engine. It is used until one was measured."""

SECONDS = {"overhead": 9.0, "start": 12.0, "report": 5.0, "build": 4.0}
"""Nominal seconds of the start of a command, of the start of a training, of the report, and of building a model. They
are not measured: the clock ends a run on a slower machine in time."""

FORWARD_SECONDS = 2e-7
"""Nominal seconds of a forward pass per pixel, until measured."""

OTHER_NETWORK = 2.0
"""Nominal time of another network as a multiple of the present network's, until measured."""


class Kind(enum.StrEnum):
    """A kind of step. Its value is its name in `steps.json`."""

    HEAD = "head"
    LARGER = "larger images"
    NETWORK = "other network"
    FINE_TUNING = "fine-tuning"
    LONGER = "longer fine-tuning"
    AVERAGE = "average"


@dataclass(frozen=True)
class Step:
    """A step of the anytime run."""

    kind: Kind
    network: str
    # Image size of the resulting model, in pixels.
    image_size: int
    # Nominal time on this machine, in seconds.
    nominal: float
    # Image size of the training, its epochs, and the nominal time of the work after it; 0 without training.
    training_size: int = 0
    epochs: int = 0
    seconds_after: float = 0.0

    @property
    def key(self) -> str:
        """A name of the step that is unique in a run, for its checkpoints."""
        return f"{self.kind}-{self.network}-{self.image_size}-{self.training_size}-{self.epochs}".replace(
            " ", "-"
        )

    @property
    def work(self) -> int:
        """A measure of the time of its training."""
        return self.epochs * self.training_size**2


@dataclass(frozen=True)
class Situation:
    """All that decides which step comes next."""

    # Numbers of images: for training, for training and validation, for testing.
    num_train: int
    num_chosen: int
    num_test: int
    # The network and the image size of the best head, and the network's own image size.
    network: str
    image_size: int
    own_size: int
    taken: Sequence[Step] = ()
    # Other networks to try, with their own image sizes.
    networks: tuple[tuple[str, int], ...] = ()
    # Whether the user left the image size free, and whether a network that was built keeps it, as those of KerasHub.
    free_size: bool = True
    fixed_size: bool = False
    # Whether a step can raise the accuracy, and whether to average models.
    improvable: bool = True
    average: bool = False
    # Whether a fine-tuned model is at hand, and whether the last fine-tuning was kept.
    fine_tuned: bool = False
    improving: bool = False
    # Number of epochs of each fine-tuning, if the user set it.
    epochs: int | None = None
    batch_size: int = BATCH_SIZE

    def has(self, kind: Kind, network: str = "") -> bool:
        """Return whether a kind of step was taken, with a network if one is given."""
        return any(step.kind == kind and network in ("", step.network) for step in self.taken)

    @property
    def num_compared(self) -> int:
        """The number of images whose features a fine-tuned model computes for `--abstain` and `--coverage`."""
        parts = (self.num_train, self.num_chosen - self.num_train, self.num_test)
        return sum(min(MAX_IMAGES, count) for count in parts)

    @property
    def trainings(self) -> list[Step]:
        """The trainings of the present network."""
        return [step for step in self.taken if step.network == self.network and step.epochs]

    @property
    def averaged(self) -> bool:
        """Whether an average was tried since the last training."""
        late = [step.kind is Kind.AVERAGE for step in self.taken if step.epochs or step.kind is Kind.AVERAGE]
        return bool(late) and late[-1]

    @property
    def per_epoch(self) -> int:
        """Training steps of an epoch."""
        return -(-self.num_train // self.batch_size)


@dataclass
class Planner:
    """Plan the steps by the nominal speeds of this machine."""

    speeds: Speeds

    def forward(self, network: str, image_size: int) -> float:
        """Return the nominal seconds of a forward pass per image."""
        found = self.speeds.find("forward", network, image_size)
        return FORWARD_SECONDS * image_size * image_size if found is None else found

    def training_step(self, network: str, image_size: int, batch_size: int = BATCH_SIZE) -> float:
        """Return the nominal seconds of a training step."""
        found = self.speeds.find("training", network, image_size)
        default = STEP_IN_FORWARD_PASSES * self.forward(network, image_size)
        return batch_size * (default if found is None else found)

    def measured_training(self, seconds: float, step: Step, images: int) -> None:
        """Remember the time of a training on a number of images, counted once per epoch."""
        nominal = self.training_step(step.network, step.training_size, 1)
        self.speeds.measured(seconds / images, "training", step.network, step.training_size, nominal=nominal)

    def head_seconds(self, situation: Situation) -> float:
        """Return the nominal time of the first head: the start of the command, and one forward pass."""
        images = situation.num_chosen + situation.num_test
        return SECONDS["overhead"] + images * self.forward(situation.network, situation.image_size)

    def next_step(self, situation: Situation, seconds: float) -> Step | None:
        """Return the first step that fits into some seconds, or None."""
        return next((step for step in self.steps(situation, seconds) if step.nominal <= seconds), None)

    def steps(self, now: Situation, seconds: float = math.inf) -> Iterator[Step]:
        """Yield the steps that are left, in the order of their gain per second."""
        if not now.improvable:
            return
        if now.free_size and not now.has(Kind.LARGER) and not (now.fixed_size and now.fine_tuned):
            yield self._head(now, Kind.LARGER, now.network, larger_size(now.own_size))
        for network, own_size in now.networks:
            if not now.has(Kind.NETWORK, network):
                larger = now.free_size and now.image_size > now.own_size
                size = larger_size(own_size) if larger else own_size
                yield self._head(now, Kind.NETWORK, network, size)
        if not now.fine_tuned:
            step, tried = self._fine_tuning(now, seconds), max((one.work for one in now.trainings), default=0)
            if step.work > MORE_WORK * tried:
                yield step
        elif (longer := self._longer(now)) is not None:
            yield longer
        if now.average and now.fine_tuned and not now.averaged:
            images = 2 * now.num_test + 2 * now.num_compared
            seconds = SECONDS["build"] + images * self.forward(now.network, now.image_size)
            yield Step(Kind.AVERAGE, now.network, now.image_size, seconds)

    def _head(self, now: Situation, kind: Kind, network: str, size: int) -> Step:
        forward = self.speeds.find("forward", network, size)
        if forward is None:
            forward = OTHER_NETWORK * self.forward(now.network, size)
        images = now.num_chosen + now.num_test
        return Step(kind, network, size, SECONDS["build"] + images * forward)

    def _fine_tuning(self, now: Situation, seconds: float) -> Step:
        """Return the fine-tuning at the largest image size at which all its steps fit, or a shorter one."""
        for size in [now.image_size] if now.fixed_size else training_sizes(now.image_size):
            step = self._training(now, Kind.FINE_TUNING, size, FINE_TUNING_STEPS)
            if step.nominal <= seconds or now.epochs is not None:
                return step
        fewer = self._training(now, Kind.FINE_TUNING, size, MIN_FINE_TUNING_STEPS)
        one_more = self._trained(now, Kind.FINE_TUNING, size, fewer.epochs + 1)
        per_epoch = one_more.nominal - fewer.nominal
        more = int(max(0.0, min(seconds, step.nominal) - fewer.nominal) / per_epoch + 1e-6)
        return self._trained(now, Kind.FINE_TUNING, size, fewer.epochs + more)

    def _longer(self, now: Situation) -> Step | None:
        """Return the next longer fine-tuning; None if the last one brought nothing, or after the usual epochs."""
        before = [step.epochs for step in now.trainings]
        longer = sum(step.kind == Kind.LONGER for step in now.trainings)
        usual = max(
            epochs_for(now.num_train, now.batch_size), -(-(FINE_TUNING_STEPS + LONGER_STEPS) // now.per_epoch)
        )
        if (longer and not now.improving) or sum(before) >= usual or now.epochs is not None:
            return None
        return self._training(now, Kind.LONGER, now.image_size, LONGER_STEPS * 2**longer)

    def _training(self, now: Situation, kind: Kind, size: int, steps: int) -> Step:
        return self._trained(
            now, kind, size, now.epochs or min(MAX_EPOCHS, max(1, round(steps / now.per_epoch)))
        )

    def _trained(self, now: Situation, kind: Kind, size: int, epochs: int) -> Step:
        """Return a step of training with its nominal time, including the head that is solved again and the test."""
        training = epochs * now.per_epoch * self.training_step(now.network, size, now.batch_size)
        training += epochs * (now.num_chosen - now.num_train) * self.forward(now.network, size)
        images = now.num_chosen + now.num_test + now.num_compared
        after = SECONDS["build"] + images * self.forward(now.network, now.image_size)
        seconds = SECONDS["start"] + training + after
        return Step(kind, now.network, now.image_size, seconds, size, epochs, after)


def larger_size(own_size: int) -> int:
    """Return the image size of the step with larger images."""
    return SIZE_STEP * round(LARGER_IMAGES * own_size / SIZE_STEP)


def training_sizes(image_size: int) -> list[int]:
    """Return the image sizes at which fine-tuning may run, the preferred one first."""
    smaller = [
        max(32, SIZE_STEP * round(fraction * image_size / SIZE_STEP)) for fraction in TRAINING_SIZES[1:]
    ]
    return [image_size, *dict.fromkeys(size for size in smaller if size < image_size)]
