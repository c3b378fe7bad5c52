"""CoOp: learn the words around the class name by gradient descent through the text encoder (Zhou et
al., 2022).

The text prompt of class i is [start] v_1 … v_M [name i] . [end]; the M context vectors v are
learned in token-embedding space, images and text encoder stay frozen:
p = softmax(cos(f, W(v)) / τ).
"""
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from ..backbones import Backbone
from ..devices import ON_THE_CPU
from ..errors import one_line
from ..naming import prompts
from ..training import cosine, train
from .base import Head, Method, cosine_logits

PAPER_EPOCHS = {1: 50, 2: 100, 4: 100, 8: 200, 16: 200}  # by shots; CoOp, section 4.1
CLASSES = 128  # prompts at a time: about 1 GB of activations through the text tower of ViT-B/32
KEPT = 64  # bytes that a step keeps for each number of a hidden state and layer: half precision,
# norms in single (a sketch of 1000 classes with ViT-B/16's text tower took 60)
PAPER_BATCH, PAPER_RATE, PAPER_WARM_UP = 32, 2e-3, 1e-5


class Prompts(nn.Module):
    """Learned prompts of C classes: `context` is [M, width] (unified) or [C, M, width]
    (class-specific).

    Raises ValueError, naming the class, if a prompt does not fit the text encoder's context length.
    """

    def __init__(self, backbone: Backbone, classnames, *, length: int, position: str,
                 class_specific: bool, words: str | None, most: int | None = None):
        super().__init__()
        self.backbone = backbone
        rows = backbone.tokens(prompts(classnames, "{}."))  # [C, context length]
        end, longest = rows.argmax(1), backbone.text_tower.positional_embedding.shape[0]
        worst = int(end.argmax())
        if int(end[worst]) + 1 + length > longest:
            raise ValueError(f"The prompt of class '{classnames[worst]}' with {length} context "
                             f"vectors is {int(end[worst]) + 1 + length} tokens long, over the "
                             f"{longest} of {backbone.name}; use fewer context vectors or a "
                             "shorter name.")
        kept = int(end.max()) + 1
        # [C, kept, width]
        self.register_buffer("static", backbone.embed(rows[:, :kept]), persistent=False)
        self.register_buffer("end", end + length, persistent=False)
        self.register_buffer("order",
                             torch.stack([_order(int(e), kept, length, position)
                                          for e in end]).to(rows.device), persistent=False)
        self.shared = position == "end" and not class_specific and backbone.shares_prefixes
        fresh = kept - 1 if self.shared else kept + length  # tokens of a class
        self.most = most or classes_at_once(backbone, fresh)  # classes
        # chunks of similar length and the last end of each, which a step then need not look up
        by_length = self.end.argsort(stable=True)
        self.chunks = [(rows, int(self.end[rows].max())) for rows in by_length.split(self.most)]
        self.register_buffer("back", by_length.argsort(), persistent=False)
        self.context = nn.Parameter(self._start(backbone,
                                                len(classnames) if class_specific else None, length,
                                                words))

    @staticmethod
    def _start(backbone, classes: int | None, length: int, words: str | None) -> Tensor:
        width = backbone.text_tower.positional_embedding.shape[1]
        context = torch.randn(*([] if classes is None else [classes]), length, width) * 0.02
        context = context.to(backbone.device)
        if words:
            tokens = backbone.tokens([words])
            count = int(tokens.argmax()) - 1
            if count > length:
                raise ValueError(f"'{words}' is {count} tokens but there are only {length} context "
                                 "vectors; give fewer words, or words=None for a random start.")
            context[..., length - count:, :] = backbone.embed(tokens)[0, 1:1 + count].float()
        return context

    def embedded(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """Token embeddings [N, L, width] of all classes or of `rows`, with the context in its place."""
        static, context = self.static[rows], self.context.to(self.static.dtype)
        context = context[rows] if context.ndim == 3 else context.expand(len(static), -1, -1)
        pieces = torch.cat([static, context], dim=1)
        return pieces.gather(1, self.order[rows, :, None].expand(-1, -1, pieces.shape[-1]))

    def forward(self) -> Tensor:
        """Classifier weights W(v) [C, D].

        A unified context in front of the name makes [start] v_1 … v_M the same in every prompt:
        only what follows runs once a class. More than `most` classes go in chunks of similar length,
        whose activations are computed again for the gradient instead of being kept.
        """
        if self.shared:
            shared = torch.cat([self.static[0, :1], self.context.to(self.static.dtype)])
            prefix = self.backbone.encode_prefix(shared)
            before = 1 + len(self.context)
            encode = lambda rows, last: self.backbone.encode_tokens(
                self.static[rows, 1:], self.end[rows] - before, prefix, last - before)
        else:
            encode = lambda rows, last: self.backbone.encode_tokens(
                self.embedded(rows), self.end[rows], last=last)
        if len(self.chunks) == 1:
            return encode(slice(None), self.chunks[0][1])
        weights = torch.cat([checkpoint(encode, *chunk, use_reentrant=False,
                                        preserve_rng_state=False)  # there is no chance in a tower
                             for chunk in self.chunks])
        return weights[self.back]


def classes_at_once(backbone: Backbone, tokens: int) -> int:
    """How many prompts go through the text tower at a time: on CUDA as many as half of the free
    memory keeps so many tokens of, elsewhere CLASSES.
    """
    if backbone.device.type != "cuda":
        return CLASSES
    free = torch.cuda.mem_get_info(backbone.device)[0]
    # what torch holds and does not use
    free += torch.cuda.memory_reserved(backbone.device) - torch.cuda.memory_allocated(backbone.device)
    tower = backbone.text_tower
    each = KEPT * tokens * tower.positional_embedding.shape[1] * len(tower.transformer.resblocks)
    return max(1, free // 2 // each)


def _order(end: int, kept: int, length: int, position: str) -> Tensor:
    """Which piece stands where: 0 … kept - 1 are the tokens of "[start] name . [end]", then come
    the context vectors.
    """
    name = end - 2  # the tokens of the class name; the full stop and the end token follow
    context = list(range(kept, kept + length))
    before, after = {"end": (context, []), "front": ([], context),
                     "middle": (context[:length // 2], context[length // 2:])}[position]
    return torch.tensor([0, *before, *range(1, 1 + name), *after, *range(1 + name, kept)])


class CoOpHead(Head):
    """cos(f, W(v)) / τ with the learned prompts' weights [C, D], and the context they came from."""

    def __init__(self, weights: Tensor, context: Tensor, *, logit_scale: float):
        super().__init__()
        self.options = {"logit_scale": logit_scale}
        self.register_buffer("weights", weights)
        self.register_buffer("context", context)
        self.logit_scale, self.width = logit_scale, weights.shape[1]

    def forward(self, features: Tensor) -> Tensor:
        return cosine_logits(features, self.weights, self.logit_scale)


@dataclass(frozen=True, kw_only=True)
class CoOp(Method):
    """CoOp with M learned context vectors.

    context_length: M (CoOp uses 4 and 16). class_specific: one context per class instead of a
        unified one.
    position: where the class name stands, "end" (CoOp's default), "middle" or "front".
    words: what the context starts from, its last vectors if there are more than words; None for
        CoOp's random start (normal, deviation 0.02).
    recipe: "light" is ours, `steps` full-batch AdamW steps; "paper" is SGD at 2e-3 on minibatches
        of 32 for 50, 100 or 200 epochs by shots, cosine schedule after one warm-up epoch at 1e-5,
        and ignores steps and rate. The episode's backbone is loaded, since prompts go through its
        text encoder.
    """
    name = "coop"
    head_class = CoOpHead
    context_length: int = 4
    class_specific: bool = False
    position: str = "end"
    words: str | None = "a photo of a"
    recipe: str = "light"
    steps: int = 100
    rate: float = 3e-2

    def check_settings(self):
        for setting, allowed in (("position", ("end", "middle", "front")),
                                 ("recipe", ("light", "paper"))):
            if getattr(self, setting) not in allowed:
                raise ValueError(f"{setting} must be one of {', '.join(allowed)}; got "
                                 f"{getattr(self, setting)!r}.")
        if self.context_length < 1:
            raise ValueError(f"context_length must be at least 1; got {self.context_length}.")

    def _prompts(self, episode, words: str | None, most: int | None = None) -> Prompts:
        return Prompts(episode.backbone, episode.classnames, length=self.context_length, most=most,
                       position=self.position, class_specific=self.class_specific, words=words)

    def reworded(self, head, episode):
        if self.class_specific:
            return super().reworded(head, episode)
        learned = self._prompts(episode, words=None)
        with torch.no_grad():
            learned.context.copy_(head.context)
            return CoOpHead(learned().to(episode.text_features), head.context,
                            logit_scale=head.logit_scale)

    def _fit(self, episode):
        """Out of memory, it starts again with half as many classes at a time, from the same draws."""
        most = None
        while True:
            torch.manual_seed(episode.seed)
            learned = self._prompts(episode, self.words, most)
            try:
                return self._learn(learned, episode)
            except torch.cuda.OutOfMemoryError as error:
                most = min(learned.most, len(episode.classnames)) // 2
                if not most:
                    raise RuntimeError(f"{learned.context.device} has too little free memory for the "
                                       f"prompt of one class ({one_line(error)}); stop what else uses "
                                       f"it, or {ON_THE_CPU}.") from error
            del learned
            torch.cuda.empty_cache()

    def _learn(self, learned: Prompts, episode) -> tuple[CoOpHead, dict]:
        """Train the prompts' context; what `_fit` returns."""
        support = episode.support

        def loss(features: Tensor, labels: Tensor) -> Tensor:
            return cross_entropy(cosine_logits(features, learned().to(features.dtype),
                                               episode.logit_scale), labels)

        if self.recipe == "light":
            steps = self.steps
            train([learned.context], lambda step: loss(support.view(step), support.labels),
                  steps=steps, rate=self.rate, still=support.views == 1)
        else:
            per_epoch = -(-len(support) // PAPER_BATCH)
            epochs = PAPER_EPOCHS[min(PAPER_EPOCHS, key=lambda shots: abs(shots - episode.shots))]
            steps, batches = epochs * per_epoch, []

            def minibatch(step: int) -> Tensor:
                if not batches:
                    batches.extend(torch.randperm(len(support)).split(PAPER_BATCH))
                rows = batches.pop()
                return loss(support.view(step // per_epoch)[rows], support.labels[rows])

            train([learned.context], minibatch, steps=steps, rate=PAPER_RATE, optimizer="sgd",
                  weight_decay=5e-4,
                  # moves once an epoch
                  schedule=lambda step: (cosine((step // per_epoch - 1) / epochs) if step >= per_epoch
                                         else PAPER_WARM_UP / PAPER_RATE))
        with torch.no_grad():
            head = CoOpHead(learned().to(support.features.dtype), learned.context.detach().clone(),
                            logit_scale=episode.logit_scale)
        return head, {"steps": steps, "parameters": learned.context.numel()}
