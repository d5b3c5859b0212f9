"""`catwise extract`: images through a model once; what its classification layer gets, on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from catwise.cli.inputs import check_device
from catwise.cli.models import load_the_model, model_options
from catwise.cli.options import output_options, path_type

if TYPE_CHECKING:
    from pathlib import Path

    from catwise.cli.console import Output
    from catwise.cli.models import ModelOptions

__all__ = ["command"]


@click.command("extract", short_help="Cache what goes into a model's classification layer.")
@model_options
@click.option(
    "--dtype",
    type=click.Choice(["float16", "bfloat16", "float32"]),
    default="float16",
    show_default=True,
)
@click.option("--overwrite", is_flag=True, help="Replace another store there.")
@click.option(
    "--out", type=path_type(), required=True, metavar="DIR", help="The feature store to make."
)
@output_options
def command(*, model: ModelOptions, dtype: str, overwrite: bool, out: Path, output: Output) -> None:
    """Stream images through a model and keep what goes into its classification layer.

    Ids are the images' paths below the folder (the samples' names in tar shards). Stopped, it goes
    on where it was; several processes under torchrun share the work.
    """
    check_device(model.device)
    from catwise.models.extract import extract
    from catwise.models.preprocess import ImageRows
    from catwise.models.sources import FolderImages, ImageSource, TarImages

    loaded = load_the_model(model)
    output.line(f"{loaded.name}: classification layer {loaded.layer}")
    output.line(f"preprocessing: {loaded.preprocessing}")
    for note in loaded.notes:
        output.line(note)
    shards = [model.images] if model.images.suffix == ".tar" else sorted(model.images.glob("*.tar"))
    source: ImageSource = TarImages(shards) if shards else FolderImages.scan(model.images)
    with output.progress() as progress:
        store = extract(
            loaded,
            ImageRows(source, loaded.preprocessing),
            out,
            ids=source.ids,
            device=model.device,
            flips=model.flips,
            dtype=dtype,
            undecodable=model.undecodable,  # type: ignore[arg-type]  # a choice
            overwrite=overwrite,
            batch_rows=model.batch_size,
            num_workers=model.workers,
            progress=progress,
        )
    rows, n_features = store.shape  # type: ignore[union-attr]  # a folder was given
    skipped = store.origin["extract"].get("skipped", [])  # type: ignore[union-attr]
    output.line(f"{rows:,} rows of {n_features:,} features, {len(skipped):,} images skipped")
    output.line(str(out))
    output.document(
        {
            "command": "extract",
            "out": str(out),
            "rows": rows,
            "features": n_features,
            "skipped": skipped,
            "layer": loaded.layer,
            "preprocessing": loaded.preprocessing.to_dict(),
        }
    )
