"""Paths as users write them, in flags and YAML alike: `~` is the home folder, and variables are refused."""

import os
import re

# $HOME, ${HOME} and PowerShell's $env:HOME; %USERPROFILE%
VARIABLE = re.compile(r"\$\{(\w+)\}|\$env:(\w+)|\$(\w+)|%(\w+)%", re.IGNORECASE)
SEPARATORS = ("/", os.sep)


def expanded(text: str) -> str:
    """`~/x` and `~user/x` with the home folder in place of `~`; other paths and hub ids as they are.

    Shells leave `--out=~/x` as it is, and nothing expands a path in YAML. Raises ValueError for an empty path, an unknown
    user, control characters, and variables, which would become folders of that name. What exists is taken as it is called.
    """
    if not text.strip():
        raise ValueError(f"{text!r} is no path: write one, or leave it out")
    if re.search(r"[\x00-\x1f\x7f-\xa0\u2028\u2029]", text):
        # in double quotes, YAML reads the backslashes of Windows paths, such as "D:\new" or "D:\Loras", as escapes
        raise ValueError(
            f"{text!r} contains a control character, as a Windows path in double quotes does: write it without them, or with / "
            "instead of \\"
        )
    exists = os.path.lexists(text)
    for match in VARIABLE.finditer("" if exists else text):
        name = next(filter(None, match.groups()))
        if match.start() == 0 or name in os.environ:
            raise ValueError(
                f"{text!r} contains the variable {match[0]}, which is not replaced by its value in a path: write the path itself; "
                "~ is your home folder"
            )
    if not text.startswith("~"):
        return text
    found = os.path.expanduser(text)  # noqa: PTH111 - pathlib would also normalise the rest, as in `org/model`
    if found.startswith("~") and not exists:
        user = re.split(r"[/\\]", text[1:])[0]
        whose = (
            f"there is no user {user!r} on this machine"
            if user
            else "this machine does not say where your home folder is"
        )
        raise ValueError(
            f"{text!r} starts with ~, but {whose}: write the whole path, or ./{text} for a folder of that name"
        )
    return found
