"""`catwise predict`: what a classifier says of images, as a table."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from catwise._configs import RunConfig
from catwise._names import POOLS, UNIT_NOUNS, UNITS
from catwise._options import group, option
from catwise._text import plural
from catwise.cli.building import make_command
from catwise.cli.console import Output
from catwise.cli.images import read_images, read_units
from catwise.cli.inputs import check_device, refuse_inputs


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `catwise predict` is given."""

    classifier: Path = option(metavar="DIR", first=True, help="A classifier by `catwise package`.")
    model: str | None = option(
        None,
        metavar="python:MODULE:FUNCTION",
        help="The function that makes its model, where one does: it is not called unasked.",
    )
    images: Path | None = option(
        None,
        metavar="DIR",
        first=True,
        help="A folder of images, a folder of tar shards, or one shard.",
    )
    table: Path | None = option(
        None,
        metavar="FILE",
        help="Only the images of this table (CSV, TSV, Parquet, JSON lines), in its order. With "
        "--features it only tells studies or patients.",
    )
    path_column: str = option("path", metavar="NAME", help="Column of their paths below --images.")
    id_column: str | None = option(
        None, metavar="NAME", help="Column of their ids.  [default: the paths]"
    )
    group_column: str | None = option(
        None, metavar="NAME", help="Column of their patients, for --by patient."
    )
    by: str = option(
        "image",
        choices=UNITS,
        help="What is decided on as one, a row each. study: images in one folder; patient: of one "
        "--group-column.",
    )
    pool: str = option(
        "mean", choices=POOLS, help="How the probabilities of its images become one."
    )
    features: Path | str | None = option(
        None, first=True, help="Or features: a store, .npy, .npz or .safetensors."
    )
    out: Path = option(
        metavar="FILE", first=True, help="The predictions: a name that ends in .csv, .parquet, "
        ".jsonl."
    )  # fmt: skip
    tags: bool = option(
        default=False,
        first=True,
        help="A list of the positive categories of each image, the most probable first.",
    )
    config: RunConfig = group("Images through the model")
    force: bool = option(
        default=False, help="Take features that another model or preprocessing gave."
    )
    no_check: bool = option(
        default=False, help="Run a classifier that is not as it was written, or behaves otherwise."
    )
    overwrite: bool = option(default=False, help="Replace a file that is there.")
    no_resume: bool = option(default=False, help="Start over; with --overwrite if it is finished.")
    output: Output = group("Output")

    def __post_init__(self) -> None:
        if (self.images is None) == (self.features is None):
            raise click.UsageError("give either --images DIR or --features PATH.")
        pooled = self.by != "image"
        if self.images is None and not pooled and (self.table or self.id_column):
            raise click.UsageError("--table and --id-column belong to --images, or to --by.")
        if self.group_column is not None and (self.by != "patient" or self.table is None):
            raise click.UsageError("--group-column belongs to --table and --by patient.")
        if self.by == "patient" and self.group_column is None:
            raise click.UsageError("--by patient needs --table FILE and --group-column NAME.")


@make_command("predict", "Write what a classifier says of images.")
def command(given: Options) -> None:
    """Write probability, decision, conformal set and abstention of each category for each image.

    A decision is 1, 0, or empty where the category has no threshold. A category abstains where it
    has none, or where its set is not one answer. With --by study or patient there is a row for each
    of these: the probabilities of its images are pooled, then decided on. Stopped, the same command
    resumes where it was; beside FILE stands FILE.catwise.json: what made it, and which images were
    skipped.
    """
    config, output = given.config, given.output
    check_device(config.device)
    if os.environ.get("RANK", "0") != "0":  # of torchrun: one process talks
        output = dataclasses.replace(output, json=False, quiet=True)
    refuse_inputs(given.out, given.classifier, given.images, given.features, given.table)
    from catwise.predicting import load_classifier, write_predictions

    classifier = load_classifier(given.classifier, model=given.model, check=not given.no_check)
    source: Any = given.features
    if given.images is not None:
        source = read_images(given.images, given.table, given.path_column, given.id_column)
    by = read_units(given.by, given.table, given.path_column, given.id_column, given.group_column)
    if given.images is not None and classifier.model is not None:
        from catwise.models.ways import way_notes

        for note in way_notes(classifier.model.module, **config.way()):
            output.line(note)
    with output.progress() as progress:
        made = write_predictions(
            classifier,
            source,
            given.out,
            **config.running(),
            tags=given.tags,
            by=by,
            pool=given.pool,
            check=not given.force,
            resume=not given.no_resume,
            overwrite=given.overwrite,
            progress=progress,
        )
    _tell(given, output, classifier, made)


def _tell(given: Options, output: Output, classifier: Any, made: Any) -> None:
    """Say what was written."""
    output.line(classifier.population)
    units = "" if given.by == "image" else f"{plural(made.rows, *UNIT_NOUNS[given.by])} of "
    output.line(f"{units}{made.images:,} images; skipped: {len(made.skipped):,}")
    for name in made.skipped[: output.rows or None]:
        output.line(f"  {name}")
    output.line(str(given.out))
    output.document(
        {
            "command": "predict",
            "classifier": str(given.classifier),
            "digest": classifier.digest,
            "out": str(given.out),
            "rows": made.rows,
            "images": made.images,
            "by": given.by,
            "pool": None if given.by == "image" else given.pool,
            "made": made.made,
            "skipped": list(made.skipped),
            "categories": classifier.categories,
            "population": classifier.population,
        }
    )
