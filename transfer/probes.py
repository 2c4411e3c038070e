"""Formulas on arrays that tell how a network suits data before anything is trained."""

from __future__ import annotations

import numpy as np

_PSEUDO_COUNT = 0.1
"""Pictures added to each old class, spread like the labels, so that an unseen pair is not log(0). At 0.1 the
measure of four data sets moved by 0.06 at most from 256 to 1,000 pictures; at 1 it was drawn to 0."""


def label_information(old_probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Measure how much a network's old classes tell about the new ones, 0 (nothing) to 1 (everything).

    I = 1 + LEEP / H(Y), where LEEP (Nguyen et al. 2020, arXiv:2002.12462) is the mean log probability of
    the true label given the old classifier's output z: log sum_z P(y | z) theta(z | x), with P from the
    joint distribution of both over the pictures, and H(Y) is the labels' entropy. Each picture is left out
    of the joint that it is judged by, since with few pictures per old class it would predict itself.

    Args:
        old_probabilities: theta(z | x), of the old classifier, shape (N, old classes); rows sum to 1.
        labels: the new classes, shape (N,), whole numbers from 0.

    Returns:
        The information; below 0 where the old classes mislead, as they do where there are hardly more
        pictures than old classes. 0 where there are no pictures, or all of one class.

    Example:
        >>> old = np.eye(2)[[0, 0, 0, 1, 1, 1]]
        >>> float(label_information(old, np.array([0, 0, 0, 1, 1, 1])).__round__(3)) > 0.5
        True
    """
    if not len(labels):
        return 0.0
    num_classes = int(labels.max()) + 1
    one_hot = np.eye(num_classes)[labels]
    share = one_hot.mean(axis=0)
    prior = share[share > 0]
    entropy = -float(np.sum(prior * np.log(prior)))
    if entropy == 0.0:
        return 0.0
    joint = one_hot.T @ old_probabilities
    marginal = old_probabilities.sum(axis=0)
    left_joint = joint[labels] - old_probabilities
    left_marginal = marginal[None, :] - old_probabilities
    conditional = (left_joint + _PSEUDO_COUNT * share[labels][:, None]) / (left_marginal + _PSEUDO_COUNT)
    likelihood = np.sum(conditional * old_probabilities, axis=1)
    return 1.0 + float(np.mean(np.log(np.maximum(likelihood, 1e-12)))) / entropy
