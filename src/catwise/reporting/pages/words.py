"""The words of a page, explained to someone who has read nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_WORDS: Final = {
    "category": "One of the things that an image may show. Each is answered by itself: yes or no.",
    "head": "The last layer of the model: for each category, the numbers that turn what the model "
    "sees into a score. Only this layer is ever changed.",
    "known, unknown": "A label is known where someone said yes (positive) or no (negative). All "
    "else is unknown, and is counted neither for nor against.",
    "original, new": "The head before, and after.",
    "average precision": "How well images that show a category are ranked above those that do not, "
    "with most weight on the top of the list: 1 is perfect, the share of positives is chance.",
    "AUROC": "The chance that an image that shows the category scores higher than one that does "
    "not: 1 is perfect, 0.5 is chance.",
    "log-loss": "How far probabilities are from the truth: 0 is perfect, less is better.",
    "interval": "Where the true value lies in 95 of 100 such studies, if not said otherwise. A "
    "change is shown where the interval of the difference leaves out 0.",
    "better, worse": "A change that chance hardly makes, also when there are many categories "
    "(false discovery rate of 5%). Everything else is no difference shown, which does not mean "
    "that there is none.",
    "better or worse": "The interval of the change leaves out 0. Among many categories some do "
    "so by chance, and only test rows judge. Everything else is no difference shown, which does "
    "not mean that there is none.",
    "not judged": "Fewer than 3 positives or negatives are known, so that nothing can be said.",
    "row": "One image, or one study or patient where those are scored.",
    "test rows": "Rows that fitted and chose nothing. Only they judge.",
    "validation rows": "Rows that the model was not trained on, and that fitted or chose the "
    "new head. What they say is corrected for that choosing.",
    "training rows": "Rows that the model was trained on. It has memorised some of their "
    "labels, so scores on them are too good.",
    "replaced, kept, skipped": "What was done with a category: it has new numbers; it was judged "
    "and keeps the original ones; it could not be judged and keeps them.",
    "precision, recall": "The share of alerts that are right; the share of positives that are "
    "found.",
    "probability, logit": "A logit is the score that the head gives; a probability is the same "
    "between 0 and 1. Calibrated probabilities mean what they say.",
    "threshold": "The logit from which an image is called positive.",
    "prevalence": "The share of images that show a category.",
    "coverage": "The share of images whose label is known.",
}
"""What each word means."""


def words(*names: str) -> list[tuple[str, str]]:
    """Some of the words with their meaning."""
    return [(name, _WORDS[name]) for name in names]


def metric_words(metrics: Sequence[str]) -> list[str]:
    """Those of some metrics that are explained, by their names for people."""
    return [name for name in ("average precision", "AUROC", "log-loss") if name in metrics]
