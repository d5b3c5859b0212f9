"""`finetune`: loaders and a module in memory, the head of the command line bit for bit."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

import catwise
from catwise.cli import main
from catwise.errors import ConfigError, InSampleWarning, LabelError, ShapeError
from catwise.models.pixels import preprocess
from catwise.training.finetuning import labelled_loader, unwrapped
from cli.fix_case import INPUT, NAMES, make_case


class Images(Dataset):
    """Images of one split, with labels in which NaN is unknown, and ids."""

    def __init__(self, folder, split, *, table=False, ids=True):
        with (folder / "labels.csv").open() as stream:
            rows = [row for row in csv.DictReader(stream) if row["split"] == split]
        self.ids = [row["image"] for row in rows]
        self.labels = torch.tensor([[float(row[n] or "nan") for n in NAMES] for row in rows])
        self.folder, self.table, self.give_ids = folder / "images", table, ids

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        image = preprocess(Image.open(self.folder / f"{self.ids[i]}.png"), INPUT)
        if self.table:
            return {"pixel_values": image, "labels": self.labels[i]}
        return (image, self.labels[i], self.ids[i]) if self.give_ids else (image, self.labels[i])


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finetune") / "case"
    return folder, make_case(folder)


def loaders(folder, *splits, **options):
    return [DataLoader(Images(folder, split, **options), batch_size=16) for split in splits]


def run(*arguments):
    with pytest.raises(SystemExit) as end:
        main([str(one) for one in arguments])
    assert end.value.code in {0, None}


@pytest.mark.parametrize(
    ("dtype", "precision"), [("float16", "exact"), ("float16", "fast"), ("float32", "exact")]
)
def test_the_head_is_that_of_the_command_line(case, tmp_path, dtype, precision):
    """Same images, batches, precision, ids and names: the same head, bit for bit, in all rows."""
    folder, module = case
    model = ["--model", "python:cli.fix_case:tiny_net", "--checkpoint", folder / "net.safetensors"]
    labels = ["--labels", folder / "labels.csv", "--encoding", "nan", "--id-column", "image"]
    images = ["--images", folder / "images", "--batch-size", 16]
    if dtype == "float16":
        run("fix", *model, *images, *labels, "--split-column", "split", "--out", tmp_path / "out",
            "--precision", precision)  # fmt: skip
        head = catwise.load_head(tmp_path / "out" / "run" / "head.safetensors")
    else:
        pairs = []
        for split in ("train", "valid"):
            data = Images(folder, split)
            stack = torch.stack([data[i][0] for i in range(len(data))])
            found = catwise.extract(module, stack, dtype=dtype, batch_rows=16, ids=data.ids)
            given = {"encoding": "nan", "ids": data.ids, "categories": NAMES}
            known = catwise.PartialLabels.from_array(data.labels.numpy(), **given)
            pairs.append((found.features, known))
        base = catwise.Head(module.fc.weight, module.fc.bias, categories=NAMES)
        head = catwise.tune(base, *pairs).head
    train, valid, test = loaders(folder, "train", "valid", "test")
    tuned, result = catwise.finetune(
        module, train, valid, test_loader=test, categories=NAMES, dtype=dtype, precision=precision
    )
    assert torch.equal(result.head.weight, head.weight)
    assert torch.equal(result.head.bias, head.bias)
    assert torch.equal(tuned.fc.weight, head.weight)
    assert torch.equal(tuned.fc.bias, head.bias)
    assert not torch.equal(tuned.fc.weight, module.fc.weight)
    assert torch.equal(tuned.body[1].weight, module.body[1].weight)
    assert result.evaluation is not None
    assert result.summary["n_replaced"] > 0


def test_the_module_stays(case):
    """A copy is tuned, in its own mode, unless the module itself is to be changed."""
    folder, module = case
    train, valid = loaders(folder, "train", "valid")
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module.train()
    tuned, result = catwise.finetune(module, train, valid)
    assert tuned is not module
    assert tuned.training
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    other = copy_of(module)
    same, again = catwise.finetune(other, train, valid, inplace=True)
    assert same is other
    assert torch.equal(other.fc.weight, tuned.fc.weight)
    assert torch.equal(again.head.weight, result.head.weight)
    module.eval()


def copy_of(module):
    other = type(module)()
    other.load_state_dict(module.state_dict())
    return other


def test_loaders_of_a_training_script(case):
    """Shuffled, dropped and drawn rows come in their own order, each once; a note says so."""
    folder, module = case
    train, valid = loaders(folder, "train", "valid", ids=False)
    plain = catwise.finetune(module, train, valid).result
    data = train.dataset
    shuffled = [
        DataLoader(data, batch_size=16, shuffle=True, drop_last=True),
        DataLoader(data, batch_size=16, sampler=WeightedRandomSampler([1.0] * 120, 40)),
        DataLoader(data, batch_size=16, sampler=SubsetRandomSampler(range(120))),
    ]
    for loader in shuffled:
        found = catwise.finetune(module, loader, valid).result
        assert torch.equal(found.head.weight, plain.head.weight)
        assert [n for n in found.notes if "train loader" in n]
        assert not [n for n in found.notes if "valid loader" in n]
    assert not [n for n in plain.notes if "loader" in n]


def test_tables_lists_and_streams(case):
    """Tables as Hugging Face's trainer makes them, lists of batches, and iterable data sets."""
    folder, module = case
    plain = catwise.finetune(module, *loaders(folder, "train", "valid", ids=False)).result
    tables = catwise.finetune(module, *loaders(folder, "train", "valid", table=True)).result
    assert torch.equal(tables.head.weight, plain.head.weight)

    class Stream(IterableDataset):
        def __init__(self, split):
            self.data = Images(folder, split, ids=False)

        def __iter__(self):
            return (self.data[i] for i in range(len(self.data)))

    streams = [DataLoader(Stream(split), batch_size=16) for split in ("train", "valid")]
    assert torch.equal(catwise.finetune(module, *streams).result.head.weight, plain.head.weight)
    lists = [list(loader) for loader in loaders(folder, "train", "valid", ids=False)]
    assert torch.equal(catwise.finetune(module, *lists).result.head.weight, plain.head.weight)


def test_named_encodings(case):
    """−1 as unknown says the same as NaN; a value that no encoding knows is refused."""
    folder, module = case
    train, valid = loaders(folder, "train", "valid", ids=False)
    plain = catwise.finetune(module, train, valid).result
    coded = [
        [(x, torch.where(y.isnan(), -1.0, y).int()) for x, y in loader] for loader in (train, valid)
    ]
    found = catwise.finetune(module, *coded, encoding="minus_one_unknown").result
    assert torch.equal(found.head.weight, plain.head.weight)
    with pytest.raises(LabelError, match="-1"):
        catwise.finetune(module, *coded)


def test_groups_stay_together(case):
    """Groups of a table are those of the labels, so one in two loaders is refused."""
    folder, module = case
    batches = []
    for split in ("train", "valid"):
        (loader,) = loaders(folder, split, ids=False)
        batches.append([{"images": x, "labels": y, "groups": ["p"] * len(x)} for x, y in loader])
    with pytest.raises(catwise.CatwiseError, match="group"):
        catwise.finetune(module, *batches)


def test_wrapped_modules(case):
    """What is wrapped for several devices or compiled is unwrapped; the head is the same."""
    folder, module = case
    train, valid = loaders(folder, "train", "valid")
    tuned, _ = catwise.finetune(nn.DataParallel(module), train, valid)
    assert type(tuned) is type(module)
    compiled = torch.compile(module, backend="eager")
    assert unwrapped(compiled) is module
    with pytest.raises(ConfigError, match=r"catwise\.fix"):
        catwise.finetune("model.pt", train, valid)


def test_what_a_loader_must_give(case):
    """Each refusal names the loader, what it gave, and what would do."""
    folder, module = case
    train, valid = loaders(folder, "train", "valid")
    with pytest.raises(LabelError, match="valid loader does not hold images and labels"):
        catwise.finetune(module, train, [torch.zeros(2, 3, 8, 8)])
    with pytest.raises(ShapeError, match=r"(?s)train loader.*found: +shape \(2,\)"):
        catwise.finetune(module, [(torch.zeros(2, 3, 8, 8), torch.zeros(2))], valid)
    with pytest.raises(ShapeError, match="3 rows of labels, 2 images"):
        catwise.finetune(module, [(torch.zeros(2, 3, 8, 8), torch.zeros(3, 4))], valid)
    with pytest.raises(ConfigError, match="gives no batches"):
        labelled_loader(3, "train")
    unclear = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    with pytest.raises(ConfigError, match="read once only"):
        catwise.finetune(unclear, iter(train), valid)


def test_without_validation(case):
    """Training labels alone are cross-fitted, with the warning of `tune`."""
    folder, module = case
    (train,) = loaders(folder, "train")
    with pytest.warns(InSampleWarning):
        _, result = catwise.finetune(module, train)
    assert np.isfinite(result.summary["n_replaced"])
