"""Studies: declared grids of cells, run to completion, cached by content, with one table out.

declared.py   what a file declares: data, schemes, backbones, methods, grids
cells.py      the cells of the grids, and the key of each
sources.py    the data of a study: labels by split, and images or features
bases.py      the model of a cell before it is tuned: trained, with the features of its images
running.py    the tasks of a study, one for each model, and what becomes of a failure
study.py      what is done and what is ahead; the folder
tables.py     cells as rows: means over seeds and over axes, ensembles, published figures
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from catwise._lazy import attach

if TYPE_CHECKING:
    from catwise.studies.declared import Study as Study
    from catwise.studies.declared import read_study as read_study
    from catwise.studies.study import PreparedStudy as PreparedStudy
    from catwise.studies.study import StudyResult as StudyResult
    from catwise.studies.study import prepare_study as prepare_study
    from catwise.studies.study import run_study as run_study

__all__, __getattr__, __dir__ = attach(
    __name__,
    {
        "catwise.studies.declared": "Study read_study",
        "catwise.studies.study": "PreparedStudy StudyResult prepare_study run_study",
    },
)
