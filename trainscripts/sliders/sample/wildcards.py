"""The files behind Dynamic Prompts' `__wildcards__`, each read only if a prompt uses it."""

import logging
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from dynamicprompts.wildcards import WildcardManager
from dynamicprompts.wildcards.collection import WildcardTextFile
from dynamicprompts.wildcards.collection.structured import parse_structured_file
from dynamicprompts.wildcards.values import WildcardValues

from sliders.system.errors import InputError, first_line
from sliders.system.files import check_listable

NAMED = re.compile(r"__[~!@]?((?:(?!__)[^(${}#])+)(?:\([^)]*\))?__")  # a wildcard inside a file's line
logging.getLogger("dynamicprompts").setLevel(logging.ERROR)  # what it warns of is refused below, or is documented
ENDINGS = (".txt", ".yaml", ".json")


class Wildcards(WildcardManager):
    """Looks up wildcards in a folder, and refuses what the library would leave out or repeat without end.

    The library skips letters that it cannot decode, keeps a BOM as text, leaves an unknown wildcard in the prompt, and
    follows links and wildcards that lead back to themselves until its stack is full.
    """

    def __init__(self, folder: Path | None):
        """Raises InputError if `folder` cannot be read or contains no wildcards."""
        self._folder, self._unreadable = folder, {}
        if folder is not None:
            check_listable(folder, "--wildcard_dir")
        found = {} if folder is None else {name: c for path in self._files() for name, c in self._collections(path)}
        if folder is not None and not (found or self._unreadable):
            raise InputError(
                f"--wildcard_dir: {folder} contains no {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]} file: check the path."
            )
        super().__init__(root_map={"": [found]} if found else None)

    def _files(self) -> Iterator[Path]:
        """Those in the folder and below it, each folder once, whatever links there are. Hidden folders are left out."""
        seen: set[Path] = set()
        for place, below, names in os.walk(self._folder, onerror=self._note, followlinks=True):
            resolved = Path(place).resolve()
            if resolved in seen:
                below.clear()
                continue
            seen.add(resolved)
            below[:] = sorted(name for name in below if not name.startswith("."))
            yield from (path for name in sorted(names) if (path := Path(place, name)).suffix in ENDINGS)

    def _note(self, error: OSError) -> None:
        """Of a folder that cannot be read, which matters only if a wildcard is not found."""
        self._unreadable[Path(error.filename)] = error.strerror

    def _collections(self, path: Path) -> Iterator[tuple]:
        """(name, collection) of one file. A YAML or JSON file may hold several, or cannot be read."""
        place = path.parent.relative_to(self._folder).as_posix()
        prefix = "" if place == "." else f"{place}/"
        if path.suffix == ".txt":
            yield f"{prefix}{path.stem}", _TextFile(path)
            return
        try:
            for name, collection in parse_structured_file(path):
                yield f"{prefix}{name}", collection
        except Exception as error:  # of YAML, JSON, the encoding or the system
            self._unreadable[path] = first_line(error)

    def get_values(self, wildcard: str) -> WildcardValues:
        """Raises InputError for a wildcard without values, and for one that leads back to itself."""
        return self._values(wildcard, ())

    def _values(self, wildcard: str, above: tuple[str, ...]) -> WildcardValues:
        if wildcard in above:
            way = " → ".join(f"__{name}__" for name in (*above, wildcard))
            raise InputError(
                f"--wildcard_dir: {way} leads back to itself without end: remove it from one of the files."
            )
        if ".." in wildcard:
            raise InputError(
                f"--prompt: the wildcard __{wildcard}__ leads out of --wildcard_dir: write it without the dots."
            )
        values = super().get_values(wildcard)
        if not values:
            what = "only empty files" if any(self.match_collections(wildcard)) else "no file"
            unreadable = [f"; {path} cannot be read ({why})" for path, why in self._unreadable.items()]
            raise InputError(
                f"--prompt: the wildcard __{wildcard}__ has {what} in --wildcard_dir ({self._folder or 'not given'})"
                f"{''.join(unreadable[:1])}: add one "
                "with a value on each line."
            )
        for name in dict.fromkeys(name for value in values.string_values for name in NAMED.findall(value)):
            self._values(name, (*above, wildcard))
        return values


class _TextFile(WildcardTextFile):
    """Refuses what is not plain UTF-8 when it is used."""

    def get_values(self) -> list[str]:
        path = self._path
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                raise InputError(f"--wildcard_dir: {path} is a folder, a pipe or a device, not a file: remove it.")
            raw = path.read_bytes()
        except OSError as error:
            raise InputError(
                f"--wildcard_dir: {path} cannot be read ({error.strerror}): check the file and its permissions."
            ) from error
        try:
            plain = not raw.decode("utf-8").startswith("\ufeff")
        except UnicodeDecodeError:
            plain = False
        if not plain:
            raise InputError(
                f"--wildcard_dir: {path} is not plain UTF-8, perhaps saved by a Windows program: save it as UTF-8 without BOM."
            )
        return super().get_values()
