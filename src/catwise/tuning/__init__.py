"""Tuning: fits of the last layer, the choice between them, and a full account of it.

Public names load on first use: what a run says (`Record`, `Summary`) is known without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from catwise._lazy import attach

if TYPE_CHECKING:
    from catwise.tuning.account.documents import Account as Account
    from catwise.tuning.account.documents import Record as Record
    from catwise.tuning.account.documents import Summary as Summary
    from catwise.tuning.account.results import FoldArtifacts as FoldArtifacts
    from catwise.tuning.account.results import SelectResult as SelectResult
    from catwise.tuning.account.results import TuneResult as TuneResult
    from catwise.tuning.api import tune as tune
    from catwise.tuning.extending import extend_head as extend_head
    from catwise.tuning.retune_rows import RetuneRows as RetuneRows
    from catwise.tuning.retune_rows import read_retune_rows as read_retune_rows
    from catwise.tuning.retuning import retune as retune
    from catwise.tuning.selecting import select as select
    from catwise.tuning.updating import UpdatedRun as UpdatedRun
    from catwise.tuning.updating import update_run as update_run

__all__, __getattr__, __dir__ = attach(
    __name__,
    {
        "catwise.tuning.account.documents": "Account Record Summary",
        "catwise.tuning.account.results": "FoldArtifacts SelectResult TuneResult",
        "catwise.tuning.api": "tune",
        "catwise.tuning.extending": "extend_head",
        "catwise.tuning.retune_rows": "RetuneRows read_retune_rows",
        "catwise.tuning.retuning": "retune",
        "catwise.tuning.selecting": "select",
        "catwise.tuning.updating": "UpdatedRun update_run",
    },
)
