"""Category-wise fine-tuning of multi-label image classifiers trained on partial labels.

Public names load on first use, so that ``import catwise`` costs nothing:

>>> import catwise
>>> labels = catwise.PartialLabels.from_array([[1, 0], [0, 1]], encoding="nan")
>>> labels.shape
(2, 2)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from catwise._lazy import attach
from catwise._version import __version__ as __version__
from catwise.errors import CatwiseError as CatwiseError
from catwise.errors import InSampleWarning as InSampleWarning

if TYPE_CHECKING:
    from catwise.data import union as union
    from catwise.decisions import Calibration as Calibration
    from catwise.decisions import ConformalSets as ConformalSets
    from catwise.decisions import Ensemble as Ensemble
    from catwise.decisions import Thresholds as Thresholds
    from catwise.decisions import calibrate as calibrate
    from catwise.decisions import conformal as conformal
    from catwise.decisions import ensemble as ensemble
    from catwise.decisions import suggest as suggest
    from catwise.decisions import threshold as threshold
    from catwise.estimator import CategoryWiseClassifier as CategoryWiseClassifier
    from catwise.features import FeatureStore as FeatureStore
    from catwise.features import open_store as open_store
    from catwise.features import read_features as read_features
    from catwise.fixing import fix as fix
    from catwise.heads import Head as Head
    from catwise.heads import list_heads as list_heads
    from catwise.heads import load_head as load_head
    from catwise.heads import read_head as read_head
    from catwise.heads import save_head as save_head
    from catwise.heads import write_head as write_head
    from catwise.labels import ChosenCells as ChosenCells
    from catwise.labels import LabelPolicy as LabelPolicy
    from catwise.labels import PartialLabels as PartialLabels
    from catwise.metrics import Evaluation as Evaluation
    from catwise.metrics import compare_heads as compare_heads
    from catwise.metrics import evaluate as evaluate
    from catwise.models.extraction import extract as extract
    from catwise.predicting import Classifier as Classifier
    from catwise.predicting import load_classifier as load_classifier
    from catwise.predicting import save_classifier as save_classifier
    from catwise.reporting.comparing import compare_runs as compare_runs
    from catwise.training.finetuning import finetune as finetune
    from catwise.tuning import SelectResult as SelectResult
    from catwise.tuning import TuneResult as TuneResult
    from catwise.tuning import extend_head as extend_head
    from catwise.tuning import read_retune_rows as read_retune_rows
    from catwise.tuning import retune as retune
    from catwise.tuning import select as select
    from catwise.tuning import tune as tune
    from catwise.tuning import update_run as update_run

__all__, __getattr__, __dir__ = attach(
    __name__,
    {
        "catwise.decisions": (
            "Calibration ConformalSets Ensemble Thresholds calibrate conformal ensemble suggest "
            "threshold"
        ),
        "catwise.estimator": "CategoryWiseClassifier",
        "catwise.features": "FeatureStore open_store read_features",
        "catwise.fixing": "fix",
        "catwise.heads": "Head list_heads load_head read_head save_head write_head",
        "catwise.data": "union",
        "catwise.labels": "ChosenCells LabelPolicy PartialLabels",
        "catwise.metrics": "Evaluation compare_heads evaluate",
        "catwise.models.extraction": "extract",
        "catwise.predicting": "Classifier load_classifier save_classifier",
        "catwise.training.finetuning": "finetune",
        "catwise.reporting.comparing": "compare_runs",
        "catwise.tuning": (
            "SelectResult TuneResult extend_head read_retune_rows retune select tune update_run"
        ),
    },
    ("CatwiseError", "InSampleWarning", "__version__"),
)
