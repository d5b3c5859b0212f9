"""`catwise simulate`: drop labels by the published protocols, or by a saved mask."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from catwise._names import DRAWS
from catwise._options import group, option
from catwise.cli.building import make_command
from catwise.cli.console import Output
from catwise.cli.labelled import describe_labels, load_dataset
from catwise.cli.options import SEED_HELP, LabelledOptions, TableOptions
from catwise.cli.outputs import hold_output
from catwise.cli.tables import TableWriter, WrittenOptions
from catwise.errors import OutputError

if TYPE_CHECKING:
    from catwise.labels import PartialLabels

SERIES: Final = tuple(i / 10 for i in range(1, 10))
MASK_ENDING: Final = ".mask.safetensors"


@dataclass(frozen=True, slots=True)
class Step:
    """One choice of labels: what its files are called, and how it is made."""

    stem: str
    protocol: dict[str, Any]
    mask: Path | None = None
    corrected: bool = False

    def kept(self, full: PartialLabels) -> PartialLabels:
        """The labels that stay."""
        from catwise.data import apply_mask
        from catwise.labels import drop_uniform, keep_per_category, keep_single_positive

        if self.mask is not None:
            return apply_mask(self.mask, full, same_labels=not self.corrected)
        name, seed = self.protocol["name"], self.protocol["seed"]
        if name == "drop_uniform":
            draws = self.protocol.get("draws", "keyed")
            return drop_uniform(full, self.protocol["keep"], seed, draws=draws)
        if name == "keep_per_category":
            return keep_per_category(full, self.protocol["n"], seed)
        return keep_single_positive(full, seed)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `catwise simulate` is given."""

    source: LabelledOptions = group("Labels")
    table: TableOptions = group("Label tables")
    keep: tuple[float, ...] = option(
        (),
        low=0,
        high=1,
        metavar="SHARE",
        first=True,
        help="Keep each label with this probability (repeatable; what 0.1 keeps, 0.2 keeps too).",
    )
    series: bool = option(default=False, help="--keep 0.1, 0.2, … 0.9, as the field reports them.")
    draws: str = option(
        "keyed",
        choices=DRAWS,
        help="How --keep and --series draw. mlcpl and matrix: the stream of published code, which "
        "with its seed (526 and 0) keeps the same labels.",
    )
    n: tuple[int, ...] = option(
        (),
        low=0,
        help="Keep N positives and N negatives of each category (repeatable, nested).",
    )
    single_positive: bool = option(default=False, help="Keep one positive of each row, no more.")
    mask: Path | None = option(None, metavar="FILE", help="Keep what a saved mask keeps.")
    corrected: bool = option(
        default=False,
        help="With --mask: the labels were corrected since; keep what stands at its places now.",
    )
    seed: int = option(0, low=0, first=True, help=SEED_HELP)
    out: Path = option(metavar="DIR", first=True, help="Output directory of tables and masks.")
    written: WrittenOptions = group("Output")
    dry_run: bool = option(default=False, help="Say what would stay; write nothing.")
    force: bool = option(default=False, help="Replace files of these names that differ.")
    output: Output = group("Output")

    def __post_init__(self) -> None:
        if self.corrected and self.mask is None:
            raise click.UsageError("--corrected belongs to --mask.")
        asked = [bool(self.shares), bool(self.n), self.single_positive, self.mask is not None]
        if sum(asked) != 1:
            raise click.UsageError(
                "give one of --keep SHARE or --series, --n N, --single-positive, --mask FILE."
            )
        if self.draws != "keyed" and not self.shares:
            raise click.UsageError("--draws belongs to --keep and --series.")

    @property
    def shares(self) -> list[float]:
        """The shares to keep, ascending."""
        return sorted({*self.keep, *(SERIES if self.series else ())})

    def steps(self) -> list[Step]:
        """What is to be done, each step with its protocol."""
        seed = self.seed
        if self.mask is not None:
            from catwise.data import read_mask

            protocol = read_mask(self.mask).protocol
            stem = self.mask.name.removesuffix(MASK_ENDING)
            return [Step(stem, protocol, self.mask, self.corrected)]
        if self.shares:
            keyed = self.draws == "keyed"
            more, end = ({}, "") if keyed else ({"draws": self.draws}, f"_{self.draws}")
            made = [("drop_uniform", {"keep": x}, f"uniform_{x}", more) for x in self.shares]
        elif self.n:
            end = ""
            made = [
                ("keep_per_category", {"n": x}, f"per_category_{x}", {}) for x in sorted({*self.n})
            ]
        else:
            end = ""
            made = [("keep_single_positive", {}, "single_positive", {})]
        return [
            Step(f"{stem}_seed{seed}{end}", {"name": name, **what, "seed": seed, **extra})
            for name, what, stem, extra in made
        ]


@make_command("simulate", "Drop labels by a published protocol.")
def command(given: Options) -> None:
    """Drop labels by the published protocols, and save what stays.

    For each protocol DIR gets a label table and a mask: a small file that says which labels stay
    and applies to the same labels wherever they are (--mask). The same seed gives the same masks,
    checksum for checksum. Draws depend on the names of categories and the ids of rows, not on their
    order, unless --draws names a published stream.
    """
    source, out, output = given.source, given.out, given.output
    steps = given.steps()
    dataset = load_dataset(source, given.table)
    writer = TableWriter(dataset, given.table, source, given.written, home=out)
    writer.check(dataset.labels if given.shares else steps[-1].kept(dataset.labels))
    if not given.dry_run:
        _make_folder(out, steps, source)
        hold_output(out, inside=True)
    files = [
        _carry_out(step, writer, out, dry_run=given.dry_run, force=given.force, output=output)
        for step in steps
    ]
    if given.dry_run:
        output.line("dry run: nothing was written")
    else:
        output.line(f"read them with: catwise audit --labels TABLE {writer.reading}")
    output.document(
        {
            "command": "simulate",
            "dry_run": given.dry_run,
            "inputs": {"labels": describe_labels(source, dataset.labels, given.table)},
            "encoding": writer.encoding,
            "layout": writer.layout,
            "columns": writer.columns,
            "files": files,
        }
    )


def _make_folder(out: Path, steps: list[Step], source: LabelledOptions) -> None:
    """Make the folder where there is none; refuse to replace what is read."""
    try:
        out.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot make the folder '{out}'.", found=error.strerror, remedy="another folder"
        ) from error
    inputs = [path for path in (source.labels, source.root, *(s.mask for s in steps)) if path]
    for path in (path for step in steps for path in _paths(step, out)):
        if any(path.exists() and one.exists() and path.samefile(one) for one in inputs):
            raise OutputError(f"'{path}' is what is read.", remedy="another folder for --out")


def _paths(step: Step, out: Path) -> list[Path]:
    """The files of one step: its table, and its mask where it makes one."""
    table = out / f"{step.stem}.csv"
    return [table] if step.mask is not None else [table, out / (step.stem + MASK_ENDING)]


def _carry_out(
    step: Step, writer: TableWriter, out: Path, *, dry_run: bool, force: bool, output: Output
) -> dict[str, Any]:
    """Drop, write and tell.

    Files that are there stay if they are what would be written, so that a call that was stopped
    between two files can be repeated.
    """
    from catwise.data import save_mask

    full = writer.dataset.labels
    kept = step.kept(full)
    table, *masks = _paths(step, out)
    sha = None
    if not dry_run:
        writer.write(kept, table, replace=force)
        for path in masks:
            sha = save_mask(path, full, kept, protocol=step.protocol, overwrite=force)
    about = {
        "protocol": step.protocol,
        "table": str(table),
        "mask": str(masks[0] if masks else step.mask),
        "mask_sha256": sha or _sha_of(step),
        **_numbers(full, kept),
    }
    output.line(
        f"{table}: {about['n_kept']:,} of {about['n_full']:,} labels stay ({about['share']:.2%}), "
        f"{about['n_positive']:,} positive, {about['n_negative']:,} negative; "
        f"{about['n_categories_both']:,} of {full.n_categories:,} categories have both"
    )
    if about["mask_sha256"]:
        output.line(f"  mask: {about['mask']}")
        output.line(f"  SHA-256: {about['mask_sha256']}")
    return about


def _sha_of(step: Step) -> str | None:
    from catwise.data import read_mask

    return None if step.mask is None else read_mask(step.mask).sha256


def _numbers(full: PartialLabels, kept: PartialLabels) -> dict[str, Any]:
    before, after = full.counts(), kept.counts()
    n_full = int(before.known.sum() + before.uncertain.sum())
    n_kept = int(after.known.sum() + after.uncertain.sum())
    return {
        "n_full": n_full,
        "n_kept": n_kept,
        "share": n_kept / n_full if n_full else 0.0,
        "n_positive": int(after.positive.sum()),
        "n_negative": int(after.negative.sum()),
        "n_categories_both": int(((after.positive > 0) & (after.negative > 0)).sum()),
    }
