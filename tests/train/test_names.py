"""A new slider's name is one that a web UI's prompt can hold; what exists under another name stays usable."""

import pytest
from experiments import experiment, settings_of
from sliders.report.web_ui import multiplier_template
from sliders.sample.templates import expand, is_read_as_written
from sliders.system.errors import InputError
from sliders.train.plan import make_plan

STRANGE = [
    "a__b", "__a__", "a__b__c", "a_", "_", "{x}", "a{b}", "a{", "a}", "x}{y", "${x}", "$$", "2$$a", "a$b", "#1", "a#b", "50%", "%%",
]  # fmt: skip
PLAIN = [
    "robe",
    "robe 2",
    "a_b",
    "a-b",
    "a+b",
    "a.b",
    "a,b",
    "a (b)",
    "[a]",
    "robe!",
    "it's",
    "a&b",
    "a=b",
    "@x",
    "~x",
    "é",
    "日本",
    "_a",
]


@pytest.mark.parametrize("name", STRANGE)
def test_a_new_run_of_a_name_that_a_web_ui_would_change_is_refused(tmp_path, name):
    argv = experiment(tmp_path / "run", save={"name": name})
    with pytest.raises(InputError, match=r"^save.name: .* would not be read as it is written .*: leave them out"):
        make_plan(settings_of(argv))


@pytest.mark.parametrize("name", PLAIN)
def test_other_names_are_read_as_they_are_written(name):
    assert is_read_as_written(f"{name}_alpha2.0_rank4_noxattn_last", (0.67, 1.0, 2.0))


def test_a_run_that_exists_under_such_a_name_resumes_and_samples(tmp_path, train_main, capsys, monkeypatch):
    argv = experiment(tmp_path / "run", 1, 1, save={"name": "a__b #1 50%"})
    with monkeypatch.context() as patch:  # as before such names were refused
        patch.setattr("sliders.train.plan.is_read_as_written", lambda *_: True)
        assert train_main(argv) == 0
    capsys.readouterr()
    assert train_main([*argv, "--iterations", "2", "--resume"]) == 0
    settings = settings_of(argv)
    stem = f"{settings.stem}_last"
    assert f"prompt  {multiplier_template(stem, settings.data.scales)}" in capsys.readouterr().out
    assert [v.multiplier(stem) for v in expand(multiplier_template(stem, (1.0,)), "S", 9)] == [0, 1]
    assert make_plan(settings_of([*argv, "--overwrite"])).layers
