"""`fix`: a model's checkpoint, images and labels in; a better checkpoint and its account out.

Read, extract, tune, write back, verify, evaluate, report. Every step leaves its result in the
output folder, whole or not at all; a run that was stopped goes on where it was, and ends with the
same bytes.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from catwise._io import write_json, write_text
from catwise._version import __version__
from catwise.errors import ConfigError, HeadError, IdError, MismatchError, OutputError, nearest
from catwise.joining import has_default_names
from catwise.metrics import compare, evaluate
from catwise.models import LoadedModel
from catwise.models.extract import extract
from catwise.models.preprocess import ImageRows
from catwise.models.registry import load_model, write_model
from catwise.models.sources import FolderImages, ImageSource, TarImages
from catwise.progress import Progress
from catwise.reporting import write_run
from catwise.reporting.run import RUN_FILES
from catwise.reporting.tables import json_ready
from catwise.tuning import tune

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from catwise.features import FeatureStore
    from catwise.heads import Head
    from catwise.labels import PartialLabels
    from catwise.models import Preprocessing
    from catwise.progress import ProgressCallback

__all__ = ["FixConfig", "FixResult", "find_images", "fix"]

STEPS: Final = ("extract", "tune", "apply", "verify", "evaluate")
_STATE, _FEATURES, _RUN, _CARD = "fix.json", "features", "run", "MODEL_CARD.md"
_EVALUATION = "evaluation.json"
_PROBE_ROWS = 8
_METRICS: Final = ("average_precision", "auroc", "f1", "log_loss")


@dataclass(frozen=True)
class FixConfig:
    """Options of `fix`.

    Args:
        metric: what is to become better.
        preset: as in `tune`.
        methods: as in `tune`.
        validation: as in `tune`.
        seed: as in `tune`.
        force: go on although head and labels look mismatched.
        batch_rows: images in a batch.
        workers: processes that read images.
        flips: average the features with those of the images flipped left to right.
        device: where to run; None: the CPU.
        undecodable: "refuse" or "skip" images that cannot be decoded.
        bootstrap: resamples for the intervals on test rows; 0 for none.
    """

    metric: str = "average_precision"
    preset: str = "default"
    methods: tuple[str, ...] | None = None
    validation: str | None = None
    seed: int = 0
    force: bool = False
    batch_rows: int = 64
    workers: int = 0
    flips: bool = False
    device: str | None = None
    undecodable: str = "refuse"
    bootstrap: int = 200


@dataclass(frozen=True, eq=False)
class FixResult:
    """What `fix` leaves.

    Attributes:
        out: the folder.
        checkpoint: the new checkpoint, a file or a folder.
        report: the report of the tuning.
        evaluation: JSON-ready: the means before and after on the test rows and the gain; None
            without a test split.
        summary: of the tuning.
        steps: which steps ran now, and which were there already.
        notes: what to know, a sentence each.
    """

    out: Path
    checkpoint: Path
    report: Path
    evaluation: dict[str, Any] | None
    summary: dict[str, Any]
    steps: dict[str, str]
    notes: list[str]


def find_images(root: str | os.PathLike[str], ids: NDArray[np.str_]) -> ImageSource:
    """The images of some ids: in tar shards, or files named after the ids in a folder.

    An id is a path below the folder, such a path without its suffix, or a file's name without it.

    Args:
        root: a folder of images, a folder of .tar shards, or one shard.
        ids: (N,) ids.

    Raises:
        IdError: If images are missing (three are named), or an id fits several files.
        ConfigError: If there are no images.
    """
    path = Path(root)
    shards = [path] if path.suffix == ".tar" else sorted(path.glob("*.tar"))
    if shards:
        return TarImages(shards)
    files = FolderImages.scan(path).ids.tolist()
    wanted = set(ids.tolist())
    found: dict[str, list[str]] = {}
    for name in files:
        stem = name.rpartition(".")[0]
        for key in {name, stem, stem.rpartition("/")[2]} & wanted:
            found.setdefault(key, []).append(name)
    missing = [one for one in ids.tolist() if one not in found]
    if missing:
        guess = nearest(missing[0], [name.rpartition(".")[0] for name in files[:5_000]])
        raise IdError(
            f"{len(missing):,} labelled images are not in '{root}'.",
            found=f"no file for {', '.join(map(repr, missing[:3]))}{guess}; "
            f"files such as {', '.join(map(repr, files[:3]))}",
            expected="files named after the ids, with any image suffix",
            remedy="--id-prefix, --id-suffix, --strip-prefix or --strip-suffix change the ids",
        )
    several = [(one, names) for one, names in found.items() if len(names) > 1]
    if several:
        raise IdError(
            f"{len(several):,} ids fit several image files.",
            found=f"{several[0][0]!r}: {', '.join(map(repr, several[0][1][:3]))}",
            remedy="use paths below the folder as ids",
        )
    return FolderImages(path, [found[one][0] for one in ids.tolist()], ids)


def fix(
    model: str | LoadedModel,
    images: ImageSource | str | os.PathLike[str],
    labels: Mapping[str, PartialLabels],
    out: str | os.PathLike[str],
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    model_options: Mapping[str, Any] | None = None,
    preprocessing: Preprocessing | None = None,
    config: FixConfig | None = None,
    inputs: Mapping[str, Any] | None = None,
    progress: ProgressCallback | None = None,
) -> FixResult:
    """Tune a model's head on its partly known labels and write the checkpoint back.

    Args:
        model: as `load_model` takes it, or a loaded model.
        images: the images, by the labels' ids.
        labels: by split: "train" and, where there are any, "valid" and "test"; each with ids.
        out: the folder to fill; an unfinished run there goes on.
        checkpoint: as `load_model` takes it.
        model_options: further options of `load_model`.
        preprocessing: instead of what the model's configuration says.
        config: options.
        inputs: where all came from, for the report; JSON-ready.
        progress: called now and then.

    Returns:
        Where everything is, and the means before and after.

    Raises:
        ConfigError: If labels lack ids or a split, or an option is not possible.
        CatwiseError: As `load_model`, `extract`, `tune` and `write_model`.
        MismatchError: If the written checkpoint does not behave as its head says.
        OutputError: If `out` holds something else, or a run with other inputs.
    """
    config = config or FixConfig()
    splits = _checked(labels)
    loaded = _loaded(model, checkpoint, model_options, splits["train"])
    if preprocessing is not None:
        loaded.preprocessing = preprocessing
    ids = np.concatenate([part.ids for part in splits.values()])
    source = images if isinstance(images, ImageSource) else find_images(images, ids)
    folder = Path(out)
    state = _State.open(folder, _fingerprint(loaded, splits, config))
    tell = _Teller(progress)
    job = _Job(loaded, source, splits, folder, config, state, tell, dict(inputs or {}))
    store = _extract(job, ids)
    head = _tuned(job, store)
    target = folder / _checkpoint_name(loaded)
    notes = [*loaded.notes, f"Preprocessing: {loaded.preprocessing}."]
    if not state.done("apply", target):
        tell(2, "writing the checkpoint")
        write_model(loaded, head, target, overwrite=True)
        state.finish("apply")
    if not state.done("verify", target):
        tell(3, "running the new checkpoint")
        gap = _verify(
            job, target, head, None if isinstance(model, LoadedModel) else model_options or {}
        )
        state.finish("verify", {"largest gap of logits": gap})
    evaluation = _evaluated(job, head, store)
    summary = json.loads((folder / _RUN / "summary.json").read_text(encoding="utf-8"))["summary"]
    write_text(folder / _CARD, _card(loaded, summary, evaluation, state.facts))
    tell(len(STEPS), "done")
    return FixResult(
        folder,
        target,
        folder / _RUN / "report.html",
        evaluation,
        summary,
        state.steps,
        notes,
    )


# ------------------------------------------------------------------------------- inputs


def _checked(labels: Mapping[str, PartialLabels]) -> dict[str, PartialLabels]:
    known = ("train", "valid", "test")
    if wrong := [name for name in labels if name not in known]:
        raise ConfigError(f"there is no split {wrong[0]!r}.", expected=", ".join(known))
    if "train" not in labels:
        raise ConfigError("training labels are needed.", found=", ".join(labels) or "no split")
    if unnamed := [name for name, part in labels.items() if part.ids is None]:
        raise ConfigError(
            f"the labels of {unnamed[0]!r} have no ids.",
            expected="an id of each image, to find its file by",
            remedy="name the column of the ids: --id-column",
        )
    return {name: labels[name] for name in known if name in labels}


def _loaded(
    model: str | LoadedModel,
    checkpoint: str | os.PathLike[str] | None,
    options: Mapping[str, Any] | None,
    train: PartialLabels,
) -> LoadedModel:
    if isinstance(model, LoadedModel):
        loaded = model
    else:
        loaded = load_model(model, checkpoint=checkpoint, **dict(options or {}))
    if loaded.head is None:
        raise HeadError(f"the classification layer of {loaded.name} cannot be read.")
    if loaded.checkpoint is None:
        raise ConfigError(
            f"{loaded.name} was loaded without a checkpoint: there is nothing to repair.",
            remedy="give the file with its weights: --checkpoint",
        )
    names = loaded.head.categories
    if has_default_names(names) and len(names) == train.n_categories:
        loaded.head = loaded.head.replace(categories=train.categories)
        loaded.notes.append("The rows of the head were named after the label columns, in order.")
    return loaded


def _fingerprint(
    model: LoadedModel, splits: Mapping[str, PartialLabels], config: FixConfig
) -> dict[str, str]:
    """What the results depend on."""
    parts: dict[str, str] = {"catwise": __version__, "torch": torch.__version__}
    parts["model"] = f"{model.name} {model.layer} {model.head.digest if model.head else ''}"
    parts["preprocessing"] = json.dumps(model.preprocessing.to_dict(), sort_keys=True)
    for name, part in splits.items():
        digest = hashlib.sha256()
        digest.update("\0".join(part.categories).encode())
        digest.update("\0".join(part.ids.tolist() if part.ids is not None else []).encode())
        for c in range(part.n_categories):
            rows, positive = part.known(c)
            digest.update(rows.astype(np.int64).tobytes() + positive.tobytes())
        parts[f"{name} labels"] = digest.hexdigest()
    chosen = replace(config, workers=0, device=None)
    parts["options"] = repr(chosen)
    return parts


@dataclass
class _State:
    """Which steps are finished, in `fix.json`."""

    path: Path
    fingerprint: dict[str, str]
    finished: dict[str, Any]
    steps: dict[str, str]

    @classmethod
    def open(cls, folder: Path, fingerprint: dict[str, str]) -> _State:
        path = folder / _STATE
        inside = sorted(item.name for item in folder.iterdir()) if folder.is_dir() else []
        if inside and not path.exists():
            raise OutputError(
                f"'{folder}' holds files of something else.",
                found=", ".join(inside[:3]),
                remedy="choose another folder",
            )
        finished: dict[str, Any] = {}
        if path.exists():
            try:
                kept = json.loads(path.read_text(encoding="utf-8"))
                before, finished = kept["inputs"], kept["finished"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise OutputError(f"'{path}' cannot be read.", found=str(error)) from error
            other = [key for key in fingerprint if before.get(key) != fingerprint[key]]
            if other:
                raise OutputError(
                    f"'{folder}' holds a run with other inputs.",
                    found=f"other {', '.join(other)}",
                    remedy="choose another folder",
                )
        folder.mkdir(parents=True, exist_ok=True)
        state = cls(path, fingerprint, finished, {})
        state._write()
        return state

    @property
    def facts(self) -> dict[str, Any]:
        """What finished steps noted."""
        return {key: value for facts in self.finished.values() for key, value in facts.items()}

    def done(self, step: str, *files: Path) -> bool:
        """Whether a step is finished and what it made is there."""
        there = step in self.finished and all(file.exists() for file in files)
        self.steps[step] = "was there" if there else "ran"
        return there

    def finish(self, step: str, facts: Mapping[str, Any] | None = None) -> None:
        """Note that a step is finished."""
        self.finished[step] = dict(facts or {})
        self._write()

    def _write(self) -> None:
        write_json(self.path, {"inputs": self.fingerprint, "finished": self.finished})


class _Teller:
    """Progress of the steps, and within the long ones."""

    def __init__(self, report: ProgressCallback | None) -> None:
        self.report = report

    def __call__(self, step: int, message: str) -> None:
        if self.report is not None:
            self.report(Progress("fix", step, len(STEPS), message))


# -------------------------------------------------------------------------------- steps


@dataclass(frozen=True, eq=False)
class _Job:
    """What every step works on."""

    model: LoadedModel
    source: ImageSource
    splits: dict[str, PartialLabels]
    folder: Path
    config: FixConfig
    state: _State
    tell: _Teller
    inputs: dict[str, Any]

    @property
    def base(self) -> Head:
        """The head as it was."""
        if self.model.head is None:
            raise HeadError(f"the classification layer of {self.model.name} cannot be read.")
        return self.model.head


def _extract(job: _Job, ids: NDArray[np.str_]) -> FeatureStore:
    model, source, folder, config = job.model, job.source, job.folder, job.config
    job.tell(0, "extracting features")
    at = {name: row for row, name in enumerate(source.ids.tolist())}
    missing = [one for one in ids.tolist() if one not in at]
    if missing:
        raise IdError(
            f"{len(missing):,} labelled images are not among the images.",
            found=", ".join(map(repr, missing[:3])),
        )
    job.state.done("extract", folder / _FEATURES)
    rows = ImageRows(source, model.preprocessing, rows=[at[one] for one in ids.tolist()])
    store = extract(
        model,
        rows,
        folder / _FEATURES,
        ids=ids,
        device=config.device,
        flips=config.flips,
        undecodable=config.undecodable,  # type: ignore[arg-type]  # checked there
        batch_rows=config.batch_rows,
        num_workers=config.workers,
        progress=job.tell.report,
    )
    job.state.finish("extract")
    return store  # type: ignore[return-value]  # a folder was given


def _tuned(job: _Job, store: FeatureStore) -> Head:
    from catwise.heads import load_head

    folder, config = job.folder, job.config
    path = folder / _RUN / "head.safetensors"
    if job.state.done("tune", path):
        return load_head(path)
    job.tell(1, "tuning the head")
    there = set(store.ids.tolist()) if store.ids is not None else set()
    parts = {name: _only(part, there) for name, part in job.splits.items()}
    result = tune(
        job.base,
        (store, parts["train"]),
        (store, parts["valid"]) if "valid" in parts else None,
        metric=config.metric,
        preset=config.preset,
        methods=config.methods,
        validation=config.validation,
        seed=config.seed,
        force=config.force,
        progress=job.tell.report,
    )
    result.summary["seconds"] = None  # the same run must end with the same bytes
    about = {"model": job.model.name, "layer": job.model.layer, **job.inputs}
    overwrite = (folder / _RUN).is_dir() and set(_names(folder / _RUN)) <= set(RUN_FILES)
    write_run(result, folder / _RUN, inputs=about, overwrite=overwrite)
    job.state.finish("tune")
    return result.head


def _only(labels: PartialLabels, there: set[str]) -> PartialLabels:
    """The labels of images that could be decoded."""
    ids = labels.ids if labels.ids is not None else np.empty(0, dtype=np.str_)
    rows = np.array([row for row, one in enumerate(ids.tolist()) if one in there], dtype=np.int64)
    return labels if len(rows) == len(ids) else labels.take_rows(rows)


def _names(folder: Path) -> list[str]:
    return [item.name for item in folder.iterdir()]


def _checkpoint_name(model: LoadedModel) -> str:
    if model.checkpoint is None:  # checked in _loaded
        raise ConfigError(f"{model.name} was loaded without a checkpoint.")
    name = model.checkpoint.name
    return f"model-{name}" if name in {_STATE, _FEATURES, _RUN, _CARD, _EVALUATION} else name


def _verify(job: _Job, target: Path, head: Head, options: Mapping[str, Any] | None) -> float | None:
    """Run old and new checkpoints on a few images: same features, logits as the new head says.

    `options` are those that the model was loaded with; None where it was not loaded here.
    """
    model, source = job.model, job.source
    if options is None or model.module is None:
        return None
    kind, _, name = model.name.partition(":")
    if kind == "transformers":
        again = load_model(f"{kind}:{target}", **options)
    else:
        again = load_model(model.name, checkpoint=target, **options)
    again.preprocessing = model.preprocessing
    few = ImageRows(source, model.preprocessing, rows=range(min(_PROBE_ROWS, len(source))))
    given: dict[str, Any] = {"undecodable": "skip", "dtype": "float32"}
    before, after = (extract(one, few, **given) for one in (model, again))
    if not torch.equal(before.features, after.features):  # type: ignore[union-attr]
        raise MismatchError(
            f"the features of '{target}' are not those of the original.",
            remedy="something but the head differs; do not use this file",
        )
    said = head.take_categories(model.head.categories if model.head else head.categories)
    wanted = said.logits(after.features)  # type: ignore[union-attr]
    gap = float((wanted - after.logits).abs().max())  # type: ignore[union-attr]
    size = float(wanted.abs().max())
    if gap > 1e-3 * max(size, 1.0):
        raise MismatchError(
            f"'{target}' does not say what its head says.",
            found=f"logits {gap:.2g} apart, up to {size:.2g}",
            remedy=f"does {name} do something after its classification layer?",
        )
    return float(f"{gap:.0e}")


def _evaluated(job: _Job, head: Head, store: FeatureStore) -> dict[str, Any] | None:
    if "test" not in job.splits:
        return None
    folder, config, state = job.folder, job.config, job.state
    path = folder / _EVALUATION
    if state.done("evaluate", path):
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return kept
    job.tell(4, "scoring the test rows")
    test = _only(job.splits["test"], set(store.ids.tolist()) if store.ids is not None else set())
    metrics = list(dict.fromkeys([config.metric, *_METRICS]))
    options: dict[str, Any] = {
        "metrics": metrics,
        "bootstrap": config.bootstrap,
        "seed": config.seed,
        "force": True,
    }
    before, after = (evaluate(one, (store, test), **options) for one in (job.base, head))
    document: dict[str, Any] = {
        "rows": test.n_rows,
        "before": {name: before.means[name]["macro"] for name in metrics},
        "after": {name: after.means[name]["macro"] for name in metrics},
        "categories": [
            {
                "category": name,
                **{f"{m}_before": before.values[m][c] for m in metrics},
                **{f"{m}_after": after.values[m][c] for m in metrics},
            }
            for c, name in enumerate(after.categories)
        ],
    }
    if config.bootstrap:
        found = compare(before, after)
        document["gain"] = {name: _gain(found, name) for name in metrics}
    ready: dict[str, Any] = json_ready(document)
    write_json(path, ready)
    state.finish("evaluate")
    return ready


def _gain(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Difference of two means and its interval."""
    if name not in found:
        return {"difference": None, "interval": None}
    return {"difference": found[name].difference, "interval": found[name].interval}


def _card(
    model: LoadedModel,
    summary: Mapping[str, Any],
    evaluation: Mapping[str, Any] | None,
    facts: Mapping[str, Any],
) -> str:
    """A few lines for the model's card."""
    metric = summary["metric"]
    lines = [
        f"## Classification layer of {model.name}, repaired",
        "",
        (
            f"The rows of `{model.weight_key or model.layer}` were tuned category by category on "
            f"known labels with catwise {__version__}; every other tensor is the original's, bit "
            "for bit."
        ),
        "",
        f"- replaced: {summary['n_replaced']} of {summary['n_categories']} categories",
        (
            f"- chosen by: {metric}; on fresh labels {_shown(summary['before'])} before, "
            f"{_shown(summary['after'])} after, corrected for the choosing"
        ),
    ]
    if evaluation is not None:
        lines.append(
            f"- on {evaluation['rows']:,} test images that chose nothing: "
            f"{_shown(evaluation['before'][metric])} before, "
            f"{_shown(evaluation['after'][metric])} after"
        )
    gap = facts.get("largest gap of logits")
    if gap is not None:
        lines.append(
            f"- verified by running both checkpoints: features identical, logits within {gap:g}"
        )
    lines.append(f"- preprocessing: {model.preprocessing.source}")
    return "\n".join(lines) + "\n"


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
