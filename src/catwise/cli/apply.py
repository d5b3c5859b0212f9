"""`catwise apply`: a tuned head into a copy of a checkpoint, and a look at what came of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import click

from catwise._options import group, option
from catwise.cli.building import make_command, spelled_as
from catwise.cli.console import Output
from catwise.cli.inputs import read_names
from catwise.cli.models import KINDS_HELP, LAYER_HELP, OF_MODELS, PREFIX_HELP, model_args
from catwise.cli.outputs import hold_output

if TYPE_CHECKING:
    from catwise.heads import Head, WriteReport
    from catwise.models import LoadedModel
    from catwise.models.verify import Verified

    _Seen: TypeAlias = tuple[list[WriteReport], Verified | None]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `catwise apply` is given."""

    head: Path = option(metavar="FILE", first=True, help="The head that tune wrote.")
    checkpoint: Path | None = option(
        None,
        metavar="FILE",
        first=True,
        help="The model's checkpoint (.safetensors, .pt); it is never changed.",
    )
    out: Path = option(first=True, help="The new checkpoint or folder.")
    model: str | None = option(
        None,
        metavar="KIND:NAME",
        first=True,
        help="Run the model before and after: " + KINDS_HELP,
    )
    model_arg: tuple[str, ...] = option(
        (), metavar="NAME=VALUE", help="An option of the architecture (repeatable)."
    )
    layer: str | None = option(None, metavar="NAME", help=LAYER_HELP)
    prefix: str | None = option(None, help=PREFIX_HELP)
    images: Path | None = option(
        None, metavar="DIR", help="Images to run; made-up ones if not given."
    )
    name: str | None = option(
        None,
        names="--name --head-key",
        metavar="KEY",
        help="The weight's key, such as fc.weight or state_dict_ema:fc.weight; found if not given.",
    )
    bias_key: str | None = option(None, metavar="KEY", help="The bias's key, if named otherwise.")
    head_categories: Path | None = option(
        None,
        metavar="FILE",
        help="Names of the checkpoint's rows, one a line: the head's rows are matched by name and "
        "may be some of them.",
    )
    resize: bool = option(
        default=False,
        help="The copy's rows are those of the head and no others, in its order, as `catwise "
        "extend` and `catwise join` write them; a configuration of transformers or timm says so.",
    )
    card: Path | None = option(None, metavar="FILE", help="Write lines for the model's card.")
    overwrite: bool = option(default=False, help="Replace a file that is there.")
    output: Output = group("Output")

    def __post_init__(self) -> None:
        given = {"--images": self.images, "--model-arg": self.model_arg, "--layer": self.layer}
        given["--prefix"] = self.prefix
        if self.model is not None:
            given = {"--name": self.name, "--bias-key": self.bias_key}
        if wrong := sorted(name for name, value in given.items() if value):
            text = "is for a file without --model" if self.model else "needs --model"
            raise click.UsageError(f"{wrong[0]} {text}.")


class _Writer(Protocol):
    """Writes the tuned head into a copy at a place."""

    def __call__(self, path: Path, overwrite: bool) -> list[WriteReport]: ...  # noqa: FBT001


@make_command("apply", "Write a tuned head into a copy of a checkpoint.")
def command(given: Options) -> None:
    """Write a tuned head into a copy of a checkpoint.

    Only the head's bytes change. Names, dtypes, container and all other tensors stay bit for bit,
    and nothing in the checkpoint is executed. The copy says where its head comes from: in the
    metadata of a safetensors file, beside any other file in NAME.catwise.json.

    With --model the model runs on a few images before and after: features must be identical, and
    logits those that the new head predicts.
    """
    from catwise._io import write_text
    from catwise.heads import load_head
    from catwise.models.card import preprocessing_text

    _check_checkpoint(given)
    out, output = given.out, given.output
    hold_output(out)
    hold_output(given.card)
    names = None if given.head_categories is None else read_names(given.head_categories)
    tuned = load_head(given.head)
    loaded = None if given.model is None else _load(given.model, names, given)
    base, write = (
        _file_writer(tuned, names, given) if loaded is None else _model_writer(loaded, tuned, given)
    )
    reports, verified = seen = _written(given, loaded, tuned, write)
    for report in reports:
        output.line(f"{report} written")
    if loaded is not None:
        output.line(f"preprocessing: {preprocessing_text(loaded.preprocessing)}")
    if verified is not None:
        output.line(str(verified))
    if given.card is not None:
        write_text(given.card, _card(given, loaded, tuned, base, seen))
    output.line(str(out))
    first = reports[0]
    output.document(
        {
            "command": "apply",
            "out": str(out),
            "key": first.location.name,
            "bias_key": first.location.bias_key,
            "keys": [report.location.name for report in reports],
            "rows": first.rows,
            "n_categories": first.location.n_categories,
            "resized_from": first.resized_from,
            "rounding": first.cast or None,
            "verified": None if verified is None else verified._asdict(),
            "card": None if given.card is None else str(given.card),
        }
    )


def _check_checkpoint(given: Options) -> None:
    from catwise.models.registry import OWN_CHECKPOINT

    own = given.model is not None and given.model.partition(":")[0] in OWN_CHECKPOINT
    if own and given.checkpoint is not None:
        raise click.UsageError(
            f"--model {given.model} is its own checkpoint: leave out --checkpoint."
        )
    if given.checkpoint is None and not own:
        raise click.UsageError("Missing option '--checkpoint'.")


def _written(given: Options, loaded: LoadedModel | None, tuned: Head, write: _Writer) -> _Seen:
    """Write the copy; with a model or a card only once it holds in a hidden folder."""
    if loaded is None and given.card is None:
        return write(given.out, overwrite=given.overwrite), None
    with _rehearsed(given.out) as trial:
        reports = write(trial, overwrite=False)
        verified = None if loaded is None else _verified(loaded, trial, tuned, given)
        # Killed between the two, a call may be repeated for the card.
        if given.card is None or given.card.exists() or not _is_there(trial, given.out):
            write(given.out, overwrite=given.overwrite)
    return reports, verified


def _card(
    given: Options, loaded: LoadedModel | None, tuned: Head, base: Head | None, seen: _Seen
) -> str:
    from catwise.models.card import model_card, run_summary

    beside = given.head.with_name("summary.json")
    summary = run_summary(beside) if beside.is_file() else None
    lines = [str(summary[key]) for key in ("headline", "chose") if summary and summary.get(key)]
    reports, verified = seen
    return model_card(
        loaded.name if loaded is not None else str(given.checkpoint and given.checkpoint.name),
        tuned,
        [report.location.name for report in reports],
        len(reports[0].rows),
        reports[0].location.n_categories,
        base=base,
        lines=[*lines, *([] if verified is None else [str(verified)])],
        preprocessing=None if loaded is None else loaded.preprocessing,
    )


def _file_writer(
    tuned: Head, names: list[str] | None, given: Options
) -> tuple[Head | None, _Writer]:
    """Without the model: the checkpoint's head, and what writes into a copy of the file alone."""
    from catwise.errors import HeadError
    from catwise.heads import read_head, write_head
    from catwise.heads.provenance import describe

    place: dict[str, Any] = {"key": given.name, "bias_key": given.bias_key}
    checkpoint = str(given.checkpoint)
    rows = names if given.resize else names or tuned.categories
    base = None
    with contextlib.suppress(HeadError):  # where there is none, the writer says what there is
        base = read_head(checkpoint, **place, categories=rows)
    facts: dict[str, Any] = {**place, "categories": names, "provenance": describe(tuned, base)}
    facts["resize"] = given.resize
    return base, lambda path, overwrite: [
        write_head(checkpoint, tuned, path, **facts, overwrite=overwrite)
    ]


def _load(model: str, names: list[str] | None, given: Options) -> LoadedModel:
    from catwise.models.registry import load_model

    options: dict[str, Any] = {
        "layer": given.layer,
        "prefix": given.prefix,
        "categories": names,
        "model_args": model_args(given.model_arg),
    }
    with spelled_as(OF_MODELS):
        return load_model(
            model, checkpoint=given.checkpoint, **{k: v for k, v in options.items() if v}
        )


def _model_writer(loaded: LoadedModel, tuned: Head, given: Options) -> tuple[Head | None, _Writer]:
    """With the model: its head, and what writes into a copy of what it was loaded from."""
    from catwise.joining import name_rows
    from catwise.models.verify import check_output
    from catwise.models.writing import write_model

    check_output(loaded)
    base = loaded.head
    if base is not None:
        loaded.head = name_rows(base, tuned.categories)
    resize = given.resize
    return base, lambda path, overwrite: write_model(
        loaded, tuned, path, resize=resize, overwrite=overwrite
    )


def _verified(loaded: LoadedModel, path: Path, tuned: Head, given: Options) -> Verified:
    """What a few images say of a written copy."""
    from catwise.errors import ConfigError
    from catwise.models.sources import FolderImages, ImageSource, TarImages, find_shards
    from catwise.models.verify import first_images, noise, verify_copy

    images, resized = given.images, given.resize
    if images is None:
        return verify_copy(loaded, path, tuned, noise(loaded), resized=resized)
    shards = find_shards(images)
    source: ImageSource = TarImages(shards) if shards else FolderImages.scan(images)
    batch = first_images(loaded, source, range(len(source)))
    if batch is None:
        raise ConfigError(f"none of the first images of '{images}' can be read.")
    return verify_copy(loaded, path, tuned, batch, resized=resized)


@contextlib.contextmanager
def _rehearsed(out: Path) -> Iterator[Path]:
    """A place of the output's name in a hidden folder: what fails never gets to its own."""
    from catwise._io import named_as
    from catwise._lock import Temporary, translated

    target = out.resolve()
    with Temporary(target) as folder:
        with translated(out):
            folder.mkdir()
        with named_as(out, folder / target.name):
            yield folder / target.name


def _is_there(trial: Path, out: Path) -> bool:
    """Whether the output and what lies beside it is there already."""
    from catwise._io import is_same_content

    folder = out.resolve().parent
    return all(is_same_content(path, folder / path.name) for path in trial.parent.iterdir())
