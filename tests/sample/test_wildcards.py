"""Wildcards: files are read if a prompt uses them, and what the library would pass over in silence is refused."""

import os

import pytest
from sliders.sample.templates import expand
from sliders.system.errors import InputError

FILES = {
    "colour.txt": b"red\nblue\n",
    "hat.txt": b"__colour__ hat\n# a comment\n",
    "deeper/shape.txt": b"disc\n",
    "kinds.yaml": b"animal:\n  - cat\n  - dog\n",
    "latin.txt": "r\u00f6t\n".encode("latin-1"),
    "bom.txt": "red\n".encode("utf-8-sig"),
    "wide.txt": "red\n".encode("utf-16"),
    "broken.json": b"{",
    "empty.txt": b"",
    "itself.txt": b"a\nb __itself__\n",
    "first.txt": b"x __second__\n",
    "second.txt": b"y __first__\n",
    "star.txt": b"z __st*__\n",
    "out.txt": b"__../secret__\n",
    "unclosed.txt": b"a {b\n",
    "unknown.txt": b"__nobody__\n",
    "readme.md": b"no wildcards",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Every kind of file, and links that lead back, to themselves and to nothing."""
    root = tmp_path_factory.mktemp("wild")
    for name, content in FILES.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(content)
    (root / "again").symlink_to(root, target_is_directory=True)
    (root / "round").symlink_to("round")
    (root / "looping.txt").symlink_to("looping.txt")
    (root / "dangling.txt").symlink_to("nowhere.txt")
    (root / "folder.txt").mkdir()
    os.mkfifo(root / "pipe.txt")
    return root


def texts(template, folder):
    return [v.text for v in expand(template, "S", 100, folder)]


@pytest.mark.parametrize(
    ("template", "found"),
    [
        ("a __colour__ robe", ["a blue robe", "a red robe"]),
        ("__hat__", ["blue hat", "red hat"]),
        ("__deeper/shape__", ["disc"]),
        ("__shape__", ["disc"]),
        ("__animal__", ["cat", "dog"]),
        ("__co*__", ["blue", "red"]),
        ("{2$$ and $$__colour__}", ["blue and red", "red and blue"]),
        ("${c=__colour__}a ${c}", ["a blue", "a red"]),
        ("nothing", ["nothing"]),
    ],
)
def test_a_file_that_no_prompt_uses_does_no_harm(folder, template, found, capsys):
    assert sorted(texts(template, folder)) == found
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("__../secret__", "__../secret__ leads out of --wildcard_dir: write it without the dots"),
        ("a {b|__..__}", "__..__ leads out of"),
        ("__out__", "__../secret__ leads out of"),
        ("__/etc/passwd__", "__/etc/passwd__ has no file in --wildcard_dir"),
        ("__nobody__", "__nobody__ has no file in --wildcard_dir"),
        ("{__nobody__}", "__nobody__ has no file"),
        ("{2$$__nobody__}", "__nobody__ has no file"),
        ("__unknown__", "__nobody__ has no file"),
        ("__nobody__", "broken.json cannot be read"),
        ("__empty__", "__empty__ has only empty files"),
        ("__itself__", "__itself__ → __itself__ leads back to itself without end"),
        ("__first__", "__first__ → __second__ → __first__ leads back"),
        ("__star__", "leads back to itself"),
        ("__latin__", "latin.txt is not plain UTF-8"),
        ("__bom__", "bom.txt is not plain UTF-8, perhaps saved by a Windows program: save it as UTF-8 without BOM"),
        ("__wide__", "wide.txt is not plain UTF-8"),
        ("__dangling__", "dangling.txt cannot be read (No such file or directory)"),
        ("__looping__", "looping.txt cannot be read (Too many levels of symbolic links)"),
        ("__pipe__", "pipe.txt is a folder, a pipe or a device"),
        ("__folder__", "__folder__ has no file"),
        ("__unclosed__", "or a line in one of its wildcards' files, is not valid Dynamic Prompts syntax"),
    ],
)
def test_a_wildcard_that_cannot_be_expanded_is_refused(folder, template, said, capsys):
    with pytest.raises(InputError, match=r"^--(prompt|wildcard_dir): .*\.$") as error:
        texts(template, folder)
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere", "cannot be read as a folder (No such file or directory)"),
        ("colour.txt", "cannot be read as a folder (Not a directory)"),
        ("round", "cannot be read as a folder (Too many levels of symbolic links; it is a link to round)"),
        ("folder.txt", "contains no .txt, .yaml or .json file"),
    ],
)
def test_a_folder_without_wildcards_is_refused_whatever_the_prompt(folder, name, said):
    with pytest.raises(InputError, match=r"^--wildcard_dir: ") as error:
        texts("a disc", folder / name)
    assert said in str(error.value)


def test_without_a_folder_wildcards_are_unknown():
    with pytest.raises(InputError, match=r"__colour__ has no file in --wildcard_dir \(not given\)"):
        texts("__colour__", None)
