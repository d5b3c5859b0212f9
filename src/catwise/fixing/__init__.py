"""`fix`: a model's checkpoint, images and labels in; a better checkpoint and its account out.

images.py    an image file for each labelled id
folder.py    the output folder: which steps are finished, with which inputs
run.py       read → extract → tune and evaluate → apply → verify → report
verify.py    the written checkpoint, run beside the original
account.py   headline, report, model card
"""

from __future__ import annotations

from catwise.fixing.config import FixConfig, FixResult
from catwise.fixing.images import FoundImages, find_images, listed_images
from catwise.fixing.run import PreparedFix, fix, prepare

__all__ = [
    "FixConfig",
    "FixResult",
    "FoundImages",
    "PreparedFix",
    "find_images",
    "fix",
    "listed_images",
    "prepare",
]
