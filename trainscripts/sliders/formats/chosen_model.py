"""The model that the flags of `config/slider_tools.py` name, for scripts that turn slider files into others."""

from collections.abc import Iterator
from contextlib import contextmanager

from sliders.config.families import SD2
from sliders.config.schema import PretrainedModel
from sliders.config.slider_tools import VERSIONS
from sliders.models import Family, find_family
from sliders.system.errors import places_renamed


@contextmanager
def chosen_model(version: str, name_or_path: str | None) -> Iterator[tuple[Family, str]]:
    """The family, and the name of the model. version: `--family`; name_or_path: `--model`, None for the family's usual model.

    Raises InputError for a model that cannot be one. Within, errors about a model name the flag.
    """
    name, facts = VERSIONS[version]
    model = PretrainedModel(name_or_path=name_or_path or facts.example, v2=facts is SD2)
    family = find_family(name, model)
    with places_renamed({"pretrained_model.name_or_path": "--model"}):
        if name_or_path is not None:
            family.check_source(model)
        yield family, model.name_or_path
