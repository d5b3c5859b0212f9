"""Probabilities of images, studies or patients as tables, and CheXpert's submission among them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from catwise._csv import rows_csv
from catwise._io import write_text
from catwise.data.readers.chexpert import COMPETITION, EXAMPLE, STUDY
from catwise.decisions.members import Combined
from catwise.errors import CategoryError, IdError

CHEXPERT: Final[Mapping[str, Any]] = MappingProxyType(
    {"method": "probability", "by": "study", "pool": "max", "metrics": ("auroc",)}
)
"""How the CheXpert competition is entered, as options of `ensemble`: the mean over members, the
largest over the views of a study, scored by the mean AUROC of 5 observations."""

_RELEASE: Final = "CheXpert-v1.0"


def write_probabilities(
    path: str | Path, found: Combined, categories: Sequence[str], *, by: str = "image"
) -> None:
    """Write a line for each image, study or patient: its name, and a probability per category.

    Args:
        path: of the CSV file.
        found: what `Ensemble.combine` gave.
        categories: C names.
        by: what the first column is called.

    Raises:
        OutputError: If it cannot be written.
    """
    values = found.probabilities.tolist()
    ids = range(len(values)) if found.ids is None else found.ids.tolist()
    rows = [
        {by: name, **dict(zip(categories, row, strict=True))}
        for name, row in zip(ids, values, strict=True)
    ]
    write_text(path, rows_csv(rows, (by, *categories)))


def write_submission(path: str | Path, found: Combined, categories: Sequence[str]) -> None:
    """Write what the CheXpert competition takes: the 5 observations of each study.

    The columns are Study, Atelectasis, Cardiomegaly, Consolidation, Edema, Pleural Effusion; a
    study is called such as CheXpert-v1.0/test/patient64741/study1.

    Args:
        path: of the CSV file.
        found: what `Ensemble.combine` gave by study.
        categories: C names, the 5 among them.

    Raises:
        CategoryError: If one of the 5 observations is missing.
        IdError: If a row is not a study of CheXpert.
        OutputError: If it cannot be written.
    """
    lacking = [name for name in COMPETITION if name not in categories]
    if lacking:
        raise CategoryError(f"a submission needs {lacking[0]!r}.", expected=", ".join(COMPETITION))
    names = [] if found.ids is None else [study_name(one) for one in found.ids.tolist()]
    if not names:
        raise IdError("a submission needs the names of its studies.", expected=EXAMPLE)
    place = [list(categories).index(name) for name in COMPETITION]
    rows = [
        {"Study": name, **dict(zip(COMPETITION, row, strict=True))}
        for name, row in zip(names, found.probabilities[:, place].tolist(), strict=True)
    ]
    write_text(path, rows_csv(rows, ("Study", *COMPETITION)))


def study_name(name: str) -> str:
    """The study as a submission has it.

    Raises:
        IdError: If it is not a study of CheXpert.

    >>> study_name("test/patient64741/study1")
    'CheXpert-v1.0/test/patient64741/study1'
    """
    parsed = re.fullmatch(STUDY + "/?", name)
    if parsed is None:
        raise IdError(
            "a row is not a study of CheXpert.",
            found=repr(name),
            expected=EXAMPLE.rpartition("/")[0],
            remedy="by='study' of images whose ids are CheXpert's paths",
        )
    split = "valid" if parsed["split"] == "val" else parsed["split"]
    return f"{_RELEASE}/{split}/{parsed['patient']}/{parsed['study']}"
