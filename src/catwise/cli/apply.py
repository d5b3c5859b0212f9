"""`catwise apply`: a tuned head into a copy of a checkpoint, and a look at what came of it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Protocol

import click

from catwise.cli.inputs import read_names
from catwise.cli.models import model_args
from catwise.cli.options import output_options, path_type
from catwise.cli.outputs import hold_output

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from catwise.cli.console import Output
    from catwise.heads import Head, WriteReport
    from catwise.models import LoadedModel
    from catwise.models.verify import Verified

__all__ = ["command"]

_IMAGES = 8


class Writer(Protocol):
    """Writes the tuned head into a copy at a place."""

    def __call__(self, path: Path, overwrite: bool) -> list[WriteReport]: ...  # noqa: FBT001


@click.command("apply", short_help="Write a tuned head into a copy of a checkpoint.")
@click.option(
    "--head", type=path_type(), required=True, metavar="FILE", help="The head that tune wrote."
)
@click.option(
    "--checkpoint",
    type=path_type(),
    metavar="FILE",
    help="The model's checkpoint (.safetensors, .pt); it is never changed.",
)
@click.option(
    "--out", type=path_type(), required=True, metavar="PATH", help="The new checkpoint or folder."
)
@click.option(
    "--model",
    metavar="KIND:NAME",
    help="Run the model before and after: timm:NAME, torchvision:NAME, transformers:FOLDER, "
    "xrv:NAME, onnx:FILE or python:package.module:function.",
)
@click.option(
    "--model-arg",
    multiple=True,
    metavar="NAME=VALUE",
    help="An option of the architecture (repeatable).",
)
@click.option("--layer", metavar="NAME", help="The classification layer, if not clear.")
@click.option("--prefix", metavar="TEXT", help="What leads the model's keys in the file.")
@click.option(
    "--images", type=path_type(), metavar="DIR", help="Images to run; made-up ones if not given."
)
@click.option(
    "--name",
    "--head-key",
    "name",
    metavar="KEY",
    help="The weight's key, such as fc.weight or state_dict_ema:fc.weight; found if not given.",
)
@click.option("--bias-key", metavar="KEY", help="The bias's key, if named otherwise.")
@click.option(
    "--head-categories",
    type=path_type(),
    metavar="FILE",
    help="Names of the checkpoint's rows, one a line: the head's rows are matched by name and may "
    "be some of them.",
)
@click.option("--card", type=path_type(), metavar="FILE", help="Write lines for the model's card.")
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
@output_options
def command(
    *,
    head: Path,
    checkpoint: Path | None,
    out: Path,
    model: str | None,
    head_categories: Path | None,
    card: Path | None,
    overwrite: bool,
    output: Output,
    **options: Any,
) -> None:
    """Write a tuned head into a copy of a checkpoint.

    Only the head's bytes change. Names, dtypes, container and all other tensors stay bit for bit,
    and nothing in the checkpoint is executed. The copy says where its head comes from: in the
    metadata of a safetensors file, beside any other file in NAME.catwise.json.

    With --model the model runs on a few images before and after: features must be identical, and
    logits those that the new head predicts.
    """
    from catwise._io import write_text
    from catwise.heads import load_head
    from catwise.models.card import model_card

    _check_options(checkpoint, model, options)
    hold_output(out)
    hold_output(card)
    names = None if head_categories is None else read_names(head_categories)
    tuned = load_head(head)
    loaded, verified = None, None
    base: Head | None
    if model is None:
        assert checkpoint is not None  # noqa: S101  # checked
        base, write = _file_writer(checkpoint, tuned, names, options)
    else:
        loaded = _load(model, checkpoint, names, options)
        base, write = loaded.head, _model_writer(loaded, tuned)
    if loaded is None and card is None:
        reports = write(out, overwrite=overwrite)
    else:
        with _rehearsed(out) as trial:
            reports = write(trial, overwrite=False)
            verified = None if loaded is None else _verified(loaded, trial, tuned, options)
            # Killed between the two, a call may be repeated for the card.
            if card is None or card.exists() or not _is_there(trial, out):
                write(out, overwrite=overwrite)
    for report in reports:
        output.line(f"{report} written")
    if loaded is not None:
        output.line(f"preprocessing: {loaded.preprocessing}")
    if verified is not None:
        output.line(str(verified))
    if card is not None:
        source = loaded.name if loaded is not None else str(checkpoint and checkpoint.name)
        facts: dict[str, Any] = {
            "base": base,
            "verified": verified,
            "summary": _summary_beside(head),
            "preprocessing": None if loaded is None else str(loaded.preprocessing),
        }
        write_text(card, model_card(source, tuned, reports, **facts))
    output.line(str(out))
    output.document(
        {
            "command": "apply",
            "out": str(out),
            "key": reports[0].location.name,
            "bias_key": reports[0].location.bias_key,
            "keys": [report.location.name for report in reports],
            "rows": reports[0].rows,
            "n_categories": reports[0].location.n_categories,
            "rounding": reports[0].cast or None,
            "verified": None if verified is None else verified._asdict(),
            "card": None if card is None else str(card),
        }
    )


def _check_options(checkpoint: Path | None, model: str | None, options: dict[str, Any]) -> None:
    from catwise.models.registry import OWN_CHECKPOINT

    own = model is not None and model.partition(":")[0] in OWN_CHECKPOINT
    if own and checkpoint is not None:
        raise click.UsageError(f"--model {model} is its own checkpoint: leave out --checkpoint.")
    if checkpoint is None and not own:
        raise click.UsageError("Missing option '--checkpoint'.")
    said = [f"--{key.replace('_', '-')}" for key, value in options.items() if value]
    without = {"--images", "--model-arg", "--layer", "--prefix"}
    wrong = {"--name", "--bias-key"} & set(said) if model else without & set(said)
    if wrong:
        text = "is for a file without --model" if model else "needs --model"
        raise click.UsageError(f"{sorted(wrong)[0]} {text}.")


def _file_writer(
    checkpoint: Path, tuned: Head, names: list[str] | None, options: dict[str, Any]
) -> tuple[Head, Writer]:
    """Without the model: the checkpoint's head, and what writes into a copy of the file alone."""
    from catwise.heads import read_head, write_head
    from catwise.heads.provenance import describe

    place = {"key": options["name"], "bias_key": options["bias_key"]}
    base = read_head(checkpoint, **place, categories=names or tuned.categories)
    facts = {**place, "categories": names, "provenance": describe(tuned, base)}
    return base, lambda path, overwrite: [
        write_head(checkpoint, tuned, path, **facts, overwrite=overwrite)
    ]


def _load(
    model: str, checkpoint: Path | None, names: list[str] | None, options: dict[str, Any]
) -> LoadedModel:
    from catwise.models.registry import load_model

    given = {
        "layer": options["layer"],
        "prefix": options["prefix"],
        "categories": names,
        "model_args": model_args(options["model_arg"]),
    }
    return load_model(model, checkpoint=checkpoint, **{k: v for k, v in given.items() if v})


def _model_writer(loaded: LoadedModel, tuned: Head) -> Writer:
    """With the model: what writes into a copy of what it was loaded from."""
    from catwise.joining import has_default_names
    from catwise.models.registry import write_model
    from catwise.models.verify import check_output

    check_output(loaded)
    base = loaded.head
    nameless = base is not None and has_default_names(base.categories)
    if base is not None and nameless and base.n_categories == tuned.n_categories:
        loaded.head = base.replace(categories=tuned.categories)
    return lambda path, overwrite: write_model(loaded, tuned, path, overwrite=overwrite)


def _verified(loaded: LoadedModel, path: Path, tuned: Head, options: dict[str, Any]) -> Verified:
    """What a few images say of a written copy."""
    from catwise.models.verify import noise, verify_copy

    images = options["images"]
    batch = noise(loaded) if images is None else _few(loaded, images)
    return verify_copy(loaded, path, tuned, batch)


@contextlib.contextmanager
def _rehearsed(out: Path) -> Iterator[Path]:
    """A place of the output's name in a hidden folder: what does not hold never gets to its own."""
    from catwise._io import Temporary, translated
    from catwise.errors import CatwiseError

    target = out.resolve()
    with Temporary(target) as folder:
        with translated(out):
            folder.mkdir()
        try:
            yield folder / target.name
        except CatwiseError as error:  # people know the output's own name
            what, *more = (
                text and text.replace(str(folder / target.name), str(out))
                for text in (error.what, error.found, error.expected, error.remedy)
            )
            facts = dict(zip(("found", "expected", "remedy"), more, strict=True))
            raise type(error)(str(what), **facts) from error


def _is_there(trial: Path, out: Path) -> bool:
    """Whether the output and what lies beside it is there already."""
    from catwise._io import is_same_content

    folder = out.resolve().parent
    return all(is_same_content(path, folder / path.name) for path in trial.parent.iterdir())


def _few(loaded: LoadedModel, images: Path) -> Any:
    """The first images of a folder, or of a tar shard, as the model takes them."""
    import torch

    from catwise.errors import ConfigError
    from catwise.models.preprocess import ImageRows
    from catwise.models.sources import FolderImages, ImageSource, TarImages

    shards = [images] if images.suffix == ".tar" else sorted(images.glob("*.tar"))
    source: ImageSource = TarImages(shards) if shards else FolderImages.scan(images)
    rows = ImageRows(source, loaded.preprocessing, rows=range(min(_IMAGES, len(source))))
    read = [row.image for row in map(rows.__getitem__, range(len(rows))) if row.image is not None]
    if not read:
        raise ConfigError(f"none of the first images of '{images}' can be read.")
    return torch.stack(read)


def _summary_beside(head: Path) -> dict[str, Any] | None:
    """What the run that the head lies in says of itself."""
    from catwise.models.card import run_summary

    beside = head.with_name("summary.json")
    return run_summary(beside) if beside.is_file() else None
