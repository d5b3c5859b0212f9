"""Checkpoints that are damaged, hostile or of another kind: a verdict each, nothing executed."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import random
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from catwise.errors import CatwiseError, CheckpointError
from catwise.heads import list_heads, read_head, write_head


def state() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return {
        "conv.weight": torch.randn(2, 3, 3, 3, generator=g),
        "fc.weight": torch.randn(3, 5, generator=g),
        "fc.bias": torch.randn(3, generator=g),
    }


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return Path.touch, (Path(self.path),)


class System(Touch):
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


class Eval(Touch):
    """Evaluates a text when it is unpickled."""

    def __reduce__(self) -> Any:
        return eval, (f"open({self.path!r}, 'w').close()",)


@pytest.mark.parametrize("kind", [System, Eval])
def test_nothing_is_executed(tmp_path: Path, kind: type[Touch]) -> None:
    """A pickle that would run a command is refused by the name that it asks for; nothing runs."""
    trace, path = tmp_path / "trace", tmp_path / "m.pt"
    torch.save({"state_dict": state(), "extra": kind(trace)}, path)
    with pytest.raises(CheckpointError, match=r"(system|eval)\b"):
        read_head(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists()  # the trap works where pickles are executed


def test_method_call_is_refused(tmp_path: Path) -> None:
    """A call by way of getattr is refused too."""
    path = tmp_path / "m.pt"
    torch.save({"state_dict": state(), "extra": Touch(tmp_path / "trace")}, path)
    with pytest.raises(CheckpointError, match="getattr"):
        read_head(path)
    assert not (tmp_path / "trace").exists()


def test_harmless_neighbours_are_read_over(tmp_path: Path) -> None:
    """Arguments, paths and numpy numbers beside the state_dict do not hinder."""
    path = tmp_path / "m.pt"
    extra = {"args": argparse.Namespace(lr=0.1), "out": Path("x"), "names": {"a", "b"}}
    torch.save({"model": state(), **extra}, path)
    assert torch.equal(read_head(path).weight, state()["fc.weight"])
    write_head(path, read_head(path), tmp_path / "n.pt")
    assert path.read_bytes() == (tmp_path / "n.pt").read_bytes()


def resaved(path: Path, **changes: Any) -> None:
    """Rewrite a zip with another way of compressing, or with one record left out."""
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", changes.get("compression", zipfile.ZIP_STORED)) as archive:
        for name, data in records.items():
            if not name.endswith(changes.get("without", "?")):
                archive.writestr(name, data)


def test_compressed_archive(tmp_path: Path) -> None:
    """A compressed archive is read; written it is not, since its bytes are not in the file."""
    path = tmp_path / "m.pt"
    torch.save(state(), path)
    resaved(path, compression=zipfile.ZIP_DEFLATED)
    assert torch.equal(read_head(path).weight, state()["fc.weight"])
    with pytest.raises(CheckpointError, match="compressed"):
        write_head(path, read_head(path), tmp_path / "n.pt")
    assert not (tmp_path / "n.pt").exists()


def test_missing_record(tmp_path: Path) -> None:
    """A storage that the archive lacks is named."""
    path = tmp_path / "m.pt"
    torch.save(state(), path)
    resaved(path, without="data/1")
    with pytest.raises(CheckpointError, match="lacks the record"):
        read_head(path)


def test_wrong_checksum(tmp_path: Path) -> None:
    """A flipped bit in the head is found by the record's CRC, in reading and in writing."""
    path = tmp_path / "m.pt"
    torch.save(state(), path)
    raw = bytearray(path.read_bytes())
    at = raw.index(state()["fc.weight"].numpy().tobytes())
    head = read_head(path)
    raw[at] ^= 1
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match="damaged"):
        read_head(path)
    with pytest.raises(CheckpointError, match="damaged"):
        write_head(path, head, tmp_path / "n.pt")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("m.pt", b"", "empty"),
        ("m.safetensors", b"", "empty"),
        ("m.pt", pickle.dumps({"fc.weight": 1}), "bare pickle"),
        ("m.pt", b"GIF89a" + bytes(20), "neither"),
        ("m.safetensors", b"\x01\x02", "eight bytes"),
        ("m.safetensors", b"\xff" * 8 + b"{}", "header should be"),
        ("m.safetensors", b"\x02" + bytes(7) + b"[]", "not a JSON table"),
        ("m.pt", b"PK\x03\x04" + bytes(40), "damaged or cut short"),
    ],
)
def test_other_files(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    """Each kind of wrong file has its own reason."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=reason):
        list_heads(path)


def test_whole_model(tmp_path: Path) -> None:
    """A pickled module is refused with the remedy."""
    path = tmp_path / "m.pt"
    torch.save(torch.nn.Linear(2, 3), path)
    with pytest.raises(CheckpointError, match=r"model\.state_dict\(\)"):
        read_head(path)


def test_no_table(tmp_path: Path) -> None:
    """A lone tensor is no checkpoint of a model."""
    path = tmp_path / "m.pt"
    torch.save(torch.ones(3, 5), path)
    with pytest.raises(CheckpointError, match="no state_dict"):
        read_head(path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_cut_short(tmp_path: Path, suffix: str) -> None:
    """A file cut anywhere is refused, in reading and in writing."""
    path = tmp_path / f"m{suffix}"
    save(state(), path)
    raw = path.read_bytes()
    for size in range(0, len(raw), 37):
        path.write_bytes(raw[:size])
        with pytest.raises(CheckpointError):
            read_head(path)


def save(table: dict[str, torch.Tensor], path: Path) -> None:
    if path.suffix == ".pt":
        buffer = io.BytesIO()
        torch.save(table, buffer)
        path.write_bytes(buffer.getvalue())
    else:
        safetensors.torch.save_file(table, path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_random_damage(tmp_path: Path, suffix: str) -> None:
    """Whatever bytes are changed, there is a result or an error of catwise, and no half file."""
    path, damaged, target = (tmp_path / f"{name}{suffix}" for name in "abc")
    save({"model": state()} if suffix == ".pt" else state(), path)
    raw = path.read_bytes()
    draw = random.Random(0)
    for _ in range(150):
        changed = bytearray(raw)
        for _ in range(draw.choice([1, 1, 2, 8])):
            changed[draw.randrange(len(raw))] = draw.randrange(256)
        damaged.write_bytes(changed)
        try:
            head = read_head(damaged)
            write_head(damaged, head.replace(weight=head.weight * 0 + 1), target, overwrite=True)
        except CatwiseError:
            continue
        assert bool((read_head(target).weight == 1).all())
    left = {item.name for item in tmp_path.iterdir()}
    assert left <= {path.name, damaged.name, target.name}
    shutil.rmtree(tmp_path)
