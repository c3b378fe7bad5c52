"""What the tests share: a quiet environment, small synthetic banks, and what a good refusal looks like."""
import shutil
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from clip_adapter_lite import Backbone, BankError, FeatureBank, Split


def make_bank(classes: int = 5, width: int = 16, *, train=8, val=4, test=6, noise: float = 0.5, seed: int = 0,
              logit_scale: float = 20.0, views: int | None = None, **fields) -> FeatureBank:
    """A bank of Gaussian clouds, one around each class's text feature.

    train, val, test: images a class, one number or one for each class. They are dealt out in turns (0, 1, 2, 0, 1 …), so
    that a row's index is not its place within its class. views: shape [V, N, D] for train. fields: FeatureBank's own.
    """
    generator = torch.Generator().manual_seed(seed)
    centres = normalize(torch.randn(classes, width, generator=generator), dim=-1)
    splits = {}
    for name, counts in (("train", train), ("val", val), ("test", test)):
        counts = [counts] * classes if isinstance(counts, int) else counts
        dealt = [c for turn in range(max(counts)) for c in range(classes) if turn < counts[c]]
        labels = torch.tensor(dealt, dtype=torch.long)
        shape = (views, len(labels), width) if views and name == "train" else (len(labels), width)
        cloud = torch.randn(shape, generator=generator) * noise / width ** 0.5
        splits[name] = Split(3 * (centres[labels] + cloud), labels)  # times 3: banks hold un-normalised features
    return FeatureBank(**dict(dataset="toy", backbone="none", classnames=tuple(f"class {c}" for c in range(classes)),
                              text_features=centres, logit_scale=logit_scale, splits=splits) | fields)


TINY_VISION = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
TINY_TEXT = {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}


def random_backbone(name: str, **options) -> Backbone:
    """A frozen open_clip model with random weights; its image tower is of no interest here and as small as can be."""
    import open_clip
    torch.manual_seed(0)
    model = open_clip.create_model(name, pretrained=None, vision_cfg=TINY_VISION, **options).eval().requires_grad_(False)
    getattr(model, "text", model).token_embedding.weight.mul_(20)  # so that texts differ; open_clip starts very small
    context = options.get("text_cfg", {}).get("context_length", 77)
    return Backbone(name, "random", model, None, open_clip.SimpleTokenizer(context_length=context), torch.device("cpu"))


def tiny_backbone(**options) -> Backbone:
    """A backbone with a text tower of two narrow layers."""
    return random_backbone("ViT-B-32", embed_dim=24, text_cfg=TINY_TEXT, **options)


@contextmanager
def expect_refusal(fragment: str, error: type[Exception] = BankError):
    """The block raises `error`, whose message is one sentence on one line and holds `fragment`."""
    with pytest.raises(error) as caught:
        yield
    message = str(caught.value)
    assert fragment in message
    assert message.endswith(".") and ". " not in message and "\n" not in message, message


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Toy matrices gain nothing from threads, and on a busy machine they wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def cuda():
    """Started where there is one, before a test hides it: CUDA looks for its cards once."""
    if torch.cuda.is_available():
        torch.cuda.init()


@pytest.fixture(autouse=True)
def on_the_cpu(request, monkeypatch):
    """"auto" is the CPU on every machine, in processes that a test starts too, except for the tests of CUDA itself: tests
    compare bits, and eight workers would share one card."""
    if request.node.get_closest_marker("gpu"):
        return
    for device in (torch.cuda, torch.backends.mps):
        if device.is_available():
            monkeypatch.setattr(device, "is_available", lru_cache(lambda: False))  # whose __wrapped__ torch asks for
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache folder, so that no test sees or touches the user's banks."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("CLIP_ADAPTER_LITE_CACHE", str(folder))
    return folder


@pytest.fixture
def place(tmp_path):
    """An empty folder for every example: `place()`."""
    def made() -> Path:
        shutil.rmtree(tmp_path / "place", ignore_errors=True)
        (tmp_path / "place").mkdir()
        return tmp_path / "place"
    return made


@pytest.fixture
def toy_bank():
    """Makes banks: `toy_bank(classes=3, train=[5, 2, 5])`; see `make_bank`."""
    return make_bank


@pytest.fixture
def expect_refused():
    """`with expect_refused("has 2 training images"): …` checks a BankError and its wording; see `expect_refusal`."""
    return expect_refusal
