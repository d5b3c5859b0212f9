"""Training a multi-label model on partial labels: losses, schemes, the loop, the tuned head.

losses.py         losses of a batch: known labels, and what unknown ones count as
selected.py       losses that pick entries of the batch, or learn targets beside the model
steps.py          what a scheme is, what it sees and remembers
options.py        options of schemes
pseudo_labels.py  schemes that make labels of predictions
schemes.py        every scheme by name
mixing.py         images mixed with one another
machine.py        labels that a machine says
run.py            model, images and labels: a checkpoint for `fix`
tensorboard.py    a callback that writes TensorBoard's files
loop.py           steps, epochs, and the state that is saved and resumed
backbones.py      the model to start from, and the checkpoint
data.py           which images come when, and how they are changed
optimizing.py     optimizers, and the step size as a function of the step
processes.py      several processes that share each step
finetuning.py     a module in memory and its loaders: the tuned module
callbacks.py      the same at the end of training with Lightning or transformers
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from catwise._lazy import attach

if TYPE_CHECKING:
    from catwise.training.callbacks import lightning_callback as lightning_callback
    from catwise.training.callbacks import transformers_callback as transformers_callback
    from catwise.training.finetuning import Finetuned as Finetuned
    from catwise.training.finetuning import finetune as finetune
    from catwise.training.loop import TrainCallback as TrainCallback
    from catwise.training.losses import assume_negative as assume_negative
    from catwise.training.losses import asymmetric_loss as asymmetric_loss
    from catwise.training.losses import entropy_maximization as entropy_maximization
    from catwise.training.losses import focal_loss as focal_loss
    from catwise.training.losses import hill as hill
    from catwise.training.losses import ignore_unknown as ignore_unknown
    from catwise.training.losses import label_smoothing as label_smoothing
    from catwise.training.losses import partial_asymmetric as partial_asymmetric
    from catwise.training.losses import partial_bce as partial_bce
    from catwise.training.losses import splc as splc
    from catwise.training.losses import weak_assume_negative as weak_assume_negative
    from catwise.training.machine import add_machine_labels as add_machine_labels
    from catwise.training.mixing import logic_mix as logic_mix
    from catwise.training.mixing import mixup_pme as mixup_pme
    from catwise.training.run import TrainResult as TrainResult
    from catwise.training.run import train as train
    from catwise.training.schemes import SCHEMES as SCHEMES
    from catwise.training.schemes import resolve_scheme as resolve_scheme
    from catwise.training.schemes import scheme_options as scheme_options
    from catwise.training.selected import RoleLoss as RoleLoss
    from catwise.training.selected import auc_margin as auc_margin
    from catwise.training.selected import boost_lu as boost_lu
    from catwise.training.selected import estimate_prior as estimate_prior
    from catwise.training.selected import expected_positives as expected_positives
    from catwise.training.selected import large_loss as large_loss
    from catwise.training.selected import large_losses as large_losses
    from catwise.training.selected import role as role
    from catwise.training.selected import role_gradient as role_gradient
    from catwise.training.selected import selective as selective
    from catwise.training.steps import Batch as Batch
    from catwise.training.steps import Scheme as Scheme
    from catwise.training.tensorboard import TensorboardCallback as TensorboardCallback

__all__, __getattr__, __dir__ = attach(
    __name__,
    {
        "catwise.training.callbacks": "lightning_callback transformers_callback",
        "catwise.training.finetuning": "Finetuned finetune",
        "catwise.training.loop": "TrainCallback",
        "catwise.training.run": "TrainResult train",
        "catwise.training.losses": (
            "assume_negative asymmetric_loss entropy_maximization focal_loss hill ignore_unknown "
            "label_smoothing partial_asymmetric partial_bce splc weak_assume_negative"
        ),
        "catwise.training.machine": "add_machine_labels",
        "catwise.training.mixing": "logic_mix mixup_pme",
        "catwise.training.tensorboard": "TensorboardCallback",
        "catwise.training.steps": "Batch Scheme",
        "catwise.training.schemes": "SCHEMES resolve_scheme scheme_options",
        "catwise.training.selected": (
            "RoleLoss auc_margin boost_lu estimate_prior expected_positives large_loss "
            "large_losses role role_gradient selective"
        ),
    },
)
