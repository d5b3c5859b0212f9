"""A model as catwise sees it: what it takes, where its classification layer is, and its head.

An adapter turns a user's model into a `LoadedModel`; extraction, tuning and writing back know
nothing else of it. To adapt a model of your own:

    def load(checkpoint):
        module = MyNet()
        module.load_state_dict(torch.load(checkpoint, weights_only=True))
        return LoadedModel(
            name="mine", module=module, layer="fc",
            preprocessing=Preprocessing(size=(224, 224), mean=(0.5,) * 3, std=(0.5,) * 3),
            weight_key="fc.weight", checkpoint=checkpoint,
        )
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol

from catwise.errors import CatwiseError, ConfigError, check_rules, reason_of

if TYPE_CHECKING:
    from torch import nn

    from catwise.heads import Head, WriteReport


Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
_LAYOUTS: Final = {"channels_first": "nchw", "channels_last": "nhwc"}


ASSUMED: Final = "the preprocessing is assumed"
"""How a note begins that says so."""


def check_layout(text: object) -> str:
    """The order of an input's axes as letters: n (images), c (channels), h (height), w (width).

    Without n the model takes one image at a time, without c grey images.
    """
    found = str(text).lower()
    found = _LAYOUTS.get(found, found)
    if set(found) - set("nchw") or len(set(found)) != len(found) or not {"h", "w"} <= set(found):
        raise ConfigError(
            f"the layout {text!r} is not the order of an image's axes.",
            expected="n (images), c (channels), h (height) and w (width), each at most once, h and "
            "w always: nchw, nhwc, nhw, chw …",
        )
    return found


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the model's input.

    The image is turned upright, made `channels` deep, resized so that its shorter side (or, with
    `crop_mode="squash"`, the whole image) is size / crop_pct, cut in the centre to `size`, divided
    by its largest value, and normalised by ``(x - mean) / std``. ConfigError if a number is out of
    range.

    Args:
        size: (height, width) in pixels.
        mean: of each channel, for values in [0, 1].
        std: of each channel.
        interpolation: of the resizing, with antialiasing.
        crop_pct: share of the resized image that is kept, in (0, 1].
        crop_mode: "center": resize the shorter side, then cut; "squash": resize both sides alone;
            "border": resize the longer side, then pad.
        channels: 1 (greyscale) or 3 (RGB).
        source: where this was read, such as "timm pretrained_cfg"; printed.
        layout: the order of the axes of the model's own input; see `check_layout`. Images are
            (N, channels, height, width) all the same: what runs the model turns them.
        decoding: "full"; or "reduced": JPEGs are decoded at 1/2, 1/4 or 1/8 of their size where
            that leaves at least twice the pixels a side that the resized image has.
        order: "rgb" or "bgr": the order of three channels, of `mean` and `std`, too.
        white: the value of white in grey images of more than 8 bits whose file does not state it,
            such as 4095; None: as the file states.
    """

    size: tuple[int, int]
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: Interpolation = "bilinear"
    crop_pct: float = 1.0
    crop_mode: Literal["center", "squash", "border"] = "center"
    channels: int = 3
    source: str = "given"
    layout: str = "nchw"
    decoding: Literal["full", "reduced"] = "full"
    order: Literal["rgb", "bgr"] = "rgb"
    white: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "layout", check_layout(self.layout))
        depth = self.channels in (1, 3) and len(self.mean) == len(self.std) == self.channels
        checks = {
            "size two positive numbers": len(self.size) == 2 and min(self.size) > 0,
            "channels 1 or 3, mean and std with as many numbers": depth,
            "std above 0": min(self.std) > 0,
            "crop_pct in (0, 1]": 0 < self.crop_pct <= 1,
            "decoding full or reduced": self.decoding in {"full", "reduced"},
            "order rgb or bgr, of three channels": self.order == "rgb"
            or (self.order == "bgr" and self.channels == 3),
            "white above 0": self.white is None or 0 < self.white < float("inf"),
        }
        check_rules("options of the preprocessing", self, checks)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `order` and `white` where they are not as by default."""
        table = asdict(self)
        usual = {"order": "rgb", "white": None}
        return {
            key: value for key, value in table.items() if key not in usual or value != usual[key]
        }

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Preprocessing:
        """What `to_dict` gave, also after it was JSON.

        Raises:
            ValueError: If a field is missing, or is something else.

        >>> Preprocessing.from_dict({"size": [8, 8], "crop_pct": 0.9}).crop_pct
        0.9
        """
        fields: dict[str, Any] = dict(table)
        fields |= {name: tuple(v) for name, v in table.items() if isinstance(v, list)}
        try:
            return cls(**fields)
        except TypeError as error:
            raise ValueError(reason_of(error)) from error

    def for_layout(self, layout: str) -> Preprocessing:
        """The same for a model that says its order of axes; ConfigError if this says another."""
        if self.layout not in {"nchw", layout}:
            raise ConfigError(
                "the preprocessing says another order of axes than the model has.",
                found=self.layout,
                expected=layout,
                remedy="say it when the model is loaded: layout='…' (--model-arg layout=…)",
            )
        return replace(self, layout=layout)


class Undecodable(NamedTuple):
    """In place of an image that could not be read: its row in the source, its id, and why.

    A FeatureError where the image is at fault, another one where it is not.
    """

    row: int
    id: str
    error: CatwiseError

    @property
    def reason(self) -> str:
        """One line."""
        found = f" ({self.error.found})" if self.error.found else ""
        return f"{self.error.what}{found}"


@dataclass(frozen=True)
class Request:
    """What `load_model` was asked for, as every adapter is given it.

    Attributes:
        name: what follows the kind's colon: an architecture, a folder, a file, a function.
        checkpoint: the file with the weights.
        n_categories: rows of the classification layer.
        categories: their names, in order.
        layer: name of the classification layer.
        prefix: what leads the model's keys in the checkpoint.
        model_args: options of the architecture and of the adapter.
    """

    name: str
    checkpoint: Path | None = None
    n_categories: int | None = None
    categories: Sequence[str] | None = None
    layer: str | None = None
    prefix: str | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)


class Writer(Protocol):
    """Writes a head into a copy of what a model was loaded from, and compares the two.

    Brought by the adapter that read it: it knows where the head lies.
    """

    def write(
        self,
        model: LoadedModel,
        head: Head,
        source: Path,
        destination: Path,
        *,
        resize: bool,
        overwrite: bool,
    ) -> list[WriteReport]:
        """Write the copy, with `resize` of the head's rows alone; the source is never touched."""

    def compare(self, model: LoadedModel, source: Path, copy: Path, *, resized: bool) -> int:
        """Compare all but the head; how many tensors that were. MismatchError if some differ.

        Where the head was `resized`, what a configuration says of its rows may differ, too.
        """


@dataclass(eq=False)
class LoadedModel:
    """A model, ready to extract features from.

    Attributes:
        name: as the user named it, such as "timm:mobilenetv2_035".
        module: the model, on the CPU, weights loaded. None for formats that run elsewhere (ONNX).
        layer: qualified name of the classification layer in `module`, such as "classifier"; its
            input are the features, (N, D) or (N, D, 1, 1) or (N, C, D).
        preprocessing: what its own configuration says.
        head: rows of the classification layer, with category names where the model knows them.
        weight_key: name of the layer's weight in the checkpoint's state dict.
        bias_key: of its bias; None where it has none, or where `weight_key` tells it.
        checkpoint: the file or folder that the weights came from, or None.
        image_argument: name of the keyword that takes the images; None: the first argument.
        notes: what to know about it, a sentence each.
        row_names: names of all rows of the layer, where some of them are not categories.
        output_is: what the model makes of its layer's output: ``"sigmoid"``, ``"softmax"`` and the
            like, ``"not linear"``, ``"not the layer's"``; ``""`` where it returns that itself.
        request: what `load_model` was asked for; None where it did not load the model.
        writer: writes the head back; None: `checkpoint` is one file in which `weight_key` and
            `bias_key` are the head.
    """

    name: str
    module: nn.Module | None
    layer: str
    preprocessing: Preprocessing
    head: Head | None = None
    weight_key: str | None = None
    bias_key: str | None = None
    checkpoint: Path | None = None
    image_argument: str | None = None
    notes: list[str] = field(default_factory=list)
    row_names: tuple[str, ...] = ()
    output_is: str = ""
    request: Request | None = None
    writer: Writer | None = None

    def __post_init__(self) -> None:
        if self.checkpoint is not None:
            self.checkpoint = Path(self.checkpoint)
        self.check_layout()

    def take_input(self, preprocessing: Preprocessing) -> None:
        """Take the preprocessing that a user named; what was assumed is not told any more."""
        if preprocessing != self.preprocessing:
            self.notes = [note for note in self.notes if not note.startswith(ASSUMED)]
        self.preprocessing = preprocessing

    def check_layout(self) -> None:
        """ConfigError for a preprocessing with an order of axes to which nothing turns images."""
        layout = self.preprocessing.layout
        if layout != "nchw" and getattr(self.module, "layout", None) != layout:
            raise ConfigError(
                f"{self.name} is given images as (N, channels, height, width).",
                found=f"a preprocessing with the layout {layout!r}",
                remedy="turn them in the module's forward, such as images.permute(0, 2, 3, 1)",
            )
