"""Which names of the scale folders are used: without those of `--leave_out`, and of `--incomplete drop`."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sliders.config.schema import Data
from sliders.data.folders import Folder, listed
from sliders.data.images import is_image_name, match_key
from sliders.system.errors import InputError
from sliders.system.files import readable


@dataclass(frozen=True)
class Choice:
    """What is done without: {match key: name}, by the reason."""

    left_out: Mapping[str, str]  # named in the file of --leave_out
    dropped: Mapping[str, str]  # that a folder lacks

    @property
    def keys(self) -> frozenset[str]:
        return frozenset(self.left_out) | frozenset(self.dropped)

    def describe(self) -> str:
        """For the plan: how many names, why, and which were not named by the user."""
        found = f", {len(self.left_out)} left out (--leave_out)" if self.left_out else ""
        if self.dropped:
            found += (
                f", {len(self.dropped)} dropped that some folder lacks (--incomplete): {listed(self.dropped.values())}"
            )
        return found


def choose(data: Data, found: Mapping[str, Folder]) -> tuple[Choice, dict[str, Folder]]:
    """found: what lies in each folder. Returns what is done without, and the folders without it.

    Raises InputError for a file that cannot be read or names other images, and if no name is left.
    """
    names = {key: paths[0].stem for folder in found.values() for key, paths in folder.images.items()}
    left_out = {key: names[key] for key in _named(data, names)} if data.leave_out is not None else {}
    kept = {name: _without(folder, left_out) for name, folder in found.items()}
    dropped: dict[str, str] = {}
    if data.incomplete == "drop":
        dropped = {key: name for key, name in names.items() if key not in left_out and not _is_everywhere(key, kept)}
        kept = {name: _without(folder, dropped) for name, folder in kept.items()}
    choice = Choice(left_out, dropped)
    if names and choice.keys == names.keys():
        flags = " and ".join(["--leave_out"] * bool(left_out) + ["--incomplete drop"] * bool(dropped))
        raise InputError(
            f"{flags}: none of the {len(names)} names in {data.folder_main} is left{choice.describe()}: keep some names, and "
            "put each into every folder."
        )
    return choice, kept


def _is_everywhere(key: str, folders: Mapping[str, Folder]) -> bool:
    return all(key in folder.images for folder in folders.values())


def _without(folder: Folder, keys: Mapping[str, str]) -> Folder:
    return replace(folder, images={key: paths for key, paths in folder.images.items() if key not in keys})


def _named(data: Data, names: Mapping[str, str]) -> list[str]:
    """The match keys that the file of --leave_out names, one name in each line, with or without an image's ending."""
    path, place = data.leave_out, f"--leave_out: {data.leave_out}"
    with readable(path, place) as file:
        content = file.read()
    try:
        lines = [line.strip() for line in content.decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise InputError(f"{place} is not UTF-8 text: write one name in each line, and save it as UTF-8.") from error
    found = {line: next((key for key in _keys(line) if key in names), None) for line in lines if line}
    if unknown := [repr(line) for line, key in found.items() if key is None]:
        raise InputError(
            f"{place} names {listed(unknown)}, but {data.folder_main} has no image of that name: correct or remove the line."
        )
    return list(found.values())


def _keys(line: str) -> list[str]:
    """A name may contain dots, so the whole line is the likeliest."""
    return [match_key(Path(f"{line}.png")), *([match_key(Path(line))] if is_image_name(Path(line)) else [])]
