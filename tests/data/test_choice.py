"""Names that are done without: those of --leave_out, and with --incomplete drop those that a folder lacks."""

import pytest
from conftest import make_scale_folders, write_experiment
from experiments import everything_in, settings_of
from sliders.config.prompts import PromptSet
from sliders.config.schema import Data
from sliders.data.dataset import ScaleFolders
from sliders.sample.settings import load_sample_settings
from sliders.system.errors import InputError

PROMPTS = (PromptSet(target="", resolution=64),)
FOLDERS, NAMES = ("low", "high"), ("a", "b", "c.x", "Él")
FLAGS = ("--folders", "low, high", "--scales", "-1, 1")


@pytest.fixture
def root(tmp_path):
    """Four names in two folders, with captions."""
    data = make_scale_folders(tmp_path / "data", folders=FOLDERS, names=NAMES)
    (data / "captions").mkdir()
    for name in NAMES:
        (data / "captions" / f"{name}.txt").write_text(f"this is {name}", encoding="utf-8")
    return data


def found(root, leave_out=None, incomplete="refuse") -> ScaleFolders:
    path = None
    if leave_out is not None:
        path = root.parent / "leave_out.txt"
        path.write_bytes(leave_out if isinstance(leave_out, bytes) else leave_out.encode())
    data = Data(folder_main=root, folders=FOLDERS, scales=(-1.0, 1.0), leave_out=path, incomplete=incomplete)
    return ScaleFolders.find(data, 32)


@pytest.mark.parametrize(
    ("leave_out", "left"),
    [
        ("a\nc.x\n", ("b", "Él")),
        ("a.png\r\n\r\n  C.X  \r\n", ("b", "Él")),
        ("\ufeffa\n", ("b", "c.x", "Él")),
        ("E\u0301l.JPG\nb", ("a", "c.x")),  # another Unicode form
        ("a\na", ("b", "c.x", "Él")),
        ("", NAMES),
    ],
)
def test_named_images_are_left_out_with_their_captions(root, leave_out, left):
    data = found(root, leave_out)
    assert data.names == left and data.captions == tuple(f"this is {name}" for name in left)
    assert data.remarks(PROMPTS) == []  # the captions of the others are no strays
    count = len(NAMES) - len(left)
    shown = f"images  {len(left)} names × 2 scales" + (f", {count} left out (--leave_out)" if count else "")
    assert data.describe(PROMPTS)[0] == shown


def test_what_is_left_out_need_not_be_readable_nor_complete(root):
    (root / "low" / "a.png").write_bytes(b"no picture")
    (root / "high" / "b.png").unlink()
    (root / "captions" / "a.txt").write_bytes(b"\xff")
    assert found(root, "a\nb").names == ("c.x", "Él")
    with pytest.raises(InputError, match=r"a.png: cannot be read"):
        found(root, "b")


def test_incomplete_names_are_refused_with_the_remedy_or_dropped_and_named(root):
    (root / "high" / "b.png").unlink()
    (root / "low" / "a.png").unlink()
    with pytest.raises(InputError, match=r"has 3 of 4 images and lacks b.png: .* --incomplete drop does without"):
        found(root)
    data = found(root, incomplete="drop")
    assert data.names == ("c.x", "Él") and data.captions == ("this is c.x", "this is Él")
    assert (
        data.describe(PROMPTS)[0] == "images  2 names × 2 scales, 2 dropped that some folder lacks (--incomplete): a, b"
    )
    assert data.remarks(PROMPTS) == []
    both = found(root, "b\nÉl", incomplete="drop").describe(PROMPTS)[0]
    assert (
        both
        == "images  1 names × 2 scales, 2 left out (--leave_out), 1 dropped that some folder lacks (--incomplete): a"
    )


@pytest.mark.parametrize(
    ("leave_out", "said"),
    [
        ("a\ntypo\nd.x", r"names 'd.x', 'typo', but .*data has no image of that name: correct or remove the line"),
        (b"\xff\xfea", r"leave_out.txt is not UTF-8 text: write one name in each line"),
        ("\n".join(NAMES), r"--leave_out: none of the 4 names in .*data is left, 4 left out"),
    ],
)
def test_a_list_that_cannot_be_meant_is_refused(root, leave_out, said):
    with pytest.raises(InputError, match=said):
        found(root, leave_out)


def test_nothing_is_left_where_no_name_is_complete(root):
    for folder, names in (("low", NAMES[:2]), ("high", NAMES[2:])):
        for name in names:
            (root / folder / f"{name}.png").unlink()
    with pytest.raises(InputError, match=r"^--incomplete drop: none of the 4 names .* put each into every folder"):
        found(root, incomplete="drop")
    with pytest.raises(InputError, match=r"^--leave_out and --incomplete drop: none of the 4 names"):
        found(root, "a", incomplete="drop")


def test_a_missing_list_is_named(root, tmp_path):
    for place in (tmp_path / "nowhere.txt", tmp_path):
        data = Data(folder_main=root, folders=FOLDERS, scales=(-1.0, 1.0), leave_out=place)
        with pytest.raises(InputError, match=r"^--leave_out: "):
            ScaleFolders.find(data, 32)


def test_the_flags_reach_the_plan_and_a_mistake_leaves_no_file(root, tmp_path, train_main, capsys):
    (root / "high" / "b.png").unlink()
    (tmp_path / "list.txt").write_text("a")
    argv = write_experiment(tmp_path, FLAGS, data=root)
    before = everything_in(tmp_path)
    leave_out = ["--leave_out", str(tmp_path / "list.txt")]
    assert train_main([*argv, *leave_out]) == 2
    assert "lacks b.png" in capsys.readouterr().err
    assert train_main([*argv, *leave_out, "--incomplete", "drop", "--dry_run"]) == 0
    assert "images  2 names × 2 scales, 1 left out (--leave_out), 1 dropped" in capsys.readouterr().out
    assert train_main([*argv, "--incomplete", "ignore"]) == 2
    assert "--incomplete" in capsys.readouterr().err
    assert everything_in(tmp_path) == before


def test_a_card_measures_what_the_training_read():
    """The sample command has the same two flags, for the folders of --card."""
    argv = ["--slider", "s", "--model", "tiny", "--prompt", "a"]
    for flag, value in (("--leave_out", "x.txt"), ("--incomplete", "drop")):
        with pytest.raises(InputError, match=f"{flag}: is about the folders of --card, which is not given"):
            load_sample_settings([*argv, flag, value])
    settings = load_sample_settings([*argv, "--card", "y", "--leave_out", "x.txt", "--incomplete", "drop"])
    assert (str(settings.leave_out), settings.incomplete) == ("x.txt", "drop")


def test_a_run_that_leaves_out_other_names_is_another_run(root, tmp_path):
    argv = write_experiment(tmp_path, FLAGS, data=root)
    (tmp_path / "list.txt").write_text("a")
    one, other = (settings_of([*argv, *more]) for more in ((), ("--leave_out", str(tmp_path / "list.txt"))))
    identities = [ScaleFolders.find(settings.data, 32).identity() for settings in (one, other)]
    assert identities[0]["images"].keys() - identities[1]["images"].keys() == {"low/a.png", "high/a.png"}
