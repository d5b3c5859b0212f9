#!/usr/bin/env bash
# Keras exports a model of images of any size to an ONNX file that takes any size, and is right for odd ones only.
#
# Expected: Input((None, None, 3)) and Conv2D(strides=2, padding="same"), exported by model.export(format="onnx"),
#   give the model's own numbers for every size that the file's input declares free; the model had been called on
#   8 x 8 images before.
# Happens: with the torch backend the export runs the model on a sample whose free sides are 1. "same" padding of a
#   strided convolution depends on whether a side is odd or even, and the sample's padding is written into the file:
#   all even sides (224!) are shifted by a pixel, without a word. Shapes are right, numbers are not.
# Versions: keras 3.15.1, torch 2.13.0, onnx 1.23.2, onnxruntime 1.32.0, onnxscript 0.7.2, numpy 2.4.6, Python 3.11.
# Source: https://keras.io/api/models/model_saving_apis/export/ (format "onnx").
# Output seen:
#   the file's input: ['batch', 'dim_0_1', 'dim_0_2', 3]
#   side  7: up to 0.00 apart
#   side  8: up to 1.23 apart
#   side  9: up to 0.00 apart
#   side 32: up to 1.22 apart
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check "keras==3.15.1" "torch==2.13.0" "onnx==1.23.2" \
  "onnxruntime==1.32.0" "onnxscript==0.7.2" "numpy==2.4.6"
cd "$folder"
KERAS_BACKEND=torch env/bin/python -W ignore - <<'PY'
import keras
import numpy as np
import onnxruntime

keras.utils.set_random_seed(0)
images = keras.Input((None, None, 3))
model = keras.Model(images, keras.layers.Conv2D(4, 3, strides=2, padding="same")(images))
model(np.zeros((1, 8, 8, 3), "float32"))
model.export("model.onnx", format="onnx", verbose=False)
session = onnxruntime.InferenceSession("model.onnx")
taken = session.get_inputs()[0]
print("the file's input:", taken.shape)
rng = np.random.default_rng(0)
for side in (7, 8, 9, 32):
    batch = rng.random((1, side, side, 3)).astype("float32")
    (given,) = session.run(None, {taken.name: batch})
    own = keras.ops.convert_to_numpy(model(batch))
    assert given.shape == own.shape
    gap = float(np.abs(given - own).max())
    print(f"side {side:2}: up to {gap:.2f} apart")
    assert (gap < 1e-5) == (side % 2 == 1), "changed: even sides are right now, or odd ones wrong"
PY
