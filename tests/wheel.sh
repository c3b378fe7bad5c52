#!/usr/bin/env bash
# wheel.sh PYTHON: build the wheel, install it into an empty environment, and load every bank and the pocket CLIP there.
# An editable install would hide package data that the wheel lacks.
set -eu
python=$(realpath -s "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m build --wheel --outdir "$work" . >"$work/build.log" 2>&1 || { tail -20 "$work/build.log"; exit 1; }
"$python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$work"/*.whl
cd "$work"
"$work/venv/bin/clip-adapter-lite" banks
"$work/venv/bin/python" - <<'PY'
import clip_adapter_lite as cal
from clip_adapter_lite.datasets import fashion_mnist
assert "venv" in cal.__file__, cal.__file__
names = cal.list_banks()
assert len(names) == 12, names
for name in names:
    cal.FeatureBank.load(name)
assert cal.load_backbone("pocket").encode_text(["a photo of a dog."]).shape == (1, 512)
assert len(fashion_mnist().splits["test"]) == 1000
print(f"wheel: {len(names)} banks, the pocket CLIP and the picture excerpt load from an empty environment")
PY
