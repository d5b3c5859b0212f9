"""Labels that a machine says, such as a vision-language model's scores: known, with a weight."""

from __future__ import annotations

import dataclasses

import numpy as np

from catwise.decisions.outputs import Outputs
from catwise.errors import FeatureError, check_rules
from catwise.labels.core import PartialLabels
from catwise.labels.policy import LabelPolicy, Targets, make_targets


def add_machine_labels(
    labels: PartialLabels,
    outputs: Outputs,
    *,
    policy: LabelPolicy | None = None,
    weight: float = 0.3,
    sure: tuple[float, float] = (0.5, 0.5),
    seed: int = 0,
) -> Targets:
    """Targets and weights in which a machine's probabilities fill what people left unknown.

    What a person said, or the policy makes of it, stays as it is. Where nothing is said the
    machine's probability is a soft target with the given weight, unless it lies between the two
    ends of `sure`.

    Args:
        labels: (N, C), what people said.
        outputs: probabilities in [0, 1] for all images and categories of the labels, joined by id
            and name; `catwise.decisions.read_outputs` reads them from a table.
        policy: what uncertain and blank labels count as.
        weight: of a label that a machine said, >= 0; people's weigh 1.
        sure: probabilities strictly between these two are left out.
        seed: of soft targets that the policy draws.

    Returns:
        (N, C) targets and weights, and a sentence for reports.

    Raises:
        FeatureError: If outputs are no probabilities.
        IdError: If an image has none.
        CategoryError: If a category has none.
        ConfigError: If weight or `sure` is out of range.

    >>> labels = PartialLabels([[1, -1]], ids=["a"], categories=["cat", "dog"])
    >>> scores = Outputs([[0.2, 0.9]], categories=["cat", "dog"], ids=["a"])
    >>> made = add_machine_labels(labels, scores, weight=0.5)
    >>> made.target.round(2).tolist(), made.weight.tolist()
    ([[1.0, 0.8999999761581421]], [[1.0, 0.5]])
    """
    low, high = sure
    rules = {"weight >= 0": weight >= 0, "0 <= sure[0] <= sure[1] <= 1": 0 <= low <= high <= 1}
    check_rules("options of machine labels", {"weight": weight, "sure": sure}, rules)
    values, _ = outputs.for_labels(labels, "machine labels")
    if values.size and not 0 <= values.min() <= values.max() <= 1:
        raise FeatureError(
            "machine labels must be probabilities.",
            found=f"values from {values.min():g} to {values.max():g}",
            expected="numbers from 0 to 1",
            remedy="put logits through a sigmoid first",
        )
    said = make_targets(labels, policy, seed=seed)
    filled = (said.weight == 0) & ((values <= low) | (values >= high))
    what = f"{int(filled.sum()):,} unknown labels said by a machine, with a weight of {weight:g}"
    return dataclasses.replace(
        said,
        target=np.where(filled, values, said.target).astype(np.float32),
        weight=np.where(filled, weight, said.weight).astype(np.float32),
        description=f"{said.description} {what}.",
    )
