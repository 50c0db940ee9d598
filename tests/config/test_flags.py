"""The command line: every spelling of its lists, flags over YAML, and no flag lost."""

import re
import shlex
import subprocess
import sys
from itertools import permutations
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, SCRIPTS, TEXT_SCRIPTS, write_experiment
from hypothesis import given
from hypothesis import strategies as st
from sliders.config.flags import build_parser, build_text_parser, join_list_flags, parse_flags
from sliders.config.schema import Train
from sliders.config.settings import load_settings, load_text_settings
from sliders.system.errors import InputError

REQUIRED = ["--config_file", "c.yaml", "--folder_main", "d"]
SHIPPED = sorted((SCRIPTS / "data").glob("config*.yaml"))
SHIPPED_PROMPTS = sorted((SCRIPTS / "data").glob("prompts*.yaml"))

GOLDEN_FLAGS = {
    "--help", "--config_file", "--folder_main", "--folders", "--scales", "--stylecheck", "--leave_out",
    "--incomplete", "--attributes", "--name", "--rank",
    "--alpha", "--training_method", "--model", "--prompts_file", "--iterations", "--lr", "--optimizer", "--seed",
    "--resolution", "--batch_size", "--save_path", "--per_steps", "--device", "--dry_run", "--overwrite", "--resume",
}  # fmt: skip

GOLDEN_TEXT_FLAGS = GOLDEN_FLAGS - {"--folder_main", "--folders", "--stylecheck", "--leave_out", "--incomplete"}


def parsed(words: list[str]):
    """The image trainer's flags."""
    return parse_flags(words, build_parser())


def scales_of(*words: str) -> tuple[float, ...]:
    return parsed([*REQUIRED, *words]).scales


def settings_of(tmp_path: Path, *flags: str, **overrides):
    runs, _ = load_settings(write_experiment(tmp_path, flags=flags, **overrides))
    return runs[0]


# --- lists

BASH_LINES = {  # as typed in bash, which splits them at spaces
    "--scales 0.67, 1, 1.3, 2.0": (0.67, 1, 1.3, 2),
    "--scales 0.67 1 1.3 2": (0.67, 1, 1.3, 2),
    "--scales 0.67,1,1.3,2.0": (0.67, 1, 1.3, 2),
    "--scales '0.67,1,1.3,2.0'": (0.67, 1, 1.3, 2),
    "--scales '0.67, 1, 1.3, 2.0'": (0.67, 1, 1.3, 2),
    "--scales '0.67 1 1.3 2'": (0.67, 1, 1.3, 2),
    "--scales -2, -1, 1, 2": (-2, -1, 1, 2),
    "--scales -2 -1 1 2": (-2, -1, 1, 2),
    "--scales '-2, -1, 1, 2'": (-2, -1, 1, 2),
    "--scales='-2, -1, 1, 2'": (-2, -1, 1, 2),
    "--scales=-2,-1,1,2": (-2, -1, 1, 2),
    "--scales=-2, -1, 1, 2": (-2, -1, 1, 2),
    "--scales \N{MINUS SIGN}2, \N{MINUS SIGN}1, 1": (-2, -1, 1),
    "--scales 1 ,2 , 3": (1, 2, 3),
    "--scales 1, 2,": (1, 2),
    "--scales -.5, .5, +1, 1e1": (-0.5, 0.5, 1, 10),
}


@pytest.mark.parametrize("line", BASH_LINES)
@pytest.mark.parametrize("after", ["", "--dry_run", "--folders a, b", "--rank 4"])
def test_scales_in_every_spelling_of_bash(line, after):
    assert scales_of(*shlex.split(line), *after.split()) == BASH_LINES[line]


@pytest.mark.parametrize(
    "words",
    [
        ["-2", "-1", "1", "2"],  # PowerShell passes a, b as separate words
        ["-2,-1,1,2"],
        ["-2, -1, 1, 2"],
        ["-2,", "-1,", "1,", "2"],
    ],
    ids=str,
)
def test_scales_as_powershell_passes_them(words):
    assert scales_of("--scales", *words, "--dry_run") == (-2, -1, 1, 2)


def spellings(words: list[str]):
    """Every way in which shells may pass the list."""
    minus = [w.replace("-", "\N{MINUS SIGN}") for w in words]
    return {
        "bare words": ["--scales", *words],
        "commas": ["--scales", *(f"{w}," for w in words[:-1]), words[-1]],
        "one word": ["--scales", ",".join(words)],
        "quoted": ["--scales", ", ".join(words)],
        "quoted without commas": ["--scales", " ".join(words)],
        "equals": ["--scales=" + ",".join(words)],
        "equals, split": ["--scales=" + words[0] + ",", *(f"{w}," for w in words[1:])],
        "unicode minus": ["--scales", ", ".join(minus)],
    }


NEXT_FLAGS = [[], ["--dry_run"], ["--folders", "a, b"], ["--rank", "3"], ["--lr=0.1"], ["--attributes", "x"]]


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=6), st.sampled_from(NEXT_FLAGS))
def test_any_finite_scales_come_back_exactly_from_any_spelling(scales, after):
    for name, words in spellings([repr(s) for s in scales]).items():
        assert scales_of(*words, *after) == tuple(scales), name


names = st.text(st.characters(categories=("L", "N"), include_characters=" _+.-"), min_size=1, max_size=12).map(
    str.strip
)
folder_names = st.lists(names.filter(lambda n: n and not n.startswith("--")), min_size=2, max_size=5)


@given(folder_names)
def test_any_folder_names_come_back_from_commas_quotes_and_equals(folders):
    quoted = ", ".join(folders)
    for words in (["--folders", quoted], [f"--folders={quoted}"], ["--folders", *quoted.split(" ")]):
        if all(not word.startswith("--") for word in words[1:]):
            assert parsed([*REQUIRED, *words, "--dry_run"]).folders == tuple(folders)


@given(folder_names, st.sampled_from("'\""), st.sampled_from([", ", ",", " ,"]))
def test_quotes_that_cmd_exe_passes_on_are_not_part_of_names(folders, quote, comma):
    whole = f"{quote}{comma.join(folders)}{quote}"
    each = comma.join(f"{quote}{folder}{quote}" for folder in folders)
    for text in (whole, each):
        for words in (["--folders", text], [f"--folders={text}"], ["--folders", *text.split(" ")]):
            if all(not word.startswith("--") for word in words[1:]):
                assert parsed([*REQUIRED, *words, "--dry_run"]).folders == tuple(folders)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=6), st.sampled_from("'\""))
def test_quotes_that_cmd_exe_passes_on_are_not_part_of_scales(scales, quote):
    text = ", ".join(map(repr, scales))
    assert scales_of("--scales", *f"{quote}{text}{quote}".split(" ")) == tuple(scales)


@pytest.mark.parametrize(
    ("line", "folders"),
    [
        ("--folders 'base_one_minus, base_one, base_one_plus, base_k'",
         ("base_one_minus", "base_one", "base_one_plus", "base_k")),
        ("--folders low, high", ("low", "high")),
        ("--folders low high", ("low", "high")),
        ("--folders low,high", ("low", "high")),
        ("--folders=low,high", ("low", "high")),
        ("--folders 'very low, a high one'", ("very low", "a high one")),
        ("--folders 'very low' 'a high one'", ("very low", "a high one")),
        ("--folders very low, a high one", ("very low", "a high one")),
        ("--folders 'low,high,'", ("low", "high")),
        ("--folders \"children's, men's\"", ("children's", "men's")),
    ],
)  # fmt: skip
def test_folders_in_every_spelling(line, folders):
    assert parsed([*REQUIRED, *shlex.split(line), "--dry_run"]).folders == folders


def test_the_readme_line_of_the_fork_parses_as_it_stands():
    line = """--name 'sldr_dilora_frsht_robe_III' --rank 96 --alpha 48 --config_file 'data/config-xl-x.yaml'
      --folder_main 'datasets/assym_dilora'
      --folders 'base_one_minus, base_one, base_one_plus, base_k' --scales 0.67, 1, 1.3, 2.0"""
    flags = parsed(shlex.split(line))
    assert (flags.name, flags.rank, flags.alpha) == ("sldr_dilora_frsht_robe_III", 96, 48.0)
    assert flags.folder_main == Path("datasets/assym_dilora")
    pairs = dict(zip(flags.folders, flags.scales, strict=True))
    assert pairs == {"base_one_minus": 0.67, "base_one": 1.0, "base_one_plus": 1.3, "base_k": 2.0}


def test_words_of_other_flags_are_unchanged():
    assert join_list_flags(["--name", "a, b", "--rank", "-1"]) == ["--name", "a, b", "--rank", "-1"]


@pytest.mark.parametrize("flag", ["--scales", "--folders", "--attributes"])
def test_a_list_flag_without_a_value_is_refused(flag):
    with pytest.raises(InputError, match=f"{flag} was given without a value"):
        parsed([*REQUIRED, flag, "--dry_run"])


@given(st.text(max_size=30))
def test_no_text_for_scales_crashes_the_parser(text):
    try:
        scales = scales_of(f"--scales={text}")
    except InputError as error:
        assert "--scales" in str(error)
    else:
        assert all(isinstance(s, float) for s in scales)


# --- flags and the YAML


def test_without_flags_the_defaults_are_the_four_folders(tmp_path):
    data = settings_of(tmp_path).data
    assert data.folders == ("verylow", "low", "high", "veryhigh")
    assert data.scales == (-2, -1, 1, 2)


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=4, unique=True).flatmap(st.permutations))
def test_folder_i_keeps_scale_i_in_whatever_order_they_are_given(tmp_path_factory, scales):
    folders = [f"folder{i}" for i in range(len(scales))]
    tmp_path = tmp_path_factory.getbasetemp()
    flags = ["--folders", ", ".join(folders), "--scales", ", ".join(map(repr, scales))]
    data = settings_of(tmp_path, *flags, data=tmp_path).data
    assert list(data.scales) == sorted(scales)
    assert dict(zip(data.folders, data.scales, strict=True)) == dict(zip(folders, scales, strict=True))


def test_every_order_of_four_pairs_gives_the_same_run(tmp_path):
    pairs = [("a", 0.67), ("b", 1.0), ("c", 1.3), ("d", 2.0)]
    for order in permutations(pairs):
        folders, scales = zip(*order, strict=True)
        data = settings_of(tmp_path, "--folders", ", ".join(folders), "--scales", ", ".join(map(str, scales))).data
        assert list(zip(data.folders, data.scales, strict=True)) == pairs


FLAG_VALUES = {  # flag: (word, section, key, value)
    "--name": ("other", "save", "name", "other"),
    "--rank": ("7", "network", "rank", 7),
    "--alpha": ("0.5", "network", "alpha", 0.5),
    "--training_method": ("xattn", "network", "training_method", "xattn"),
    "--model": ("some/model", "pretrained_model", "name_or_path", "some/model"),
    "--iterations": ("17", "train", "iterations", 17),
    "--lr": ("2e-5", "train", "lr", 2e-5),
    "--optimizer": ("Lion", "train", "optimizer", "lion"),
    "--seed": ("123", "train", "seed", 123),
    "--save_path": ("elsewhere", "save", "path", Path("elsewhere")),
    "--per_steps": ("9", "save", "per_steps", 9),
}


@pytest.mark.parametrize("flag", FLAG_VALUES)
def test_a_flag_overrides_the_yaml_and_changes_nothing_else(tmp_path, flag):
    word, section, key, value = FLAG_VALUES[flag]
    plain, flagged = settings_of(tmp_path), settings_of(tmp_path, flag, word)
    assert getattr(getattr(flagged, section), key) == value != getattr(getattr(plain, section), key)
    dumped = flagged.model_dump()
    dumped[section][key] = plain.model_dump()[section][key]
    assert dumped == plain.model_dump()


def test_without_a_flag_the_yaml_applies(tmp_path):
    network = settings_of(tmp_path, network={"rank": 32, "alpha": 16}).network
    assert (network.rank, network.alpha) == (32, 16.0)


def test_a_flag_may_set_a_key_of_a_section_that_the_yaml_lacks(tmp_path):
    settings = settings_of(tmp_path, "--rank", "8", "--model", "tiny", network=None, pretrained_model=None)
    assert settings.network.rank == 8
    assert settings.pretrained_model.name_or_path == "tiny"


def test_resolution_and_batch_size_apply_to_every_prompt_set(tmp_path):
    sets = [{"target": "a", "resolution": 512}, {"target": "b", "batch_size": 3}]
    settings = settings_of(tmp_path, "--resolution", "96", "--batch_size", "2", prompts=sets)
    assert [(p.target, p.resolution, p.batch_size) for p in settings.prompts] == [("a", 96, 2), ("b", 96, 2)]


def test_prompts_file_is_found_beside_the_config_or_named_by_the_flag(tmp_path):
    assert settings_of(tmp_path, prompts_file="prompts.yaml").prompts[0].target == ""
    other = tmp_path / "other.yaml"
    other.write_text("- target: other")
    assert settings_of(tmp_path, "--prompts_file", str(other)).prompts[0].target == "other"


def test_run_folder_is_named_as_in_the_fork(tmp_path):
    settings = settings_of(tmp_path, "--name", "robe", "--rank", "96", "--alpha", "48")
    assert settings.run_dir == tmp_path / "models" / "robe_alpha48.0_rank96_noxattn"


def test_attributes_repeat_each_prompt_set_with_the_attribute_in_front_of_its_prompts(tmp_path):
    sets = [{"target": "t", "positive": "p", "neutral": "n", "unconditional": "u"}, {"target": "hat"}]
    prompts = settings_of(tmp_path, "--attributes", "old, very young", prompts=sets).prompts
    assert [(p.target, p.positive, p.neutral, p.unconditional) for p in prompts] == [
        ("old t", "old p", "old n", "old u"),
        ("very young t", "very young p", "very young n", "very young u"),
        ("old hat", "old hat", "old ", "old "),
        ("very young hat", "very young hat", "very young ", "very young "),
    ]


def test_prompts_left_out_fall_back_as_documented(tmp_path):
    sets = [{"target": "t", "unconditional": "u"}, {"target": "t", "positive": "p", "neutral": None}]
    first, second = settings_of(tmp_path, prompts=sets).prompts
    assert (first.positive, first.neutral) == ("t", "u")
    assert (second.positive, second.neutral) == ("p", "")


def test_stylecheck_makes_one_run_per_main_folder_named_after_it(tmp_path):
    runs, _ = load_settings(write_experiment(tmp_path, ["--stylecheck", "2-5"], data=tmp_path / "robe"))
    assert [(r.data.folder_main, r.save.name) for r in runs] == [(tmp_path / f"robe{i}", f"robe{i}") for i in (2, 3, 4)]


@pytest.mark.parametrize("text", ["3-1", "2-2", "3", "a-b", "-1-2", "1-2-3", "1.5-2", ""])
def test_a_stylecheck_that_is_not_an_ascending_range_is_refused(text):
    with pytest.raises(InputError, match=r"--stylecheck: .* write for example --stylecheck 0-3"):
        parsed([*REQUIRED, f"--stylecheck={text}"])


def test_a_flag_of_zero_overrides_the_yaml_too(tmp_path):
    assert settings_of(tmp_path, "--seed", "0", train={"seed": 5}).train.seed == 0


# --- the set of flags


def test_no_flag_is_lost():
    for parser, golden in ((build_parser(), GOLDEN_FLAGS), (build_text_parser(), GOLDEN_TEXT_FLAGS)):
        flags = {option for action in parser._actions for option in action.option_strings}
        assert flags - {"-h"} == golden


@pytest.mark.parametrize(
    "script",
    [
        "train_lora-scale-xl.py",
        "train_lora_xl.py",
        "sample_slider-xl.py",
        "train_lora-scale.py",
        "sample_slider.py",
        "convert_slider.py",
        "merge_sliders.py",
        "compare_sliders.py",
    ],
)
def test_help_names_every_flag_and_answers_without_torch(script):
    code = """
import runpy, sys
sys.argv = [sys.argv[1], "--help"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as stop:
    heavy = {"torch", "diffusers", "transformers", "numpy", "PIL", "accelerate"} & set(sys.modules)
    sys.exit(f"imported {heavy}" if heavy else stop.code)
"""
    path = next(p for folder in (SCRIPTS, TEXT_SCRIPTS) if (p := folder / script).exists())
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    wanted = GOLDEN_FLAGS if script.startswith("train") else {"--help", "--out", "--overwrite"}
    wanted = GOLDEN_TEXT_FLAGS if script == "train_lora_xl.py" else wanted
    assert [flag for flag in wanted if flag not in done.stdout] == []
    assert f"usage: {script} " in done.stdout


# --- what is shipped


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
def test_a_shipped_config_is_valid_from_the_repository_root(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (settings,), _ = load_settings(["--config_file", str(path), "--folder_main", "anything"])
    assert settings.prompts


@pytest.mark.parametrize("path", sorted((TEXT_SCRIPTS / "data").glob("config-xl*.yaml")), ids=lambda p: p.name)
def test_a_shipped_text_config_is_valid_and_its_prompts_lead_from_one_end_to_the_other(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (settings,), _ = load_text_settings(["--config_file", str(path)])
    assert all(p.strength > 0 and p.target == p.neutral for p in settings.prompts)
    assert settings.data.scales == (-1, 1)
    assert -2 in settings.preview.multipliers and 2 in settings.preview.multipliers


@pytest.mark.parametrize("path", SHIPPED_PROMPTS, ids=lambda p: p.name)
def test_a_shipped_prompts_file_is_valid_with_the_shipped_config(path):
    argv = ["--config_file", str(SCRIPTS / "data" / "config-xl.yaml"), "--folder_main", "anything"]
    (settings,), _ = load_settings([*argv, "--prompts_file", str(path)])
    assert settings.prompts


def test_the_config_for_stable_diffusion_is_that_for_sdxl_with_another_model_and_size():
    xl, sd = (
        [yaml.safe_load((SCRIPTS / "data" / f"{name}{ending}.yaml").read_text(encoding="utf-8")) for name in ("config", "prompts")]
        for ending in ("-xl", "")
    )  # fmt: skip
    assert sd[0].pop("pretrained_model").pop("v2") is False
    xl[0].pop("pretrained_model")
    assert {key for key in xl[0] if xl[0][key] != sd[0][key]} == {"prompts_file"}
    assert {key for key in xl[1][0] if xl[1][0][key] != sd[1][0][key]} == {"resolution", "guidance_scale"}


@pytest.mark.parametrize(
    ("family", "ending"), [("sdxl", "-xl"), ("sd", ""), ("flux2", "-flux2"), ("zimage", "-zimage")]
)
def test_messages_name_the_example_of_the_commands_family(tmp_path, family, ending):
    (tmp_path / "c.yaml").write_text("- a list")
    with pytest.raises(InputError, match=rf"start from trainscripts/imagesliders/data/config{ending}\.yaml"):
        load_settings(["--config_file", str(tmp_path / "c.yaml"), "--folder_main", "anything"], family)


@pytest.mark.parametrize(("section", "keys"), [("other", 3), ("network", 6)], ids=["small cards", "layers"])
def test_the_guides_yaml_changes_keys_of_the_suggested_config(tmp_path, section, keys):
    """Which is valid with all of them, and in which each is shown."""
    blocks = re.findall(r"```yaml\n(.*?)```", (SCRIPTS / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    (block,) = (lines for text in blocks if section in (lines := yaml.safe_load(text)))
    config = yaml.safe_load((SCRIPTS / "data" / "config-xl.yaml").read_text(encoding="utf-8"))
    config["prompts_file"] = str(ROOT / config["prompts_file"])
    for name, lines in block.items():
        assert lines.keys() <= config[name].keys()
        assert lines != {key: config[name][key] for key in lines}
        config[name] |= lines
    path = tmp_path / "changed.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    (settings,), _ = load_settings(["--config_file", str(path), "--folder_main", "anything"])
    assert sum(len(lines) for lines in block.values()) == keys
    assert settings.other.gradient_checkpointing == (section == "other")
    assert [item.rank for item in settings.network.include] == ([8, None] if section == "network" else [])


def test_the_suggested_config_shows_every_key_of_train_and_the_guide_every_flag():
    config = yaml.safe_load((SCRIPTS / "data" / "config-xl.yaml").read_text(encoding="utf-8"))
    assert set(config["train"]) == set(Train.model_fields)
    guide = (SCRIPTS / "README.md").read_text(encoding="utf-8")
    assert [flag for flag in GOLDEN_FLAGS if f"`{flag}" not in guide] == []


def test_the_suggested_configs_example_prompts_work_when_uncommented(tmp_path):
    lines = (SCRIPTS / "data" / "config-xl.yaml").read_text(encoding="utf-8").splitlines()
    lines = [line.replace("prompts: []", "prompts:").replace("  #  - ", "    - ") for line in lines]
    prompts = yaml.safe_load("\n".join(lines))["preview"]["prompts"]
    assert prompts == ["a robe on a mannequin, studio light", "a robe on a chair"]


def test_both_prompt_forms_are_shipped_and_the_suggested_experiment_is_the_forks():
    forms = {
        any(s.get("positive") for s in yaml.safe_load(path.read_text(encoding="utf-8"))) for path in SHIPPED_PROMPTS
    }
    assert forms == {False, True}
    config = yaml.safe_load((SCRIPTS / "data" / "config-xl.yaml").read_text(encoding="utf-8"))
    assert (config["network"]["type"], config["network"]["training_method"]) == ("c3lier", "noxattn")
    train = config["train"]
    assert (train["precision"], train["noise_scheduler"], train["optimizer"]) == ("bfloat16", "ddim", "adamw")
    assert (train["iterations"], train["lr"], train["lr_scheduler"], train["max_denoising_steps"]) == (
        4000,
        1.2e-4,
        "cosine",
        850,
    )
