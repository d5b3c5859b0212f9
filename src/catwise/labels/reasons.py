"""Why a category cannot be scored or tuned: one code and one sentence for each reason.

A code may name the part of the data that it is about, as in ``no_known_positive_in_valid``.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

Part: TypeAlias = Literal["train", "valid", "test"]

MISSING: Final = ("no_known_label", "no_known_positive", "no_known_negative")
"""Without both classes there is no score."""
FEW: Final = ("few_positives", "few_negatives")

_PARTS: Final = {
    "train": " in the training data",
    "valid": " in the validation data",
    "test": " in the test data",
}
_FACTS: Final = {
    "no_known_label": "No label is known{part}.",
    "no_known_positive": "No positive is known{part}.",
    "no_known_negative": "No negative is known{part}.",
    "few_positives": "Fewer than {few} positives are known{part}.",
    "few_negatives": "Fewer than {few} negatives are known{part}.",
}
_CONSEQUENCES: Final = {
    "no_known_label": "the category can be neither tuned nor scored and keeps its weights.",
    "no_known_positive": "without both classes the category can be neither tuned nor scored and "
    "keeps its weights.",
    "no_known_negative": "without both classes the category can be neither tuned nor scored and "
    "keeps its weights, unless a policy counts unknown labels as negative.",
    "few_positives": "the category is tuned, but whether it is replaced follows from all "
    "categories together, and no memorisation gap is shown.",
    "few_negatives": "the category is tuned, but its scores are rough.",
}


def class_reason(
    n_positive: int, n_negative: int, *, few: int = 1, part: Part | None = None
) -> str | None:
    """The code of what a category lacks, or None: a code in `MISSING`, or in `FEW` below `few`."""
    if not n_positive or not n_negative:
        code = MISSING[0 if n_positive == n_negative else 1 if not n_positive else 2]
    elif min(n_positive, n_negative) < few:
        code = FEW[0 if n_positive < few else 1]
    else:
        return None
    return code if part is None else f"{code}_in_{part}"


def explain(code: str, *, few: int | str | None = None) -> str:
    """The sentence of a code of :func:`class_reason`."""
    name, _, part = code.partition("_in_")
    return _FACTS[name].format(part=_PARTS[part] if part else "", few=few)


def with_consequence(code: str, consequence: str, *, few: int | str | None = None) -> str:
    """The sentence of a code, and what follows from it."""
    return f"{explain(code, few=few).removesuffix('.')}: {consequence}"


REASONS: Final = {
    **{
        code: with_consequence(code, consequence, few="{few}")
        for code, consequence in _CONSEQUENCES.items()
    },
    "ok": "Enough positives and negatives are known to tune the category and to score it.",
}
"""Reason code → what it means for a category as a whole; `{few}` is the least number of a class
that counts as enough."""
