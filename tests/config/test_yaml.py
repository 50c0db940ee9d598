"""Every value in a YAML file means what it looks like, or is refused with a sentence in the words of YAML."""

import os
from pathlib import Path

import pytest
import yaml
from conftest import write_experiment, write_yaml
from sliders.config.migration import ELSEWHERE
from sliders.config.prompts import PromptSet
from sliders.config.schema import Config
from sliders.config.settings import load_settings, validated
from sliders.system.errors import InputError


def settings_with(tmp_path, line, prompts="- target: ''\n"):
    """Of a config with this line, or lines, in it."""
    write_yaml(tmp_path / "prompts.yaml", prompts)
    config = write_yaml(tmp_path / "config.yaml", f"prompts_file: {tmp_path}/prompts.yaml\n{line}\n")
    (settings,), _ = load_settings(["--config_file", str(config), "--folder_main", "data"])
    return settings


def refusal(tmp_path, line, prompts="- target: ''\n"):
    with pytest.raises(InputError) as error:
        settings_with(tmp_path, line, prompts)
    assert str(error.value).endswith(".") and "\n" not in str(error.value), error.value
    return str(error.value)


@pytest.mark.parametrize(
    ("written", "read", "meant"),
    [
        ("010", "8", "10"), ("-010", "-8", "-10"), ("+010", "8", "10"), ("007", "7", "7"), ("00", "0", "0"), ("0_7", "7", "7"),
        ("0x1F", "31", "31"), ("0b101", "5", "5"), ("1_000", "1000", "1000"), ("1_0.5", "10.5", "10.5"), ("1_", "1", "1"),
        ("1:30", "90", "90"), ("190:20:30", "685230", "685230"), ("1:30.5", "90.5", "90.5"), ("!!int '010'", "8", "10"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "key", ["train: {iterations: ", "train: {lr: ", "save: {name: ", "preview: {multipliers: [0, ", "new: {key: "]
)
def test_a_number_that_yaml_reads_as_another_is_refused_wherever_it_stands(tmp_path, written, read, meant, key):
    said = refusal(tmp_path, f"{key}{written}{']' if '[' in key else ''}}}")
    plain = written.split("'")[-2] if "'" in written else written
    assert (
        f"config.yaml, line 2, column {len(key) + 1}: YAML reads {plain} as {read}: write {meant}, or '{plain}' in quotes"
        in said
    )


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("iterations", {"10": 10, "1e3": 1000, "1.0e3": 1000, "5.": 5, "+5": 5, "08": 8, "'10'": 10, '"010"': 10}),
        ("lr", {"1e-4": 1e-4, "1E-4": 1e-4, "1.2e-4": 1.2e-4, ".5": 0.5, "5e-1": 0.5, "'0.5'": 0.5, "1": 1.0}),
    ],
)
def test_plain_numbers_are_read_as_they_are_written(tmp_path, key, values):
    for written, value in values.items():
        assert getattr(settings_with(tmp_path, f"train: {{{key}: {written}}}").train, key) == value, written


@pytest.mark.parametrize(
    ("written", "remedy"),
    [
        ("many", "for example 500"), ("0o17", "for example 500"), ("１０", "for example 500"), ("'1_000'", "for example 500"),
        ("nan", "for example 500"), ("None", "for example 500"), ("yes", "for example 500"), ("true", "for example 500"),
        ("2024-01-01", "for example 500"), ("'1,5'", "with a decimal point"), ("4.5", "for example 500"), ("1e-1", "for example"),
        ("=", "for example 500"), ("[1]", "for example 500"), ("{a: 1}", "for example 500"), ("~", "or remove the line"),
        ("", "or remove the line"), (".inf", "finite"), ("1e400", "finite"),
    ],
)  # fmt: skip
def test_what_is_no_whole_number_is_refused(tmp_path, written, remedy):
    said = refusal(tmp_path, f"train:\n  iterations: {written}\n")
    assert "config.yaml: train.iterations: " in said and remedy in said


@pytest.mark.parametrize(
    "word", ["yes", "no", "on", "off", "y", "n", "1e3", "2024-01-01", "0o17", "=", "None", "'007'", "'true'"]
)
def test_words_are_text_where_text_belongs(tmp_path, word):
    text = word.strip("'")
    assert settings_with(tmp_path, f"save: {{name: {word}}}").save.name == text
    assert settings_with(tmp_path, "", f"- {{target: {word}}}").prompts[0].target == text


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("true", "true is not text: put it in quotes"), ("False", "false is not text: put it in quotes"),
        ("42", "42 is not text: put it in quotes"), ("1.50", "1.5 is not text: put it in quotes"),
        ("null", "an empty value is not text: write for example untitled"), ("~", "an empty value"), ("", "an empty value"),
        ("[a]", "a list is not text: write one value"), ("{caption}", "a mapping is not text: put it in quotes"),
    ],
)  # fmt: skip
def test_what_yaml_does_not_read_as_text_is_to_be_put_in_quotes(tmp_path, word, said):
    assert f"save.name: {said}" in refusal(tmp_path, f"save:\n  name: {word}\n")


@pytest.mark.parametrize(
    ("word", "on"), [("yes", True), ("On", True), ("true", True), ("no", False), ("OFF", False), ("false", False)]
)
def test_switches_take_yes_and_no(tmp_path, word, on):
    settings = settings_with(tmp_path, f"other: {{gradient_checkpointing: {word}, torch_compile: {word}, cuda_graph: {word}}}\n"
        f"pretrained_model: {{quantize: {word}}}")  # fmt: skip
    assert settings.other.gradient_checkpointing is on
    assert (settings.other.torch_compile, settings.other.cuda_graph) == (("regional", "auto") if on else ("off", "off"))
    assert settings.pretrained_model.quantize == ("fp8" if on else "none")


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("save: {name: a}\nsave: {name: b}", "save appears twice"),
        ("save:\n  name: a robe: red", "put the text in quotes"),
        ("save:\n  name: {caption}, red", "in quotes"),
        ("save:\n  name: @robe", "put the text in quotes"),
        ("save:\n  name: *robe", "text that begins with * in quotes"),
        ("save:\n  name: !robe", "text that begins with ! in quotes"),
        ("save:\n\tname: a", "spaces, not tabs"),
        ("---\nsave: {}", "remove the lines ---"),
    ],
)
def test_bad_syntax_has_a_line_and_a_remedy(tmp_path, text, remedy):
    said = refusal(tmp_path, text)
    assert "config.yaml, line " in said and remedy in said


WRONG = [True, 5, 1.5, "word", "", [1, 2], {"a": 1}, None, {"a"}, -1, ["x"], [{"a": 1}]]
PYTHONS = (
    "tuple",
    "dict",
    "NoneType",
    "None ",
    "True",
    "False",
    "input",
    "Input",
    "instance",
    "string",
    "boolean",
    "integer",
    "type=",
)


def places():
    for name, field in Config.model_fields.items():
        yield (Config, (name,))
        for key in getattr(field.annotation, "model_fields", {}):
            yield (Config, (name, key))
    for key in PromptSet.model_fields:
        yield (PromptSet, (key,))


@pytest.mark.parametrize(("model", "path"), places(), ids=lambda p: ".".join(p) if isinstance(p, tuple) else p.__name__)
def test_no_wrong_type_anywhere_is_answered_in_the_words_of_python(model, path):
    for value in WRONG:
        raw = {"pretrained_model": {"name_or_path": "tiny"}} if model is Config else {"target": ""}
        if len(path) == 2:
            raw.setdefault(path[0], {})[path[1]] = value
        else:
            raw[path[0]] = value
        try:
            validated(model, raw, "c.yaml")
        except InputError as error:
            for line in str(error).splitlines():
                assert line.startswith("c.yaml") and line.endswith(".") and ": " in line
                assert ".".join(path).split(".")[0] in line
                assert not [word for word in PYTHONS if word in line], line


UNKNOWN = {
    "train: {gradient_accumulation_steps: 4}": "use batch_size in the prompts file",
    "train: {learning_rate: 1}": "use train.lr",
    "train: {LR: 1}": "did you mean 'lr'",
    "train: {batch_size: 4}": "a key of each prompt set",
    "train: {max_train_steps: 4}": "use train.iterations",
    "network: {network_dim: 4}": "use network.rank",
    "network: {rnak: 4}": "did you mean 'rank'",
    "network: {foo: 4}": "the known keys are type, algo, factor, rank",
    "network: {seed: 4}": "did you mean train.seed",
    "output_dir: x": "use save.path",
    "trian: {}": "did you mean 'train'",
    "zebra: {}": "the known keys are prompts_file, pretrained_model",
    "1: x": "the known keys are prompts_file",
    "network: {include: [{pattern: '*ff*', rnk: 2}]}": "did you mean 'rank'",
}


@pytest.mark.parametrize("line", UNKNOWN)
def test_for_an_unknown_key_only_what_is_near_in_meaning_is_suggested(tmp_path, line):
    said = refusal(tmp_path, line)
    assert " is not a known key: " in said and UNKNOWN[line] in said


def test_the_table_of_other_trainers_names_only_keys_that_are_none_here_and_suggests_keys_that_are():
    sections = {name: field.annotation.model_fields for name, field in Config.model_fields.items()
                if hasattr(field.annotation, "model_fields")}  # fmt: skip
    known = {key for keys in sections.values() for key in keys} | set(Config.model_fields)
    assert not known & set(ELSEWHERE)
    assert all(key == key.lower() and "-" not in key for key in ELSEWHERE)
    for remedy in ELSEWHERE.values():
        for word in remedy.replace(",", " ").replace(";", " ").replace(":", " ").split():
            section, dot, key = word.partition(".")
            if dot and section in sections:
                assert key in sections[section], remedy


def test_an_unknown_flag_of_another_trainer_is_explained(tmp_path):
    with pytest.raises(
        InputError, match=r"^--learning_rate is not a known flag: use train.lr, or --lr \(see --help\)\.$"
    ):
        load_settings([*write_experiment(tmp_path), "--learning_rate", "1"])
    with pytest.raises(InputError, match=r"^'robe' belongs to no flag: put a value that contains spaces in quotes"):
        load_settings([*write_experiment(tmp_path), "--name", "red", "robe"])


@pytest.mark.parametrize("flag", ["--rank", "--iterations", "--seed", "--alpha", "--lr"])
@pytest.mark.parametrize("text", ["1_0", "１０", "ten", "1,5", "0x10", " "])
def test_flags_take_plain_numbers_only(tmp_path, flag, text):
    with pytest.raises(InputError, match=rf"^{flag}: .* is not a (whole )?number: write one such as"):
        load_settings([*write_experiment(tmp_path), f"{flag}={text}"])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--folders", "a, b"],
            "--folders lists 2 (a, b), but --scales was not given, and its default has 4 (-2, -1, 1, 2): add",
        ),
        (
            ["--scales", "1, 2, 3"],
            "--scales lists 3 (1, 2, 3), but --folders was not given, and its default has 4 (verylow,",
        ),
        (["--folders", "a, b", "--scales", "1, 2, 3"], "--folders lists 2 (a, b) but --scales lists 3 (1, 2, 3)"),
    ],
)
def test_a_default_is_not_called_what_was_given(tmp_path, flags, said):
    with pytest.raises(InputError) as error:
        load_settings([*write_experiment(tmp_path), *flags])
    assert said in str(error.value)


@pytest.mark.parametrize("which", ["config.yaml", "prompts.yaml"])
def test_a_file_that_cannot_be_read_is_refused_with_the_systems_reason(tmp_path, which):
    argv, path = write_experiment(tmp_path), tmp_path / which
    path.unlink()
    for target, said in (
        ("nowhere.yaml", "No such file or directory; it is a link to nowhere.yaml"),
        (which, f"Too many levels of symbolic links; it is a link to {which}"),
    ):
        path.symlink_to(target)
        with pytest.raises(InputError, match=rf"{which} cannot be read \({said}.*\): check the path"):
            load_settings(argv)
        path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match=rf"{which} cannot be read \(Is a directory\)"):
        load_settings(argv)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused_with_the_systems_reason(tmp_path):
    argv = write_experiment(tmp_path)
    (tmp_path / "config.yaml").chmod(0)
    with pytest.raises(InputError, match=r"config.yaml cannot be read \(Permission denied\)"):
        load_settings(argv)


def test_a_config_may_come_through_a_pipe(tmp_path):
    """As from `--config_file <(…)`. Its size is not known, so an endless one is not read to its end."""
    argv = write_experiment(tmp_path)
    reading, writing = os.pipe()
    os.write(writing, Path(argv[1]).read_bytes())
    os.close(writing)
    (settings,), _ = load_settings(["--config_file", f"/dev/fd/{reading}", *argv[2:]])
    assert settings.network.rank == yaml.safe_load(Path(argv[1]).read_text())["network"]["rank"]
    os.close(reading)
    with pytest.raises(InputError, match="/dev/zero is larger than 1,000,000 bytes"):
        load_settings(["--config_file", "/dev/zero", *argv[2:]])
