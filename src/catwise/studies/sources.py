"""The data of a study: labels by split, and where their images or features are."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from catwise._json import json_ready
from catwise.data import Dataset, read_table, readers
from catwise.errors import ConfigError, IdError, nearest, reason_of
from catwise.features import Features, read_features
from catwise.fixing.folder import labels_digest
from catwise.fixing.images import FoundImages, find_images, listed_images
from catwise.fixing.inputs import checked_splits, ids_of
from catwise.labels import LabelPolicy, PartialLabels, drop_uniform, split_labels
from catwise.metrics.pooling import units_by_paths
from catwise.studies.declared import DataOptions, Study

_CHUNK: Final = 1 << 20
NONE: Final = "none"


@dataclass(frozen=True, eq=False)
class StudyData:
    """A data set of a study.

    Attributes:
        name: in the study.
        splits: labels by split: "train", "test" and, where there is one, "valid".
        features: of all rows, by id; None where there are images.
        images: of all rows; None where there are features.
        policy: what uncertain labels count as in training.
        by: what is scored as one, as `compare_heads` takes it.
        digest: of all that is read.
    """

    name: str
    splits: dict[str, PartialLabels]
    features: Features | None
    images: FoundImages | None
    policy: LabelPolicy
    by: Any
    digest: str

    def known(self, share: float, seed: int, draws: str) -> dict[str, PartialLabels]:
        """The splits with a share of the training labels."""
        if share >= 1:
            return dict(self.splits)
        kept = drop_uniform(self.splits["train"], share, seed, draws=draws)  # type: ignore[arg-type]
        return {**self.splits, "train": kept}

    def rows(self, labels: PartialLabels) -> Any:
        """(N, D) float32 features of the rows of labels."""
        assert self.features is not None  # noqa: S101  # of features
        assert self.features.ids is not None  # noqa: S101  # load_data has seen to it
        at = {one: row for row, one in enumerate(self.features.ids.tolist())}
        rows = np.array([at[one] for one in ids_of(labels).tolist()], dtype=np.int64)
        return np.asarray(self.features.rows(rows), dtype=np.float32)


def load_data(study: Study, name: str) -> StudyData:
    """Read a data set of a study; kept in memory as long as the same is asked for.

    Raises:
        ConfigError: If a split is not there, or an option of the reader is unknown.
        IdError: If images or features of labelled rows are missing.
        CatwiseError: As the reader.
    """
    return _loaded(_Request(study, name))


def forget_data() -> None:
    """Read data sets again, whatever was kept: files may have changed."""
    _loaded.cache_clear()


class _Request:
    """A data set of a study, told apart by what is declared."""

    def __init__(self, study: Study, name: str) -> None:
        self.study, self.name, self.given = study, name, study.data[name]
        told = {**vars(self.given), "root of all": study.root, "name": name}
        self.text = json.dumps(json_ready({key: str(value) for key, value in told.items()}))

    def __hash__(self) -> int:
        return hash(self.text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Request) and self.text == other.text


@functools.lru_cache(maxsize=8)
def _loaded(request: _Request) -> StudyData:
    study, name, given = request.study, request.name, request.given
    parts = _cut(_read(study, given, name), given.valid_share)
    splits = checked_splits({key: part.labels for key, part in parts.items()})
    if given.features is None:
        features, images = None, _images(study, given, parts)
        inputs = _stamps(images)
    else:
        path = study.place(given.features)
        features, images = _features(path, splits), None
        inputs = path_digest(path)
    told = [inputs, *(f"{key} {labels_digest(part)}" for key, part in splits.items())]
    told += [given.draws, str(given.uncertain), given.by, given.pool]
    test, policy = parts["test"], LabelPolicy(uncertain=given.uncertain)  # type: ignore[arg-type]
    return StudyData(
        name=name,
        splits=splits,
        features=features,
        images=images,
        policy=policy,
        by=None if given.by == "image" else units_by_paths(given.by, test.labels.ids, test.paths),
        digest=hashlib.sha256("\n".join(told).encode()).hexdigest(),
    )


def _read(study: Study, given: DataOptions, name: str) -> dict[str, Dataset]:
    """The rows of each split, from a table or a data set."""
    wanted = {"train": given.train, "valid": given.valid, "test": given.test}
    if NONE in {given.train, given.test}:
        raise ConfigError(f"[data.{name}] needs a training and a test split.")
    if given.dataset is not None:
        reader: Any = getattr(readers, f"read_{given.dataset}")
        assert given.root is not None  # noqa: S101  # DataOptions has seen to it
        source = study.place(given.root)
    else:
        assert given.labels is not None  # noqa: S101  # DataOptions has seen to it
        reader, source = read_table, study.place(given.labels)
    options = _checked_options(reader, given, f"[data.{name}]")
    own = inspect.signature(reader).parameters.get("split")
    found: dict[str, Dataset] = {}
    whole: Dataset | None = None
    for split, called in wanted.items():
        if called == NONE:
            continue
        if own is not None and own.default is not None:  # a reader of one split at a time
            found[split] = options(source, split=called)
            continue
        whole = options(source) if whole is None else whole
        found[split] = whole.split(called)
    return {split: _with_categories(part, given) for split, part in found.items()}


def _checked_options(reader: Any, given: DataOptions, where: str) -> Callable[..., Dataset]:
    """The reader with its options, whose names are checked."""
    parameters = list(inspect.signature(reader).parameters.values())[1:]
    own = [one.name for one in parameters if one.kind is not one.VAR_KEYWORD]
    for name in given.options if len(own) == len(parameters) else ():
        if name not in own:
            raise ConfigError(
                f"{where}: the reader has no option {name!r}{nearest(name, own)}.",
                expected=", ".join(own),
            )

    def read(source: Path, **more: Any) -> Dataset:
        try:
            dataset: Dataset = reader(source, **{**given.options, **more})
        except TypeError as error:  # an option of another layout, or a value of another type
            raise ConfigError(
                f"{where}: the reader does not take these options.", found=reason_of(error)
            ) from error
        return dataset

    return read


def _with_categories(dataset: Dataset, given: DataOptions) -> Dataset:
    if not given.categories:
        return dataset
    labels = dataset.labels.take_categories(list(given.categories))
    return dataclasses.replace(dataset, labels=labels)


def _cut(parts: dict[str, Dataset], share: float) -> dict[str, Dataset]:
    """Validation rows cut from the training rows, groups whole, where that is asked for."""
    if not share:
        return parts
    train = parts["train"]
    shares = {"train": 1 - share, "valid": share}
    assigned = split_labels(train.labels, shares)
    own = {key: train.take(np.flatnonzero(assigned == key)) for key in shares}
    return {**own, "test": parts["test"]}


def _images(study: Study, given: DataOptions, parts: Mapping[str, Dataset]) -> FoundImages:
    """The files that the data set names, or those named after the ids."""
    ids = np.concatenate([ids_of(part.labels) for part in parts.values()])
    place = parts["train"].root if given.images is None else study.place(given.images)
    if any(parts["train"].paths):
        paths = [path for part in parts.values() for path in part.paths.tolist()]
        return listed_images(place, paths, ids)
    return find_images(place, ids)


def _features(path: Path, splits: Mapping[str, PartialLabels]) -> Features:
    """Features of all labelled rows."""
    found = read_features(path)
    if not isinstance(found, Features) or found.ids is None:
        raise IdError(
            f"features of a study need one vector and an id a row: '{path}'.",
            expected="an .npz with 'features' (N, D) and 'ids' (N,), or a feature store with ids",
        )
    there = set(found.ids.tolist())
    missing = [one for part in splits.values() for one in ids_of(part).tolist() if one not in there]
    if missing:
        raise IdError(
            f"'{path}' lacks features of {len(missing):,} labelled rows.",
            found=f"nothing for {', '.join(map(repr, missing[:3]))}",
        )
    return found


def _stamps(images: FoundImages) -> str:
    """Of the ids and the sizes and times of all files."""
    source, digest = images.source, hashlib.sha256()
    for row in range(len(source)):
        digest.update(f"{source.id(row)} {source.stamp(row)}\n".encode())
    return digest.hexdigest()


def path_digest(path: Path) -> str:
    """SHA-256 of a file, or of all files in a folder with their names."""
    digest = hashlib.sha256()
    files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    for file in files:
        if path.is_dir():
            digest.update(file.relative_to(path).as_posix().encode())
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def weights_place(study: Study, backbone: str) -> Path | None:
    """The checkpoint that a backbone starts from; None without one."""
    given = study.backbones[backbone]
    if given.checkpoint is not None:
        path = study.place(given.checkpoint)
        if not path.exists():
            raise ConfigError(f"[backbones.{backbone}] names a checkpoint that is not there.",
                              found=f"'{path}'")  # fmt: skip
        return path
    kind, _, rest = given.model.partition(":")
    return study.place(Path(rest)) if kind == "transformers" else None
