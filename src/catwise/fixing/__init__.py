"""`fix`: a model's checkpoint, images and labels in; a better checkpoint and its account out.

images.py    an image file for each labelled id
folder.py    the output folder: which steps are finished, with which inputs
run.py       read → extract → tune and evaluate → apply → verify → report
account.py   headline, model card
"""

from __future__ import annotations

from catwise._configs import FixConfig
from catwise.fixing.images import FoundImages, find_images, listed_images
from catwise.fixing.run import FixResult, PreparedFix, fix, prepare

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
