"""With how many steps, and which guidance, each kind of model is sampled where nothing is asked for."""

import json
import time

import pytest
import torch
from experiments import sample_argv
from networks import randomize
from sliders.adaptors.network import AdaptorNetwork
from sliders.config.families import KLEIN, SD1, SDXL, ZIMAGE
from sliders.config.prompts import PromptSet
from sliders.config.schema import Network, PretrainedModel, Preview
from sliders.formats.metadata import file_metadata
from sliders.formats.slider_file import save_slider, slider_tensors
from sliders.models import FAMILIES
from sliders.models.flux2.kind import is_distilled
from sliders.models.flux2.narrow import build_narrow_klein
from sliders.models.zimage.narrow import build_narrow_zimage
from sliders.sample.plan import make_plan
from sliders.sample.preview import Previews
from sliders.sample.settings import build_parser, load_sample_settings
from sliders.system.errors import InputError

MODELS = {  # {model: family, (steps, guidance) of its pictures, guidance of previews whose prompts state none}
    "sdxl": ("sdxl", (30, 5.0), 1.0),
    "sd": ("sd", (30, 5.0), 1.0),
    "klein": ("flux2", (28, 4.0), 4.0),
    "distilled": ("flux2", (4, 1.0), 1.0),
    "Z-Image": ("zimage", (28, 5.0), 5.0),
    "Turbo": ("zimage", (8, 1.0), 1.0),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    build_narrow_klein(distilled=True).save_pretrained(root / "distilled")
    build_narrow_zimage(shift=3.0).save_pretrained(root / "Turbo")
    return root


def slider(family, folder):
    network = Network(type="lierla", training_method="full")
    attached = AdaptorNetwork(
        FAMILIES[family].load(PretrainedModel(name_or_path="tiny"), torch.float32).denoiser, network
    )
    randomize(attached)
    metadata = {
        "sliders.config": json.dumps({"network": network.model_dump()}),
        **file_metadata("s", network, time.time()),
    }
    tensors = slider_tensors(attached, FAMILIES[family], torch.float32)
    save_slider(folder / "s.safetensors", tensors, metadata, FAMILIES[family])
    return folder / "s.safetensors"


def plan(model, folders, tmp_path, *flags):
    family = MODELS[model][0]
    path = folders / model if (folders / model).exists() else "tiny"
    argv = sample_argv(slider(family, tmp_path), tmp_path / "o", "--model", str(path), *flags)
    where = argv.index("--steps")
    return make_plan(load_sample_settings(argv[:where] + argv[where + 2 :], family))


@pytest.mark.parametrize("model", MODELS)
def test_pictures_have_the_usual_steps_and_guidance_of_their_model(model, folders, tmp_path):
    sampling = plan(model, folders, tmp_path).sampling
    assert (sampling.steps, sampling.guidance) == MODELS[model][1]
    sampling = plan(model, folders, tmp_path, "--steps", "7", "--guidance", "2").sampling
    assert (sampling.steps, sampling.guidance) == (7, 2.0)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("stated", [False, True])
def test_previews_too(model, folders, stated):
    family, (steps, _), guidance = MODELS[model]
    path = folders / model if (folders / model).exists() else "tiny"

    class Settings:
        preview = Preview()
        prompts = (PromptSet(target="", **({"guidance_scale": 3} if stated else {})),)

    previews = Previews.__new__(Previews)
    previews._settings, previews._model = (
        Settings,
        FAMILIES[family].load(PretrainedModel(name_or_path=str(path)), torch.float32),
    )
    assert (previews._steps, previews._usual_guidance()) == (steps, 3.0 if stated else guidance)


def test_guidance_that_a_distilled_model_does_not_use_is_named(folders, tmp_path):
    notes = plan("Turbo", folders, tmp_path, "--guidance", "4").notes
    assert any(note.startswith("--guidance: 4 has no effect, because") and "step-distilled" in note for note in notes)
    assert not any("--guidance" in note for note in plan("Turbo", folders, tmp_path, "--guidance", "1").notes)


def test_a_slider_cannot_join_after_the_usual_last_step(folders, tmp_path):
    with pytest.raises(InputError, match="--from_step: 4 is not below 4, the model's usual --steps: lower it"):
        plan("distilled", folders, tmp_path, "--from_step", "4")


def test_help_names_the_defaults():
    text = " ".join(build_parser("zimage").format_help().split())
    assert "default: 28, step-distilled models: 8" in text and "(default: 5, step-distilled models: 1; 1: off)" in text
    text = " ".join(build_parser("sdxl").format_help().split())
    assert "--steps N default: 30 --" in text and "(default: 5; 1: off)" in text
    assert (SDXL.distilled, SD1.distilled) == (None, None)
    assert KLEIN.pictures_of(True).steps == 4 and ZIMAGE.pictures_of(False).steps == 28


@pytest.mark.parametrize(
    ("name", "distilled"),
    [
        ("black-forest-labs/FLUX.2-klein-4B", True),
        ("black-forest-labs/FLUX.2-klein-base-4B", False),
        ("models/flux-2-klein-4b.safetensors", True),
        ("models/flux-2-klein-4b-fp8.safetensors", True),
        ("models/flux-2-klein-base-4b.safetensors", False),
        ("someone/FLUX.2-klein-4B-de-distilled", False),
        ("models/my-klein.safetensors", False),
    ],
)
def test_the_distilled_klein_is_known_by_its_usual_names(name, distilled):
    assert is_distilled(name) == distilled
