"""Many pictures to a table, resumable; descriptions of classes; a classifier as a program of torch's own."""
import csv
import json

import numpy
import pytest
import torch
from conftest import expect_refusal, tiny_backbone
from PIL import Image
from torch.nn.functional import normalize

import clip_adapter_lite as cal
from clip_adapter_lite import predictions
from clip_adapter_lite.backbones import read_descriptions
from clip_adapter_lite.inference import zero_shot
from clip_adapter_lite.predictions import gathered, predict_files


@pytest.fixture(scope="module")
def pocket():
    return cal.load_backbone("pocket", device="cpu")


@pytest.fixture(scope="module")
def classifier(pocket):
    names = ("red", "green", "blue")
    return zero_shot(cal.classifier_weights(pocket, names), names, pocket)


@pytest.fixture
def folder(tmp_path):
    """Six pictures in two folders, and a note beside them."""
    for i in range(6):
        place = tmp_path / "mine" / ("a" if i < 3 else "b, c") / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 30), (40 * i, 255 - 40 * i, 90)).save(place)
    (tmp_path / "mine" / "note.txt").write_text("no picture")
    return tmp_path / "mine"


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_paths_folders_and_patterns(folder):
    every = gathered(folder)
    assert [path.name for path in every] == [f"{i}.png" for i in range(6)]
    assert gathered([folder / "a", str(folder / "b*" / "4.*")]) == [*every[:3], every[4]]
    assert gathered(str(folder / "**" / "*")) == every
    (folder / "empty").mkdir()
    with expect_refusal("empty holds no pictures", FileNotFoundError):
        gathered(folder / "empty")
    with expect_refusal("No such picture", FileNotFoundError):
        gathered([folder / "no*.png"])


def test_a_table_holds_what_predict_gives(classifier, pocket, folder, tmp_path):
    out, many, unreadable = predict_files(classifier, pocket, folder, tmp_path / "t.csv", top=2, batch=4, progress=False)
    assert (many, unreadable) == (6, []) and not list(tmp_path.glob("*.part"))
    for row, path in zip(rows_of(out), gathered(folder), strict=True):
        (answer,) = cal.predict(classifier, pocket, path, top=2)
        assert row["file"] == str(path) and [row["class_1"], row["class_2"]] == [name for name, _ in answer]
        assert float(row["probability_1"]) == pytest.approx(answer[0][1], rel=1e-4)
    assert list(rows_of(out)[0]) == ["file", "class_1", "probability_1", "class_2", "probability_2"]
    with expect_refusal("is there already and stays as it is", FileExistsError):
        predict_files(classifier, pocket, folder, out)
    with expect_refusal("written as .csv or .jsonl", ValueError):
        predict_files(classifier, pocket, folder, tmp_path / "t.txt")


def test_one_picture_however_it_comes(classifier, pocket, folder):
    path = gathered(folder)[0]
    with Image.open(path) as file:
        picture = file.convert("RGB")
    ways = [str(path), path, picture, numpy.asarray(picture), [path]]
    answers = [cal.predict(classifier, pocket, way) for way in ways]
    assert all(answer == answers[0] for answer in answers) and not answers[0][0].rejected and answers[0][0].names is None


def test_a_stopped_run_goes_on(classifier, pocket, folder, tmp_path, monkeypatch):
    whole, *_ = predict_files(classifier, pocket, folder, tmp_path / "whole.csv", batch=2, progress=False)
    real, seen, out = predictions.answers, [], tmp_path / "t.csv"

    def stopping(*given, **options):
        for batch, found in enumerate(real(*given, **options)):
            if batch == 2:
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr(predictions, "answers", stopping)
    with pytest.raises(KeyboardInterrupt):
        predict_files(classifier, pocket, folder, out, batch=2, progress=False)
    part = tmp_path / "t.csv.part"
    assert len(part.read_text().splitlines()) == 1 + 4 and not out.exists()
    part.write_text(part.read_text() + '{"file": "cut o')  # as a kill leaves it
    Image.new("RGB", (25, 30), (1, 2, 3)).save(gathered(folder)[1])  # and a picture changed meanwhile

    def counting(classifier, backbone, files, *rest, **options):
        seen.extend(files)
        return real(classifier, backbone, files, *rest, **options)

    monkeypatch.setattr(predictions, "answers", counting)
    predict_files(classifier, pocket, folder, out, batch=2, progress=False)
    assert [path.name for path in seen] == ["1.png", "4.png", "5.png"] and not part.exists()
    # other batches, other last bits
    near = [float(a["probability_1"]) == pytest.approx(float(b["probability_1"]), rel=1e-4)
            for a, b in zip(rows_of(out), rows_of(whole), strict=True)]
    assert near == [True, False, True, True, True, True]


def test_other_settings_begin_anew(classifier, pocket, folder, tmp_path):
    out, part = tmp_path / "t.csv", tmp_path / "t.csv.part"
    (folder / "a" / "bad.png").write_text("no picture")
    for top in (1, 2):
        with expect_refusal("bad.png; mend or remove", OSError):
            predict_files(classifier, pocket, folder, out, top=top, progress=False)
        assert json.loads(part.read_text().splitlines()[0])["top"] == top and not out.exists()
        assert len(json.loads(part.read_text().splitlines()[1])["top"]) == top
    _, many, left_out = predict_files(classifier, pocket, folder, out, skip_unreadable=True, progress=False)
    assert many == 6 and len(left_out) == 1 and "bad.png is not a readable picture" in left_out[0]


def test_rejections_and_sets_are_in_the_table(classifier, pocket, folder, tmp_path):
    from dataclasses import replace

    from clip_adapter_lite.calibration import Calibration
    features = predictions.predictions_of(classifier, torch.eye(3, 512), 1)
    assert features[0].names is None
    sure = replace(classifier, calibration=Calibration(
        threshold=1e9, false_reject=0.1, coverage=0.9, limits=torch.tensor([0.0, 2.0, 0.0], dtype=torch.float64)))
    out, *_ = predict_files(sure, pocket, folder, tmp_path / "t.jsonl", top=1, progress=False)
    for line in out.read_text().splitlines():
        row = json.loads(line)
        assert row["none_of_these"] is True and sorted(row["set"]) == ["blue", "red"] and len(row["top"]) == 1
    table, *_ = predict_files(sure, pocket, folder, tmp_path / "t.csv", top=1, progress=False)
    assert rows_of(table)[0]["none_of_these"] == "true"


# ── descriptions ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_descriptions_are_averaged_along_with_templates(tmp_path):
    backbone, file = tiny_backbone(), tmp_path / "d.json"
    file.write_text(json.dumps({"tabby cat": ["it has whiskers", "it purrs"]}))
    names, template = ("tabby_cat", "dog"), "a photo of a {}."
    found = cal.classifier_weights(backbone, names, [template], descriptions=read_descriptions(file, names))
    unit = lambda text: normalize(backbone.encode_text([text]), dim=-1)[0]
    texts = "a photo of a tabby cat.", "it has whiskers", "it purrs"
    assert torch.allclose(found[0], normalize(sum(map(unit, texts)) / 3, dim=-1), atol=1e-5)
    assert torch.allclose(found[1], unit("a photo of a dog."), atol=1e-5)


@pytest.mark.parametrize("text, fragment", [("{", "is not JSON"), ('["a"]', "must hold"), ('{"cat": "one"}', "must hold"),
                                            ('{"cat": []}', "must hold"), ('{"cow": ["moo"]}', "describes 'cow'")])
def test_descriptions_of_another_form_are_refused(tmp_path, text, fragment):
    (tmp_path / "d.json").write_text(text)
    with expect_refusal(fragment, ValueError):
        read_descriptions(tmp_path / "d.json", ("cat", "dog"))


# ── export ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_exported_program_gives_the_same(toy_bank, tmp_path):
    bank, held_out = toy_bank(val=40, noise=3.0).hold_out()
    episode = bank.episode(4)
    fitted = cal.calibrate(cal.CLIPAdapter(steps=3).fit(episode), held_out, false_reject=0.1)
    done = cal.export_classifier(fitted, tmp_path / "c.pt2")
    files = {"about.json": ""}
    program = torch.export.load(done.path, extra_files=files).module()
    for rows in (1, 7):
        x = episode.test.view()[:rows]
        logits, chances = program(x)
        assert torch.allclose(logits, fitted.logits(x), atol=1e-5)
        assert torch.allclose(chances, fitted.probabilities(x), atol=1e-5)
    about = json.loads(files["about.json"])
    assert about["classnames"] == list(bank.classnames) and about["threshold"] == fitted.calibration.threshold
    (tmp_path / "mine.pt2").write_text("mine")
    with expect_refusal("is no exported classifier", FileExistsError):
        cal.export_classifier(fitted, tmp_path / "mine.pt2")
    with expect_refusal("tip-adapter cannot be exported", ValueError):
        cal.export_classifier(cal.TipAdapter().fit(episode), tmp_path / "t.pt2")
    assert not (tmp_path / "t.pt2").exists()
