"""Models by name: kinds, options, functions of the user's, absent packages, two heads.

The check that the tests of the adapters share is here, too.
"""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
import types
from typing import TYPE_CHECKING, Any

import pytest
import safetensors.torch
import torch
from torch import nn

from catwise._extras import import_optional
from catwise.errors import (
    CatwiseError,
    ConfigError,
    HeadError,
    MissingExtraError,
    OutputError,
    ShapeError,
)
from catwise.heads import Head, read_head
from catwise.models import LoadedModel, Preprocessing
from catwise.models.adapters.two_heads import split_head
from catwise.models.registry import KINDS, load_model, reload_model
from catwise.models.stored_names import unique_names
from catwise.models.writing import FileWriter, HeadKeys, write_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NAMES = [f"category {i}" for i in range(7)]


# Shared with the tests of the adapters


def need(package: str) -> Any:
    """Import an optional package, beside a torchvision of another build if need be, or skip."""
    finders = {type(finder).__name__ for finder in sys.meta_path}
    is_stubbed = getattr(sys.modules.get("sitecustomize"), "KEPT", None)
    if not ("torchvision" in sys.modules or "TorchvisionFinder" in finders or is_stubbed):
        importlib.import_module("stubs.sitecustomize")
    try:
        return import_optional(package, extra="test", purpose="this test")
    except MissingExtraError as error:
        pytest.skip(str(error), allow_module_level=True)


def images_for(model: LoadedModel, n: int = 2) -> torch.Tensor:
    """Noise of the size and depth that a model takes."""
    shape = (n, model.preprocessing.channels, *model.preprocessing.size)
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def run(module: nn.Module, layer: str, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What enters a layer, and what the model returns."""
    seen: list[torch.Tensor] = []
    target = module.get_submodule(layer)
    handle = target.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    with torch.no_grad():
        out = module(images)
    handle.remove()
    assert len(seen) == 1
    return seen[0], getattr(out, "logits", out)


def scramble(module: nn.Module) -> nn.Module:
    """Numbers that are no zeros in every head; some architectures start with those."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for value in module.parameters():
            if value.shape[:1] == (len(NAMES),):
                value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
    return module.eval()


def another(head: Head) -> Head:
    """A head with other numbers, of the same shape and names."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(head.weight.shape, generator=generator) * 0.1
    bias = None if head.bias is None else torch.randn(head.bias.shape, generator=generator)
    return head.replace(weight=weight, bias=bias)


def check_file_round_trip(
    spec: str,
    build: Callable[[], nn.Module],
    tmp_path: Path,
    *,
    suffix: str = ".safetensors",
    model_args: dict[str, Any] | None = None,
) -> LoadedModel:
    """Check the whole way of a checkpoint through catwise; `build` knows nothing of catwise.

    The same head leaves every byte; another head changes the output as it predicts, the features
    not at all, and its file loads strictly.
    """
    old, new, same = (tmp_path / f"{name}{suffix}" for name in ("old", "new", "same"))
    state = scramble(build()).state_dict()
    if suffix == ".safetensors":
        safetensors.torch.save_file({k: v.contiguous() for k, v in state.items()}, old)
    else:
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, old)
    model = load_model(spec, checkpoint=old, model_args=model_args)
    assert model.head is not None
    assert model.head.n_categories == len(NAMES)
    named = load_model(spec, checkpoint=old, model_args=model_args, categories=NAMES)
    assert named.head is not None
    assert named.head.categories == tuple(NAMES)
    if model.weight_key is not None:
        assert read_head(old, key=model.weight_key, bias_key=model.bias_key).digest == (
            model.head.digest
        )

    write_model(model, model.head, same)
    assert same.read_bytes() == old.read_bytes()

    head = another(model.head)
    write_model(model, head, new)
    assert new.read_bytes() != old.read_bytes()
    fresh = build().eval()
    fresh.load_state_dict(read_state(new), strict=True)
    images = images_for(model)
    assert model.module is not None
    before, old_out = run(model.module, model.layer, images)
    again = load_model(spec, checkpoint=new, model_args=model_args)
    assert again.module is not None
    after, out = run(again.module, again.layer, images)
    assert torch.equal(before, after)
    assert not torch.allclose(old_out, out, rtol=1e-2, atol=1e-2)
    with torch.no_grad():
        assert torch.allclose(fresh(images), out, rtol=1e-4, atol=1e-5)
    if not model.output_is:
        assert torch.allclose(head.logits(before.flatten(1)), out, rtol=1e-4, atol=1e-4)
    return model


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """A state_dict as its own library reads it."""
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    stored = torch.load(path, weights_only=True)["state_dict"]
    return {key.removeprefix("module."): value for key, value in stored.items()}


# Kinds, names and options


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("resnet50", "does not say of which kind"),
        ("timm:", "does not say of which kind"),
        ("tim:resnet50", "did you mean 'timm'"),
        ("torchvison:resnet50", "did you mean 'torchvision'"),
    ],
)
def test_unknown_kind(spec: str, text: str) -> None:
    """A kind that is not there is named, and the nearest one suggested."""
    with pytest.raises(ConfigError, match=text) as caught:
        load_model(spec)
    assert all(kind in str(caught.value) for kind in KINDS)


def test_categories_and_their_number_must_agree() -> None:
    """Two statements that differ are refused before anything is built."""
    with pytest.raises(ShapeError, match="differ"):
        load_model("timm:resnet18", n_categories=3, categories=["a", "b"])


def test_option_of_another_kind(tmp_path: Path) -> None:
    """A folder is its own checkpoint: another one is refused, not ignored."""
    with pytest.raises(ConfigError, match=r"'transformers' takes no checkpoint\."):
        load_model(f"transformers:{tmp_path}", checkpoint=tmp_path / "a.pt")


def test_absent_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """An absent package is one error with the line that installs it."""
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'catwise\[timm\]'"):
        load_model("timm:resnet18")


@pytest.mark.parametrize("error", ["RuntimeError('operator missing')", "OSError('no library')"])
def test_broken_package(error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that fails while it is imported is the same kind of error, with its reason."""
    (tmp_path / "broken_package.py").write_text(f"raise {error}\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtraError, match=r"cannot be imported") as caught:
        import_optional("broken_package", extra="thing", purpose="this test")
    assert "operator missing" in str(caught.value) or "no library" in str(caught.value)


def test_a_module_within_a_package_that_is_absent() -> None:
    """What an installed package lacks is not called 'not installed'."""
    with pytest.raises(MissingExtraError, match="'json', which is installed, and cannot"):
        import_optional("json.absent", extra="json", purpose="this test")


@pytest.mark.parametrize(
    ("spec", "extra"),
    [("torchvision:resnet18", "torchvision"), ("timm:test_vit", "timm"), ("xrv:densenet", "xrv")],
)
def test_torchvision_of_another_torch(spec: str, extra: str, tmp_path: Path) -> None:
    """One that fails on import, as it does beside a torch that it was not built for, is told of.

    Packages that import it in their turn fail with it.
    """
    kind = {"xrv": "torchxrayvision"}.get(extra, extra)
    if importlib.util.find_spec(kind) is None:
        pytest.skip(f"{kind} is not installed")
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')\n"
    )
    code = f"""if True:
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        from catwise.errors import MissingExtraError
        from catwise.models.registry import load_model
        try:
            load_model({spec!r})
        except MissingExtraError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"{kind}', which is installed, and cannot be imported" in done.stdout
    assert "RuntimeError: operator torchvision::nms does not exist" in done.stdout
    assert f"pip install 'catwise[{extra}]'" in done.stdout
    assert "Traceback" not in done.stderr


def test_adapters_import_nothing_optional() -> None:
    """All adapters are imported without the packages that they adapt."""
    names = (
        *("timm", "torchvision", "torch_modules", "transformers", "xrv", "lightning"),
        *("onnx.model", "python"),
    )
    modules = [f"catwise.models.adapters.{name}" for name in names]
    packages = ("timm", "torchvision", "transformers", "torchxrayvision", "PIL", "onnx",
                "onnxruntime")  # fmt: skip
    code = (
        f"import sys, importlib\nfor m in {modules!r}: importlib.import_module(m)\n"
        f"print(*(set({packages!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_onnx_file_is_its_own_checkpoint(tmp_path: Path) -> None:
    """Its adapter's options come as model_args, and its writer is found."""
    onnx = pytest.importorskip("onnx")
    state = scramble(Small()).state_dict()
    tensors = [onnx.numpy_helper.from_array(state[f"fc.{key}"].numpy(), key)
               for key in ("weight", "bias")]  # fmt: skip
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Flatten", ["image"], ["flat"]),
            onnx.helper.make_node("Gemm", ["flat", "weight", "bias"], ["logits"], transB=1),
        ],
        "small",
        [value("image", onnx.TensorProto.FLOAT, ["N", 3, 2, 2])],
        [value("logits", onnx.TensorProto.FLOAT, ["N", 7])],
        tensors,
    )
    old = tmp_path / "old.onnx"
    onnx.save(onnx.helper.make_model(graph), old)
    model = load_model(f"onnx:{old}", categories=NAMES, model_args={"output": "logits"})
    assert (model.name, model.head.categories) == (f"onnx:{old}", tuple(NAMES))
    write_model(model, another(model.head), tmp_path / "new.onnx")
    again = load_model(f"onnx:{tmp_path / 'new.onnx'}")
    assert torch.equal(again.head.weight, another(model.head).weight)
    with pytest.raises(ConfigError, match="'onnx' takes no heads"):
        load_model(f"onnx:{old}", model_args={"heads": "both"})


# Functions of the user's


class Small(nn.Module):
    """A network with a trunk and a head."""

    def __init__(self, n: int = 7) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.fc = nn.Linear(12, n)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Score images."""
        return self.fc(self.trunk(images))


@pytest.fixture
def users(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module of the user's, as if it were in a file."""
    module = types.ModuleType("users_models")
    monkeypatch.setitem(sys.modules, "users_models", module)
    return module


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "old.pt"
    torch.save(scramble(Small()).state_dict(), path)
    return path


def test_function_that_gives_a_module(
    users: types.ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    """The checkpoint is loaded into it, the layer found, the head written back."""

    def build(width: int = 1) -> nn.Module:
        assert width == 2
        return Small()

    users.build = build
    model = load_model(
        "python:users_models:build",
        checkpoint=checkpoint,
        categories=NAMES,
        model_args={"width": 2},
    )
    assert (model.layer, model.weight_key, model.name) == (
        "fc", "fc.weight", "python:users_models:build",
    )  # fmt: skip
    assert model.preprocessing.source == "assumed"
    assert any("assumed" in note for note in model.notes)
    assert torch.equal(
        model.module.fc.weight, torch.load(checkpoint, weights_only=True)["fc.weight"]
    )
    new = tmp_path / "new.pt"
    write_model(model, another(model.head).take_categories(NAMES[::-1]), new)
    changed = torch.load(new, weights_only=True)
    assert torch.equal(changed["fc.weight"], another(model.head).weight)
    assert reload_model(model, new).head.fitted_on is None


def test_a_model_knows_the_rows_that_fitted_its_head(
    users: types.ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    """From the record beside the checkpoint, as `read_head` does; from copy to copy."""
    users.build = Small
    model = load_model("python:users_models:build", checkpoint=checkpoint, categories=NAMES)
    write_model(model, another(model.head).replace(fitted_on=[4, 5]), tmp_path / "new.pt")
    again = reload_model(model, tmp_path / "new.pt")
    assert again.head.fitted_on.tolist() == [4, 5]
    write_model(again, again.head, tmp_path / "copy.pt")
    assert (tmp_path / "copy.pt").read_bytes() == (tmp_path / "new.pt").read_bytes()
    assert reload_model(model, tmp_path / "copy.pt").head.fitted_on.tolist() == [4, 5]


def test_function_that_gives_a_loaded_model(users: types.ModuleType, checkpoint: Path) -> None:
    """It is given the checkpoint, and what it says is taken as it is."""

    def load(checkpoint: Path) -> LoadedModel:
        module = Small()
        module.load_state_dict(torch.load(checkpoint, weights_only=True))
        size = Preprocessing(size=(8, 8), source="mine")
        return LoadedModel("mine", module, "fc", size, weight_key="fc.weight")

    users.load = load
    model = load_model("python:users_models:load", checkpoint=checkpoint)
    assert (model.preprocessing.source, model.checkpoint) == ("mine", checkpoint)


def test_function_that_loads_its_weights_itself(users: types.ModuleType, checkpoint: Path) -> None:
    """A module from a function that took the checkpoint is not loaded again."""

    def load(checkpoint: Path) -> nn.Module:
        module = Small()
        module.load_state_dict(torch.load(checkpoint, weights_only=True))
        module.extra = nn.Linear(2, 3)  # not in the file
        return module

    users.load = load
    model = load_model("python:users_models:load", checkpoint=checkpoint, layer="fc")
    assert model.weight_key == "fc.weight"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("users_models", "names no function"),
        ("users_models:bild", "did you mean 'build'"),
        ("users_model:build", "cannot be imported"),
        ("users_models:number", "does not return a model"),
        ("users_models:fails", "ZeroDivisionError"),
    ],
)
def test_function_that_does_not_do(name: str, text: str, users: types.ModuleType) -> None:
    """Whatever is wrong with it is one error of catwise."""
    users.build, users.number, users.fails = Small, lambda: 3, lambda: 1 // 0
    with pytest.raises(CatwiseError, match=text):
        load_model(f"python:{name}")


def test_layer_that_is_not_there(users: types.ModuleType) -> None:
    """The nearest layer is suggested."""
    users.build = Small
    with pytest.raises(ConfigError, match="did you mean 'fc'"):
        load_model("python:users_models:build", layer="fcc")


def test_model_whose_output_is_not_its_layers(users: types.ModuleType) -> None:
    """A note says that the model does something to the logits."""

    class Shifted(Small):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return 1 + 2 * super().forward(images)

    users.build = Shifted
    model = load_model("python:users_models:build")
    assert any("output is not what its layer 'fc' gives" in note for note in model.notes)


def test_model_that_fails_on_a_trial_image(users: types.ModuleType) -> None:
    """It is loaded, and a note says why it fails."""

    class Fails(Small):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise ValueError(f"no image of size {images.shape[-1]}")

    users.build = Fails
    model = load_model("python:users_models:build")
    assert any("ValueError: no image of size 224" in note for note in model.notes)


def test_seed_is_left_alone(users: types.ModuleType) -> None:
    """Building a model does not move the caller's random numbers."""
    users.build = Small
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_model("python:users_models:build")
    assert torch.equal(torch.rand(3), expected)


def test_writing_without_a_checkpoint(users: types.ModuleType, tmp_path: Path) -> None:
    """There is no file to copy."""
    users.build = Small
    model = load_model("python:users_models:build")
    with pytest.raises(ConfigError, match="not loaded from a checkpoint"):
        write_model(model, model.head, tmp_path / "new.pt")


# Two heads


def test_split_head_leaves_unchanged_heads_bit_for_bit() -> None:
    """Biases whose mean is rounded come back as they were."""
    generator = torch.Generator().manual_seed(0)
    olds = [Head(torch.randn(5, 3, generator=generator), torch.randn(5, generator=generator))
            for _ in range(2)]  # fmt: skip
    biases = torch.stack([old.bias for old in olds]).double().mean(0).float()
    joined = Head(torch.cat([old.weight for old in olds], dim=1), biases)
    for part, old in zip(split_head(joined, olds), olds, strict=True):
        assert part.digest == old.digest


@pytest.mark.parametrize(
    ("head", "error"),
    [
        (Head(torch.ones(2, 3), torch.ones(2)), ShapeError),
        (Head(torch.ones(3, 4), torch.ones(3)), ShapeError),
        (Head(torch.ones(2, 4)), HeadError),
    ],
)
def test_split_head_refuses_what_does_not_fit(head: Head, error: type[CatwiseError]) -> None:
    """Other features, other rows, no bias."""
    olds = [Head(torch.ones(2, 2), torch.ones(2))] * 2
    with pytest.raises(error):
        split_head(head, olds)


def test_two_heads_never_overwrite(tmp_path: Path) -> None:
    """A file that exists stays, unless it is asked for; the checkpoint itself always does."""
    old, new = tmp_path / "old.pt", tmp_path / "new.pt"
    state = {
        f"{part}.{key}": value
        for part in "ab"
        for key, value in nn.Linear(2, 3).state_dict().items()
    }
    torch.save(state, old)
    new.write_bytes(b"mine")
    writer = FileWriter((HeadKeys("a.weight", "a.bias"), HeadKeys("b.weight", "b.bias")))
    biases = (state["a.bias"].double() + state["b.bias"].double()) / 2
    head = Head(torch.cat([state["a.weight"], state["b.weight"]], dim=1), biases.float())
    model = LoadedModel(
        "mine", nn.Identity(), "joined", Preprocessing((8, 8)), head=head, checkpoint=old,
        writer=writer,
    )  # fmt: skip
    with pytest.raises(OutputError, match="exists"):
        write_model(model, head, new)
    with pytest.raises(OutputError, match="is the checkpoint itself"):
        write_model(model, head, old, overwrite=True)
    assert new.read_bytes() == b"mine"
    write_model(model, head, new, overwrite=True)
    assert new.read_bytes() == old.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.pt", "old.pt"]


def test_unique_names_keep_what_is_unique() -> None:
    """Only equal names get a number."""
    assert unique_names(["a", "b", "a"]) == ["a (0)", "b", "a (2)"]
