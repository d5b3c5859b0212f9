"""A head is taken only where every tensor of the checkpoint is accounted for.

The names are those that the packages themselves wrote (docs/behaviours.md tells the versions).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import safetensors.torch
import torch

from catwise.errors import HeadError
from catwise.heads import list_heads, read_head, write_head_to_state_dict
from catwise.heads.families import family_of, harmless, remedy_for

if TYPE_CHECKING:
    from pathlib import Path

C, D = 4, 16


def tensors(text: str, lead: str = "") -> dict[str, torch.Tensor]:
    """Tensors by name and shape: 'a.weight:4,16 b:int8' (2 × 16 where no shape is given)."""
    found = {}
    for word in text.split():
        name, _, rest = word.partition("=")
        sizes = [int(part) for part in rest.split(",") if part.isdigit()]
        kind = next((part for part in rest.split(",") if part.isalpha()), "float32")
        dtype = {"b": torch.uint8, "i": torch.int32, "n": torch.int64}.get(kind, torch.float32)
        shape = sizes if sizes or "scalar" in rest else [2, D]
        found[lead + name.removeprefix("^")] = torch.ones(shape, dtype=dtype)
        if name.startswith("^"):  # from the root
            found[name[1:]] = found.pop(lead + name[1:])
    return found


def refused(state: dict[str, Any], folder: Path, **place: Any) -> str:
    """What both a state_dict and a safetensors file are refused with."""
    path = folder / "m.safetensors"
    plain = {key: value.contiguous().clone() for key, value in state.items()}
    safetensors.torch.save_file(plain, path)
    texts = []
    for source in (state, path):
        with pytest.raises(HeadError) as caught:
            read_head(source, **place)
        texts.append(str(caught.value))
    return "\n".join(texts)


BODY = f"body.0.weight={D},8 body.0.bias={D} norm.weight={D} norm.bias={D}"
HEAD = f"classifier.weight={C},{D} classifier.bias={C}"

BESIDE = {
    "loralib": "lora_A lora_B=4,2",
    "loralib, merged": "lora_A lora_B=2,2",
    "torchtune": "lora_a.weight lora_b.weight=4,2",
    "torchtune DoRA": "lora_a.weight lora_b.weight=4,2 magnitude=4",
    "diffusers": "lora_layer.down.weight lora_layer.up.weight=4,2",
    "old diffusers": "lora.down.weight lora.up.weight=4,2",
    "adapters, LoRA": "loras.news.lora_A loras.news.lora_B=4,2",
    "adapters, bottleneck": "adapters.a.adapter_down.0.weight adapters.a.adapter_up.weight=4,2",
    "bottleneck": "adapter_down.weight adapter_up.weight=4,2",
    "compacter": "adapter.phm_rule=2,2,2 adapter.W_left=2,2",
    "LyCORIS beside": "^lycoris_classifier.lora_up.weight=4,2 ^lycoris_classifier.alpha=scalar",
    "LyCORIS (IA)3": "^lycoris_classifier.weight=4 ^lycoris_classifier.on_input=scalar",
    "LyCORIS GLoRA": "^lycoris_classifier.a1.weight=16,2 ^lycoris_classifier.b1.weight=4,2",
    "LyCORIS full": "^lycoris_classifier.diff=4,16 ^lycoris_classifier.diff_b=4",
    "LyCORIS OFT": "^lycoris_classifier.oft_blocks=4,4,4 ^lycoris_classifier.alpha=scalar",
    "kohya": "^lora_unet_classifier.lora_down.weight ^lora_unet_classifier.alpha=scalar",
    "a table of its own": "^adapter.classifier.down.weight ^adapter.classifier.up.weight=4,2",
    "by an adapter's name": "^lora.classifier.A ^lora.classifier.B=4,2",
}
PEFT = {
    "LoRA": "lora_A.default.weight lora_B.default.weight=4,2",
    "DoRA": "lora_A.default.weight lora_B.default.weight=4,2 lora_magnitude_vector.default=4",
    "LoRA of an embedding": "lora_embedding_A.default lora_embedding_B.default=4,2",
    "AdaLoRA": "lora_A.default lora_B.default=4,2 lora_E.default=2,1 ranknum.default=1",
    "(IA)3": "ia3_l.default=4,1",
    "LoHa": "hada_w1_a.default=4,2 hada_w1_b.default hada_w2_a.default=4,2 hada_w2_b.default",
    "LoKr": "lokr_w1.default=2,4 lokr_w2_a.default=2,2 lokr_w2_b.default=2,8",
    "OFT": "oft_R.default.weight=8,1",
    "BOFT": "boft_R.default=1,2,8,8 boft_s.default=4,1",
    "VeRA": "vera_lambda_b.default=4 vera_lambda_d.default=2 ^base_model.vera_A.default",
    "PVeRA": "pvera_lambda_b.default=4 pvera_lambda_d.default=4",
    "FourierFT": "fourierft_spectrum.default=5",
    "WaveFT": "waveft_spectrum.default=5",
    "HRA": "hra_u.default=16,2",
    "VB-LoRA": "vblora_logits_A.default=2,8,4 vblora_logits_B.default=1,2,4",
    "RandLoRA": "randlora_lambda.default=2,2 randlora_gamma.default=2,4",
    "C3A": "c3a_kernel.default=1,8,4",
    "DeLoRA": "delora_A.default delora_B.default=4,2 delora_lambda.default=1",
    "RoAd": "road_theta.default=2 road_alpha.default=2",
    "GraLoRA": "gralora_A.default=2,16,2 gralora_B.default=2,2,2",
    "OSF": "osf_svd_params.default.S_low=2 osf_svd_params.default.U_low=4,2",
    "PSOFT": "psoft_R.default.weight=1 psoft_R.default.vector_a=2",
    "Lily": "lily_A.default.weight lily_B.default.weight=4,4 lily_router.default.weight=2,2",
    "MiSS": "miss_block.default=2,4",
    "SHiRA": "shira_weight.default=5",
    "TinyLoRA": "tinylora_A.default tinylora_B.default=4,2 tinylora_v.default.0=4",
    "X-LoRA": "lora_A.1.weight lora_B.1.weight=4,2 ^internal_xlora_classifier.layers.0.weight=4,16",
}


@pytest.mark.parametrize("family", BESIDE)
def test_an_adapter_beside_the_weight_is_merged_first(tmp_path: Path, family: str) -> None:
    """Whatever its family and wherever its tensors lie, its layer is more than its weight."""
    state = tensors(f"{BODY} {HEAD}") | tensors(BESIDE[family], "classifier.")
    assert "merge the adapter first" in refused(state, tmp_path)
    text = refused(state, tmp_path, key="classifier")
    assert text.count("merge the adapter first") == 2
    assert "merge_and_unload" in text


@pytest.mark.parametrize("family", PEFT)
def test_a_layer_that_an_adapter_wraps_is_merged_first(tmp_path: Path, family: str) -> None:
    """PEFT moves the layer to base_layer, which is not what the model computes."""
    lead = "base_model.model."
    base = tensors(BODY, lead) | tensors(HEAD.replace("er.", "er.base_layer."), lead)
    state = base | tensors(PEFT[family], f"{lead}classifier.")
    assert refused(state, tmp_path).count("merge the adapter first") == 2
    named = refused(state, tmp_path, key=f"{lead}classifier.base_layer")
    assert named.count("merge the adapter first") == 2


def test_a_trained_copy_of_the_layer_is_merged_first(tmp_path: Path) -> None:
    """PEFT's modules_to_save keeps the old layer beside the new one: neither is taken."""
    for kept in ("original_module", "modules_to_save.default"):
        both = (
            HEAD.replace("er.", "er.original_module.")
            + " "
            + HEAD.replace("er.", "er.modules_to_save.default.")
        )
        text = refused(tensors(f"{BODY} {both}"), tmp_path, key=f"classifier.{kept}")
        assert text.count("merge the adapter first") == 2


def test_an_adapter_in_the_backbone_does_no_harm() -> None:
    """The features are what the adapted backbone makes of an image; the head is whole."""
    inner = (
        "body.0.base_layer.weight=16,8 body.0.lora_A.default.weight body.0.lora_B.default.weight"
    )
    state = tensors(f"{inner} {HEAD}", "base_model.model.")
    assert read_head(state).n_categories == C


def test_an_adapter_in_a_table_of_its_own() -> None:
    """It is found beside the table that holds the model, too."""
    state = {"model": tensors(f"{BODY} {HEAD}"), "lora": tensors("classifier.A classifier.B=4,2")}
    with pytest.raises(HeadError, match="merge the adapter first"):
        read_head(state)
    with pytest.raises(HeadError, match="merge the adapter first"):
        write_head_to_state_dict(state, read_head(state["model"]))


PACKED = {
    "torch, dynamic": "scale=scalar zero_point=n,scalar",
    "torchao": "_weight_qdata=8,16,b _weight_scale=8,1 bias=8",
    "torchao, old": "weight:_weight_qdata=8,16,b weight:_weight_scale=8,1 bias=8",
    "torchao, int4": "_weight_qdata=8,8,b _weight_scale=1,8 _weight_zero_point=1,8 bias=8",
    "HQQ": "W_q=8,8,b scale=16,1 zero=16,1 meta.scale=8,1 nbits=i,scalar shape=n,2 bias=8",
    "HQQ without a bias": "W_q=8,8,b scale=16,1 zero=16,1 group_size=i,scalar",
    "quanto": "weight._data=8,16,b weight._scale=8,1 input_scale=scalar output_scale=scalar bias=8",
    "quanto, int4": "weight._data._data=4,16,b weight._scale=8,1 weight._shift=8,1 bias=8",
    "bitsandbytes, 4 bits": "weight=64,1,b weight.absmax=2,b weight.quant_map=16 bias=8",
    "bitsandbytes, 8 bits": "weight=8,16,b SCB=8 weight_format=b,scalar bias=8",
    "GPTQ": "qweight=2,8,i qzeros=1,1,i scales=1,8 g_idx=16,i bias=8",
    "AWQ": "qweight=16,1,i qzeros=1,1,i scales=1,8 bias=8",
    "compressed-tensors": "weight_packed=8,2,i weight_scale=8,1 weight_shape=n,2 bias=8",
    "AQLM": "codebooks=1,16,1,8 codes=8,2,1,b scales=8,1,1,1 bias=8",
    "EETQ": "weight=16,8,b weight_scales=8 bias=8",
    "FP8 in blocks": "weight=8,16,b weight_scale_inv=1,1 bias=8",
    "BitNet": "weight=2,16,b weight_scale=1 bias=8",
    "NNCF": "weight=8,16,b bias=8 ^__nncf_hooks.post_hooks.out:weight__0.0._scale=8,1",
    "Marlin": "B=1,16,i s=1,8 bias=8",
    "EXL2": "q_weight=2,8,i q_scale=1,1,i q_scale_max=1 q_groups=2,i q_invperm=16,i bias=8",
    "EXL3": "trellis=1,1,48,i suh=16 svh=8 bias=8",
    "VPTQ": "centroids.weight=1,128 indices=1,8,2,i weight_scale=16 weight_bias=16 bias=8",
    "SpQR": "dense_weights=1,8,i in_perm=16,i row_offsets=9,i col_vals=3,i bias=8",
    "HIGGS": "weight=2,16,b scales=8,1 tables=16,1 bias=8",
    "an unknown package": "kernel_bits=8,8,b bias=8",
}
PLACES = {
    "a later number": ("fc.0.weight=8,16 fc.0.bias=8", "fc.2."),
    "another name of a head": (f"{BODY} fc.weight=8,{D} fc.bias=8", "classifier."),
    "no name of a head": (f"{BODY} fc.weight=6,{D} fc.bias=6", "out_layer_2."),
    "numbers alone": ("0.weight=16,8 0.bias=16 2.weight=16,16 2.bias=16", "4."),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("package", PACKED)
def test_the_layer_before_a_packed_one_is_not_the_head(
    tmp_path: Path, package: str, place: str
) -> None:
    """A layer with numbers and no plain weight may be the last: the one before is not taken."""
    base, lead = PLACES[place]
    text = refused(tensors(base) | tensors(PACKED[package], lead), tmp_path)
    assert "merge" not in text
    assert "use the checkpoint from before it was quantised" in text


@pytest.mark.parametrize("package", PACKED)
def test_a_packed_layer_is_refused_by_its_name(tmp_path: Path, package: str) -> None:
    """Also where it is the only layer with a head's name, or a plain weight is left in it."""
    state = tensors(BODY.replace("body.0", "blocks.0.a")) | tensors(PACKED[package], "out.")
    text = refused(state, tmp_path)
    assert "use the checkpoint from before it was quantised" in text
    beside = tensors(f"{BODY} out.weight=8,{D} out.bias=8")
    new = {k: v for k, v in tensors(PACKED[package], "out.").items() if k not in beside}
    text = refused(beside | new, tmp_path, key="out") if new else "quantised"
    assert "quantised" in text or "more than a weight and a bias" in text


def test_a_quantised_backbone_leaves_a_plain_head(tmp_path: Path) -> None:
    """Packed blocks before a plain last layer are the backbone's."""
    inner = "".join(
        f" blocks.{i}.mlp.{k}"
        for i in range(3)
        for k in ("qweight=2,16,i", "scales=1,16", "bias=16")
    )
    state = tensors(f"{inner} pooler.W_q=16,16,b pooler.bias=16 {HEAD}")
    path = tmp_path / "m.safetensors"
    safetensors.torch.save_file(state, path)
    for source in (state, path):
        assert read_head(source).provenance["key"] == "classifier.weight"


BEHIND = {
    "a norm": "bn_out.weight=4 bn_out.bias=4 bn_out.running_mean=4 bn_out.running_var=4",
    "a norm without numbers": "bn_out.running_mean=4 bn_out.running_var=4",
    "a scale": "logit_scale=scalar",
    "a temperature": "temperature=1",
    "a scale a category": "scale=4",
    "thresholds": "thresholds=1,4",
    "a layer of its own": "calibrate.gamma=scalar",
    "a second layer": "mix.weight=5,4 mix.bias=5",
    "a mixing matrix": "cooccurrence=4,4",
    "prototypes": "prototypes=4,16",
    "prototypes, transposed": "proxies=16,4",
    "a branch that is added": "branch.weight=4,8 branch.bias=4",
    "a distilled head": "head_dist.weight=4,16 head_dist.bias=4",
    "an auxiliary head": "aux_head.weight=4,16 aux_head.bias=4",
    "a bias elsewhere": "output_bias=4",
    "two layers behind": "refine.0.weight=64,4 refine.2.weight=4,64",
    "attention over categories": "refine.in_proj_weight=12,4 refine.in_proj_bias=12",
    "a head of parameters": "decoder.W=3,4 decoder.b=3",
    "a layer with one vector a category": "last.weight=1,3,4 last.bias=3",
    "a bilinear layer": "last.weight=3,4,4 last.bias=3",
    "a low-rank list": "loras.0.weight=2,16 loras.1.weight=4,2",
    "low-rank layers beside": "fc_lora.down.weight=2,16 fc_lora.up.weight=4,2",
    "low-rank layers by letters": "w_As.0.weight=2,16 w_Bs.0.weight=4,2",
    "a change of the weight": "delta_weight=4,16",
    "a flattened copy": "model_ema.classifierweight=4,16 model_ema.classifierbias=4",
    "a graph over the categories": "gcn.0.weight=4,4 gcn.0.bias=4",
}


@pytest.mark.parametrize("kind", BEHIND)
def test_what_may_come_behind_the_layer(tmp_path: Path, kind: str) -> None:
    """Without the model it is not sure then that the layer makes the logits, which is said."""
    state = tensors(f"{BODY} {HEAD} {BEHIND[kind]}")
    text = refused(state, tmp_path)
    assert text.count("may not be the last") == 2
    assert "--model" in text
    assert any(name.split(".")[0] in text for name in tensors(BEHIND[kind]))
    assert read_head(state, key="classifier").n_categories == C


INSIDE = {
    "a gate": "gate=4",
    "a scale": "scale=scalar",
    "an observer": "activation_post_process.min_val=scalar",
    "fake quantisation": "weight_fake_quant.scale=4 weight_fake_quant.zero_point=4,i",
    "a norm's direction": "weight_g=4,1 weight_v=4,16",
    "a pruned bias": "bias_orig=4 bias_mask=4",
    "a parametrised bias": "parametrizations.bias.original=4",
    "a memory": "memory.weight=4,16",
    "a mask": "weight_mask=4,16",
}


@pytest.mark.parametrize("kind", INSIDE)
def test_what_stands_beside_the_weight(tmp_path: Path, kind: str) -> None:
    """A layer that holds more than a weight and a bias is refused, named or not."""
    state = tensors(f"{BODY} {HEAD}") | tensors(INSIDE[kind], "classifier.")
    if "bias" in kind:
        del state["classifier.bias"]
    for place in ({}, {"key": "classifier"}):
        text = refused(state, tmp_path, **place)
        assert "beside it" in text
    assert any(place.problem for place in list_heads(state))


WRAPPED = {
    "a scale": "head.scale=scalar head.fc.weight=4,16 head.fc.bias=4",
    "a temperature for each": "head.1.weight=4,16 head.temperature=4",
    "a LoRA": "head.linear.weight=4,16 head.lora.down.weight head.lora.up.weight=4,2",
    "a norm behind": "head.0.weight=4,16 head.0.bias=4 head.1.weight=4 head.1.bias=4",
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_what_holds_the_layer_may_do_more(tmp_path: Path, kind: str) -> None:
    """A scale that the head's own module holds, or a norm behind the layer, is seen."""
    assert refused(tensors(f"{BODY} {WRAPPED[kind]}"), tmp_path)


HARMLESS: dict[str, dict[str, Any]] = {
    "optimizer": {"optimizer": {"state": {0: tensors("exp_avg=4,16 exp_avg_sq=4,16")}}},
    "named optimizer": {"optim": tensors("classifier.weight.exp_avg=4,16")},
    "loss": tensors("criterion.pos_weight=4 loss_fn.alpha=4 bce_loss.weight=4 pos_weight=4"),
    "counters": tensors("num_batches_tracked=n,scalar epoch=scalar ema.num_updates=scalar"),
    "profiler": tensors("classifier.total_ops=1 classifier.total_params=1"),
    "normalisation of images": tensors("normalize.mean=1,3,1,1 normalize.std=1,3,1,1 mean=3"),
    "metrics": tensors("val_auroc.preds=4 train_metrics.total=4"),
    "tokens": tensors("cls_token=1,1,16 pos_embed=1,5,16 dist_token=1,1,16"),
    "backbone": tensors("conv_head.weight=16,8,1,1 norm_pre.weight=16 neck.gamma=16"),
    "a backbone's own base_layer": tensors("base_layer.0.weight=16,3,4,4 base_layer.1.weight=16"),
    "training head": tensors("AuxLogits.fc.weight=4,8 aux1.fc2.weight=4,8"),
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_what_does_no_harm(tmp_path: Path, kind: str) -> None:
    """State of training, buffers of losses, tokens and auxiliary classifiers hinder nothing."""
    state: dict[str, Any] = {**tensors(f"{BODY} {HEAD}"), **HARMLESS[kind]}
    assert read_head(state).provenance["key"] == "classifier.weight"
    torch.save(state, tmp_path / "m.pt")
    assert read_head(tmp_path / "m.pt").n_features == D


def test_copies_are_none_of_each_others_business() -> None:
    """A moving average is another copy; the one that is named is whole by itself."""
    inner = tensors(f"{BODY} {HEAD}")
    moving = {f"module.{key}": value.clone() for key, value in inner.items()}
    state = {"state_dict": inner, "state_dict_ema": moving}
    assert read_head(state, key="state_dict:classifier").n_categories == C
    both = {f"{lead}.{k}": v.clone() for lead in ("student", "teacher") for k, v in inner.items()}
    with pytest.raises(HeadError, match="2 layers"):
        read_head(both)
    assert read_head(both, key="teacher.classifier").n_categories == C
    both["student.classifier.lora_A"] = torch.ones(2, D)
    assert read_head(both, key="teacher.classifier").n_categories == C
    with pytest.raises(HeadError, match="merge"):
        read_head(both, key="student.classifier")


@pytest.mark.parametrize("lead", ["module.", "_orig_mod.", "module._orig_mod.", "model._orig_mod."])
def test_wrappers_of_the_whole_model_are_seen_through(tmp_path: Path, lead: str) -> None:
    """DDP and torch.compile lead every key; what stands beside is found under them too."""
    state = tensors(f"{BODY} {HEAD}", lead)
    assert read_head(state).n_categories == C
    state |= tensors("classifier.ia3_l=4", lead)
    assert "merge" in refused(state, tmp_path)


def test_tensors_that_hold_no_plain_numbers_are_seen() -> None:
    """Sparse tensors, tensors of torch's packed layers and subclasses are no empty places."""
    state = tensors(f"{BODY} {HEAD}")
    with pytest.raises(HeadError, match=r"'classifier\.delta' stands beside"):
        read_head(state | {"classifier.delta": torch.eye(4, 16).to_sparse()})
    with pytest.raises(HeadError, match="quantised"):
        read_head(state | {"classifier._packed_params._packed_params": (torch.ones(4, 16), None)})
    with pytest.raises(HeadError, match="on the meta device"):
        read_head(state | {"classifier.weight": torch.ones(C, D, device="meta")})

    class Packed(torch.Tensor):
        pass

    with pytest.raises(HeadError, match="Packed"):
        read_head(state | {"classifier.weight": torch.ones(C, D).as_subclass(Packed)})


def test_sparse_tensors_in_a_file_are_seen(tmp_path: Path) -> None:
    """So are they in what torch.save writes."""
    state = tensors(f"{BODY} {HEAD}") | {"classifier.delta": torch.eye(4, 16).to_sparse()}
    torch.save(state, tmp_path / "m.pt")
    with pytest.raises(HeadError, match=r"'classifier\.delta' stands beside"):
        read_head(tmp_path / "m.pt")


def test_square_layers_are_not_told_apart_by_their_names(tmp_path: Path) -> None:
    """With as many categories as features a sorted file does not tell which layer is last."""
    state = tensors("body.0.weight=8,4 head.fc.weight=8,8 head.pre.fc.weight=8,8")
    path = tmp_path / "m.safetensors"
    safetensors.torch.save_file(state, path)
    with pytest.raises(HeadError, match="may not be the last"):
        read_head(path)


def test_families_have_remedies() -> None:
    """Each word of a family has one, and a word of none has none."""
    for key in (
        "lora_A",
        "qweight",
        "weight_g",
        "parametrizations.bias.original",
        "bias_mask",
        "x",
    ):
        assert remedy_for(f"{family_of(key)} (…)")
    assert remedy_for("tied") is None
    assert not harmless("", "logit_scale", (), C)
