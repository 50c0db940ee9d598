"""A model's own scheduler: what cannot sample is refused in one sentence, before a picture or a step is made."""

import diffusers
import pytest
from conftest import write_experiment
from experiments import settings_of
from sliders.models.diffusers_unet.samplers import check_scheduler
from sliders.models.sdxl.family import SDXLFamily
from sliders.system.errors import InputError
from sliders.train.plan import make_plan
from sliders.train.trainer import Trainer

KNOWN = ("DDIM", "DDPM", "PNDM", "EulerDiscrete", "EulerAncestralDiscrete", "LMSDiscrete", "HeunDiscrete", "DEISMultistep",
         "DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep", "KDPM2Discrete", "LCM", "TCD")  # fmt: skip
FOREIGN = ("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete", "EDMEuler", "EDMDPMSolverMultistep", "DDIMInverse", "RePaint", "UnCLIP",
           "CMStochasticIterative")  # fmt: skip


def built(name, **options):
    return getattr(diffusers, f"{name}Scheduler")(**options)


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_schedulers_of_stable_diffusion_are_accepted(name, prediction):
    check_scheduler(built(name, prediction_type=prediction), "--model", "add --sampler")


OTHERS = (
    *map(built, FOREIGN),
    built("EulerDiscrete", prediction_type="sample"),
    built("UniPCMultistep", use_flow_sigmas=True),
    built("DPMSolverMultistep", use_flow_sigmas=True, prediction_type="flow_prediction"),
)


@pytest.mark.parametrize("scheduler", OTHERS, ids=lambda scheduler: type(scheduler).__name__)
def test_others_are_refused_by_name(scheduler):
    with pytest.raises(
        InputError, match=rf"^--model: the model's own scheduler, {type(scheduler).__name__}, .*: .*\.$"
    ):
        check_scheduler(scheduler, "--model", "add --sampler")


def test_a_sampler_takes_the_place_of_the_scheduler_but_not_of_what_is_predicted():
    check_scheduler(built("FlowMatchEulerDiscrete"), "--model", None)
    with pytest.raises(InputError, match="says that the model predicts sample, neither noise nor v"):
        check_scheduler(built("DDIM", prediction_type="sample"), "--model", None)


def test_previews_with_it_are_refused_before_the_first_step(tmp_path, monkeypatch):
    load = SDXLFamily.load

    def with_flow_matching(*arguments):
        model = load(*arguments)
        model.scheduler = built("FlowMatchEulerDiscrete")
        return model

    monkeypatch.setattr(SDXLFamily, "load", with_flow_matching)
    with pytest.raises(InputError, match=r"^preview.prompts: the model's own scheduler, FlowMatch.*: remove them"):
        Trainer(make_plan(settings_of(write_experiment(tmp_path, preview={"prompts": ["a"]}))))
