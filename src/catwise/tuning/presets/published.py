"""The `paper` preset in `tune`: what validation chooses among the published methods' steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from catwise._configs import PaperConfig
from catwise.errors import ConfigError
from catwise.heads import Head
from catwise.metrics import Metric
from catwise.progress import ProgressCallback
from catwise.tuning.account.memorisation import memorisation_gap
from catwise.tuning.account.results import changed_head
from catwise.tuning.inputs import LabelledSource, TuningInputs, check_sources
from catwise.tuning.presets.outcome import Outcome, refitted_note
from catwise.tuning.presets.paper import PaperResult, run_paper, step_notes


def tune_published(
    inputs: TuningInputs,
    metric: Metric,
    *,
    methods: Sequence[str],
    config: PaperConfig,
    force: bool,
    progress: ProgressCallback | None,
) -> Outcome:
    """The preset: run the methods; validation, which there must be, takes the best step."""
    train, valid = inputs.train, inputs.judging
    logits = [inputs.scored.logits(rows.features).cpu() for rows in (train, valid)]
    notes = check_sources(inputs, *logits, force=force)
    fitted, _ = (_fitted_codes(rows) for rows in (train, valid))
    found = run_paper(
        inputs.scored,
        (train.features, fitted),
        (valid.features, valid.codes),
        methods,
        metric=metric,
        config=config,
        names=inputs.categories,
        seed=inputs.seed,
        device=inputs.device,
        progress=progress,
    )
    notes += step_notes(train.features, methods, config)
    notes.append(
        "As published, validation chose among all steps, so its scores are too high; no score "
        "of the tuned head is corrected for that. Score it on data that chose nothing."
    )
    if "ga" in methods and config.recalibrate and metric.ranks_only:
        notes.append(refitted_note(metric, "validation labels", "the genetic algorithm"))
    return Outcome(
        head=_tuned(inputs, found),
        scores=found.scores,
        scored_on="validation, which chose the step",
        choice={"methods": list(methods), "stopped": found.stopped},
        gap=memorisation_gap(logits[0], train.labels, logits[1], valid.labels),
        history=found.history,
        passes=found.passes,
        notes=notes,
    )


def _tuned(inputs: TuningInputs, found: PaperResult) -> Head:
    """The base head with the rows of the replaced categories."""
    rows = np.flatnonzero(found.replaced)
    at = torch.from_numpy(rows)
    bias = None if found.bias is None else found.bias[at]
    return changed_head(inputs.base, inputs.index[rows], found.weight[at], bias)


def _fitted_codes(rows: LabelledSource) -> torch.Tensor:
    """(C, n) codes to fit, with the label policy applied; soft targets are refused."""
    if rows.target is None or rows.weight is None:
        return rows.codes
    hard = (rows.target == 0) | (rows.target == 1) | (rows.weight == 0)
    if not bool(hard.all()):
        raise ConfigError(
            "the preset 'paper' fits hard labels only.",
            found="a label policy with soft targets",
            remedy="uncertain labels as 'unknown', 'negative' or 'positive', or preset='default'",
        )
    return torch.where(rows.weight > 0, rows.target, -1.0).to(torch.int8)
