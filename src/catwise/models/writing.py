"""Writing a head back: a copy of what a model was loaded from, in which the head alone differs."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from catwise._io import atomic_path
from catwise.errors import ConfigError, HeadError, MismatchError
from catwise.heads import Head, WriteReport, read_head, write_head
from catwise.heads.catalog import load_tensor, open_catalog
from catwise.heads.fit import check_destination, same_bits
from catwise.heads.locate import number_in
from catwise.heads.provenance import describe, side_file
from catwise.models.adapters.two_heads import in_rows_of, split_head
from catwise.models.core import LoadedModel, Writer

_SHOWN: Final = 5


class HeadKeys(NamedTuple):
    """The names of a head's tensors in a checkpoint."""

    weight_key: str | None
    bias_key: str | None


@dataclass(frozen=True)
class FileWriter:
    """Writes into a copy of one file, in which the head is a layer, or two that are averaged.

    Attributes:
        parts: of each of two averaged heads; empty: `weight_key` and `bias_key` of the model.
        fixed: what in the file goes by the head's rows, so that their number is fixed; ``""``: no
            such thing is known.
        factor: by what the model multiplies what its layer gives, and so the head that was read.
    """

    parts: tuple[HeadKeys, ...] = ()
    fixed: str = ""
    factor: float = 1.0

    def write(
        self,
        model: LoadedModel,
        head: Head,
        source: Path,
        destination: Path,
        *,
        resize: bool = False,
        overwrite: bool = False,
    ) -> list[WriteReport]:
        """Write the copy, with the head's provenance where it is another head."""
        told = describe(head, model.head) if is_new(head, model.head) else None
        rows = model.row_names or (model.head.categories if model.head else None)
        if resize and self.fixed:
            raise HeadError(
                f"the head of {model.name} cannot have other rows.",
                found=f"{self.fixed} in '{source}'",
                expected="a checkpoint in which only the classification layer goes by categories",
                remedy="save its state_dict without that, and write the head into a copy of it",
            )
        if self.parts:
            check_destination(destination, [source], what="the checkpoint", overwrite=overwrite)
            whole = head if resize or rows is None else head.take_categories(rows)
            return self._write_both(whole, source, destination, rows=rows, told=told, resize=resize)
        place: dict[str, Any] = {"key": model.weight_key, "bias_key": model.bias_key}
        if self.factor != 1:
            _check_same(head, self.factor)
            head = divided(head, read_head(source, **place, categories=rows), self.factor)
        report = write_head(
            source,
            head,
            destination,
            **place,
            categories=rows,
            provenance=told,
            resize=resize,
            overwrite=overwrite,
        )
        return [report]

    def _write_both(
        self,
        head: Head,
        source: Path,
        destination: Path,
        *,
        rows: Sequence[str] | None,
        told: dict[str, object] | None,
        resize: bool,
    ) -> list[WriteReport]:
        """Write one of the two heads into a copy, and the other into a copy of that."""
        places: list[dict[str, Any]] = [
            {"key": part.weight_key, "bias_key": part.bias_key} for part in self.parts
        ]
        olds = [read_head(source, **place, categories=rows) for place in places]
        first, second = split_head(head, [in_rows_of(head, o) for o in olds] if resize else olds)
        places = [{**place, "categories": rows, "resize": resize} for place in places]
        first = first.replace(fitted_on=None, provenance=None)  # the second write says it
        with atomic_path(destination) as temporary:
            between = temporary.with_name(f"{temporary.stem}-first{temporary.suffix}")
            try:
                reports = [write_head(source, first, between, **places[0])]
                reports.append(write_head(between, second, temporary, provenance=told, **places[1]))
            finally:
                between.unlink(missing_ok=True)
                if (beside := side_file(temporary)).exists():
                    beside.replace(side_file(destination))
        return reports

    def compare(
        self,
        model: LoadedModel,
        source: Path,
        copy: Path,
        *,
        resized: bool = False,  # noqa: ARG002  # all but the head is the same then, too
    ) -> int:
        """Compare all other tensors bit for bit."""
        parts = self.parts or (HeadKeys(model.weight_key, model.bias_key),)
        return compare_tensors(source, copy, but=[key for part in parts for key in part if key])


def _check_same(head: Head, factor: float) -> None:
    """Refuse a head that was read where the model's factor was not known, or another."""
    own = head.provenance.get("factor", 1.0 if "key" in head.provenance else factor)
    if not isinstance(own, int | float) or not math.isclose(own, factor, rel_tol=1e-5):
        raise HeadError(
            "the head was read without what the model multiplies its layer by.",
            found=f"a head that is {own} times the layer",
            expected=f"{factor} times",
            remedy="read the head with this model (--model), and tune that",
        )


def multiplied(values: torch.Tensor, factor: float) -> torch.Tensor:
    """Numbers times a factor, rounded once."""
    return (values.double() * factor).to(values.dtype)


def divided(head: Head, old: Head, factor: float) -> Head:
    """A head divided by a factor; numbers that are those of `old`, multiplied, become these again.

    >>> old = Head([[0.1, 0.2]])
    >>> divided(old.replace(weight=[[0.3, 6.0]]), old, 3.0).weight
    tensor([[0.1000, 2.0000]])
    """
    known = in_rows_of(head, old)

    def undone(values: torch.Tensor, was: torch.Tensor | None) -> torch.Tensor:
        new = values.detach().cpu().double() / factor
        if was is None:
            return new.to(head.dtype)
        same = values.detach().cpu().to(was.dtype) == multiplied(was, factor)
        exact = torch.promote_types(head.dtype, was.dtype)
        return torch.where(same, was.double(), new).to(exact)

    bias = None if head.bias is None else undone(head.bias, known.bias)
    weight, said = undone(head.weight, known.weight), head.provenance
    said.pop("factor", None)
    return head.replace(weight=weight, bias=bias, provenance=said)


def writer_of(model: LoadedModel) -> Writer:
    """What writes a head back into a model's checkpoint."""
    return model.writer or FileWriter()


def write_model(
    model: LoadedModel,
    head: Head,
    destination: str | os.PathLike[str],
    *,
    resize: bool = False,
    overwrite: bool = False,
) -> list[WriteReport]:
    """Write a head into a copy of what a model was loaded from: a file, or a transformers folder.

    The head that was read gives a copy that is equal byte for byte. Any other is told of in the
    copy: see `catwise.heads.provenance`.

    Args:
        model: what `load_model` gave.
        head: the new head; its categories are matched by name.
        destination: the new file or folder.
        resize: the copy's rows are those of the head and no others, in its order: more, fewer or
            other ones than the model has. A configuration that catwise reads, of transformers or
            timm, says so (`num_labels`, `id2label`, `num_classes`, `label_names`); it keeps all
            else.
        overwrite: replace what is there.

    Returns:
        What was written: one report, or one for each of two joined heads.

    Raises:
        ConfigError: If the model was loaded without a checkpoint.
        HeadError: If the rows of this kind of model cannot change (ONNX), or other parts of the
            checkpoint go by categories.
        CatwiseError: As :func:`catwise.heads.write_head`.
    """
    if model.checkpoint is None:
        raise ConfigError(
            f"the head of {model.name} cannot be written: it was not loaded from a checkpoint.",
            remedy="load it with checkpoint='…'",
        )
    source, target = model.checkpoint, Path(destination)
    writer = writer_of(model)
    return writer.write(model, head, source, target, resize=resize, overwrite=overwrite)


def is_new(head: Head, base: Head | None) -> bool:
    """Whether a head has other numbers than the one that was read, in the precision of that."""
    if base is None or not set(head.categories) <= set(base.categories):
        return True
    same = base.take_categories(head.categories)
    pairs = [(head.weight, same.weight), (head.bias, same.bias)]
    return any(
        (new is None) != (old is None)
        or (new is not None and old is not None and bool((new.to(old) != old).any()))
        for new, old in pairs
    )


def compare_tensors(old: Path, new: Path, *, but: Sequence[str]) -> int:
    """Compare all tensors of two checkpoints bit for bit, but for the head's own keys."""
    before, after = open_catalog(old), open_catalog(new)
    theirs = {entry.name: entry for entry in after.entries}
    wrong = sorted({entry.name for entry in before.entries} ^ theirs.keys())
    compared = 0
    for entry in before.entries:
        if any(entry.name == key or number_in(key, entry.name) is not None for key in but):
            continue
        if entry.name not in theirs or entry.dtype is None:
            continue
        if not same_bits(load_tensor(before, entry), load_tensor(after, theirs[entry.name])):
            wrong.append(entry.name)
        compared += 1
    refuse_changes(old, new, wrong, what="tensors")
    return compared


def refuse_changes(old: Path, new: Path, wrong: Sequence[str], *, what: str) -> None:
    """Refuse a copy in which something but the head differs."""
    if wrong:
        raise MismatchError(
            f"'{new}' differs from '{old}' in more than its head.",
            found=f"{len(wrong):,} {what}: {', '.join(wrong[:_SHOWN])}",
            remedy="do not use it, and report this",
        )
