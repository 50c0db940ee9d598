"""`~` is the home folder in every path, and variables in paths are refused: neither becomes a folder of that name."""

import argparse
import re
from pathlib import Path

import pytest
from conftest import load_script, write_experiment
from sliders.config.flags import build_parser, build_text_parser
from sliders.config.paths import expanded
from sliders.config.settings import load_settings
from sliders.sample import settings as sampling
from sliders.system.errors import InputError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.setenv("LIBRARY", "/data")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def test_a_path_is_expanded_as_by_a_shell(home):
    for text, wanted in {"~": home, "~/a b/c": home / "a b/c", "~//x": home / "x"}.items():
        assert Path(expanded(text)) == wanted
    assert expanded("~root/m").endswith("root/m") and not expanded("~root/m").startswith("~")
    for text in ("a~b", "./~/x", "a/~/x", "org/model", r"D:\a", "a$b", "100%", "a%20b%20c", "/data/$unknown/x"):
        assert expanded(text) == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("~nobody9/x", "there is no user 'nobody9' on this machine: write the whole path, or ./~nobody9/x"),
        ("$HOME/m", "the variable $HOME, which is not replaced"), ("${HOME}/m", "the variable ${HOME}"),
        ("%USERPROFILE%\\m", "the variable %USERPROFILE%"), ("$env:USERPROFILE\\m", "the variable $env:USERPROFILE"),
        ("$UNKNOWN/m", "the variable $UNKNOWN"), ("/mnt/$LIBRARY/m", "the variable $LIBRARY"), ("a/%LIBRARY%", "the variable %LIBRARY%"),
        ("", "'' is no path"), ("  ", "is no path"), ("a\nb", "control character"),
    ],
)  # fmt: skip
def test_what_would_become_a_folder_of_a_strange_name_is_refused(text, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        expanded(text)


def test_what_exists_under_a_strange_name_is_found(tmp_path):
    for name in ("$HOME_slider", "%LIBRARY%", "~nobody9"):
        (tmp_path / name).mkdir()
        assert expanded(name) == name


PATHS = ("DIR", "FILE", "YAML", "NAME_OR_PATH", "SLIDER")
PARSERS = {
    "train": build_parser(),
    "text": build_text_parser(),
    "sample": sampling.build_parser("sdxl"),
    "sample sd": sampling.build_parser("sd"),
    "compare": sampling.build_comparison_parser("sdxl"),
    "convert": load_script("convert_slider").build_parser(),
    "merge": load_script("merge_sliders").build_parser(),
}


@pytest.mark.parametrize("name", PARSERS)
def test_every_flag_that_takes_a_path_expands_it(home, name):
    actions = [a for a in PARSERS[name]._actions if a.metavar in PATHS or a.dest in ("out", "clip")]
    assert len(actions) >= 3
    for action in actions:
        assert Path(action.type("~/x")) == home / "x", action.dest
        with pytest.raises(argparse.ArgumentTypeError, match="the variable"):
            action.type("$HOME/x")
    others = [a for a in PARSERS[name]._actions if a.type is Path]
    assert not others


def test_paths_in_yaml_and_flags_lead_home_and_nothing_is_called_tilde(home, tmp_path):
    argv = write_experiment(
        tmp_path, save={"path": "~/m"}, pretrained_model={"name_or_path": "~/sdxl", "config": "~/c"}
    )
    (settings,), _ = load_settings([*argv, "--folders", "~/low, high", "--scales", "1, 2"])
    assert settings.save.path == home / "m"
    assert settings.pretrained_model.name_or_path == str(home / "sdxl")
    assert settings.pretrained_model.config == str(home / "c")
    assert settings.data.folders == (str(home / "low"), "high")
    flags = ["--save_path=~/n", "--model=~/other", "--folder_main=~/data"]
    (settings,), _ = load_settings([*argv, *flags])
    assert settings.save.path == home / "n" and settings.data.folder_main == home / "data"
    assert settings.pretrained_model.name_or_path == str(home / "other")
    home.mkdir()
    (tmp_path / "prompts.yaml").rename(home / "p.yaml")
    for way in ({"prompts_file": "~/p.yaml"}, {}):
        argv = write_experiment(tmp_path, ["--prompts_file=~/p.yaml"] if not way else [], **way)
        (settings,), _ = load_settings(argv)
        assert settings.prompts


@pytest.mark.parametrize("path", ["$HOME/m", "${HOME}/m", "%USERPROFILE%/m", "~nobody9/m"])
def test_a_config_with_a_variable_in_a_path_is_refused(tmp_path, path):
    with pytest.raises(InputError, match=r"config.yaml: save.path: .*(variable|user).*: write"):
        load_settings(write_experiment(tmp_path, save={"path": path}))
    with pytest.raises(InputError, match=r"^--save_path: .*(variable|user).*: write"):
        load_settings([*write_experiment(tmp_path), f"--save_path={path}"])


def test_a_relative_prompts_file_is_looked_for_in_the_working_directory_then_beside_the_config(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    argv = write_experiment(tmp_path, prompts_file="prompts.yaml", prompts=[{"target": "beside"}])
    monkeypatch.chdir(tmp_path / "elsewhere")
    (settings,), _ = load_settings(argv)
    assert settings.prompts[0].target == "beside" and not settings.notes
    Path("prompts.yaml").write_text("- target: here")
    (settings,), _ = load_settings(argv)
    assert settings.prompts[0].target == "here"
    assert settings.notes == (
        f"prompts_file: {tmp_path}/elsewhere/prompts.yaml is used, and not {tmp_path}/prompts.yaml beside the config.",
    )
    argv = write_experiment(tmp_path, prompts_file="nowhere.yaml")
    with pytest.raises(InputError) as error:
        load_settings(argv)
    for folder in (tmp_path / "elsewhere", tmp_path):
        assert str(folder / "nowhere.yaml") in str(error.value)
