"""Tables of data sets that catwise reads in their official layout, told by their columns."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from catwise.data.packed import unpacked_name
from catwise.data.table import open_labels
from catwise.errors import CatwiseError

_COLUMNS: Final = {
    "chexpert": ({"Path", "Pleural Effusion", "Enlarged Cardiomediastinum"},
                 {"Study", "Pleural Effusion", "Enlarged Cardiomediastinum"}),
    "mimic_cxr": ({"subject_id", "study_id", "Pleural Effusion"}, {"study_id", "Airspace Opacity"}),
    "chestxray14": ({"Image Index", "Finding Labels", "Patient ID"},),
    "vindr": ({"image_id", "rad_id", "Pleural effusion"}, {"image_id", "class_name", "rad_id"}),
    "openimages": ({"ImageID", "Source", "LabelName", "Confidence"},),
    "celeba": ({"image_id", "5_o_Clock_Shadow", "Young"},),
}  # fmt: skip
"""Columns that only the tables of a data set have together."""


def recognised_dataset(path: str | os.PathLike[str]) -> tuple[str, Path] | None:
    r"""Which data set a table is of, and its root; None where that is not told.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "d.csv")
    ...     _ = path.write_text("Image Index,Finding Labels,Patient ID\na.png,Mass,1\n")
    ...     recognised_dataset(path)[0]
    'chestxray14'
    """
    path = Path(path)
    if unpacked_name(path).suffix.lower() not in {".csv", ".tsv"}:
        return None
    try:
        names = set(open_labels(path, []).names)
    except CatwiseError:
        return None
    for name, kinds in _COLUMNS.items():
        if any(columns <= names for columns in kinds):
            return name, path.parent
    return None
