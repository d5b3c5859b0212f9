"""A written checkpoint beside the original: the same model but for its classification layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from catwise._lock import remove, still_there
from catwise.errors import HeadError, MismatchError
from catwise.heads import Head
from catwise.heads.provenance import side_file
from catwise.models.core import LoadedModel
from catwise.models.layers import call, capture
from catwise.models.loading import ImageRows
from catwise.models.logits import ACTIVATIONS, TOLERANCE, activation_in, logits_of
from catwise.models.registry import reload_model
from catwise.models.sources import ImageSource
from catwise.models.writing import writer_of

_IMAGES: Final = 8


class Verified(NamedTuple):
    """What was seen when a model ran before and after."""

    images: int  # how many
    # largest difference between the new logits and what the new head predicts, divided by the
    # largest of them
    gap: float
    change: float  # largest difference between old and new logits
    # other tensors that were compared, bit for bit; None where that was not possible
    tensors: int | None

    def __str__(self) -> str:
        tensors = "" if self.tensors is None else f"{self.tensors:,} other tensors and "
        near = f" within {self.gap:.0e}" if self.gap else ""
        return (
            f"verified: {tensors}the features of {self.images} images are identical; logits are "
            f"those of the new head{near} and change by up to {self.change:.3g}"
        )


def noise(model: LoadedModel, n: int = 4) -> torch.Tensor:
    """Made-up images of the size that a model takes."""
    take = model.preprocessing
    generator = torch.Generator().manual_seed(0)
    shape = (n, take.channels, *take.size)
    mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (take.mean, take.std))
    return (torch.rand(shape, generator=generator) - mean) / std


def first_images(
    model: LoadedModel, source: ImageSource, rows: Sequence[int]
) -> torch.Tensor | None:
    """The first of some rows as a model takes them; None if none of them can be decoded."""
    images = ImageRows(source, model.preprocessing, rows=rows[:_IMAGES])
    read = (images[row].image for row in range(len(images)))
    found = [image for image in read if image is not None]
    return torch.stack(found) if found else None


def check_output(model: LoadedModel) -> None:
    """Refuse a model whose logits are not what its classification layer gives.

    Unless a sigmoid or softmax lies between, or that was asked for when it was loaded: one of two
    heads (`heads=first`), or outputs that stay stretched by operating points (`op_threshs=keep`).
    """
    if model.output_is in {"", *ACTIVATIONS}:
        return
    asked = model.request.model_args if model.request else {}
    if asked.get("heads") == "first" or asked.get("op_threshs") == "keep":
        return
    raise HeadError(
        f"the logits of {model.name} are not what its layer {model.layer!r} gives: a head that is "
        "written into it would not be what the model says.",
        found=f"an output that is {model.output_is}",
        expected="features @ weight.T + bias, to float tolerance",
        remedy="name the right layer (--layer), or take out what lies behind it",
    )


def verify_copy(
    before: LoadedModel, path: Path, head: Head, images: torch.Tensor, *, resized: bool = False
) -> Verified:
    """Load a written copy as its original was loaded, run both, compare all other tensors.

    A copy that does not hold is removed, with what is told beside it. Where it was written with
    `resize`, its rows are those of the head.
    """
    try:
        with still_there(path):
            after = reload_model(before, path, categories=head.categories if resized else None)
            seen = verify_written(before, after, head, images, resized=resized)
            return seen._replace(tensors=compare_written(before, path, resized=resized))
    except BaseException:
        remove(path)
        remove(side_file(path))
        raise


def verify_written(
    before: LoadedModel,
    after: LoadedModel,
    head: Head,
    images: torch.Tensor,
    *,
    resized: bool = False,
) -> Verified:
    """Run the original and the written model on a few images, and compare; else MismatchError.

    Features must be identical, and the classification layer must give what the new head predicts,
    to float tolerance. So must the model, by the sigmoid or softmax that it ends in, unless
    something else lies behind that layer in the original too (`output_is`). Rows that
    the head does not name must not have changed.

    Args:
        before: the original.
        after: the written copy, loaded as the original was.
        head: what was written; some or all of the rows.
        images: (N, channels, height, width), preprocessed.
        resized: the copy has the rows of the head and no others; logits of categories that were
            there before are compared.

    Raises:
        MismatchError: If one of this is not so.
    """
    (old_features, old, _), (features, new, made) = (_run(m, images) for m in (before, after))
    if not torch.equal(old_features, features):
        raise MismatchError(
            f"the features of '{after.checkpoint}' are not those of the original.",
            found=f"up to {float((old_features - features).abs().max()):.2g} apart",
            remedy="something but the head differs: do not use this file, and report this",
        )
    assert before.head is not None  # noqa: S101  # it was written
    whole = head if resized else _whole(before.head, head)
    names = before.row_names or before.head.categories
    common = [name for name in whole.categories if name in set(names)]
    old = old[:, [names.index(name) for name in common]]
    if not resized:  # some rows of the layer may be no categories
        new = new[:, [names.index(name) for name in whole.categories]]
    _check_rows(after, new, whole)
    wanted = whole.logits(features.to(whole.device)).to(new)
    gap = float((wanted - new).abs().max() / wanted.abs().max().clamp_min(1e-30))
    if not gap <= max(TOLERANCE[torch.float32], TOLERANCE[before.head.dtype]):
        raise MismatchError(
            f"'{after.checkpoint}' does not say what its head says.",
            found=f"logits that differ by {gap:.2g} of the largest",
            expected="features @ weight.T + bias, to float tolerance",
            remedy="do not use this file, and report this",
        )
    word = before.output_is
    if word in ACTIVATIONS and made != word:
        raise MismatchError(
            f"'{after.checkpoint}' does not say what its head says.",
            found=f"an output that is not the {word} of the head's logits",
            remedy="do not use this file, and report this",
        )
    same = new[:, [whole.categories.index(name) for name in common]]
    change = float((same - old).abs().max()) if common else 0.0
    return Verified(len(images), gap, change, None)


def _check_rows(model: LoadedModel, logits: torch.Tensor, head: Head) -> None:
    """Refuse a copy of another number of rows than its head."""
    if logits.shape[1] != head.n_categories:
        raise MismatchError(
            f"'{model.checkpoint}' has another number of rows than its head.",
            found=f"{logits.shape[1]:,} logits an image",
            expected=f"{head.n_categories:,}",
            remedy="do not use this file, and report this",
        )


def _whole(base: Head, head: Head) -> Head:
    """All rows: the base's, with those of the new head in their places."""
    if not set(head.categories) <= set(base.categories):
        return head.replace(categories=base.categories)
    rows = [base.categories.index(name) for name in head.categories]
    weight = base.weight.double().clone()
    weight[rows] = head.weight.to(weight)
    bias = None if base.bias is None else base.bias.double().clone()
    if bias is not None and head.bias is not None:
        bias[rows] = head.bias.to(bias)
    rounded = None if bias is None or base.bias is None else bias.to(base.bias.dtype)
    return base.replace(weight=weight.to(base.weight.dtype), bias=rounded)


def _run(model: LoadedModel, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, str]:
    """Features; logits, the layer's where it is not the last; the activation then, or ''."""
    module = model.module
    assert module is not None  # noqa: S101  # every adapter makes one
    seen: list[Any] = []
    hook = module.get_submodule(model.layer).register_forward_hook(
        lambda _, __, output: seen.append(output.clone())  # what follows may work in place
    )
    with hook, capture(module, model.layer, pool=True) as captured:
        output = call(module, images, model.image_argument)
        features = captured.take()
    given = seen[-1].flatten(2).mean(2) if seen[-1].ndim == 4 else seen[-1].flatten(1)
    logits = given if model.output_is else logits_of(output, given)
    made = activation_in(output, given) if model.output_is else ""
    return features.float(), logits.double(), made


def compare_written(model: LoadedModel, path: Path, *, resized: bool = False) -> int:
    """Compare a written copy with what the model was loaded from; how many tensors that were."""
    source = model.checkpoint
    assert source is not None  # noqa: S101  # it was written from
    return writer_of(model).compare(model, source, path, resized=resized)
