"""A CLIP whose text tower is one of Hugging Face, with random weights: a bank, fits and predictions; CoOp alone refuses."""
import copy
import json

import numpy
import pytest
import torch
from conftest import TINY_VISION, expect_refusal
from PIL import Image
from safetensors.torch import save_file

import clip_adapter_lite as cal
from clip_adapter_lite.datasets import load_dataset

transformers = pytest.importorskip("transformers", reason="Hugging Face text towers need transformers, in the extra [dev]")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "photo", "of", "red", "green", "."]
COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A whole model as `local-dir:` names it: BERT's architecture in one narrow layer, and a tokenizer of ten words."""
    import open_clip
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    folder = tmp_path_factory.mktemp("hf") / "model"
    folder.mkdir()
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]",
                                                             special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
                                         sep_token="[SEP]").save_pretrained(folder)
    transformers.BertConfig(vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                            intermediate_size=16, max_position_embeddings=16, pad_token_id=0).save_pretrained(folder)
    config = {"embed_dim": 24, "vision_cfg": TINY_VISION, "text_cfg": {
        "hf_model_name": str(folder), "hf_tokenizer_name": str(folder), "hf_model_pretrained": False,
        "hf_proj_type": "linear", "hf_pooler_type": "mean_pooler", "context_length": 16}}
    torch.manual_seed(0)
    state = open_clip.CustomTextCLIP(**copy.deepcopy(config)).state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    return folder


@pytest.fixture
def bank(folder, tmp_path):
    draw = numpy.random.default_rng(0)
    for name, colour in COLOURS.items():
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(12):
            pixels = numpy.clip(draw.normal(colour, 25, (36, 40, 3)), 0, 255).astype("uint8")
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{number:02}.png")
    return cal.build_bank(load_dataset("folder", tmp_path / "pictures"), f"local-dir:{folder}", out=tmp_path / "bank",
                          progress=False)


def test_texts_are_the_mean_over_the_words_of_what_transformers_itself_computes(folder):
    backbone = cal.load_backbone(f"local-dir:{folder}", device="cpu")
    from safetensors.torch import load_file
    state = load_file(folder / "open_clip_model.safetensors")
    tower = transformers.BertModel(transformers.BertConfig.from_pretrained(folder), add_pooling_layer=False).eval()
    tower.load_state_dict({name.removeprefix("text.transformer."): value for name, value in state.items()
                           if name.startswith("text.transformer.")}, strict=False)
    for text, ids in (("a photo of a red.", [2, 4, 5, 6, 4, 7, 9, 3]), ("green dog", [2, 8, 1, 3])):
        assert backbone.tokens([text])[0].tolist() == ids + [0] * (16 - len(ids))
        with torch.no_grad():
            mean = tower(torch.tensor([ids])).last_hidden_state[0].mean(0)
        torch.testing.assert_close(backbone.encode_text([text])[0], state["text.proj.weight"] @ mean, atol=1e-5, rtol=1e-4)


def test_a_bank_is_built_fitted_saved_and_pictures_are_predicted(bank, folder, tmp_path):
    assert bank.text_features.shape == (2, 24) and bank.backbone == f"local-dir:{folder}"
    fitted = cal.CLIPAdapter(alpha=0.8, device="cpu").fit(bank.episode(4))
    again = cal.load_classifier(cal.save_classifier(fitted, tmp_path / "c.safetensors"))
    backbone = cal.load_backbone(bank.backbone, device="cpu")
    pictures = [Image.new("RGB", (50, 50), colour) for colour in COLOURS.values()]
    x = backbone.encode_images(torch.stack([backbone.preprocess(picture) for picture in pictures]))
    for found, row in zip(cal.predict(again, backbone, pictures), fitted.logits(x).softmax(1), strict=True):
        assert dict(found) == pytest.approx(dict(zip(bank.classnames, row.tolist())), abs=1e-4)


def test_coop_alone_refuses_the_tower_in_one_sentence_and_the_other_runs_are_kept(bank, tmp_path):
    with expect_refusal("has a text tower other than CLIP's causal transformer; use a CLIP model", ValueError):
        cal.CoOp(device="cpu").fit(bank.episode(1))
    with pytest.raises(cal.BankError, match="1 of 3 runs could not be done .coop: local-dir.*text tower other than"):
        cal.compare([bank], ["zero-shot", "coop", "clip-adapter(alpha=0.2)"], [1], [1], out=tmp_path / "r.csv")
    assert len((tmp_path / "r.csv").read_text().splitlines()) == 1 + 2
