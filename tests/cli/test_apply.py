"""`catwise apply`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from catwise.cli import main
from catwise.errors import (
    CategoryError,
    CheckpointError,
    ConfigError,
    HeadError,
    MismatchError,
    OutputError,
    ShapeError,
)
from catwise.heads import Head, read_head, save_head
from catwise.models import registry, writing


def apply(folder: Path, *more: str) -> Result:
    arguments = ["apply", "--head", "head.safetensors", "--checkpoint", "in.safetensors"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return CliRunner().invoke(main, [*arguments, "--out", "out.safetensors", *more])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    head = Head([[1.0, 2.0], [3.0, 4.0]], [5.0, 6.0], categories=["cat", "dog"])
    save_head(head, tmp_path / "head.safetensors")
    tensors = {
        "body.weight": torch.ones(3, 3),
        "fc.weight": torch.zeros(2, 2, dtype=torch.float16),
        "fc.bias": torch.zeros(2, dtype=torch.float16),
    }
    save_file(tensors, tmp_path / "in.safetensors")
    return tmp_path


def test_head_is_written(folder: Path) -> None:
    """The head is in the copy, in the checkpoint's dtype; the rest and the input are as before."""
    before = (folder / "in.safetensors").read_bytes()
    result = apply(folder)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "2 of 2 rows of 'fc.weight' written\nout.safetensors\n"
    out = load_file(folder / "out.safetensors")
    assert out["fc.weight"].tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert out["fc.bias"].dtype == torch.float16
    assert torch.equal(out["body.weight"], torch.ones(3, 3))
    assert (folder / "in.safetensors").read_bytes() == before


def test_json(folder: Path) -> None:
    """One document on stdout says what was written where."""
    result = apply(folder, "--json", "--name", "fc.weight")
    document = json.loads(result.stdout)
    assert document["key"] == "fc.weight"
    assert document["rows"] == [0, 1]
    assert document["rounding"] is None


def test_rows_by_name(folder: Path) -> None:
    """With the names of the checkpoint's rows the head's rows find theirs."""
    (folder / "names.txt").write_text("dog\ncat\n")
    result = apply(folder, "--head-categories", "names.txt", "-q")
    assert (result.exit_code, result.stdout) == (0, "")
    out = load_file(folder / "out.safetensors")
    assert out["fc.weight"].tolist() == [[3.0, 4.0], [1.0, 2.0]]


def test_refusals(folder: Path) -> None:
    """What cannot be written says why, and leaves no file."""
    (folder / "names.txt").write_text("dog\nmouse\n")
    (folder / "blank.txt").write_text("dog\n\ncat\n")
    cases = [
        (["--head-categories", "names.txt"], CategoryError),
        (["--head-categories", "blank.txt"], ConfigError),
        (["--head-categories", "none.txt"], ConfigError),
        (["--checkpoint", "none.pt"], CheckpointError),
        (["--head", "in.safetensors"], CheckpointError),
        (["--name", "body.weight"], ShapeError),
        (["--out", "in.safetensors"], OutputError),
        (["--out", "no/such/out.safetensors"], OutputError),
    ]
    for more, kind in cases:
        result = apply(folder, *more)
        assert result.exit_code == kind.exit_code, (more, result.output)
        assert result.stderr.startswith(kind.__name__)
    assert not (folder / "out.safetensors").exists()


def test_overwrite(folder: Path) -> None:
    """A file that is there is replaced only when that is asked for."""
    assert apply(folder).exit_code == 0
    assert apply(folder).exit_code == OutputError.exit_code
    assert apply(folder, "--overwrite").exit_code == 0


# With the model


class Net(torch.nn.Module):
    """A network with something that is not its head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Conv2d(3, 5, 3)
        self.fc = torch.nn.Linear(5, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(images).relu().mean((2, 3)))


def build() -> Net:
    return Net()


def build_sigmoid() -> torch.nn.Module:
    class Squashed(Net):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images).sigmoid()

    return Squashed()


def build_scaled() -> torch.nn.Module:
    class Scaled(Net):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.mul(super().forward(images), 3)

    return Scaled()


def build_shifted() -> torch.nn.Module:
    class Shifted(Net):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.add(super().forward(images), 3)

    return Shifted()


NAMES = ["ant", "bee", "cat"]
TUNED = Head(
    [[1.0] * 5, [0.0] * 5, [-1.0] * 5],
    [0.5, 1.0, 2.0],
    categories=NAMES,
    provenance={"catwise": {"preset": "default", "metric": "auroc", "seed": 7}},
)


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    torch.manual_seed(0)
    state = Net().state_dict()
    torch.save({"model": state, "epoch": 3}, tmp_path / "in.pt")
    save_file(state, tmp_path / "in.safetensors", {"format": "pt", "made": "by me"})
    save_head(TUNED, tmp_path / "head.safetensors")
    return tmp_path


def apply_model(folder: Path, source: str, *more: str, build: str = "build") -> Result:
    kind = f"python:{Path(__file__).stem}:{build}"
    suffix = Path(source).suffix
    words = ["apply", "--head", "head.safetensors", "--checkpoint", source, "--model", kind]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return CliRunner().invoke(main, [*words, "--out", f"out{suffix}", *more])


@pytest.mark.parametrize("source", ["in.safetensors", "in.pt"])
def test_model_runs_before_and_after(net: Path, source: str) -> None:
    """Features are identical, logits the new head's, all other tensors the same; it is told."""
    result = apply_model(net, source)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "verified: 2 other tensors and the features of 4 images are identical" in result.stdout
    assert "preprocessing: " in result.stdout
    document = json.loads(apply_model(net, source, "--json", "--overwrite").stdout)
    assert document["verified"]["gap"] < 1e-5 < document["verified"]["change"]


def test_provenance_is_in_the_metadata(net: Path) -> None:
    """A safetensors file says where its head comes from; its other texts and tensors stay."""
    assert apply_model(net, "in.safetensors").exit_code == 0
    with safe_open(net / "out.safetensors", "pt") as file:
        metadata = file.metadata()
    told = json.loads(metadata.pop("catwise"))
    assert metadata == {"format": "pt", "made": "by me"}
    assert told["head"] == TUNED.digest
    assert told["tuned"] == {"preset": "default", "metric": "auroc", "seed": 7}
    old, new = load_file(net / "in.safetensors"), load_file(net / "out.safetensors")
    assert list(old) == list(new)
    assert torch.equal(old["body.weight"], new["body.weight"])
    raw = (net / "in.safetensors").read_bytes(), (net / "out.safetensors").read_bytes()
    data = [part[8 + int.from_bytes(part[:8], "little") :] for part in raw]
    assert sum(a != b for a, b in zip(*data, strict=True)) <= (15 + 3) * 4


def test_provenance_is_beside_an_archive(net: Path) -> None:
    """What `torch.save` wrote has no place for it: it is a file of its own."""
    assert apply_model(net, "in.pt").exit_code == 0
    told = json.loads((net / "out.pt.catwise.json").read_text())
    assert told["head"] == TUNED.digest
    assert torch.load(net / "out.pt", weights_only=True)["epoch"] == 3
    assert apply_model(net, "in.pt").exit_code == OutputError.exit_code


def test_where_its_provenance_cannot_be_no_archive_is_left(net: Path) -> None:
    """Both are there, or neither."""
    (net / "out.pt.catwise.json").mkdir()
    assert apply_model(net, "in.pt").exit_code == OutputError.exit_code
    assert not (net / "out.pt").exists()


def test_unchanged_head_says_nothing(net: Path) -> None:
    """The head that was read makes the same file, byte for byte."""
    save_head(read_head(net / "in.safetensors").replace(categories=NAMES), net / "head.safetensors")
    assert apply_model(net, "in.safetensors").exit_code == 0
    assert (net / "out.safetensors").read_bytes() == (net / "in.safetensors").read_bytes()


def test_images_of_a_folder(net: Path) -> None:
    """The images that are given run; ones that cannot be read are passed over."""
    pillow = pytest.importorskip("PIL.Image")
    (net / "images").mkdir()
    for i in range(3):
        pillow.new("RGB", (20, 30), (90 * i, 20, 30)).save(net / "images" / f"{i}.png")
    (net / "images" / "3.png").write_bytes(b"no image")
    result = apply_model(net, "in.safetensors", "--images", "images")
    assert "the features of 3 images" in result.stdout
    (net / "none").mkdir()
    (net / "none" / "3.png").write_bytes(b"no image")
    refused = apply_model(net, "in.safetensors", "--images", "none", "--overwrite")
    assert refused.exit_code == ConfigError.exit_code


def test_a_model_with_something_behind_its_layer(net: Path) -> None:
    """A sigmoid or a constant factor is reckoned with; behind anything else nothing is written."""
    assert apply_model(net, "in.safetensors", build="build_sigmoid").exit_code == 0
    (net / "out.safetensors").unlink()
    assert apply_model(net, "in.safetensors", build="build_scaled").exit_code == 0
    written = load_file(net / "out.safetensors")["fc.weight"]
    torch.testing.assert_close(written * 3, TUNED.weight)
    (net / "out.safetensors").unlink()
    result = apply_model(net, "in.safetensors", build="build_shifted")
    assert result.exit_code == HeadError.exit_code
    assert "are not what its layer 'fc' gives" in result.stderr
    assert not (net / "out.safetensors").exists()


def test_a_sigmoid_that_is_not_the_written_head_s(
    net: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output of the written model is compared too, not its layer alone."""
    reload = registry.reload_model

    def scaled(model: Any, path: Path, **more: Any) -> Any:
        again = reload(model, path, **more)
        assert again.module is not None
        again.module.register_forward_hook(lambda _, __, output: output / 2)
        return again

    monkeypatch.setattr("catwise.models.verify.reload_model", scaled)
    result = apply_model(net, "in.pt", build="build_sigmoid")
    assert result.exit_code == MismatchError.exit_code
    assert "does not say what its head says" in result.stderr
    assert not list(net.glob("out.pt*"))  # neither the copy nor what is told beside it


def test_a_call_killed_before_the_card_can_be_repeated(net: Path) -> None:
    """What it wrote is recognised; once all is there, nothing is replaced unasked."""
    card = ("--card", str(net / "card.md"))
    assert apply_model(net, "in.pt", *card).exit_code == 0
    whole = {path.name: path.read_bytes() for path in net.iterdir() if path.is_file()}
    for lost in (["card.md"], ["card.md", "out.pt"]):
        for name in lost:
            (net / name).unlink()
        assert apply_model(net, "in.pt", *card).exit_code == 0
        assert {p.name: p.read_bytes() for p in net.iterdir() if p.is_file()} == whole
    assert apply_model(net, "in.pt", *card).exit_code == OutputError.exit_code


def test_what_does_not_hold_is_not_left(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that differs in more than its head is an error, and no file."""
    write = writing.write_model

    def tampered(model: Any, head: Head, out: Path, **more: Any) -> Any:
        reports = write(model, head, out, **more)
        state = load_file(out)
        state["body.bias"] += 1
        save_file(state, out)
        return reports

    monkeypatch.setattr(writing, "write_model", tampered)
    result = apply_model(net, "in.safetensors")
    assert result.exit_code == MismatchError.exit_code
    assert "the features of 'out.safetensors' are not those of the original" in result.stderr
    assert not (net / "out.safetensors").exists()
    (net / "out.safetensors").write_text("mine")
    assert apply_model(net, "in.safetensors", "--overwrite").exit_code == MismatchError.exit_code
    assert (net / "out.safetensors").read_text() == "mine"


def test_card(net: Path) -> None:
    """Lines for the model's card say what was written, how it was tuned and what was seen."""
    (net / "summary.json").write_text(
        json.dumps({"summary": {"n_replaced": 2, "headline": "Helped: 5 rows.", "chose": "On it."}})
    )
    assert apply_model(net, "in.safetensors", "--card", "card.md").exit_code == 0
    text = (net / "card.md").read_text()
    assert "3 of the 3 rows of `fc.weight`" in text
    assert "preset default, metric auroc, seed 7" in text
    assert "- Helped: 5 rows.\n- On it.\n" in text
    assert "verified: 2 other tensors" in text
    assert f"sha256 {TUNED.digest}" in text


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--name", "fc.weight"], "--name is for a file without --model"),
        (["--model", "transformers:folder"], "is its own checkpoint"),
    ],
)
def test_options_that_do_not_go_together(net: Path, more: list[str], text: str) -> None:
    """What names a tensor is for files alone; a folder is its own checkpoint."""
    result = apply_model(net, "in.safetensors", *more)
    assert result.exit_code == 2
    assert text in result.stderr


def test_options_of_a_model_need_one(folder: Path) -> None:
    """Without a model nothing runs; without a checkpoint nothing can be written."""
    assert "--images needs --model" in apply(folder, "--images", ".").stderr
    words = ["apply", "--head", str(folder / "head.safetensors"), "--out", "x"]
    assert "Missing option '--checkpoint'" in CliRunner().invoke(main, words).stderr


# Other rows


def build_any(n_categories: int) -> torch.nn.Module:
    model = Net()
    model.fc = torch.nn.Linear(5, n_categories)
    return model


@pytest.mark.parametrize("source", ["in.pt", "in.safetensors"])
def test_resize(net: Path, source: str) -> None:
    """The copy has the head's rows; both models are run, what was there says what it said."""
    old = read_head(net / source, key="fc", categories=["a", "b", "c"])
    new = Head(torch.full((1, 5), 0.25), [1.0], categories=["d"])
    save_head(old.join(new).take_categories(["d", "c", "a"]), net / "head.safetensors")
    (net / "names.txt").write_text("a\nb\nc\n")
    names = ("--head-categories", str(net / "names.txt"))
    result = apply_model(net, source, "--resize", *names, "--json", build="build_any")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert (document["resized_from"], document["n_categories"]) == (None, 3)
    assert document["verified"]["change"] < 1e-6

    save_head(old.join(new), net / "head.safetensors")
    more = ("--resize", "--overwrite", "--card", str(net / "card.md"), *names)
    result = apply_model(net, source, *more, build="build_any")
    assert result.exit_code == 0, result.output
    assert "fc.weight' in place of 3 written" in result.stdout
    assert "4 of the 4 rows" in (net / "card.md").read_text()
    out = next(net.glob("out.*"))
    assert read_head(out, key="fc").weight.tolist()[3] == [0.25] * 5


def test_resize_without_the_model(folder: Path) -> None:
    """A file alone; unasked the error says how."""
    head = Head(torch.ones(4, 2), torch.ones(4))
    save_head(head, folder / "head.safetensors")
    result = apply(folder)
    assert result.exit_code == HeadError.exit_code
    assert "--resize" in result.stderr
    assert apply(folder, "--resize").exit_code == 0
    assert load_file(folder / "out.safetensors")["fc.weight"].shape == (4, 2)
    assert torch.equal(load_file(folder / "out.safetensors")["body.weight"], torch.ones(3, 3))


def test_resize_needs_a_model_that_can_be_built_so(net: Path) -> None:
    """A function that builds three rows whatever there is says what it cannot load."""
    save_head(Head(torch.ones(4, 5), torch.ones(4)), net / "head.safetensors")
    result = apply_model(net, "in.safetensors", "--resize")
    assert result.exit_code in {CheckpointError.exit_code, ConfigError.exit_code}
    assert not list(net.glob("out.*"))
