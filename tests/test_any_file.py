"""Whatever lies where a file is named: a right result or one sentence that names it, and nothing of anybody's is lost."""
import json
import shutil
from functools import cache
from pathlib import Path

import torch
from conftest import make_bank
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

import clip_adapter_lite as cal
from clip_adapter_lite import FeatureBank, plots
from clip_adapter_lite.banks import cache_place, list_banks
from clip_adapter_lite.cli.app import banks_listed
from clip_adapter_lite.datasets import load_dataset
from clip_adapter_lite.datasets.coop import read_split
from clip_adapter_lite.encoding import open_image
from clip_adapter_lite.experiments.reproduce import banks_in, reproduce
from clip_adapter_lite.experiments.runs import COLUMNS, read_rows

BOM = b"\xef\xbb\xbf"
NAMES = ("plain", "cats, dogs", "a,b", "a:b", "a::b", "file:x", "Ünïcode", "日本", "-x", "--out", "~x", "~", "a#b", "a?b=c",
         "a%20b", "it's", 'a"b', "[red]x", "a b", "x.y", "$HOME", "a*b", "*", "x" * 200)
names = st.sampled_from(NAMES) | st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="/\\.,'\"() "),
                                         min_size=1, max_size=12)
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@cache
def bank() -> FeatureBank:
    return make_bank(classes=3)


@cache
def fitted() -> cal.Classifier:
    return cal.ZeroShot(device="cpu").fit(bank().episode(1))


@cache
def contents() -> dict[str, bytes]:
    """What may lie somewhere, by what it is."""
    import tempfile
    with tempfile.TemporaryDirectory() as folder:
        made = {"bank": bank().save(Path(folder) / "b").read_bytes(),
                "classifier": cal.save_classifier(fitted(), Path(folder) / "c").read_bytes()}
        cal.compare([bank()], ["zero-shot"], [1], [1], out=Path(folder) / "r.csv")
        made |= {"results": (Path(folder) / "r.csv").read_bytes(), "about": (Path(folder) / "r.json").read_bytes()}
    x = {"x": torch.zeros(2)}
    return made | {
        "empty": b"", "text": b"my notes\n", "BOM": BOM + b"my notes\n", "CRLF": b"a,b\r\n1,2\r\n", "latin": b"caf\xe9\n",
        "json": b"{\"mine\": 1}", "json list": b"[1]", "json half": b"{\"mine\":", "json deep": b"[" * 9000,
        "png": b"\x89PNG\r\n\x1a\n" + bytes(40), "zip": b"PK\x03\x04" + bytes(40), "long header": b"\xff" * 16,
        "tensors": save(x), "other tensors": save(x, {"mine": "1"}), "no bank": save(x, {"bank": "[]"}),
        "no bank either": save(x, {"bank": "{\"hash\": 1}"}), "no classifier": save(x, {"classifier": "3"}),
        "half a bank": made["bank"][:-9], "a bank's beginning": made["bank"][:30],
        "half a classifier": made["classifier"][:-9],
        "a bank and more": made["bank"] + b"1", "results of a spreadsheet": BOM + made["results"].replace(b"\n", b"\r\n"),
        "results and words": made["results"] + b"toy,none,zero-shot,one,1,,,,,,\n",
        "results and more": made["results"].replace(b"\n", b",1\n").replace(b"parameters,1", b"parameters"),
        "results and less": made["results"] + b"toy,none\n", "results cut off": made["results"] + b"toy,no"}


kinds = st.sampled_from(sorted(["folder", "absent", *contents.__wrapped__()]))


def put(path: Path, kind: str) -> None:
    if kind == "folder":
        path.mkdir()
        (path / "mine.txt").write_text("mine")
    elif kind != "absent":
        path.write_bytes(contents()[kind])


def held(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def result(named: str, function, *given, **options):
    """What the function returns, or None if it refuses in one sentence that names the input."""
    try:
        return function(*given, **options)
    except (ValueError, OSError) as error:
        message = str(error)
        assert message.endswith(".") and ". " not in message and "\n" not in message, message
        assert named in message, message
        return None


READERS = {"bank": (FeatureBank.load, {"bank"}), "classifier": (cal.load_classifier, {"classifier"}),
           "results": (read_rows, {"results", "results of a spreadsheet", "results cut off"}), "split": (read_split, set()),
           "picture": (open_image, set())}


@given(st.sampled_from(sorted(READERS)), kinds, names)
@settings(quick, max_examples=120)
def test_a_file_is_read_if_it_is_right_and_named_if_not(place, reader, kind, name):
    function, right = READERS[reader]
    path = place() / f"{name}.safetensors"
    put(path, kind)
    before = held(path.parent)
    options = [path.parent] if reader == "split" else []
    if reader == "results" and kind in ("folder", "absent"):
        return  # looked for before it is read
    found = result(name, function, path, *options)
    assert (found is not None) == (kind in right), (reader, kind)
    if reader == "bank" and found:
        assert found.hash == bank().hash
    if reader == "results" and found:
        assert [row["accuracy"] for row in found.values()] == [str(fitted().accuracy(bank().episode(1).test))]
    assert held(path.parent) == before


WRITERS = {
    "bank": (lambda path: bank().save(path), "", {"bank", "no bank", "no bank either"}),  # their metadata says so
    "classifier": (lambda path: cal.save_classifier(fitted(), path), "", {"classifier", "no classifier"}),
    "compare": (lambda path: cal.compare([bank()], ["zero-shot"], [1], [1], out=path), "",
                {"results", "results of a spreadsheet", "results cut off", "results and words", "results and more",
                 "results and less"}),
    "compare beside": (lambda path: cal.compare([bank()], ["zero-shot"], [1], [1], out=path.with_suffix(".csv")), ".json",
                       {"about"}),
    "sweep": (lambda path: cal.sweep([bank()], grid={"alpha": [0.2], "steps": [1]}, shots=[1], seeds=[1], jobs=1,
                                       out=path), "",
              {"results", "results of a spreadsheet", "results cut off", "results and words", "results and more",
                 "results and less"}),
    "push": (lambda path: cal.push(bank(), path), ".safetensors", {"bank"}),
    "push beside": (lambda path: cal.push(bank(), path.with_suffix("")), ".safetensors.sha256", set()),
    "build": (lambda path: cal.build_bank("folder", root=path.parent, out=path), "", set())}


@given(st.sampled_from(sorted(WRITERS)), kinds, names)
@settings(quick, max_examples=120)
def test_what_another_wrote_is_never_written_over(place, writer, kind, name):
    function, suffix, own = WRITERS[writer]
    path = place() / f"{name}{suffix or '.csv'}"
    put(path, kind)
    before = held(path.parent)
    if writer == "build" and kind == "absent":
        return
    done = result("", function, path) is not None
    after = held(path.parent)
    assert done == (kind in own | {"absent"} or kind == "empty" and writer not in ("push", "build")), (writer, kind)
    if done:  # what it had written before may be kept under another name
        assert kind in own | {"absent", "empty"}
    else:
        assert after == before


@given(kinds.filter(lambda kind: kind not in ("absent", "empty", "folder")),
       st.sampled_from(["reproduce.md", "reproduce.csv", "runs.csv", "runs.json"]))
@quick
def test_reproduce_keeps_what_it_did_not_write(place, kind, name):
    folder = place()
    put(folder / name, kind)
    before = held(folder)
    runs = [bank()] if name.startswith("runs") else []
    done = result(name, reproduce, runs, "none", methods=["zero-shot"], shots=[1], seeds=[1], out=folder)
    own = {"runs.csv": WRITERS["compare"][2], "runs.json": {"about"}}.get(name, set())
    assert (done is not None) == (kind in own)
    assert done is not None or held(folder) == before


def test_what_a_command_wrote_it_writes_again(tmp_path):
    for _ in range(2):
        bank().save(tmp_path / "b.safetensors")
        cal.save_classifier(fitted(), tmp_path / "c.safetensors")
        cal.compare([bank()], ["zero-shot"], [1], [1], out=tmp_path / "r.csv")
        cal.push(bank(), tmp_path / "shared")
        reproduce([bank()], "none", methods=["zero-shot"], shots=[1], seeds=[1], out=tmp_path / "page")
        plots.save(plots.Figure(), tmp_path / "r.png")
        plots.may_save(tmp_path / "r.png")
    assert cal.load_classifier(tmp_path / "c.safetensors").classnames == bank().classnames


@given(kinds.filter(lambda kind: kind not in ("absent", "empty")))
@quick
def test_a_picture_beside_a_table_is_ours_or_kept(place, kind):
    path = place() / "r.png"
    put(path, kind)
    assert result("r.png", lambda: plots.may_save(path) or True) is None


@given(st.sampled_from(["file above", "no permission", "a folder", "a name too long"]), st.sampled_from(sorted(WRITERS)))
@quick
def test_what_the_disk_does_not_take_is_one_sentence(place, why, writer):
    function, suffix, _ = WRITERS[writer]
    folder = place()
    (folder / "file").write_text("mine")
    (folder / "folder.csv").mkdir()
    target = {"file above": folder / "file" / "x.csv", "no permission": Path("/proc/none/x.csv"),
              "a folder": folder / "folder.csv", "a name too long": folder / ("x" * 250 + ".csv")}[why]
    before = held(folder)
    if writer != "build":  # which needs pictures
        path = target.with_suffix(suffix or ".csv")
        if path != target and why == "a folder":
            path.mkdir(exist_ok=True)
        assert result("", function, path) is None
    assert held(folder) == before


# ── names ─────────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.lists(names, min_size=1, max_size=3, unique_by=str.casefold), st.sampled_from([",", ", ", " , "]),
       st.sampled_from(["", "'", '"']))
@quick
def test_banks_of_any_names_are_found_in_a_list(cache, called, between, quote):
    shutil.rmtree(cache, ignore_errors=True)
    for number, name in enumerate(called):
        make_bank(classes=3, dataset=f"number {number}", backbone="none").save(cache_place(name, "none"))
    assert sorted(list_banks("none")) == sorted(called)
    quoted = [name if quote in name else f"{quote}{name}{quote}" for name in called]
    found = banks_listed(between.join(quoted), "none")
    assert [one.dataset for one in found] == [f"number {number}" for number in range(len(called))]


def test_a_list_of_banks_may_be_longer_than_a_name(cache):
    called = [f"{number:03} {'x' * 40}" for number in range(12)]
    for name in called:
        make_bank(classes=3, dataset=name, backbone="none").save(cache_place(name, "none"))
    assert [one.dataset for one in banks_listed(",".join(called), "none")] == called


@given(names)
@settings(quick, max_examples=30)
def test_a_bank_of_any_name_is_shared_and_comes_back(cache, place, name):
    shutil.rmtree(cache, ignore_errors=True)
    folder = place() / "a::b#c"
    bank().save(folder.parent / f"{name}.safetensors")
    url, digest = cal.push(folder.parent / f"{name}.safetensors", folder)
    for source in (url, folder):
        found = cal.pull(source, sha256=digest)
        assert found == cache / "banks" / "none" / f"{name}.safetensors"
        assert FeatureBank.load(name, "none").hash == bank().hash


@given(kinds.filter(lambda kind: kind != "folder"), names, st.sampled_from(["absent", "empty", "text", "tensors"]))
@quick
def test_what_is_pulled_is_a_bank_or_nothing(cache, place, kind, name, record):
    shutil.rmtree(cache, ignore_errors=True)
    path = place() / f"{name}.safetensors"
    put(path, kind)
    put(path.with_name(f"{path.name}.sha256"), record)
    before = held(path.parent)
    found = result(name, cal.pull, path)
    assert (found is not None) == (kind == "bank" and record == "absent")
    assert held(cache) == ({f"banks/none/{name}.safetensors": contents()["bank"]} if found else {})
    assert held(path.parent) == before


@given(kinds, names)
@quick
def test_one_damaged_bank_is_named_and_the_others_are_there(place, kind, name):
    folder = place()
    bank().save(folder / "good.safetensors")
    put(folder / f"{name}.safetensors", kind)
    damaged: dict[str, str] = {}
    found = banks_in(folder, damaged)
    assert {one.hash for one in found} == {bank().hash}
    assert set(damaged) == (set() if kind in ("absent", "bank") else {name})
    assert all(name in why and "\n" not in why for why in damaged.values())


@given(kinds.filter(lambda kind: kind != "folder"), st.sampled_from(["", "classes.json"]))
@quick
def test_a_folder_of_pictures_with_anything_beside_them(place, kind, name):
    root = place() / "pets"
    for number in range(8):
        path = root / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    put(root / (name or "notes.txt"), kind)
    before = held(root)
    found = result("classes.json", load_dataset, "folder", root)
    assert (found is not None) == (not name or kind == "absent")
    assert held(root) == before


def test_classes_with_a_mark_and_windows_line_ends_are_read(tmp_path):
    for number in range(8):
        path = tmp_path / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "classes.json").write_bytes(BOM + json.dumps({"cat": "Katze"}, indent=1).replace("\n", "\r\n").encode())
    assert load_dataset("folder", tmp_path).classnames == ("Katze", "dog")
    assert COLUMNS[0] == "dataset"
