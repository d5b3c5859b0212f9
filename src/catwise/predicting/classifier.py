"""A classifier read back from its folder: images or features in, what is decided of them out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from catwise._extras import import_optional
from catwise._text import some
from catwise.decisions import Calibration, ConformalSets, DecisionRules, Thresholds
from catwise.errors import (
    CategoryError,
    CatwiseError,
    CheckpointError,
    ConfigError,
    MismatchError,
    ShapeError,
)
from catwise.features import BLOCK_ROWS, FeatureStore
from catwise.heads import Head, load_head
from catwise.metrics.inputs import check_head_logits
from catwise.metrics.pooling import Named
from catwise.models import LoadedModel, Preprocessing
from catwise.models.extraction import ImagePass
from catwise.models.loading import ImageRows
from catwise.models.logits import TOLERANCE
from catwise.models.recipes import load_recipe
from catwise.models.sources import ImageSource
from catwise.models.ways import Precision
from catwise.predicting.folder import CALIBRATION, CHECKPOINT, CONFORMAL, HEAD, THRESHOLDS, Manifest
from catwise.predicting.inputs import (
    Images,
    Rows,
    check_pool,
    read_inputs,
    row_block,
    row_ids,
    store_of,
)
from catwise.predicting.module import ClassifierModule, export_program, output_names
from catwise.predicting.onnx_graph import export_graph
from catwise.predicting.predictions import Predictions
from catwise.predicting.probe import image_pass, probe_logits
from catwise.progress import ProgressCallback

_COMPARED: Final = ("layer", "flips", "preprocessing")


class Classifier:
    """Head or model, calibration and thresholds, as one thing. Made by :func:`load_classifier`.

    Attributes:
        folder: that it was read from.
        head: rows of the classification layer, one for each category.
        calibration: of its logits, or None.
        thresholds: of its logits, or None.
        conformal: sets of answers by its logits, or None.
        rules: how logits become probabilities and decisions.
        manifest: what its folder says of it.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        head: Head,
        *,
        calibration: Calibration | None,
        thresholds: Thresholds | None,
        conformal: ConformalSets | None,
        function: str | None,
        check: bool,
    ) -> None:
        self.folder, self.manifest, self.head = folder, manifest, head
        self.calibration, self.thresholds, self.conformal = calibration, thresholds, conformal
        self.rules = DecisionRules.of(manifest.categories, calibration, thresholds, conformal)
        self._function, self._check = function, check

    def __repr__(self) -> str:
        name = self.manifest.model["recipe"]["kind"] if self.manifest.model else "head"
        return f"Classifier(n_categories={len(self.categories)}, {name}, '{self.folder}')"

    @property
    def categories(self) -> tuple[str, ...]:
        """C names."""
        return self.manifest.categories

    @property
    def population(self) -> str:
        """Of which images the probabilities speak, in a sentence."""
        return self.manifest.population

    @property
    def digest(self) -> str:
        """SHA-256 of everything in the folder."""
        return self.manifest.digest

    @property
    def flips(self) -> bool:
        """Whether logits are means over an image and its mirror image."""
        return bool(self.manifest.model and self.manifest.model["flips"])

    @property
    def rows(self) -> list[int]:
        """The row of the model's layer that each category has."""
        return list(self._model_table["rows"])

    @property
    def preprocessing(self) -> Preprocessing | None:
        """How images become the model's input; None for a head alone."""
        return self.manifest.preprocessing()

    @property
    def _model_table(self) -> dict[str, Any]:
        if self.manifest.model is None:
            raise ConfigError(
                f"the classifier in '{self.folder}' is a head alone: it takes features.",
                expected=f"(N, {self.head.n_features}) features",
                remedy="extract them with the model that its head belongs to, or make the "
                "classifier from the model (--model)",
            )
        return self.manifest.model

    @cached_property
    def model(self) -> LoadedModel:
        """The model, loaded when it is first needed, and run on two made-up images.

        Raises:
            ConfigError: If the classifier is a head alone, the model's kind needs something that
                is not there, or a function makes it that nobody named.
            MismatchError: If its logits are not those that were recorded.
        """
        table = self._model_table
        _refuse_unasked(table["recipe"], self._function)
        try:
            loaded = load_recipe(
                table["recipe"], self.folder / CHECKPOINT / Path(table["checkpoint"]).name
            )
        except ValueError as error:
            if isinstance(error, CatwiseError):
                raise
            raise CheckpointError(
                f"cannot load the model of '{self.folder}'.", found=str(error)
            ) from error
        preprocessing = self.preprocessing
        assert preprocessing is not None  # noqa: S101  # a model has one
        loaded.preprocessing = preprocessing
        loaded.check_layout()
        _check_rows(loaded, table["rows"], self.folder)
        if self._check:
            _check_probe(loaded, table, self)
        return loaded

    # ---------------------------------------------------------------------------- running

    def predict(
        self,
        images: Any,
        *,
        ids: Any = None,
        by: Named = None,
        pool: str = "mean",
        undecodable: str = "refuse",
        batch_rows: int = 64,
        num_workers: int = 0,
        device: str | torch.device | None = None,
        precision: Precision = "exact",
        compiled: bool = False,
        check: bool = True,
        progress: ProgressCallback | None = None,
    ) -> Predictions:
        """Probabilities and decisions of images, or of studies, all in memory.

        `catwise.predicting.write_predictions` writes those of any number of images to a file.

        Args:
            images: a folder of images or tar shards, a path or a list of paths, Pillow images,
                arrays of uint8 pixels (H, W, 3) or (N, H, W, 3), a source of
                `catwise.models.sources`, or a float tensor (N, channels, H, W) that is preprocessed
                already; or features: (N, D), a file of them, or a feature store.
            ids: (N,) ids of the images; by default those that they have, else row numbers.
            by: what is decided on as one, as in `Predictions.pooled`: "image", "study", or
                {id: group}.
            pool: "mean" or "max" of the probabilities of a study's images.
            undecodable: "refuse" images that cannot be decoded, or "skip" them.
            batch_rows: images in a batch.
            num_workers: processes that read images.
            device: where the model runs; the CPU when not given.
            precision: "exact" or "fast", as in `catwise.extract`.
            compiled: compile the model first, as in `catwise.extract`.
            check: whether features of a store must have been extracted by this very model, from
                images that were preprocessed as its own are.
            progress: called now and then.

        Raises:
            ConfigError: If images are given to a head alone, or ids tell no studies.
            MismatchError: If the model, its preprocessing, or the features are not those that the
                classifier was made with.
            FeatureError: If images cannot be decoded, features are not finite, or what is given
                is neither.
            IdError: If an id has no group.
            ShapeError: If features or ids do not fit.
        """
        given = read_inputs(images)
        ids = None if ids is None else [str(one) for one in ids]
        check_pool(by, pool, given, ids)
        if isinstance(given, (ImageSource, ImageRows, Tensor)):
            options = {"undecodable": undecodable, "batch_rows": batch_rows, "device": device}
            options |= {"precision": precision, "compiled": compiled}
            run = self.image_pass(given, ids=ids, num_workers=num_workers, **options)
            found = run.in_memory(progress)
            names = range(len(found.logits)) if found.ids is None else found.ids.tolist()
            logits, skipped = found.logits[:, self.rows], found.skipped
            said = Predictions(tuple(map(str, names)), self.categories, logits, self.rules, skipped)
            return said.pooled(by, pool)
        self.check_features(given, check=check)
        rows = len(given)
        blocks = [self.feature_logits(given, at, min(at + BLOCK_ROWS, rows))
                  for at in range(0, rows, BLOCK_ROWS)]  # fmt: skip
        logits = torch.cat(blocks) if blocks else torch.empty(0, len(self.categories))
        names = row_ids(given, 0, rows) if ids is None else ids
        if len(names) != rows:
            raise ShapeError("ids do not fit the features.", found=f"{len(names):,} ids",
                             expected=f"{rows:,}, one for each row")  # fmt: skip
        return Predictions(tuple(names), self.categories, logits, self.rules).pooled(by, pool)

    def image_pass(self, images: Images, **options: Any) -> ImagePass:
        """The pass of `catwise.extract`, which keeps the logits of all rows of the layer."""
        return image_pass(self.model, images, flips=self.flips, **options)

    def feature_logits(self, rows: Rows, start: int, stop: int) -> Tensor:
        """(stop − start, C) logits of some rows of features, float64 of a float64 head."""
        logits = self.head.logits(row_block(rows, start, stop)).cpu()
        name = f"features from row {start:,} on"
        return check_head_logits(logits, self.categories, name=name)

    def check_features(self, rows: Rows, *, check: bool = True) -> None:
        """Refuse features that another model, or another preprocessing, gave.

        Raises:
            ShapeError: If they have another number of columns.
            MismatchError: If a store says that they come from elsewhere.
        """
        width = getattr(rows, "n_features", rows.shape[1])
        if width != self.head.n_features:
            raise ShapeError(
                "features do not fit the classifier.",
                found=f"{width:,} columns",
                expected=f"{self.head.n_features:,}",
                remedy="extract them with the model that it was made from",
            )
        store = store_of(rows)
        if check and store is not None:
            _check_origin(store, self.manifest)

    # -------------------------------------------------------------------------- exporting

    @property
    def output_names(self) -> tuple[str, ...]:
        """What :meth:`module` and exported files give: "logits", "probabilities", "decisions".

        And "sets", where there are conformal sets.
        """
        return output_names(self.rules)

    def module(self) -> nn.Module:
        """A torch module from the model's input to logits, probabilities, decisions and sets.

        It takes preprocessed images (N, channels, H, W), or features (N, D) for a head alone.

        Raises:
            ConfigError: If the model is not one of torch (an ONNX file has `export_onnx`).
        """
        return ClassifierModule.of(self)

    def export_torch(self, path: str | os.PathLike[str]) -> None:
        """Write a program of `torch.export` (.pt2) from the model's input to what is decided.

        Its outputs are logits (N, C) float32, calibrated probabilities (N, C) float32, decisions
        (N, C) int8: 1 positive, 0 negative, -1 without a threshold; and, where there are conformal
        sets, sets (N, C) int8: 0 none, 1 negative, 2 positive, 3 both. Logits are compared with
        thresholds and cut-offs themselves. `torch.export.load` reads it.

        Args:
            path: the file; replaced if it exists.

        Raises:
            ConfigError: If the model cannot be exported.
            MismatchError: If the program does not give what the classifier gives.
            OutputError: If it cannot be written.
        """
        export_program(self, Path(path))

    def export_onnx(self, path: str | os.PathLike[str]) -> None:
        """Write one ONNX graph from the model's input to what is decided.

        Outputs are those of :meth:`export_torch`; calibration, by knots too, is made of ONNX
        operators. The metadata hold the preprocessing, as catwise's own reader of ONNX files
        takes it, categories and digest.

        Args:
            path: the file; replaced if it exists.

        Raises:
            MissingExtraError: If onnx or onnxruntime is absent.
            ConfigError: If the model cannot be exported.
            MismatchError: If the graph does not give what the classifier gives.
            OutputError: If it cannot be written.
        """
        export_graph(self, Path(path))


def load_classifier(
    folder: str | os.PathLike[str], *, model: str | None = None, check: bool = True
) -> Classifier:
    """Read a classifier from the folder that `save_classifier` or `catwise package` wrote.

    Nothing in it is executed, and no function that it names is called unasked. The model is loaded
    when images are first given to it.

    Args:
        folder: the folder.
        model: where a function of yours makes the model, that function: "python:MODULE:FUNCTION".
        check: compare every file with its digest, and, once the model is loaded, its logits of
            two made-up images, through its preprocessing, with those that were recorded.

    Raises:
        CheckpointError: If there is no classifier, or it cannot be read.
        MismatchError: If a file is not the one that was written.
        ConfigError: If another version of catwise wrote it.
    """
    path = Path(folder)
    manifest = Manifest.read(path, check=check)
    if check:
        manifest.check_files(path)
    head = load_head(path / HEAD)
    if head.categories != manifest.categories:
        raise CategoryError(
            f"the head in '{folder}' is of other categories than the classifier.",
            found=some([repr(name) for name in head.categories], 3),
            expected=some([repr(name) for name in manifest.categories], 3),
        )
    parts: dict[str, Any] = {
        place.partition(".")[0]: read(path / place) if (path / place).is_file() else None
        for place, read in _READERS.items()
    }
    return Classifier(path, manifest, head, **parts, function=model, check=check)


_READERS: Final[dict[str, Callable[[Path], Any]]] = {
    CALIBRATION: Calibration.load,
    THRESHOLDS: Thresholds.load,
    CONFORMAL: ConformalSets.load,
}


def _refuse_unasked(recipe: Mapping[str, Any], function: str | None) -> None:
    """Refuse to call a function that a file names, unless the user names it too."""
    wanted = f"{recipe.get('kind')}:{recipe.get('name')}"
    if recipe.get("kind") == "python" and function != wanted:
        raise ConfigError(
            "a function makes the model of this classifier; it is not called unasked.",
            found=f"model={function!r}",
            expected=f"model={wanted!r}, if you trust it",
            remedy=f"load_classifier(…, model={wanted!r}) (--model {wanted})",
        )


def _check_rows(model: LoadedModel, rows: list[int], folder: Path) -> None:
    """Refuse rows that the layer does not have."""
    names = model.row_names or (() if model.head is None else model.head.categories)
    if max(rows) >= len(names):
        raise MismatchError(
            f"the model of '{folder}' lacks rows of its classification layer.",
            found=f"{len(names):,} rows",
            expected=f"{max(rows) + 1:,} or more",
            remedy="make the classifier again",
        )


def _check_probe(model: LoadedModel, table: dict[str, Any], of: Classifier) -> None:
    """Refuse a model whose logits of the made-up images are not those that were recorded."""
    import_optional("PIL.Image", extra="images", purpose="running a model on images")
    wanted = torch.tensor(table["probe"], dtype=torch.float64)
    found = probe_logits(model, list(table["rows"]), flips=bool(table["flips"])).double()
    dtype = torch.float32 if model.head is None else model.head.dtype
    near = max(TOLERANCE[torch.float32], TOLERANCE[dtype])
    gap = float("inf")
    if found.shape == wanted.shape:
        gap = float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30))
    if not gap <= near:
        raise MismatchError(
            f"the model of '{of.folder}' is not the one that the classifier was made with.",
            found=f"logits of two made-up images that differ by {gap:.2g} of the largest",
            expected=f"at most {near:g}",
            remedy="use the packages that it was made with "
            f"(catwise {of.manifest.catwise}); check=False runs it as it is",
        )


def _check_origin(store: FeatureStore, manifest: Manifest) -> None:
    """Refuse a store that says it was extracted otherwise; what says nothing is taken."""
    wanted = manifest.extraction
    made = store.origin.get("extract", {}).get("items", {})
    if not wanted or not made:
        return
    wrong = []
    if made.get("weights") not in wanted.get("weights", ()):
        wrong.append("another model's weights")
    wrong += [
        f"{name}: {_said(made.get(name))}"
        for name in _COMPARED
        if name in wanted and _said(made.get(name)) != _said(wanted[name])
    ]
    if wrong:
        raise MismatchError(
            f"the features in '{store.path}' are not those that the classifier was made with.",
            found="; ".join(wrong),
            expected="the same model, layer, preprocessing and flips",
            remedy="extract them with the classifier's own model; check=False (--force) takes them",
        )


def _said(value: Any) -> Any:
    """A preprocessing without where it was read."""
    if isinstance(value, dict):
        return {name: list(v) if isinstance(v, tuple) else v for name, v in value.items()
                if name != "source"}  # fmt: skip
    return value
