"""Heads that are solved on some images and compared on others."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from transfer.frozen.discriminant import SHRINKAGES, Discriminant
from transfer.frozen.softmax_regression import SoftmaxRegression, Solution

# L-BFGS stops at this gradient norm of the mean loss for each class. A smaller tolerance chooses the same settings,
# except among candidates of equal loss.
_TOLERANCE = 1e-3
_TEMPERATURES = (-3.0, 9.0)  # range of their logarithms


class Setting(NamedTuple):
    """A method with its regularization."""

    method: str
    strength: float  # C of a regression, shrinkage of a discriminant
    temperature: float = 1.0  # of a discriminant


class Candidate(NamedTuple):
    """The results of a setting on held-out images, weighted by class."""

    strength: float
    loss: float  # mean cross-entropy in nats
    accuracy: float


class HeldOut:
    """Training images and held-out images on which settings are compared."""

    def __init__(
        self,
        x: np.ndarray,
        labels: np.ndarray,
        other: np.ndarray,
        truth: np.ndarray,
        weights: np.ndarray,
        moments: np.ndarray,
    ) -> None:
        self.x, self.moments = x, moments
        self.classes, self.labels = np.unique(labels, return_inverse=True)
        self.other, self.weights = other, weights[self.classes]
        self.known = np.isin(truth, self.classes)  # a class whose only image is held out cannot be learned
        self.truth = np.searchsorted(self.classes, truth[self.known])
        self.solutions: dict[float, Solution] = {}

    @functools.cached_property
    def regression(self) -> SoftmaxRegression:
        """The regression of the training images."""
        return SoftmaxRegression(self.x, self.labels, self.weights, self.moments)

    @functools.cached_property
    def discriminant(self) -> Discriminant | None:
        """The discriminant of the training images; None if each class has one image."""
        several = len(self.x) > len(self.classes)
        if not several:
            return None
        return Discriminant(self.x, self.labels, self.weights, self.moments)

    def scores(self, setting: Setting) -> np.ndarray:
        """Return the logarithms of the held-out images' probabilities of the known classes."""
        if setting.method == "regression":
            kernel, bias = self._solve(setting.strength)
        elif self.discriminant is not None:
            kernel, bias = self.discriminant.solve(setting.strength, setting.temperature)
        else:
            return np.full((len(self.other), len(self.classes)), -np.log(len(self.classes)))
        return log_softmax(self.other @ kernel.astype("float32") + bias, axis=1)

    def _solve(self, c: float) -> Solution:
        if c not in self.solutions:  # start from the solution of the nearest C
            near = min(self.solutions, key=lambda d: abs(np.log(d / c)), default=None)
            start = None if near is None else self.solutions[near]
            self.solutions[c] = self.regression.solve(c, tolerance=_TOLERANCE, start=start)
        return self.solutions[c]

    def sums(self, scores: np.ndarray) -> np.ndarray:
        """Return weighted sums over the held-out images of known classes: losses, correct predictions, and weights."""
        scores = scores[self.known]
        weight = self.weights[self.truth]
        loss = -scores[np.arange(len(scores)), self.truth]
        return np.array([weight @ loss, weight @ (scores.argmax(axis=1) == self.truth), weight.sum()])


def score(trials: Sequence[HeldOut], setting: Setting) -> Candidate:
    """Measure a setting on all held-out images of known classes."""
    loss, correct, weight = np.sum([trial.sums(trial.scores(setting)) for trial in trials], axis=0)
    return Candidate(setting.strength, float(loss / weight), float(correct / weight))


def discriminants(
    trials: Sequence[HeldOut], shrinkages: Sequence[float] = SHRINKAGES
) -> dict[Setting, Candidate]:
    """Measure each shrinkage at its best temperature; empty if a trial has one image per class."""
    models = [trial.discriminant for trial in trials if trial.discriminant is not None]
    if len(models) < len(trials):
        return {}
    # As if one more image had a random label: if all images are right, the best temperature would be near 0.
    random = 1 / (1 + sum(len(trial.truth) for trial in trials))
    found = {}
    for shrinkage in shrinkages:
        # The temperature divides all of the scores but the prior.
        layers = [model.solve(shrinkage) for model in models]
        plain = [
            trial.other @ kernel.astype("float32") + (bias - model.log_prior)
            for trial, model, (kernel, bias) in zip(trials, models, layers, strict=True)
        ]

        def losses(log_temperature: float, plain: list[np.ndarray] = plain) -> tuple[np.ndarray, float]:
            scores = [
                log_softmax(own / np.exp(log_temperature) + model.log_prior, axis=1)
                for model, own in zip(models, plain, strict=True)
            ]
            sums = [trial.sums(own) for trial, own in zip(trials, scores, strict=True)]
            return np.sum(sums, axis=0), float(np.mean([-own.mean() for own in scores]))

        def loss(log_temperature: float, losses: Callable[[float], Any] = losses) -> float:
            (total, _, weight), guess = losses(log_temperature)
            return float((1 - random) * total / weight + random * guess)

        best = minimize_scalar(loss, bounds=_TEMPERATURES, method="bounded", options={"xatol": 0.02}).x
        total, correct, weight = losses(best)[0]
        setting = Setting("discriminant", shrinkage, float(np.exp(best)))
        found[setting] = Candidate(shrinkage, float(total / weight), float(correct / weight))
    return found
