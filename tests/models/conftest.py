"""Folders of narrow models, written once."""

import pytest
from narrow_files import FAMILIES, pipeline


@pytest.fixture(scope="session")
def narrow_folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("narrow")
    for family in FAMILIES:
        pipeline(family).save_pretrained(root / family)
    return {family: root / family for family in FAMILIES}
