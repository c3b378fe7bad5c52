"""Frozen backbones: the pocket CLIP, and every CLIP that open_clip can load, behind one small class."""
import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize, scaled_dot_product_attention

from . import pocket
from .devices import best_device, in_parts, tower_precision
from .errors import one_line
from .files import file_hash, located, parsed, tensor_hash
from .naming import as_words, prompts
from .values import as_texts

CONTENT = "#sha256="  # in a checkpoint's tag, between its path and the hash of what it held
OWN = ("hf-hub:", "local-dir:")  # open_clip's names of what brings its config, weights and tokenizer


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen CLIP: images and texts in, un-normalised features [·, D] out.

    name, tag: open_clip's architecture and weights (a checkpoint's path with the SHA-256 of what it
    held: `weights_of`). preprocess: PIL image → tensor [3, H, W].
    tokenizer: list of strings → token ids [N, context length]. device, dtype: where and how
    precisely the towers work; features come back on the CPU in float32 all the same (`devices.py`).
    Always in evaluation mode, no parameter requires a gradient.
    """
    name: str
    tag: str
    model: Any
    preprocess: Callable
    tokenizer: Callable
    device: torch.device
    dtype: torch.dtype = torch.float32

    @property
    def logit_scale(self) -> float:
        """1/τ, which the cosines are multiplied with."""
        return float(self.model.logit_scale.exp())

    @property
    def logit_bias(self) -> float | None:
        """What SigLIP adds to its scaled cosines, for its sigmoid; None for towers trained with a
        softmax.
        """
        bias = getattr(self.model, "logit_bias", None)
        return None if bias is None else float(bias)

    @cached_property
    def width(self) -> int:
        """D, the width of the features: what the image tower says, or gives for one black picture."""
        if found := getattr(self.model.visual, "output_dim", None):
            return found
        size = self.model.visual.image_size
        height, width = (size, size) if isinstance(size, int) else size
        return self.encode_images(torch.zeros(1, 3, height, width)).shape[1]

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Token ids [N, context length] of texts, on the backbone's device."""
        return self.tokenizer(list(texts)).to(self.device)

    @torch.no_grad()
    def encode_images(self, batch: Tensor) -> Tensor:
        """Image features [N, D], float32 on the CPU, of preprocessed images [N, 3, H, W]."""
        batch = batch.to(self.device, self.dtype, memory_format=torch.channels_last)
        return self.model.encode_image(batch).float().cpu()

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str], batch: int = 256) -> Tensor:
        """Text features [N, D], float32 on the CPU.

        CLIP's causal tower does not compute the padding after the longest text.
        """
        tokens = self.tokens(texts)
        if _is_causal(getattr(self.model, "text", self.model)):
            encode = lambda part: self.encode_tokens(self.embed(part), part.argmax(1))
        else:
            encode = self.model.encode_text
        return in_parts(lambda part: encode(part).float().cpu(), tokens, batch, "text")[0]

    # ── the text tower from the inside, as prompt learning needs it ───────────────────────────────

    @property
    def text_tower(self):
        """What holds token_embedding, transformer, ln_final …: the model itself (`CLIP`) or its
        `text` part.

        Raises ValueError for towers that are not CLIP's causal transformer (Hugging Face text
        models, CoCa).
        """
        tower = getattr(self.model, "text", self.model)
        if not _is_causal(tower):
            raise ValueError(f"{self.name} has a text tower other than CLIP's causal transformer; "
                             "use a CLIP model such as 'ViT-B-32-quickgelu'.")
        return tower

    def embed(self, tokens: Tensor) -> Tensor:
        """Token embeddings [N, L, width] of token ids [N, L], before positions are added."""
        return self.text_tower.token_embedding(tokens).to(self.text_tower.transformer.get_cast_dtype())

    def encode_tokens(self, embedded: Tensor, end: Tensor, prefix: "Prefix" = (),
                      last: int | None = None) -> Tensor:
        """Text features [N, D] from token embeddings [N, L, width]; gradients flow.

        end: [N], the position of each text's end token in `embedded`, whose state is projected. The
            tower is causal, so whatever follows the last end token is cut off: exact, and a quarter
            of the work for short prompts.
        prefix: what `encode_prefix` gave for the tokens that stand before `embedded` in every text,
            if there are any.
        last: the last of `end`, if it is known: to look it up waits for the device.
        """
        last = int(end.max()) if last is None else last
        tower, x = self.text_tower, embedded[:, :last + 1]
        if prefix:
            x, _ = _transform(tower, x, prefix)
        else:
            x = x + tower.positional_embedding[:x.shape[1]].to(x.dtype)
            x = tower.transformer(x, attn_mask=tower.attn_mask[:x.shape[1], :x.shape[1]])
        x = tower.ln_final(x)[torch.arange(len(x), device=x.device), end]
        projection = tower.text_projection
        return projection(x) if isinstance(projection, torch.nn.Module) else x @ projection

    def encode_prefix(self, embedded: Tensor) -> "Prefix":
        """Every layer's keys and values of the token embeddings [P, width] that many texts begin
        with; gradients flow.

        The tower is causal, so they do not depend on what follows: computed once, they serve every
        class of a prompt.
        """
        return _transform(self.text_tower, embedded[None])[1]

    @property
    def shares_prefixes(self) -> bool:
        """Whether `encode_prefix` knows the layers of this text tower: open_clip's own, not its
        experimental ones.
        """
        return all(type(block).__name__ == "ResidualAttentionBlock"
                   for block in self.text_tower.transformer.resblocks)


Prefix = Sequence[tuple[Tensor, Tensor]]  # a layer's keys and values, each [1, heads, P, width / heads]


def _transform(tower, x: Tensor, prefix: Prefix = ()) -> tuple[Tensor, Prefix]:
    """Hidden states [N, L, width] of embeddings x [N, L, width] that stand behind `prefix`, and
    their keys and values.

    open_clip's ResidualAttentionBlock written out, with its own mask, because it takes no keys from
    outside.
    """
    before = prefix[0][0].shape[2] if prefix else 0
    here = slice(before, before + x.shape[1])
    x = x + tower.positional_embedding[here].to(x.dtype)
    mask = tower.attn_mask[here, :here.stop].to(x.dtype)
    kept = []
    for depth, block in enumerate(tower.transformer.resblocks):
        attention = block.attn
        qkv = linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)
        # [3, N, heads, L, ·]
        query, *own = qkv.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
        kept.append(tuple(own))
        if prefix:
            own = [torch.cat([shared.expand(len(x), -1, -1, -1), mine], dim=2)
                   for shared, mine in zip(prefix[depth], own)]
        seen = scaled_dot_product_attention(query, *own, attn_mask=mask)
        x = x + block.ls_1(attention.out_proj(seen.transpose(1, 2).flatten(2)))
        x = x + block.ls_2(block.mlp(block.ln_2(x)))
    return x, kept


def _is_causal(tower) -> bool:
    """Whether a text tower is CLIP's: causal, and read out at the end token."""
    pool = getattr(tower, "pool_type", getattr(tower, "text_pool_type", None))
    return pool == "argmax" and tower.attn_mask is not None and getattr(tower, "cls_emb", None) is None


def load_backbone(name: str = "pocket", tag: str | None = None,
                  device: str | torch.device = "auto") -> Backbone:
    """The pocket CLIP (offline), or any open_clip architecture with a weights tag or the path of a
    checkpoint, or a whole model by its name: "hf-hub:OWNER/MODEL", "local-dir:FOLDER".

    tag: "openai" by default where open_clip knows it for this name. OpenAI's weights were trained
    with QuickGELU, so they are refused on a name without it, which would give slightly wrong
    features and only a warning. A checkpoint with the SHA-256 that a bank recorded is refused if it
    was changed since.
    Raises ValueError for an unknown name or tag, RuntimeError if the weights cannot be had.
    """
    import open_clip
    device = best_device(device)
    precision = tower_precision(device)
    if name == "pocket":
        if tag not in (None, pocket.tag()):
            raise ValueError(f"The pocket CLIP installed here has weights '{pocket.tag()}', not "
                             f"'{tag}'; a bank made by other weights needs the version of "
                             "clip-adapter-lite that made it.")
        model, tag = pocket.load(precision=precision), pocket.tag()
        source = f"local-dir:{pocket.FOLDER}"
    else:
        model, source, tag = _open_clip(name, tag, precision)
    preprocess = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    model = model.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    return Backbone(name, tag, model, preprocess, _tokenizer(name, source), device,
                    open_clip.get_cast_dtype(precision) or torch.float32)


def weights_of(tag: str) -> str:
    """What the tags of the same weights have in common: the SHA-256 of a checkpoint, wherever it
    lies; else the tag.
    """
    return tag.rpartition(CONTENT)[2]


def agree(one, other) -> bool:
    """Whether two facts about features (a name, a tag, preprocessing …) are the same."""
    return one == other or weights_of(str(one)) == weights_of(str(other))


def _checkpoint(name: str, tag: str, tags: list[str]) -> tuple[str, str]:
    """Where the checkpoint of a tag lies, and its tag with the SHA-256 of what it holds.

    Training goes on and writes another file of the same name, so a path alone tells no weights.
    """
    import open_clip
    place, _, wanted = tag.rpartition(CONTENT) if CONTENT in tag else (tag, "", "")
    path = located(place)
    if not os.path.isfile(path):
        if wanted:
            raise ValueError(f"{name}: the checkpoint {path} is not there any more; put it back, tell "
                             "`clip-adapter-lite predict` where it lies now with --tag, or build the "
                             "bank again.")
        raise ValueError(f"{name} has no weights '{tag}'; open_clip knows "
                         f"{', '.join(tags) or 'none'}, or give the path of a checkpoint.")
    try:  # by its tensors: torch writes the file's name into the file
        found = tensor_hash(open_clip.factory.load_state_dict(str(path), weights_only=True))
    except Exception:  # what cannot be loaded is told of by who loads it
        found = file_hash(path)
    if wanted not in ("", found):
        raise ValueError(f"{name}: the checkpoint {path} holds weights of SHA-256 {found[:12]}… where "
                         f"{wanted[:12]}… was expected, so it was changed since; put back what "
                         "it was, or build the bank again.")
    return str(path), f"{_at_home(path.resolve())}{CONTENT}{found}"


def _at_home(path: Path) -> str:
    """The path from ~ where it lies in the home folder: a bank that is shared names nobody, and the
    same file in another's home is found.
    """
    home = Path.home()
    return f"~/{path.relative_to(home).as_posix()}" if path.is_relative_to(home) else str(path)


def folder_of(name: str) -> str:
    """What the folder of a backbone's banks is called: its name, which for a whole model
    ("hf-hub:OWNER/MODEL") holds signs that no folder's name may hold.
    """
    if not name.startswith(OWN):
        return name
    readable = re.sub(r"[^\w.-]+", "-", name)[-60:]
    return f"{readable}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


@cache
def shared_backbone(name: str, tag: str, device: torch.device) -> Backbone:
    """`load_backbone`, once per process: a study asks for the same one in every run."""
    return load_backbone(name, tag or None, device)


def _open_clip(name: str, tag: str | None, precision: str):
    import open_clip
    if name.startswith(OWN):
        return _whole(name, tag, precision)
    if name not in open_clip.list_models():
        raise ValueError(f"Unknown backbone '{name}'; give 'pocket', 'RN50-quickgelu', "
                         "'RN101-quickgelu', 'ViT-B-32-quickgelu', 'ViT-B-16-quickgelu', a name from "
                         "open_clip.list_models(), hf-hub:OWNER/MODEL or local-dir:FOLDER.")
    tags = open_clip.list_pretrained_tags_by_model(name)
    tag = tag and str(tag)  # a path may be a Path
    tag = tag or ("openai" if "openai" in tags else None)
    if tag is None:
        raise ValueError(f"{name} has several sets of weights; name one with --tag (tag=…): "
                         f"{', '.join(tags) or 'none known'}, or the path of a checkpoint.")
    if tag == "openai" and not name.endswith("quickgelu"):
        raise ValueError(f"OpenAI's weights need QuickGELU, which '{name}' does not have; "
                         f"use '{name}-quickgelu'.")
    weights = tag
    if tag not in tags:
        weights, tag = _checkpoint(name, tag, tags)
    do = DOWNLOADED if weights == tag else "give a whole checkpoint of that architecture"
    return _created(name, weights, precision, f"The weights '{weights}' of {name}", do), name, tag


def _tokenizer(name: str, source: str):
    """open_clip's tokenizer; SigLIP's and those of Hugging Face text towers are fetched from the hub
    by transformers. Raises RuntimeError, one sentence.
    """
    import logging

    import open_clip
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        return open_clip.get_tokenizer(source)
    except Exception as error:  # the hub's, transformers' and sentencepiece's have several types
        raise RuntimeError(f"The tokenizer of {name} could not be loaded "
                           f"({one_line(error)[:300]}); {_way_out(error)}.") from error
    finally:
        logging.disable(before)


def _way_out(error: BaseException, otherwise: str = "") -> str:
    """What to do about a model that cannot be loaded."""
    words = f"{type(error).__name__} {error}".lower()
    if "transformers" in words or "sentencepiece" in words or isinstance(error, ImportError):
        return "it needs packages of its own: run `pip install transformers sentencepiece`"
    return otherwise or DOWNLOADED.replace("they are", "it is")


DOWNLOADED = ("they are downloaded once, so connect to the network for that, or use backbone "
              "'pocket', which works offline")


def _created(name: str, weights: str | None, precision: str, what: str, do: str):
    """open_clip's model. Raises RuntimeError, `what` could not be loaded and what to `do`."""
    import logging

    import open_clip
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)  # without a network the hub logs each of its tries, twice
    try:
        return open_clip.create_model(name, pretrained=weights, precision=precision,
                                      weights_only=True)
    except Exception as error:  # open_clip wraps network failures in several types
        raise RuntimeError(f"{what} could not be loaded ({one_line(error)[:300]}); "
                           f"{_way_out(error, do)}.") from error
    finally:
        logging.disable(before)


def _whole(name: str, tag: str | None, precision: str):
    """A model that brings its own weights; its tag is the SHA-256 of them in half precision, which
    is the same for every precision that the towers work in.
    """
    do = DOWNLOADED if name.startswith("hf-hub:") else (
        "give a folder that holds open_clip_config.json and the weights")
    model = _created(name, None, precision, f"The weights of {name}", do)
    found = CONTENT + tensor_hash({key: value.half() if value.is_floating_point() else value
                                   for key, value in model.state_dict().items()})
    if tag not in (None, found):
        raise ValueError(f"{name} holds weights of SHA-256 {weights_of(found)[:12]}… where "
                         f"{weights_of(tag)[:12]}… was expected, so it was changed since; put back "
                         "what it was, or build the bank again.")
    return model, name, found


@torch.no_grad()
def classifier_weights(backbone: Backbone, classnames: Sequence[str],
                       templates: Sequence[str] = ("a photo of a {}.",), *,
                       normalize_each: bool = True,
                       descriptions: Mapping[str, Sequence[str]] | None = None) -> Tensor:
    """Zero-shot classifier weights W [C, D], unit length, on the CPU: text features averaged over
    the templates.

    Underscores in class names are read as spaces. One name or one template may be given alone.
    normalize_each: bring every template's feature to unit length before averaging, as CLIP's own
    ensembles do; False averages the raw features.
    descriptions: {class name: sentences} that are averaged along with the templates, a sentence
    like a template (CuPL, arXiv 2209.03320); a class may have none.
    Raises ValueError for no or blank names and templates, and for a template without {}.
    """
    classnames, templates = as_texts(classnames, "classnames"), as_texts(templates, "templates")
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"The template '{template}' has no {{}} for the class name; write for "
                             "example 'a photo of a {}.'.")
    features = backbone.encode_text([text for template in templates
                                     for text in prompts(classnames, template)])
    features = features.reshape(len(templates), len(classnames), -1)  # [templates, C, D]
    unit = partial(normalize, dim=-1) if normalize_each else (lambda rows: rows)
    features = unit(features)
    if not descriptions:
        return normalize(features.mean(0), dim=-1)
    sums, counts = features.sum(0), torch.full((len(classnames), 1), float(len(templates)))
    for row, name in enumerate(classnames):
        if sentences := list(descriptions.get(name, ())):
            sums[row] += unit(backbone.encode_text(sentences)).sum(0)
            counts[row] += len(sentences)
    return normalize(sums / counts, dim=-1)


def read_descriptions(path: str | Path, classnames: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The sentences of a JSON file {"class name": ["a sentence", …], …}, by class; underscores in
    names are spaces. A class may be left out.

    Raises ValueError, one sentence, for a file of another form, and a name that is no class.
    """
    path = located(path)
    try:
        given = parsed(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({one_line(error)}); write {{\"class name\": [\"a "
                         "sentence\", …], …}.") from error
    fine = isinstance(given, dict) and all(
        isinstance(texts, list) and texts and all(isinstance(text, str) and text.strip()
                                                  for text in texts) for texts in given.values())
    if not fine or not given:
        raise ValueError(f"{path} must hold {{\"class name\": [\"a sentence\", …], …}}, one sentence "
                         "at least for each class that it names.")
    known = {as_words(name): name for name in classnames}
    if unknown := [name for name in given if as_words(name) not in known]:
        raise ValueError(f"{path} describes '{unknown[0]}', which is no class here (there: "
                         f"{', '.join(list(known)[:5])}{' …' if len(known) > 5 else ''}); name "
                         "classes as the bank does.")
    return {known[as_words(name)]: tuple(texts) for name, texts in given.items()}
