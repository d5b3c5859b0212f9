"""One artefact for what comes after tuning, and what it says of images.

folder.py      the folder of a classifier, and the digests of what is in it
saving.py      from head or model, calibration and thresholds to that folder
classifier.py  back from it: predict, and export
writing.py     predictions of any number of images into one file
"""

from __future__ import annotations

from catwise.predicting.classifier import Classifier, load_classifier
from catwise.predicting.predictions import Predictions
from catwise.predicting.saving import save_classifier
from catwise.predicting.writing import FORMATS, Written, write_predictions

__all__ = [
    "FORMATS",
    "Classifier",
    "Predictions",
    "Written",
    "load_classifier",
    "save_classifier",
    "write_predictions",
]
