"""What messages tell people to do exists: commands, their options, and arguments of functions."""
import ast
import inspect
import re
from pathlib import Path

import typer

import clip_adapter_lite as cal
from clip_adapter_lite import cli
from clip_adapter_lite.datasets import load_dataset
from clip_adapter_lite.experiments import reproduce
from clip_adapter_lite.shards import Shards

PACKAGE = Path(cal.__file__).parent
COMMANDS = {name: [parameter for parameter in command.params if parameter.param_type_name == "option"]
            for name, command in typer.main.get_command(cli.app).commands.items()}
OPTIONS = {name: {option for parameter in parameters for option in parameter.opts + parameter.secondary_opts} | {"--help"}
           for name, parameters in COMMANDS.items()}
FUNCTIONS = [*(value for value in vars(cal).values() if inspect.isfunction(value)), cal.FeatureBank.load,
             cal.FeatureBank.episode, load_dataset, reproduce.reproduce, Shards.__init__]
ARGUMENTS = {name for function in FUNCTIONS for name in inspect.signature(function).parameters}


def texts(path: Path) -> list[str]:
    """Every text of a file, docstrings too, with … for what is filled in."""
    def words(node) -> str:
        if isinstance(node, ast.JoinedStr):
            return "".join(map(words, node.values))
        return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "…"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    return [" ".join(words(node).split()) for node in ast.walk(tree)
            if isinstance(node, (ast.JoinedStr, ast.Constant)) and id(node) not in parts]


# `making` has options of its own
TEXTS = [text for path in sorted(PACKAGE.rglob("*.py")) if "making" not in path.parts for text in texts(path)]
README = [line.split(" #")[0] for line in (PACKAGE.parent / "README.md").read_text(encoding="utf-8").splitlines()]
OPTION = r"(?<![\w-])--[a-z][a-z0-9-]*"


def commands_in(text: str) -> list[tuple[str, str]]:
    """(command, what follows it) of each command of ours that a text names."""
    return [(command, rest) for command, rest in re.findall(r"clip-adapter-lite (\w+)([^`]*)", text) if command in COMMANDS]


def test_the_texts_of_messages_are_found():
    assert sum("--force (force=True)" in text for text in TEXTS) > 3 and len(sum(map(commands_in, README), [])) > 15


def test_a_command_that_is_named_has_the_options_that_it_is_given():
    wrong = [(command, option) for text in TEXTS + README for command, rest in commands_in(text)
             for option in re.findall(OPTION, rest) if option not in OPTIONS[command]]
    assert not wrong


def test_a_command_to_give_has_all_that_it_needs():
    wrong = [(text, parameter.opts[0]) for text in TEXTS
             for command, rest in re.findall(r"`clip-adapter-lite (\w+)( [^`]*)`", text)
             for parameter in COMMANDS.get(command, ()) if parameter.required and parameter.opts[0] not in rest]
    assert not wrong


def test_an_option_that_is_named_is_one_of_some_command():
    known = set().union(*OPTIONS.values())
    wrong = [(option, text) for text in TEXTS for option in re.findall(OPTION, text.split("pip install")[0])
             if option not in known]
    assert not wrong


def test_an_argument_that_is_named_beside_an_option_is_one_of_some_function():
    named = {name for text in TEXTS for name in re.findall(r"--[a-z0-9-]+ \((\w+)=", text)}
    assert {"force", "name", "tag", "root", "out"} <= named <= ARGUMENTS


def test_a_name_that_cannot_be_is_refused_with_what_the_command_has(expect_refused, tmp_path, toy_bank):
    path = toy_bank(backbone="pocket").save(tmp_path / "dtd10.safetensors")
    with expect_refused("give another name with --name (name=…)"):
        cal.pull(path)
    with expect_refused("build it with build_bank(out=FILE)"):
        cal.FeatureBank.load("a\\b", build=True, root=tmp_path)
    assert "name" in inspect.signature(cal.pull).parameters and "out" in inspect.signature(cal.build_bank).parameters


def test_a_classifier_that_is_not_there_is_made_by_a_whole_command(expect_refused, tmp_path):
    with expect_refused(f"`clip-adapter-lite fit --bank NAME --out '{tmp_path}/my own.safetensors'`", FileNotFoundError):
        cal.load_classifier(tmp_path / "my own.safetensors")
