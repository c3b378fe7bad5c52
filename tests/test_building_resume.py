"""Long builds: killed, out of disk, on damaged pictures, and gone on with: the same tensors, and nothing made twice."""
import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from clip_adapter_lite import BankError, FeatureBank, building, load_backbone
from clip_adapter_lite.banks import build_bank
from clip_adapter_lite.datasets import ImageDataset, load_dataset
from clip_adapter_lite.shards import Shards
from clip_adapter_lite.splits import SPLITS

SIZE, WIDTH = 4, 6
MAP = torch.randn(3 * SIZE * SIZE, WIDTH, generator=torch.Generator().manual_seed(0))
SPLIT_SIZES = {"train": 11, "val": 2, "test": 5}
BATCHES = 3 + 1 + 2  # of four pictures; each batch is a shard here


class Tower:
    """A backbone whose features are a linear map of the pixels; `at` of its batches calls `strike` instead."""
    name, tag, logit_scale, width, device = "fake", "v1", 12.5, WIDTH, torch.device("cpu")
    model = SimpleNamespace(visual=SimpleNamespace(preprocess_cfg={"size": (SIZE, SIZE), "interpolation": "bicubic"}))

    def __init__(self, at: int | None = None, strike=None, tag: str = "v1"):
        self.seen, self.at, self.strike, self.tag = 0, at, strike, tag

    def preprocess(self, picture):
        pixels = np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.NEAREST), dtype=np.float32)
        return torch.from_numpy(pixels).permute(2, 0, 1) / 255

    def encode_images(self, batch):
        if self.at == 0:
            self.strike()
        self.at = None if self.at is None else self.at - 1
        self.seen += len(batch)
        return batch.flatten(1) @ MAP

    def encode_text(self, texts):
        return torch.tensor([[1.0 + text.count(letter) for letter in "abcdef"] for text in texts])


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(building, "SHARD", 1)


@pytest.fixture
def dataset(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    splits = {}
    for seed, (name, many) in enumerate(SPLIT_SIZES.items()):
        rng = np.random.default_rng(seed)
        splits[name] = [(folder / f"{name}-{i}.png", i % 2) for i in range(many)]
        for path, _ in splits[name]:
            Image.fromarray(rng.integers(0, 256, (SIZE + 2, SIZE, 3), dtype=np.uint8)).save(path)
    return ImageDataset(name="toy", classnames=("cab", "bed"), templates=("a {}.",), splits=splits, protocol="as given",
                        source="here")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "deep" / "toy.safetensors"


def build(dataset, out=None, tower=None, **options):
    return build_bank(dataset, tower or Tower(), **dict(out=out, batch=4, progress=False) | options)


def parts(out) -> list[str]:
    return sorted(p.name for p in out.with_name(f"{out.name}.parts").glob("*.safetensors"))


def stop():
    raise KeyboardInterrupt


# ── stopped and gone on with ──────────────────────────────────────────────────────────────────────────────────


def test_shards_are_written_as_they_finish_and_gone_when_the_bank_is_there(dataset, out):
    there = []
    bank = build(dataset, out, Tower(at=5, strike=lambda: there.extend(parts(out))))
    assert there == ["train-00000000.safetensors", "train-00000004.safetensors", "train-00000008.safetensors",
                     "val-00000000.safetensors"][:len(there)] and len(there) >= 2
    assert [p.name for p in out.parent.iterdir()] == ["toy.safetensors"]
    assert FeatureBank.load(out).hash == bank.hash == build(dataset).hash
    assert FeatureBank.load(out).meta == bank.meta


@pytest.mark.parametrize("at", range(BATCHES))
def test_ctrl_c_in_any_batch_loses_at_most_what_was_under_way(dataset, out, at):
    whole = build(dataset)
    with pytest.raises(KeyboardInterrupt):
        build(dataset, out, Tower(at=at, strike=stop))
    assert not out.exists()
    kept = parts(out)
    assert at - 1 <= len(kept) <= at  # the last finished batch may be on its way to the disk
    tower = Tower()
    bank = build(dataset, out, tower)
    assert bank.hash == whole.hash and bank.meta == whole.meta
    done = sum(len(load_and_count(name)) for name in kept)
    assert tower.seen == sum(SPLIT_SIZES.values()) - done
    assert FeatureBank.load(out).hash == whole.hash


def load_and_count(name: str) -> range:
    """The rows of a shard of four pictures, from its name."""
    split, start = name.removesuffix(".safetensors").rsplit("-", 1)
    return range(int(start), min(int(start) + 4, SPLIT_SIZES[split]))


def test_views_too_come_back(dataset, out):
    whole = build(dataset, views=2)
    with pytest.raises(KeyboardInterrupt):
        build(dataset, out, Tower(at=4, strike=stop), views=2)
    tower = Tower()
    assert build(dataset, out, tower, views=2).hash == whole.hash
    assert whole.splits["train"].features.shape == (2, 11, WIDTH) and 0 < tower.seen < 22 + 7


@pytest.mark.parametrize("damage", [lambda raw: raw[:-3], lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]), lambda raw: b""])
def test_a_damaged_shard_is_made_again(dataset, out, damage):
    whole = build(dataset)
    with pytest.raises(KeyboardInterrupt):
        build(dataset, out, Tower(at=4, strike=stop))
    path = out.with_name("toy.safetensors.parts") / "train-00000004.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    tower = Tower()
    assert build(dataset, out, tower).hash == whole.hash
    assert tower.seen == 4 + 2 + 5 or tower.seen == 4 + 5  # the damaged one, and what was not finished


def test_a_picture_that_was_replaced_under_its_name_is_read_again(dataset, out):
    with pytest.raises(KeyboardInterrupt):
        build(dataset, out, Tower(at=5, strike=stop))
    path = dataset.splits["train"][1][0]
    about = path.stat()
    pixels = np.asarray(Image.open(path)).copy()
    pixels[..., 0] ^= 1
    Image.fromarray(pixels).save(path)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    tower = Tower()
    assert build(dataset, out, tower).hash == build(dataset).hash
    assert tower.seen < sum(SPLIT_SIZES.values())  # the other shards are kept


def test_features_that_are_no_numbers_are_not_gone_on_with(dataset, out, expect_refused):
    """A bank cannot hold them, and building it again must not mean the same ones again."""
    class Hot(Tower):
        def encode_images(self, batch):
            return super().encode_images(batch) * (float("inf") if self.seen == 4 else 1)  # the first batch

    with expect_refused("4 feature rows hold NaN or infinity"):
        build(dataset, out, Hot())
    tower = Tower()
    assert build(dataset, out, tower).hash == build(dataset).hash
    assert tower.seen == 4


# ── a real SIGKILL ────────────────────────────────────────────────────────────────────────────────────────────


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def die_writing(name: str, monkeypatch):
    """The process dies in the middle of a write: half of the file is there."""
    from safetensors import torch as writer
    write = writer.save_file

    def half(tensors, path, metadata=None):
        write(tensors, path, metadata=metadata)
        if name in path.name:
            os.truncate(path, path.stat().st_size // 2)
            die()

    monkeypatch.setattr(writer, "save_file", half)


POINTS = {
    "in the first batch": lambda patch: Tower(at=0, strike=die),
    "in the fourth batch": lambda patch: Tower(at=3, strike=die),
    "in the last batch": lambda patch: Tower(at=BATCHES - 1, strike=die),
    "while a shard is written": lambda patch: die_writing("train-00000004", patch),
    "while the bank is written": lambda patch: die_writing("toy.safetensors", patch),
    "while the shards are removed": lambda patch: patch.setattr(Shards, "remove", lambda self: self.finished and die()),
}


@pytest.mark.parametrize("point", POINTS)
def test_a_process_killed_anywhere_is_gone_on_with_to_the_same_bits(dataset, out, point, monkeypatch):
    whole = build(dataset)
    with monkeypatch.context() as patch:
        tower = POINTS[point](patch)
        child = multiprocessing.get_context("fork").Process(target=build, args=(dataset, out, tower))
        child.start()
        child.join(60)
    assert child.exitcode == -signal.SIGKILL
    if out.exists():
        assert point == "while the shards are removed"
        assert FeatureBank.load(out).hash == whole.hash
        return
    before = {name: (out.with_name(f"{out.name}.parts") / name).read_bytes() for name in parts(out)}
    tower = Tower()
    bank = build(dataset, out, tower)
    assert bank.hash == whole.hash and FeatureBank.load(out).meta == whole.meta
    assert tower.seen == sum(SPLIT_SIZES.values()) - sum(len(load_and_count(name)) for name in before)
    assert not out.with_name(f"{out.name}.parts").exists()


@pytest.mark.slow
def test_the_command_line_goes_on_after_a_sigkill(tmp_path, cache):
    """Real pictures of noise through the pocket CLIP, killed once shards have appeared."""
    rng, root = np.random.default_rng(0), tmp_path / "mine"
    for i in range(40):
        path = root / f"class {i % 2}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (170, 200, 3), dtype=np.uint8)).save(path)
    command = [sys.executable, "-m", "clip_adapter_lite.cli", "build", "--dataset", "folder", "--root", str(root),
               "--batch", "1", "--workers", "1"]
    out = cache / "banks/pocket/mine.safetensors"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
                               env=environment)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and len(parts(out)) < 2:
        assert running.poll() is None, "it finished before it could be killed"
        os.sched_yield()
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    kept = {p: p.stat().st_mtime_ns for p in out.with_name("mine.safetensors.parts").glob("*.safetensors")}
    assert len(kept) >= 2 and not out.exists()
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert f"Wrote {out}" in done.stdout and not out.with_name("mine.safetensors.parts").exists()
    again = build_bank(load_dataset("folder", root), load_backbone(device="cpu"), batch=1, progress=False)
    assert FeatureBank.load(out).hash == again.hash


# ── another job ───────────────────────────────────────────────────────────────────────────────────────────────


def other_picture(dataset):
    splits = dataset.splits | {"test": [*dataset.splits["test"][:4], (dataset.splits["val"][0][0], 0)]}
    return ImageDataset(**vars(dataset) | {"splits": splits})


OTHERS = {
    "views": lambda d: (d, dict(views=2)), "preprocessing": lambda d: (d, dict(preprocess="coop")),
    "batch": lambda d: (d, dict(batch=5)), "weights": lambda d: (d, dict(tower=Tower(tag="v2"))),
    "pictures": lambda d: (other_picture(d), {})}


@pytest.mark.parametrize("what", OTHERS)
def test_shards_of_another_build_are_refused_and_kept(dataset, out, what, expect_refused):
    with pytest.raises(KeyboardInterrupt):
        build(dataset, out, Tower(at=4, strike=stop))
    kept = parts(out)
    other, options = OTHERS[what](dataset)
    with expect_refused(f"holds {len(kept)} finished shards of another build (another {what}"):
        build(other, out, **options)
    assert parts(out) == kept and not out.exists()
    bank = build(other, out, force=True, **options)
    assert bank.hash == build(other, **options).hash and not parts(out)


def test_the_seed_matters_only_where_views_are_drawn(dataset, out, expect_refused):
    with pytest.raises(KeyboardInterrupt):
        build(dataset, out, Tower(at=4, strike=stop), seed=1)
    tower = Tower()
    build(dataset, out, tower, seed=2)
    assert tower.seen < sum(SPLIT_SIZES.values())
    out.unlink()
    with pytest.raises(KeyboardInterrupt):
        build(dataset, out, Tower(at=4, strike=stop), seed=1, views=2)
    with expect_refused("(another seed)"):
        build(dataset, out, seed=2, views=2)


def test_a_checkpoint_that_was_trained_on_is_another_job(dataset, out, tmp_path, expect_refused):
    checkpoint = tmp_path / "weights.pt"
    checkpoint.write_bytes(b"one")
    with pytest.raises(KeyboardInterrupt):
        build(dataset, out, Tower(at=4, strike=stop, tag=str(checkpoint)))
    checkpoint.write_bytes(b"two")
    with expect_refused("(another weights)"):
        build(dataset, out, Tower(tag=str(checkpoint)))


def test_other_templates_need_no_picture_again(dataset, out):
    with pytest.raises(KeyboardInterrupt):
        build(dataset, out, Tower(at=5, strike=stop))
    tower = Tower()
    assert build(dataset, out, tower, templates=["bad {}"]).templates == ("bad {}",)
    assert tower.seen <= 5 + 2


def test_pictures_in_memory_are_told_apart_by_their_pixels(dataset, out, expect_refused):
    def in_memory(shift):
        splits = {name: [(Image.new("RGB", (5, 5), (i + shift, 9, 9)), label) for i, (_, label) in enumerate(items)]
                  for name, items in dataset.splits.items()}
        return ImageDataset(**vars(dataset) | {"splits": splits})
    with pytest.raises(KeyboardInterrupt):
        build(in_memory(0), out, Tower(at=4, strike=stop))
    with expect_refused("(another pictures)"):
        build(in_memory(1), out)
    assert build(in_memory(0), out).hash == build(in_memory(0)).hash


def test_leftovers_without_a_shard_are_no_obstacle(dataset, out):
    folder = out.with_name(f"{out.name}.parts")
    folder.mkdir(parents=True)
    (folder / "job.json").write_text("{\"views\": ")
    (folder / "train-00000000.safetensors.77.partial").write_bytes(b"half")
    assert build(dataset, out).hash == build(dataset).hash
    assert not folder.exists()


@pytest.mark.parametrize("name, text", [("notes.txt", "mine"), ("job.json", "{\"views\": 1}"), ("job.json", "mine"),
                                        ("train-00000000.safetensors", "mine")])
def test_a_folder_that_no_build_made_is_refused_and_kept(dataset, out, expect_refused, name, text):
    folder = out.with_name(f"{out.name}.parts")
    folder.mkdir(parents=True)
    (folder / name).write_text(text)
    tower = Tower()
    with expect_refused(f"{folder}, where finished shards go, holds '{name}', which no build put there"):
        build(dataset, out, tower)
    assert tower.seen == 0 and (folder / name).read_text() == text and not out.exists()


@pytest.mark.parametrize("force", [False, True])
def test_what_somebody_put_beside_the_shards_stays(dataset, out, force):
    with pytest.raises(KeyboardInterrupt):
        build(dataset, out, Tower(at=4, strike=stop))
    folder = out.with_name(f"{out.name}.parts")
    (folder / "notes.txt").write_text("mine")
    build(dataset, out, force=force, batch=5 if force else 4)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"] and (folder / "notes.txt").read_text() == "mine"


def test_a_bank_that_is_there_is_kept_unless_forced(dataset, out, expect_refused):
    bank, tower = build(dataset, out), Tower()
    with expect_refused(f"{out} is there already"):
        build(dataset, out, tower)
    assert tower.seen == 0 and FeatureBank.load(out).hash == bank.hash
    build(dataset, out, templates=["bad {}"], force=True)
    assert FeatureBank.load(out).templates == ("bad {}",)


# ── damaged pictures ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def damaged(dataset):
    """(data set, the paths of its three damaged pictures, how to mend them)."""
    paths = [dataset.splits["train"][1][0], dataset.splits["train"][10][0], dataset.splits["test"][2][0]]
    before = {path: path.read_bytes() for path in paths}
    paths[0].write_bytes(before[paths[0]][:60])
    paths[1].unlink()
    paths[2].write_text("<html>")
    return dataset, paths, lambda: [path.write_bytes(raw) for path, raw in before.items()]


def test_all_damaged_pictures_are_named_at_the_end_and_the_rest_is_kept(damaged, out, expect_refused):
    dataset, paths, mend = damaged
    with expect_refused(f"3 pictures could not be read: {', '.join(map(str, paths))}; mend or replace", OSError):
        build(dataset, out)
    assert not out.exists() and len(parts(out)) == BATCHES
    mend()
    tower = Tower()
    bank = build(dataset, out, tower)
    assert bank.hash == build(dataset).hash and bank.meta["protocol"] == "as given"
    assert tower.seen == 4 + 3 + 4  # the three shards that a mended picture belongs to


def test_they_are_named_without_a_file_too(damaged, expect_refused):
    dataset, paths, _ = damaged
    with expect_refused(f"{paths[0]}, {paths[1]}, {paths[2]}; mend or replace", OSError):
        build(dataset)


def test_they_can_be_left_out_and_the_protocol_says_so(damaged, out):
    dataset, paths, mend = damaged
    with pytest.raises(OSError, match="3 pictures could not be read"):
        build(dataset, out)
    tower = Tower()
    bank = build(dataset, out, tower, skip_unreadable=True)
    assert tower.seen == 0, "everything readable was finished already"
    assert bank.meta["protocol"] == "as given; 3 unreadable pictures left out"
    mend()
    whole = build(dataset)
    kept = {"train": [0, *range(2, 10)], "val": [0, 1], "test": [0, 1, 3, 4]}
    for name in SPLITS:
        rows = torch.tensor(kept[name])
        assert torch.equal(bank.splits[name].labels, whole.splits[name].labels[rows])
        torch.testing.assert_close(bank.splits[name].features, whole.splits[name].features[rows])
    assert FeatureBank.load(out).hash == bank.hash


def test_a_whole_batch_may_be_damaged(dataset, out):
    for path, _ in dataset.splits["train"][4:8]:
        path.write_bytes(b"")
    bank = build(dataset, out, skip_unreadable=True, views=2)
    assert bank.splits["train"].features.shape == (2, 7, WIDTH)
    assert "4 unreadable" in bank.meta["protocol"]


def test_beyond_twenty_a_file_lists_them(tmp_path, out, expect_refused):
    splits = {"train": [(tmp_path / f"none-{i}.png", 0) for i in range(25)], "val": [], "test": []}
    dataset = ImageDataset(name="toy", classnames=("cab",), templates=("a {}.",), splits=splits, protocol="", source="")
    listing = out.with_name(f"{out.name}.parts") / "unreadable.txt"
    with expect_refused(f"none-19.png, and 5 more, all of them listed in {listing}; mend or replace", OSError):
        build(dataset, out)
    lines = listing.read_text().splitlines()
    assert len(lines) == 25 and all(str(path) in line for (path, _), line in zip(splits["train"], lines))


# ── memory and disk ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_halved_batch_leaves_every_picture_in_its_shard(dataset, out, tmp_path):
    class Small(Tower):
        def encode_images(self, batch):
            if len(batch) > 1:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
            return super().encode_images(batch)

    kept = {}
    for tower, place in ((Tower, out), (Small, tmp_path / "small" / "toy.safetensors")):
        with pytest.raises(KeyboardInterrupt):
            build(dataset, place, tower(at=11 if tower is Small else 3, strike=stop))
        folder = place.with_name(f"{place.name}.parts")
        kept[tower] = {path.name: load_file(path) for path in folder.glob("*.safetensors")}
    common = kept[Tower].keys() & kept[Small].keys()
    assert {"train-00000000.safetensors", "train-00000004.safetensors"} <= common
    for name in common:
        torch.testing.assert_close(kept[Tower][name]["features"], kept[Small][name]["features"])
    assert build(dataset, out.with_name("whole.safetensors"), Small()).splits["train"].features.shape == (11, WIDTH)


@pytest.mark.parametrize("which", ["train-00000004", "toy.safetensors"])
def test_a_full_disk_is_one_sentence_and_what_is_finished_stays(dataset, out, which, monkeypatch, expect_refused):
    from safetensors import torch as writer
    whole, write = build(dataset), writer.save_file

    def full(tensors, path, metadata=None):
        if which in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(tensors, path, metadata=metadata)

    with monkeypatch.context() as patch:
        patch.setattr(writer, "save_file", full)
        with expect_refused(f"{out.parent} could not be written to ([Errno 28] No space left on device); mend", OSError):
            build(dataset, out)
    kept = parts(out)
    assert len(kept) == (1 if "train" in which else BATCHES) and not out.exists()
    tower = Tower()
    assert build(dataset, out, tower).hash == whole.hash
    assert tower.seen == sum(SPLIT_SIZES.values()) - sum(len(load_and_count(name)) for name in kept)


@pytest.fixture
def tmpfs(tmp_path):
    """A file system of 64 KB, and how to resize it."""
    folder = tmp_path / "small disk"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [mount, "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder]
    if not mount or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs is not permitted here")
    yield folder, lambda size: subprocess.run([mount, "-o", f"remount,size={size}", folder], check=True)
    subprocess.run([shutil.which("umount"), folder], check=True)


def test_a_disk_that_really_is_full(dataset, tmpfs, monkeypatch, expect_refused):
    folder, resize = tmpfs
    out, whole = folder / "toy.safetensors", build(dataset)
    (folder / "others").write_bytes(bytes(44 * 1024))  # five pages are left: the folder's facts and some shards
    with expect_refused(f"{folder} could not be written to (", OSError):
        build(dataset, out)
    kept = parts(out)
    assert 0 < len(kept) < BATCHES and not out.exists()
    assert not list(out.with_name("toy.safetensors.parts").glob("*.partial"))
    resize("1m")
    tower = Tower()
    assert build(dataset, out, tower).hash == FeatureBank.load(out).hash == whole.hash
    assert tower.seen == sum(SPLIT_SIZES.values()) - sum(len(load_and_count(name)) for name in kept)


# ── what is known while it runs ───────────────────────────────────────────────────────────────────────────────


def test_progress_counts_what_is_finished_and_shows_a_rate(dataset, out, capsys):
    with pytest.raises(KeyboardInterrupt):
        build(dataset, out, Tower(at=4, strike=stop), views=2)
    build(dataset, out, views=2, progress=True)
    said = capsys.readouterr().out
    assert "29/29" in said and "images/s" in said and "left" in said  # 11 pictures with two views, and 7


def test_the_job_on_disk_says_what_the_shards_depend_on(dataset, out):
    with pytest.raises(KeyboardInterrupt):
        build(dataset, out, Tower(at=3, strike=stop), views=2, seed=7)
    job = json.loads((out.with_name(f"{out.name}.parts") / "job.json").read_text())
    assert (job["backbone"], job["weights"], job["views"], job["seed"], job["batch"]) == ("fake", "v1", 2, 7, 4)
    assert set(job["versions"]) == {"torch", "torchvision", "open_clip_torch", "timm", "pillow"}
    assert issubclass(BankError, ValueError)
