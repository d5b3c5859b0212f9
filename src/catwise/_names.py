"""Names that the command line and the library share, and which of them go together: no torch here.

Tables whose values need numpy or torch (`METRICS`, `ENCODINGS`, …) are tested to have these keys,
in this order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from catwise.errors import ConfigError, check_choice

PRESETS: Final = ("default", "paper")
VALIDATIONS: Final = ("fit_and_select", "select")
ENGINES: Final = ("local", "ray")

METHODS: Final = {"bp_bce": "bce", "bp_asl": "asl_published", "ga": None}
"""The published methods, and the loss of those by back-propagation."""

METRICS: Final = (
    "average_precision", "auroc", "partial_auroc", "f1", "best_f1", "precision", "recall",
    "brier", "log_loss", "ece",
)  # fmt: skip
ENCODINGS: Final = (
    "nan", "minus_one_unknown", "minus_one_uncertain", "zero_unknown", "codes", "complete",
)  # fmt: skip
DATASETS: Final = (
    "celeba", "chestxray14", "chexpert", "coco", "lvis", "mimic_cxr", "nuswide", "openimages",
    "vaw", "vindr", "visual_genome", "voc",
)  # fmt: skip
CALIBRATIONS: Final = ("affine", "offset", "platt", "isotonic", "venn_abers", "choose")
THRESHOLD_RULES: Final = (
    "f1", "f_beta", "cost", "youden", "alert_rate", "prevalence", "sensitivity", "specificity",
    "precision",
)  # fmt: skip
OUTPUT_KINDS: Final = ("logits", "probabilities", "scores")
ENSEMBLE_METHODS: Final = ("probability", "rank", "logit")
ENSEMBLE_PRESETS: Final = ("chexpert",)
POOLS: Final = ("mean", "max")
UNITS: Final = ("image", "study", "patient")
"""What is scored as one, and how the scores of its images become one."""
UNIT_NOUNS: Final = {
    "image": ("image", "images"),
    "study": ("study", "studies"),
    "patient": ("patient", "patients"),
}
"""What one of them is called, and what several are."""
DRAWS: Final = ("keyed", "mlcpl", "matrix")
ASSUMPTIONS: Final = ("scar",)
SCHEMES: Final = (
    "ignore", "partial_bce", "assume_negative", "weak_assume_negative", "label_smoothing", "focal",
    "asl", "partial_asl", "csl", "ll_r", "ll_ct", "ll_cp", "em", "em_apl", "role", "splc", "hill",
    "auc_margin", "curriculum", "self_training",
)  # fmt: skip
"""How a model is trained on partial labels."""
STATEFUL_SCHEMES: Final = ("ll_cp", "em_apl", "role", "curriculum")
"""Those that remember something of each image."""


def takes_engine(preset: str, validation: str | None) -> bool:
    """Whether a preset can fit blocks of categories on an engine."""
    return preset == "default" and validation != "select"


def check_choices(
    preset: str, methods: Sequence[str] | None, validation: str | None, *, has_valid: bool
) -> str:
    """Check the choices for `tune`, and return what validation labels are used for.

    `validation` None is the preset's own; the names of `methods` are the preset's to check.
    """
    check_choice("preset", preset, PRESETS)
    check_choice("validation", validation, (*VALIDATIONS, None))
    chosen = validation or ("select" if preset == "paper" else "fit_and_select")
    if not has_valid and (preset == "paper" or chosen == "select"):
        raise ConfigError(
            "validation data are needed to choose with.",
            found=f"valid=None with preset={preset!r}, validation={chosen!r}",
            remedy="use preset='default' with validation='fit_and_select', or give validation rows",
        )
    if preset == "paper" and chosen != "select":
        raise ConfigError(
            "the preset 'paper' uses validation for choosing only.",
            found=f"validation={chosen!r}",
            expected="validation='select' or None",
            remedy="preset='default' fits on validation labels too",
        )
    if preset == "default" and methods:
        raise ConfigError(
            "the preset 'default' takes no methods.",
            found=f"methods={list(methods)}",
            expected="methods=None",
            remedy="use preset='paper', which takes them, or leave them out",
        )
    return chosen
