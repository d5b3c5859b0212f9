"""`catwise extract`: images through a model once; what its classification layer gets, on disk."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from catwise._configs import ExtractConfig
from catwise._options import group, option
from catwise.cli.building import make_command
from catwise.cli.console import Output
from catwise.cli.images import read_images
from catwise.cli.inputs import check_device, read_names
from catwise.cli.models import ROW_NAMES_HELP, ModelOptions, load_the_model
from catwise.cli.options import EngineOptions
from catwise.cli.unchanged import NOTHING_TO_DO, inputs_digest, is_unchanged, note_unchanged

if TYPE_CHECKING:
    from catwise.features import FeatureStore
    from catwise.models import LoadedModel
    from catwise.models.sources import ImageSource

_TRIED: Final = 4


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `catwise extract` is given."""

    model: ModelOptions = group("Model and its input")
    head_categories: Path | None = option(
        None, metavar="FILE", group="Model and its input", help=ROW_NAMES_HELP
    )
    config: ExtractConfig = group("Images through the model")
    engine: EngineOptions = group("Several processes or machines")
    table: Path | None = option(
        None,
        metavar="FILE",
        help="Only the images of this table (CSV, TSV, Parquet, JSON lines), in its order.",
    )
    path_column: str = option("path", metavar="NAME", help="Column of their paths below --images.")
    id_column: str | None = option(
        None, metavar="NAME", help="Column of their ids.  [default: the paths]"
    )
    dtype: str = option(
        "float16", choices=("float16", "bfloat16", "float32"), help="Of the features."
    )
    dry_run: bool = option(
        default=False, first=True, help="Run the model on a few images; write nothing."
    )
    update: bool = option(
        default=False,
        help="Run only images that were added or changed since the last --update, and leave out "
        "those that are gone.",
    )
    overwrite: bool = option(default=False, help="Replace another store there.")
    no_resume: bool = option(default=False, help="Start over; with --overwrite if it is finished.")
    out: Path | str = option(
        metavar="DIR", first=True, help="The feature store to make: a folder or an URL."
    )
    parts: Path | None = option(None, metavar="DIR", help="Unfinished work, if --out is an URL.")
    output: Output = group("Output")

    def __post_init__(self) -> None:
        if self.update and (self.overwrite or self.no_resume or self.parts is not None):
            raise click.UsageError("--update takes no --overwrite, --no-resume or --parts.")


@make_command("extract", "Cache what goes into a model's classification layer.")
def command(given: Options) -> None:
    """Stream images through a model and keep what goes into its classification layer.

    Ids are the images' paths below the folder, the samples' names in tar shards, or a column of
    --table. Stopped, it resumes where it was; several processes under torchrun share the work.
    """
    model, config, out, output = given.model, given.config, given.out, given.output
    if model.images is None:
        raise click.UsageError("Missing option '--images'.")
    check_device(config.device)
    inputs = inputs_digest(given, Path(out)) if given.update else ""
    if given.update and not given.dry_run and is_unchanged(Path(out), inputs):
        output.line(NOTHING_TO_DO)
        output.document({"command": "extract", "out": str(out), "unchanged": True})
        return
    if os.environ.get("RANK", "0") != "0":  # of torchrun: one process talks
        output = dataclasses.replace(output, json=False, quiet=True)
    from catwise.models.card import preprocessing_text
    from catwise.models.ways import way_notes

    names = None if given.head_categories is None else read_names(given.head_categories)
    loaded = load_the_model(model, names)
    source = read_images(model.images, given.table, given.path_column, given.id_column)
    output.line(f"{loaded.name}: classification layer {loaded.layer}")
    output.line(f"preprocessing: {preprocessing_text(loaded.preprocessing)}")
    for note in [*loaded.notes, *way_notes(loaded.module, **config.way())]:
        output.line(note)
    about = {"command": "extract", "layer": loaded.layer, "images": len(source)}
    about["preprocessing"] = loaded.preprocessing.to_dict()
    if given.dry_run:
        width = _tried(loaded, source, config)
        output.line(f"dry run: {len(source):,} images, {width:,} features; nothing was written")
        output.document({**about, "dry_run": True, "features": width})
        return
    store, done = _made(given, loaded, source)
    if given.update:
        note_unchanged(Path(out), inputs)
    output.document({**about, "out": str(out), **done, **_tell(store, out, output)})


def _made(
    given: Options, loaded: LoadedModel, source: ImageSource
) -> tuple[FeatureStore, dict[str, Any]]:
    """The store, and what an update did."""
    from catwise.models.extraction import extract
    from catwise.models.updating import update_features

    how: dict[str, Any] = {**given.config.extraction(), "dtype": given.dtype}
    workers = given.config.workers
    with given.engine.opened(workers, given.out) as engine, given.output.progress() as progress:
        how |= {"engine": engine, "progress": progress}
        if given.update:
            updated = update_features(loaded, source, given.out, **how)
            given.output.line(str(updated))
            return updated.store, {"update": updated.done()}
        how |= {"overwrite": given.overwrite, "resume": not given.no_resume}
        store: Any = extract(loaded, source, given.out, **how, parts=given.parts)
    return store, {}


def _tell(store: FeatureStore, out: Path | str, output: Output) -> dict[str, Any]:
    """What was made."""
    rows, n_features = store.shape
    made = store.origin["extract"]
    skipped = made["skipped"]
    if made["items"]["precision"] == "fast":
        half = f"in {made['items']['computed in']}: up to {made['off']:.1g} of the largest off"
        output.line(f"features were computed {half}")
    output.line(f"{rows:,} rows of {n_features:,} features; images skipped: {len(skipped):,}")
    for name in skipped[: output.rows or None]:
        output.line(f"  {name}")
    output.line(str(out))
    return {"rows": rows, "features": n_features, "skipped": skipped}


def _tried(loaded: LoadedModel, source: ImageSource, config: ExtractConfig) -> int:
    """The number of features of the first images."""
    from catwise.models.extraction import extract
    from catwise.models.loading import ImageRows

    few = ImageRows(source, loaded.preprocessing, rows=range(min(len(source), _TRIED)))
    found: Any = extract(
        loaded,
        few,
        **{**config.way(), "compiled": False},
        undecodable=config.undecodable,
    )
    return int(found.features[0].numel())
