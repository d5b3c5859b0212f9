"""What a run says, as it is written to `records.json`, `records.csv` and `summary.json`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeAlias

from catwise.tuning.account.schema import JsonObject

Table: TypeAlias = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class OnTestRows(JsonObject):
    """Both heads on the test rows, in one category."""

    test_before: Annotated[float | None, "score of the original head on the test rows"]
    test_after: Annotated[float | None, "score of the new head on the test rows"]
    test_difference: Annotated[float | None, "`test_after` − `test_before`"]
    test_low: Annotated[float | None, "lower end of its paired interval; null without one"]
    test_high: Annotated[float | None, "upper end"]
    test_outcome: Annotated[str, '"better", "worse", "no_difference" or "not_judged"']
    test_reason: Annotated[str | None, "code of why there is no interval"]
    n_positive_test: Annotated[int, "known positives among the test rows"]
    n_negative_test: Annotated[int, "known negatives among the test rows"]


@dataclass(frozen=True, kw_only=True)
class Record(JsonObject):
    """One category of a run."""

    _spread: ClassVar[tuple[str, ...]] = ("test",)

    category: Annotated[str, "name"]
    index: Annotated[int, "row of the head"]
    status: Annotated[str, '"replaced", "kept" or "skipped"']
    reason: Annotated[str, "code of why"]
    explanation: Annotated[str, "the reason in a sentence"]
    candidate: Annotated[str, "what the category has now; of the original head its name"]
    metric: Annotated[str, "name of the metric that chose"]
    before: Annotated[float | None, "score of the original head"]
    after: Annotated[float | None, "score of what it has now, corrected for the choosing"]
    gain: Annotated[float | None, "`after` − `before`; for a loss a negative one is an improvement"]
    gain_low: Annotated[float | None, "lower end of the gain's interval; null without one"]
    gain_high: Annotated[float | None, "upper end"]
    interval_reason: Annotated[str | None, "code of why there is no interval"]
    selected_on: Annotated[float | None, "score of the chosen on the data that chose it: too high"]
    scored_on: Annotated[str | None, "which rows the scores are of"]
    n_positive_train: Annotated[int | None, "known positives of the training rows"]
    n_negative_train: Annotated[int | None, "known negatives of the training rows"]
    n_positive_valid: Annotated[int | None, "known positives of the validation rows"]
    n_negative_valid: Annotated[int | None, "known negatives of the validation rows"]
    gap_auroc: Annotated[
        float | None, "AUROC of the original head on training less validation rows"
    ]
    gap_average_precision: Annotated[float | None, "the same of average precision"]
    test: Annotated[OnTestRows | None, "on test rows, where there are any"] = None
    candidates: Annotated[Table | None, "of `select`: the raw score of every candidate"] = None


@dataclass(frozen=True, kw_only=True)
class Summary(JsonObject):
    """A run as a whole."""

    metric: Annotated[str, "name of the metric that chose"]
    n_categories: Annotated[int, "categories of the labels; of `select` rows of the head"]
    n_replaced: Annotated[int, "categories that have a new row"]
    n_kept: Annotated[int, "categories that were judged and keep the original row"]
    n_skipped: Annotated[int, "categories that could not be judged"]
    n_scored: Annotated[int, "categories that the means cover"]
    before: Annotated[float | None, "mean score of the original head"]
    after: Annotated[float | None, "`before` + `gain`"]
    gain: Annotated[float | None, "mean gain of the choosing, corrected for it"]
    gain_low: Annotated[float | None, "lower end of its interval; null without one"]
    gain_high: Annotated[float | None, "upper end"]
    level: Annotated[float, "confidence level of the intervals"]
    selected_on: Annotated[float | None, "mean score of the chosen on what chose it: too high"]
    choice: Annotated[Table, "what was chosen"]
    seconds: Annotated[float, "time that it took"]
    passes: Annotated[Table, "how often the rows were read, by what for"]
    rows: Annotated[Table | None, "labelled rows of each source"] = None
    reason: Annotated[str | None, "of `select`: why nothing could be judged, or empty"] = None
    judged_by: Annotated[Table | None, "of `select`: which rows judged each candidate"] = None
    in_sample_rows: Annotated[Table | None, "of `select`: rows that fitted or chose each"] = None


@dataclass(frozen=True)
class Account:
    """Records and summary of a run."""

    records: tuple[Record, ...]
    summary: Summary
