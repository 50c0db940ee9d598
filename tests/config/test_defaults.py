"""What a run does where config and flags say nothing: it is in the guide, in --help and in notes of the plan."""

import re

import pytest
import yaml
from conftest import SCRIPTS, make_scale_folders, write_yaml
from experiments import UPSTREAM_BLOCK
from sliders.config import schema
from sliders.config.families import FAMILIES, SD2, SDXL
from sliders.config.flags import DEFAULT_FOLDERS, DEFAULT_SCALES, OVERRIDES, build_parser, build_text_parser
from sliders.config.settings import load_settings, load_text_settings
from sliders.sample.settings import build_comparison_parser
from sliders.sample.settings import build_parser as build_sample_parser
from sliders.system.errors import InputError


def argv_of(tmp_path, text, *flags):
    return [
        "--config_file",
        str(write_yaml(tmp_path / "config.yaml", text)),
        "--folder_main",
        str(tmp_path / "data"),
        *flags,
    ]


@pytest.mark.parametrize("more", ["", "pretrained_model:\nprompts_file:\n", "pretrained_model: {name_or_path: ~}\n"])
@pytest.mark.parametrize(("family", "size"), [("sdxl", 1024), ("sd", 512)])
def test_the_originals_config_block_alone_is_an_experiment(tmp_path, family, size, more):
    (settings,), _ = load_settings(argv_of(tmp_path, UPSTREAM_BLOCK + more), family)
    assert settings.pretrained_model.name_or_path == FAMILIES[family][0].example
    (prompts,) = settings.prompts
    assert (prompts.target, prompts.positive, prompts.neutral, prompts.resolution) == ("", "", "", size)
    assert prompts.texts("a robe") == ("a robe", "a robe") and prompts.texts("") == ("", "")
    assert not prompts.needs_captions and prompts.uses_captions
    model, prompts_note, *rest = sorted(settings.notes, key=lambda note: "pretrained" not in note)
    assert FAMILIES[family][0].example in model and "--model" in model
    assert any("prompts_file is not given" in n and f"{size} px" in n for n in (prompts_note, *rest))


def test_the_plan_says_what_was_assumed(tmp_path, train_main, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_scale_folders(tmp_path / "data")
    assert train_main(argv_of(tmp_path, UPSTREAM_BLOCK, "--device", "cpu", "--dry_run", "--resolution", "64")) == 0
    out = capsys.readouterr().out
    assert "note: pretrained_model.name_or_path is not given, so it is stabilityai/stable-diffusion-xl-base-1.0" in out
    assert "note: prompts_file is not given, so each image is trained at 64 px with its caption" in out


def test_flags_and_yaml_go_before_what_would_be_assumed(tmp_path):
    write_yaml(tmp_path / "mine.yaml", [{"target": "mine"}])
    text = UPSTREAM_BLOCK + "pretrained_model: {name_or_path: tiny}\nprompts_file: mine.yaml\n"
    (settings,), _ = load_settings(argv_of(tmp_path, text))
    assert (settings.pretrained_model.name_or_path, settings.prompts[0].target) == ("tiny", "mine")
    flags = ["--model", "tiny", "--prompts_file", str(tmp_path / "mine.yaml"), "--batch_size", "3"]
    (flagged,), _ = load_settings(argv_of(tmp_path, UPSTREAM_BLOCK, *flags))
    assert (flagged.pretrained_model.name_or_path, flagged.prompts[0].target) == ("tiny", "mine")
    assert not [n for n in (*settings.notes, *flagged.notes) if "is not given" in n]
    (sized,), _ = load_settings(argv_of(tmp_path, UPSTREAM_BLOCK, "--resolution", "768", "--batch_size", "3"))
    assert (sized.prompts[0].resolution, sized.prompts[0].batch_size) == (768, 3)


def test_stable_diffusion_2_and_text_sliders_have_defaults_of_their_own(tmp_path):
    (settings,), _ = load_settings(argv_of(tmp_path, UPSTREAM_BLOCK + "pretrained_model: {v2: true}"), "sd")
    assert settings.pretrained_model.name_or_path == SD2.example
    with pytest.raises(InputError, match="prompts_file is missing: a text slider learns from its prompts"):
        load_text_settings(argv_of(tmp_path, UPSTREAM_BLOCK)[:2])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_usual_prompts_are_the_shipped_ones(tmp_path, family):
    (settings,), _ = load_settings(argv_of(tmp_path, UPSTREAM_BLOCK), family)
    shipped = SCRIPTS / "data" / f"prompts{FAMILIES[family][0].ending}.yaml"
    (given,) = yaml.safe_load(shipped.read_text(encoding="utf-8"))
    assert settings.prompts[0].model_dump() == schema.PromptSet(**given).model_dump()


@pytest.mark.parametrize(
    "parser", [build_parser(), build_text_parser(), build_sample_parser("sd"), build_comparison_parser("sdxl")]
)
def test_help_gives_the_default_of_every_flag(parser):
    for action in parser._actions:
        if action.option_strings and not action.required and action.dest != "help":
            assert re.search("default|required here or in the YAML", action.help or ""), action.dest


def test_the_guide_gives_the_defaults_of_all_flags():
    guide = (SCRIPTS / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`--.*?) \| (.*?) \| (.*?) \|$", guide.split("**Images.**")[0], re.MULTILINE)
    defaults = {flag: default for flags, _, default in rows for flag in re.findall(r"`(--\w+)", flags)}
    missing = {a.option_strings[0] for a in build_parser()._actions if a.dest != "help"} - defaults.keys()
    assert not missing
    for flag, (section, key, _) in OVERRIDES.items():
        if flag != "model":
            value = schema.Config.model_fields[section].annotation.model_fields[key].default
            value = f"./{value}" if key == "path" else value
            assert f"`{value}`" in defaults[f"--{flag}"], flag
    assert SDXL.example in defaults["--model"]
    assert DEFAULT_FOLDERS in defaults["--folders"] and DEFAULT_SCALES in defaults["--scales"]
