"""Architectures there and back: random weights, read, written unchanged, written anew, run again.

    python benches/architectures.py                     every one, as a table
    python benches/architectures.py --only timm         one kind
    python benches/architectures.py --only torchvision:resnet

For each: is the file with the head that was read equal byte for byte? Are features identical when
another head is in it, all other tensors the same bit for bit, and logits those of the new head
(the largest difference, as a share of the largest logit)? A model whose last layer is not linear
in vectors says so.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from catwise._extras import import_optional
from catwise.errors import CatwiseError
from catwise.models.registry import load_model, reload_model
from catwise.models.verify import compare_written, noise, verify_written
from catwise.models.writing import write_model

N_CATEGORIES = 7
TIMM = """
    beit_base_patch16_224 botnet26t_256 cait_xxs24_224 coat_tiny coatnet_pico_rw_224
    convit_tiny convmixer_768_32 convnext_atto convnextv2_atto crossvit_9_240 cspresnet50
    darknet53 davit_tiny deit_tiny_distilled_patch16_224 deit3_small_patch16_224 densenet121
    dla34 dm_nfnet_f0 dpn48b edgenext_xx_small efficientformer_l1 efficientformerv2_s0
    efficientnet_b0 efficientvit_b0 efficientvit_m0 eva02_tiny_patch14_224 fasternet_t0
    fastvit_t8 focalnet_tiny_srf gcvit_xxtiny gernet_s ghostnet_050 ghostnetv2_100 hgnet_tiny
    hardcorenas_a hiera_tiny_224 hrnet_w18_small inception_next_atto inception_v3 lcnet_050
    levit_128s maxvit_pico_rw_256 mambaout_femto mixer_s32_224 mixnet_s mnasnet_small
    mobilenetv2_035 mobilenetv3_small_050 mobilenetv4_conv_small mobileone_s0 mobilevit_xxs
    mobilevitv2_050 mvitv2_tiny nest_tiny nextvit_small nf_resnet26 pit_ti_224 poolformer_s12
    pvt_v2_b0 regnetx_002 regnety_002 repghostnet_050 repvgg_a0 repvit_m0_9 res2net50_14w_8s
    resnest14d resnet10t resnet18 resnetv2_18 resnetv2_50x1_bit resnext26ts rexnet_100
    rdnet_tiny sequencer2d_s shvit_s1 skresnet18 starnet_s1 swiftformer_xs
    swin_tiny_patch4_window7_224 test_vit tf_efficientnet_lite0 tiny_vit_5m_224 tinynet_e
    tresnet_m twins_svt_small vgg11 vit_tiny_patch16_224 visformer_tiny volo_d1_224
    wide_resnet50_2 xception41 xcit_nano_12_p16_224
"""
TORCHVISION = """
    alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3
    maxvit_t mnasnet0_5 mobilenet_v2 mobilenet_v3_small regnet_x_400mf resnet18 resnext50_32x4d
    shufflenet_v2_x0_5 squeezenet1_1 swin_t swin_v2_t vgg11 vgg11_bn vit_b_32 wide_resnet50_2
"""
VIT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
       "image_size": 32, "patch_size": 8}  # fmt: skip
FOUR: dict[str, Any] = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16]}
SWIN = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2, "image_size": 32}
TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "Beit": ("", VIT),
    "BiT": ("", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "num_groups": 2}),
    "ConvNext": ("", FOUR),
    "ConvNextV2": ("", FOUR),
    "Data2VecVision": ("", VIT),
    "DeiT": ("", VIT),
    "DeiT with a teacher": ("WithTeacher", VIT),
    "Dinov2": ("", VIT),
    "Dinov2WithRegisters": ("", VIT),
    "EfficientNet": ("", {"image_size": 32, "width_coefficient": 0.2, "depth_coefficient": 0.1,
                          "hidden_dim": 256}),
    "FocalNet": ("", {"embed_dim": 8, "depths": [1, 1], "focal_levels": [1, 1],
                      "focal_windows": [3, 3], "image_size": 32}),
    "IJepa": ("", VIT),
    "LevitForImageClassification with a teacher": (
        "WithTeacher",
        {"image_size": 32, "hidden_sizes": [16, 32, 48], "num_attention_heads": [1, 1, 1],
         "depths": [1, 1, 1], "key_dim": [8, 8, 8]},
    ),
    "MobileNetV1": ("", {"depth_multiplier": 0.25, "image_size": 32}),
    "MobileNetV2": ("", {"depth_multiplier": 0.35, "image_size": 32}),
    "PoolFormer": ("", {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}),
    "PvtV2": ("", {"image_size": 32, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1],
                   "num_attention_heads": [1, 1, 2, 2]}),
    "RegNet": ("", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1],
                    "groups_width": 8}),
    "ResNet": ("", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1],
                    "layer_type": "basic"}),
    "Segformer": ("", FOUR),
    "SwiftFormer": ("", {"image_size": 64, "depths": [1, 1, 1, 1], "embed_dims": [8, 8, 16, 16]}),
    "Swin": ("", SWIN),
    "Swinv2": ("", SWIN),
    "ViT": ("", VIT),
    "ViTMSN": ("", VIT),
}  # fmt: skip
ONNX = ["resnet18", "mobilenet_v2", "mobilenet_v3_small", "densenet121", "efficientnet_b0",
        "shufflenet_v2_x0_5", "vit_b_32", "convnext_tiny"]  # fmt: skip


def scramble(module: torch.nn.Module) -> torch.nn.Module:
    """Numbers that are no zeros in small tensors: some architectures start with those."""
    torch.manual_seed(0)
    with torch.no_grad():
        for part in module.parameters():
            if part.is_floating_point() and not bool(part.any()):
                part.normal_(std=0.1)
    return module


def make_file(kind: str, name: str, folder: Path) -> tuple[str, dict[str, Any], Path]:
    """A checkpoint of random weights: the model's spec, options, and the file or folder."""
    if kind == "timm":
        build = import_optional("timm", extra="timm", purpose="this bench").create_model
        module = build(name, pretrained=False, num_classes=N_CATEGORIES)
    elif kind == "torchvision":
        models = import_optional("torchvision.models", extra="torchvision", purpose="this bench")
        args = {"init_weights": False} if name in {"googlenet", "inception_v3"} else {}
        module = models.get_model(name, weights=None, num_classes=N_CATEGORIES, **args)
    elif kind == "transformers":
        return make_folder(name, folder)
    else:
        return make_onnx(name, folder)
    path = folder / "old.pt"
    torch.save(scramble(module).state_dict(), path)
    return f"{kind}:{name}", {"checkpoint": path, "n_categories": N_CATEGORIES}, path


def make_folder(name: str, folder: Path) -> tuple[str, dict[str, Any], Path]:
    transformers = import_optional("transformers", extra="transformers", purpose="this bench")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    suffix, settings = TRANSFORMERS[name]
    family = name.split(" ", maxsplit=1)[0].removesuffix("ForImageClassification")
    config = getattr(transformers, f"{family}Config".replace("BiTConfig", "BitConfig"))(
        **settings, num_labels=N_CATEGORIES
    )
    kind = f"{family}ForImageClassification{suffix}".replace("BiTFor", "BitFor")
    model = getattr(transformers, kind)(config)
    scramble(model).save_pretrained(folder / "old")
    return f"transformers:{folder / 'old'}", {}, folder / "old"


def make_onnx(name: str, folder: Path) -> tuple[str, dict[str, Any], Path]:
    models = import_optional("torchvision.models", extra="torchvision", purpose="this bench")
    module = scramble(models.get_model(name, weights=None, num_classes=N_CATEGORIES)).eval()
    path = folder / "old.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (torch.rand(2, 3, 224, 224),), str(path), input_names=["images"],
            output_names=["logits"], dynamo=False, dynamic_axes={"images": {0: "n"}},
        )  # fmt: skip
    return f"onnx:{path}", {}, path


def same_bytes(old: Path, new: Path) -> bool:
    if old.is_file():
        return old.read_bytes() == new.read_bytes()
    names = sorted(path.relative_to(old) for path in old.rglob("*") if path.is_file())
    return all((old / name).read_bytes() == (new / name).read_bytes() for name in names)


def there_and_back(kind: str, name: str, folder: Path) -> list[str]:
    """One row of the table."""
    spec, options, old = make_file(kind, name, folder)
    policy = ""
    try:
        model = load_model(spec, **options)
    except CatwiseError as error:
        if "two heads" not in str(error):
            raise
        policy, options = "both heads as one", {**options, "model_args": {"heads": "both"}}
        model = load_model(spec, **options)
    assert model.head is not None
    if model.output_is:
        policy = f"refused by extract: {model.output_is}"
    elif "places" in " ".join(model.notes):
        policy = "mean over places"
    new, same = folder / f"new{old.suffix}", folder / f"same{old.suffix}"
    write_model(model, model.head, same)
    generator = torch.Generator().manual_seed(1)
    head = model.head.replace(weight=torch.randn(model.head.weight.shape, generator=generator))
    write_model(model, head, new)
    equal = "equal" if same_bytes(old, same) else "DIFFER"
    layer = str(model.weight_key if kind == "onnx" else model.layer)
    shape = f"{head.n_categories} × {head.n_features}"
    gap, tensors = "–", f"{compare_written(model, new):,}"
    if "not linear" not in policy:
        gap = f"{verify_written(model, reload_model(model, new), head, noise(model, 2)).gap:.0e}"
    return [f"{kind}:{name}", layer, shape, equal, gap, tensors, policy]


def main() -> int:
    """Print the table; 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="what a name must begin with")
    parser.add_argument("--json", type=Path, help="write the table there")
    asked = parser.parse_args()
    only, table = asked.only, []
    names = {
        "timm": TIMM.split(),
        "torchvision": TORCHVISION.split(),
        "transformers": list(TRANSFORMERS),
        "onnx": ONNX,
    }
    wanted = [(k, n) for k, of in names.items() for n in of if f"{k}:{n}".startswith(only)]
    print("| model | layer | head | unchanged file | logits | other tensors | policy |")
    print("|---|---|---|---|---|---|---|")
    failed, began = 0, time.perf_counter()
    for kind, name in wanted:
        folder = Path(tempfile.mkdtemp())
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                row = there_and_back(kind, name, folder)
        except Exception as error:  # noqa: BLE001  # whatever is raised is a row of the table
            failed += 1
            reason = str(error).strip().splitlines()[0][:150]
            row = [f"{kind}:{name}", *[""] * 5, f"FAILED: {type(error).__name__}: {reason}"]
        finally:
            shutil.rmtree(folder)
        table.append(row)
        print("| " + " | ".join(row) + " |", flush=True)
    if asked.json:
        asked.json.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    seconds = time.perf_counter() - began
    print(f"\n{len(wanted) - failed} of {len(wanted)} architectures in {seconds:.0f} s")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
