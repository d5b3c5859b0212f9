"""Image classifiers of Hugging Face transformers: a folder in, a folder out."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from catwise._extras import import_optional
from catwise.errors import (
    CheckpointError,
    ConfigError,
    HeadError,
    ShapeError,
)
from catwise.heads.catalog import open_catalog
from catwise.models.adapters.torch_modules import adapt_module, inner_layer
from catwise.models.adapters.transformers_folder import CONFIG, INDEX, FolderWriter, read_table
from catwise.models.core import LoadedModel, Preprocessing, Request
from catwise.models.packages import building, split_options
from catwise.models.stored_names import (
    check_inverse,
    names_by_number,
    unique_names,
)
from catwise.models.writing import writer_of

_COMPILED: Final = "_orig_mod."
"""What leads the names of tensors that a compiled model saved."""

_WEIGHTS: Final = "model.safetensors"
_REFUSED: Final = ("trust_remote_code", "num_labels", "token", "cache_dir", "revision")
_TWO_HEADS: Final = (
    ("cls_classifier", "distillation_classifier"),
    ("classifier", "classifier_distill"),
    ("head", "dist_head"),
)
_HEADS: Final = ("classifier", "head", "score", "timm_model")
_RESAMPLE: Final = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
_OTHER_COPIES: Final = ("*.bin", "*.h5", "*.msgpack", "*.onnx", "onnx/*.onnx", "*.ot")


def load_transformers(request: Request) -> LoadedModel:
    """Load an image classifier from its folder: config.json, model.safetensors (one or several).

    Nothing is downloaded, no code in the folder is run, and pickles (`pytorch_model.bin`) are not
    opened. The weights are float32 in memory, whatever the file holds.
    """
    folder = Path(request.name)
    transformers = import_optional(
        "transformers", extra="transformers", purpose=f"the model transformers:{folder}"
    )
    own, args = split_options(request.model_args, own={"heads": "refuse"}, refused=_REFUSED)
    settings, files = _read_settings(folder), _weight_files(folder)
    stored = _stored_labels(folder, settings) if request.categories is None else None
    lead = _COMPILED if all(key.startswith(_COMPILED) for key in files) else ""
    module = _build(transformers, folder, args, lead)
    config, notes = module.config, [_problem_note(module.config)]
    _check_count(folder, config.num_labels, request.n_categories)
    categories, said = request.categories, list[str]()
    if categories is None:
        categories, said = _labels(config, stored)
    notes += said
    layers: Any = request.layer or _classifiers(module)
    weights = _weights_of(layers, files, folder, lead)
    if others := sorted(p.name for form in _OTHER_COPIES for p in folder.glob(form)):
        notes.append(f"{', '.join(others)}: other copies of the weights, which keep the old head.")
    preprocessing, said = read_processor(folder, settings)
    notes += said
    if read_table(folder / "preprocessor_config.json").get("do_flip_channel_order"):
        module.register_forward_pre_hook(_flip_channels, with_kwargs=True)
        notes.append("the model takes BGR: the channels are turned as it is called.")
    loaded = adapt_module(
        module,
        name=f"transformers:{folder}",
        preprocessing=preprocessing,
        layers=layers,
        heads=own["heads"],
        catalog=open_catalog(weights),
        loaded=True,
        prefix=lead,
        categories=categories,
        image_argument="pixel_values",
        notes=notes,
    )
    loaded.checkpoint = folder
    labels = [] if request.categories is not None else stored or _invented(config)
    loaded.writer = _writer(loaded, weights.relative_to(folder), labels)
    return loaded


def _writer(loaded: LoadedModel, weights: Path, labels: Sequence[str]) -> FolderWriter:
    """Writes into a copy of the folder, in which rows that stay keep the labels that they have."""
    rows = loaded.head.categories if loaded.head else ()
    return FolderWriter(
        weights.as_posix(), writer_of(loaded), dict(zip(rows, labels, strict=False))
    )


def _invented(config: Any) -> list[str]:
    """The names that transformers gives to rows without any."""
    return names_by_number(config.id2label or {}, where="id2label")


def _check_count(folder: Path, n_labels: int, asked: int | None) -> None:
    if asked not in {None, n_labels}:
        raise ShapeError(
            f"'{folder}' has another number of categories.",
            found=f"{n_labels:,} labels",
            expected=f"{asked:,}",
        )


def _weights_of(
    layers: str | Sequence[str], files: Mapping[str, Path], folder: Path, lead: str
) -> Path:
    """The one file that holds the heads."""
    names = [layers] if isinstance(layers, str) else layers
    keys = [f"{lead}{name}.weight" for name in names]
    if absent := [key for key in keys if key not in files]:
        raise HeadError(
            f"the weights in '{folder}' have no tensor {absent[0]!r}.",
            found=f"{len(files):,} tensors",
            remedy="name the classification layer with layer='…'",
        )
    places = {files[key] for key in keys}
    if len(places) > 1:
        raise HeadError(
            f"the heads in '{folder}' lie in several files.",
            found=", ".join(sorted(path.name for path in places)),
            remedy="model.save_pretrained(folder, max_shard_size='1TB') puts them in one",
        )
    return min(places)


def _flip_channels(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, kwargs | {"pixel_values": kwargs["pixel_values"].flip(1)}


def _weight_files(folder: Path) -> dict[str, Path]:
    """Every tensor's name and the file that holds it."""
    shards = read_table(folder / INDEX).get("weight_map")
    files = {folder / _WEIGHTS}
    if shards is not None and not (folder / _WEIGHTS).exists():
        if not isinstance(shards, dict) or any(Path(str(f)).name != f for f in shards.values()):
            raise CheckpointError(
                f"'{folder / INDEX}' does not name files beside it.",
                expected="a weight_map of tensor names and file names",
            )
        files = {folder / shard for shard in shards.values()}
    if missing := sorted(file.name for file in files if not file.exists()):
        pickled = (folder / "pytorch_model.bin").exists()
        raise CheckpointError(
            f"'{folder}' lacks {', '.join(missing)}.",
            found="pytorch_model.bin, a pickle, which is not opened" if pickled else None,
            expected="weights as safetensors",
            remedy="model.save_pretrained(folder) writes them",
        )
    return {entry.key: file for file in sorted(files) for entry in open_catalog(file).entries}


@contextlib.contextmanager
def _silent(transformers: Any) -> Iterator[None]:
    """No progress bars and reports on the terminal while a model loads."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _build(transformers: Any, folder: Path, args: Mapping[str, Any], lead: str) -> Any:
    """Make the model and load its weights, all of them; `lead` stands before the tensors' names."""
    named = {"key_mapping": {f"^{re.escape(lead)}": ""}} if lead else {}
    with building(f"transformers:{folder}", remedy="check config.json"), _silent(transformers):
        module, report = transformers.AutoModelForImageClassification.from_pretrained(
            str(folder),
            **args,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, in words
            dtype=torch.float32,
            **named,
        )
    wrong = {
        what: sorted(map(_described, report.get(f"{what}_keys") or ()))
        for what in ("missing", "unexpected", "mismatched")
    }
    if any(wrong.values()):
        found = [f"{len(keys):,} {what} ({', '.join(keys[:5])})" for what, keys in wrong.items()]
        raise CheckpointError(
            f"the weights in '{folder}' are not those of the model that config.json names.",
            found="; ".join(text for text, keys in zip(found, wrong.values(), strict=True) if keys),
            expected="every tensor of the model, and no other",
            remedy="correct id2label and num_labels in config.json: a name for each row of the "
            "weights"
            if wrong["mismatched"]
            else "check num_labels and architectures in config.json",
        )
    # Out of the mapped file: where a tensor begins decides on the last bits of some convolutions,
    # and the same weights out of two files would give features that differ in those.
    for part in (*module.parameters(), *module.buffers()):
        part.data = part.data.clone()
    return module


def _described(key: Any) -> str:
    """A tensor that differs: its name; with what the file and the model have, if it is told."""
    if isinstance(key, str) or len(key) < 3:
        return str(key)
    return f"{key[0]!r} is {tuple(key[1])} and the model's {tuple(key[2])}"


def _problem_note(config: Any) -> str:
    kind = config.problem_type
    if kind == "multi_label_classification":
        return "problem_type is multi_label_classification."
    return f"problem_type is {kind or 'not said'}: each category is taken as a question of its own."


def _read_settings(folder: Path) -> dict[str, Any]:
    """The config.json of a folder that transformers can open; it would not say why it cannot."""
    if (folder / "adapter_config.json").exists() and not (folder / CONFIG).exists():
        raise CheckpointError(
            f"'{folder}' holds an adapter, not a model.",
            found="adapter_config.json",
            expected="a folder with config.json and all the weights",
            remedy="load it with peft on its base model, and save what "
            "model.merge_and_unload() gives: .save_pretrained(folder)",
        )
    settings = read_table(folder / CONFIG, needed=True)
    table = settings.get("id2label")
    if table is not None and not isinstance(table, dict):
        raise CheckpointError(
            f"id2label in '{folder / CONFIG}' is not a table: transformers cannot open it.",
            found=type(table).__name__,
            expected='{"0": "first name", "1": "second name"}',
            remedy="correct config.json",
        )
    if "architecture" in settings and "model_type" not in settings:
        raise CheckpointError(
            f"'{folder}' was written by timm, and transformers does not find its tensors.",
            remedy=f"--model timm:{settings['architecture']} --checkpoint {folder / _WEIGHTS}",
        )
    return settings


def _stored_labels(folder: Path, settings: Mapping[str, Any]) -> list[str] | None:
    """What id2label says of rows 0, 1, …; None without one."""
    if not (table := settings.get("id2label")):
        return None
    where, count = f"id2label in '{folder / CONFIG}'", settings.get("num_labels")
    names = names_by_number(table, where=where, n_rows=count)
    check_inverse(names, settings.get("label2id"), where=where.replace("id2label", "label2id"))
    return names


def _labels(config: Any, stored: list[str] | None) -> tuple[list[str] | None, list[str]]:
    """Category names out of id2label; None where they are the numbers that transformers invents."""
    labels = stored or _invented(config)
    if labels == [f"LABEL_{i}" for i in range(len(labels))]:
        return None, ["id2label names no categories: they are numbered."]
    names = unique_names(labels)
    twice = sum(a != b for a, b in zip(labels, names, strict=True))
    said = [f"{twice} labels of id2label are told apart by their numbers."] if twice else []
    return names, said


def _classifiers(module: Any) -> str | list[str]:
    """The names of the classification layers."""
    for pair in _TWO_HEADS:
        if all(hasattr(module, name) for name in pair):
            return [inner_layer(module, name) for name in pair]
    for name in _HEADS:
        if hasattr(module, name):
            return inner_layer(module, name)
    raise ConfigError(
        f"{type(module).__name__} has no layer with a usual name.",
        expected=" or ".join(_HEADS[:-1]),
        remedy="name it with layer='…'",
    )


# Preprocessing


def read_processor(folder: Path, settings: Mapping[str, Any]) -> tuple[Preprocessing, list[str]]:
    """Read preprocessor_config.json; without one, guess and say so."""
    path = folder / "preprocessor_config.json"
    said = read_table(path)
    if not said and isinstance(settings.get("pretrained_cfg"), dict):
        return _timm_settings(settings["pretrained_cfg"]), []
    if not said:
        side = settings.get("image_size") or settings.get("vision_config", {}).get("image_size")
        size = _pair(side) or (224, 224)
        note = "no preprocessor_config.json: mean 0.5 and std 0.5 are assumed."
        return Preprocessing(size, (0.5,) * 3, (0.5,) * 3, source="assumed"), [note]
    size, crop_pct, mode = _geometry(said, settings)
    mean, std = _scaling(said)
    resample = said.get("resample", 2)
    preprocessing = Preprocessing(
        size=size,
        mean=mean,
        std=std,
        interpolation=_RESAMPLE[resample] if resample in range(6) else "bilinear",
        crop_pct=crop_pct,
        crop_mode="squash" if mode == "squash" else "center",
        source="preprocessor_config.json",
    )
    note = "the processor keeps the images' shapes; they are cut to squares, as batches need."
    return preprocessing, [note] if mode == "shape" else []


def _pair(size: Any) -> tuple[int, int] | None:
    """(height, width) of what a configuration calls a size; None where it is not such a pair."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, (list, tuple)) and len(size) == 2:
        return int(size[0]), int(size[1])
    if isinstance(size, dict) and {"height", "width"} <= size.keys():
        return int(size["height"]), int(size["width"])
    return None


def _geometry(
    said: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[tuple[int, int], float, str]:
    """Size, share that is kept, and "center", "squash" or "shape" (the shorter side, no cut)."""
    size = said.get("size")
    kind = str(said.get("image_processor_type") or said.get("feature_extractor_type") or "")
    edge = size.get("shortest_edge") if isinstance(size, dict) else None
    cut = _pair(said.get("crop_size")) if said.get("do_center_crop") else None
    if isinstance(size, int) and cut is not None:
        edge = size
    if not said.get("do_resize", True):
        size, edge = settings.get("image_size", 224), None
    if kind.startswith("ConvNext") or (edge and "crop_pct" in said):
        side = int(edge or (_pair(size) or (384, 384))[0])
        squash = side >= 384
        share = 1.0 if squash else float(said.get("crop_pct") or 224 / 256)
        return (side, side), share, "squash" if squash else "center"
    if edge:
        edge = int(256 / 224 * edge) if kind.startswith("Levit") else int(edge)
        if cut is None:
            return (edge, edge), 1.0, "shape"
        return cut, min(1.0, min(cut) / edge), "center"
    whole = _pair(size)
    if whole is None:
        raise ConfigError(
            "preprocessor_config.json has a size that is not known.",
            found=str(size),
            expected="height and width, shortest_edge, or a number",
        )
    if cut is None:
        return whole, 1.0, "squash"
    return cut, min(1.0, cut[0] / whole[0]), "squash"


def _scaling(said: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std for values in [0, 1]: rescaling, its offset, one or two normalisations."""
    factor = (
        255 * float(said.get("rescale_factor", 1 / 255)) if said.get("do_rescale", True) else 255.0
    )
    offset = 1.0 if said.get("rescale_offset") else 0.0
    mean, std = _three(0.0), _three(1.0)
    if said.get("do_normalize", "do_flip_channel_order" not in said):  # MobileViT's does not
        mean = _three(said.get("image_mean", 0.5))
        std = _three(said.get("image_std", 0.5))
    twice = "EfficientNet" in str(said.get("image_processor_type")) and said.get(
        "include_top", True
    )
    again = _three(said.get("image_std", 0.5)) if twice else _three(1.0)
    return (
        tuple((value + offset) / factor for value in mean),
        tuple(a * b / factor for a, b in zip(std, again, strict=True)),
    )


def _three(value: Any) -> tuple[float, ...]:
    values = value if isinstance(value, (list, tuple)) else [value]
    return tuple(float(v) for v in values) * (3 if len(values) == 1 else 1)


def _timm_settings(config: Mapping[str, Any]) -> Preprocessing:
    """The pretrained_cfg that timm writes into config.json."""
    channels, height, width = config.get("input_size", (3, 224, 224))
    return Preprocessing(
        size=(int(height), int(width)),
        mean=tuple(config.get("mean", (0.485, 0.456, 0.406))),
        std=tuple(config.get("std", (0.229, 0.224, 0.225))),
        interpolation=config.get("interpolation", "bicubic"),
        crop_pct=min(1.0, float(config.get("crop_pct") or 0.875)),
        crop_mode=config.get("crop_mode", "center"),
        channels=int(channels),
        source="pretrained_cfg in config.json",
    )
