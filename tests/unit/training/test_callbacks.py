"""`finetune` at the end of real runs of PyTorch Lightning and of transformers' Trainer."""

from __future__ import annotations

import sys
import warnings

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import catwise
from catwise.errors import ConfigError, MissingExtraError
from catwise.training.callbacks import lightning_callback, transformers_callback
from catwise.training.losses import ignore_unknown
from cli.fix_case import TinyNet, seeded


class Pictures(Dataset):
    """Images with labels of a true head, of which some are unknown (NaN)."""

    def __init__(self, n, seed, known, *, side=8, table=False):
        draw = torch.Generator().manual_seed(seed)
        noise = torch.rand(n, 3, side, side, generator=draw)
        tint = torch.rand(n, 3, generator=draw)
        self.images = noise / 2 + 2 * tint[:, :, None, None] - 1
        truth = torch.tensor([[2.0, -0.5, 0], [0, 2, -0.5], [-0.5, 0, 2], [-1, -1, -1]])
        labels = ((tint - 0.5) @ truth.T > 0.1).float()
        unknown = torch.rand(labels.shape, generator=draw) > known
        self.labels = torch.where(unknown, torch.nan, labels)
        self.table = table

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        if self.table:
            return {"pixel_values": self.images[i], "labels": self.labels[i]}
        return self.images[i], self.labels[i]


@pytest.fixture
def quiet():
    """The trainers warn of many things that are not tested here; their warnings are no errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def partial_loss(logits, labels):
    known = ~labels.isnan()
    return ignore_unknown(logits, known, torch.nan_to_num(labels)).sum() / known.sum()


def lightning_run(folder, *callbacks):
    import pytorch_lightning as lightning

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = seeded(TinyNet)

        def forward(self, images):
            return self.net(images)

        def training_step(self, batch, _):
            return partial_loss(self(batch[0]), batch[1])

        def validation_step(self, batch, _):
            self.log("loss", partial_loss(self(batch[0]), batch[1]))

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=1e-2)

    lightning.seed_everything(0)
    train = DataLoader(Pictures(160, 0, 0.5), batch_size=20, shuffle=True, drop_last=True)
    valid = DataLoader(Pictures(120, 1, 1.0), batch_size=20)
    module = Module()
    trainer = lightning.Trainer(
        max_epochs=6,
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )
    trainer.fit(module, train, valid)
    return module, trainer, train, valid


@pytest.mark.usefixtures("quiet")
def test_lightning(tmp_path):
    """The module ends with the head that finetune gives; what is saved then holds it."""
    pytest.importorskip("pytorch_lightning")
    plain, _, train, valid = lightning_run(tmp_path)
    tuned, result = catwise.finetune(plain.net, train, valid, dtype="float32")
    callback = lightning_callback(dtype="float32")
    module, trainer, _, _ = lightning_run(tmp_path, callback)
    assert torch.equal(callback.result.head.weight, result.head.weight)
    assert torch.equal(module.net.fc.weight, tuned.fc.weight)
    assert not torch.equal(module.net.fc.weight, plain.net.fc.weight)
    assert torch.equal(module.net.body[1].weight, plain.net.body[1].weight)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    kept = torch.load(tmp_path / "last.ckpt", weights_only=False)["state_dict"]
    assert torch.equal(kept["net.fc.weight"], tuned.fc.weight)


def trainer_run(folder, *callbacks):
    from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

    class Partial(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **_):
            outputs = model(pixel_values=inputs["pixel_values"])
            loss = partial_loss(outputs.logits, inputs["labels"])
            return (loss, outputs) if return_outputs else loss

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        image_size=16, patch_size=4, num_labels=4,
    )  # fmt: skip
    options = TrainingArguments(
        output_dir=str(folder), num_train_epochs=6, per_device_train_batch_size=16,
        per_device_eval_batch_size=16, eval_strategy="epoch", save_strategy="no", report_to=[],
        use_cpu=True, seed=0, disable_tqdm=True, learning_rate=1e-2,
    )  # fmt: skip
    train = Pictures(120, 0, 0.5, side=16, table=True)
    valid = Pictures(96, 1, 1.0, side=16, table=True)
    trainer = Partial(
        ViTForImageClassification(config),
        options,
        train_dataset=train,
        eval_dataset=valid,
        callbacks=list(callbacks),
    )
    trainer.train()
    return trainer, train, valid


@pytest.mark.usefixtures("quiet")
def test_transformers(tmp_path):
    """The same of a vision transformer, with the trainer's own loaders; saved, it is tuned."""
    pytest.importorskip("accelerate")
    from transformers import ViTForImageClassification

    plain, *data = trainer_run(tmp_path)
    loaders = [DataLoader(part, batch_size=16) for part in data]
    tuned, result = catwise.finetune(plain.model, *loaders, dtype="float32")
    callback = transformers_callback(dtype="float32")
    trainer, _, _ = trainer_run(tmp_path, callback)
    assert torch.equal(callback.result.head.weight, result.head.weight)
    assert torch.equal(trainer.model.classifier.weight, tuned.classifier.weight)
    assert not torch.equal(trainer.model.classifier.weight, plain.model.classifier.weight)
    assert any("train loader shuffles" in note for note in callback.result.notes)
    trainer.save_model(str(tmp_path / "model"))
    again = ViTForImageClassification.from_pretrained(tmp_path / "model")
    assert torch.equal(again.classifier.weight, tuned.classifier.weight)


@pytest.mark.usefixtures("quiet")
def test_options_of_a_callback(monkeypatch):
    """It is in place by itself; own loaders go first; an absent package is named."""
    with pytest.raises(ConfigError, match="leave inplace out"):
        transformers_callback(inplace=False)
    with pytest.raises(ConfigError, match="train_loader="):
        transformers_callback().on_train_end(None, None, None, model=seeded(TinyNet))
    train = DataLoader(Pictures(160, 0, 0.5), batch_size=20)
    valid = DataLoader(Pictures(120, 1, 1.0), batch_size=20)
    callback = transformers_callback(train, valid, categories=["a", "b", "c", "d"], force=True)
    callback.on_train_end(None, None, None, model=seeded(TinyNet), train_dataloader=[])
    assert callback.result.head.categories == ("a", "b", "c", "d")
    for name in [*sys.modules]:
        if name.partition(".")[0] in {"pytorch_lightning", "lightning"}:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pytorch_lightning", None)
    with pytest.raises(MissingExtraError, match=r"catwise\[lightning\]"):
        lightning_callback()
