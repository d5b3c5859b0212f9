#!/usr/bin/env bash
# LyCORIS' algorithm "full" takes every adapted weight out of the model: its state_dict is empty afterwards.
#
# Expected: apply_to() puts adapters beside the layers, as "lora", "loha", "lokr" and the others do: the model's own
#   state_dict stays whole, the adapter's is apart, and torch.save(model.state_dict()) saves the base.
# Happens: with algo="full" the layers lose `weight` and `bias`. The model still runs, with the right outputs;
#   its state_dict has no tensor left, so a checkpoint of it holds nothing, and loading one with strict=False
#   restores nothing, without a word.
# Versions: lycoris_lora 4.1.3 on torch 2.13.0 (CPU), Python 3.11.
# Source: lycoris/modules/full.py, apply_to; the README's create_lycoris example.
# Output seen:
#   before: ['0.bias', '0.weight', '2.bias', '2.weight']
#   lora:   ['0.bias', '0.weight', '2.bias', '2.weight']
#   full:   [] (outputs as before: True)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" "lycoris_lora==4.1.3" "numpy==2.4.6"
cd "$folder"
env/bin/python - <<'PY'
import logging

import torch
from lycoris import LycorisNetwork, create_lycoris
from torch import nn

logging.disable(logging.WARNING)
LycorisNetwork.apply_preset({"target_module": ["Linear"]})


def adapted(algorithm):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))
    rows, whole = torch.randn(2, 64), sorted(model.state_dict())
    with torch.no_grad():
        old = model(rows)
        network = create_lycoris(model, 1.0, linear_dim=4, linear_alpha=2, algo=algorithm)
        network.apply_to()
        new = model(rows)
    return whole, sorted(model.state_dict()), torch.allclose(old, new, atol=1e-5)


whole, low_rank, _ = adapted("lora")
_, full, same = adapted("full")
print("before:", whole)
print("lora:  ", low_rank)
print("full:  ", full, f"(outputs as before: {same})")
assert low_rank == whole
assert same
assert full == [], "changed: the model keeps its own weights"
PY
