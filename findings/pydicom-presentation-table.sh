#!/usr/bin/env bash
# pydicom's apply_presentation_lut stretches an image by its own darkest and brightest pixel, even through a table that changes nothing.
#
# Expected: an identity table (256 entries, entry k is k) gives back an 8-bit image as it is, and INVERSE of an 8-bit image is
#   255 - pixel, so that two images that differ in one bright mark are shown alike elsewhere (PS3.3, C.11.4 and C.11.6: the
#   input of the table is the range of the bits, not that of one image).
# Happens: with a table the pixels are first scaled from [own minimum, own maximum] to the table's length; with INVERSE the
#   result is own maximum - pixel. One white marker in a corner changes every other pixel.
# Versions: pydicom 3.0.2, numpy 2.4.6, Python 3.11.
# Source: https://pydicom.github.io/pydicom/stable/reference/generated/pydicom.pixels.apply_presentation_lut.html
# Output seen:
#   identity table, plain:        [100, 110, 120] -> [0, 127, 254]
#   identity table, with marker:  [100, 110, 120] -> [0, 16, 32]
#   INVERSE, plain:        [100, 110, 120] -> [20, 10, 0]
#   INVERSE, with marker:  [100, 110, 120] -> [155, 145, 135]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check "pydicom==3.0.2" "numpy==2.4.6"
cd "$folder"
env/bin/python - <<'PY'
import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels import apply_presentation_lut

item = Dataset()
item.LUTDescriptor = [256, 0, 16]
item.LUTData = list(range(256))
item["LUTData"].VR = "US"
table, inverse = Dataset(), Dataset()
table.PresentationLUTSequence = [item]
inverse.PresentationLUTShape = "INVERSE"
plain = np.array([100, 110, 120], dtype="uint8")
marked = np.append(plain, np.uint8(255))
seen = {}
for name, said in (("identity table", table), ("INVERSE", inverse)):
    for kind, image in (("plain", plain), ("with marker", marked)):
        seen[name, kind] = apply_presentation_lut(image, said)[:3].tolist()
        print(f"{name}, {kind + ':':13} {plain.tolist()} -> {seen[name, kind]}")
assert seen["identity table", "plain"] != plain.tolist(), "changed: an identity table changes nothing now"
assert seen["INVERSE", "plain"] != seen["INVERSE", "with marker"], "changed: INVERSE no longer depends on a marker"
PY
