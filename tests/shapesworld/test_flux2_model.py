"""The shapes world's FLUX.2 is trained and written, and a slider on it can be trained, measured and compared."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from diffusers import DiffusionPipeline, Flux2Transformer2DModel
from shapesworld import pretrain_flux2 as pretrain
from shapesworld.attributes import EVALUATION_SEEDS, evaluation_scenes
from shapesworld.evaluate import SHAPES
from shapesworld.pretrain import train_vae
from shapesworld.world import IMAGE_SIZE, Scenes, all_captions
from sliders.models.flux2.configs import NARROW
from sliders.models.flux2.latents import patched
from sliders.system.errors import InputError
from torch._subclasses.fake_tensor import FakeTensorMode
from worlds.compare_settings import Bench, Job, format_table, train_and_measure
from worlds.models import family_name, family_of, load_model, sample_stock
from worlds.training import Seconds, Steps, parts, save


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(folder, its latents): a tiny model after a step of each kind. It draws nothing, but everything runs."""
    folder = tmp_path_factory.mktemp("shapes flux2")
    torch.manual_seed(0)
    pipe = pretrain.build_pipeline("tiny", 0, torch.device("cpu"))
    train_vae(pipe, Steps(1), 2)
    latents, prompts = pretrain.encode_world(pipe, 0, 16, 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "all_captions", lambda: all_captions()[:2])  # the others take seconds
        tokens = pretrain.encode_captions(pipe)
    for length, pace in ((pretrain.SHORT, Steps(1)), (tokens.shape[1], Steps(1)), (pretrain.SHORT, Seconds(-1))):
        pretrain.train_denoiser(pipe, latents, prompts % 2, tokens[:, :length], pace, 2, 1e-3)
    save(pipe, folder)
    return folder, latents


def test_a_run_with_no_time_left_is_over():
    """It ran forever when what came before had taken longer than it should."""
    for seconds in (0, -3):
        assert Seconds(seconds).progress(0, 1e-6) >= 1


def test_a_step_on_a_gpu_never_waits_for_it(monkeypatch):
    """A step that is replayed as a CUDA graph must not. Fake tensors raise where a value is read, or a mask's size needed."""
    losses = []
    monkeypatch.setattr(pretrain, "fit", lambda name, parameters, loss, pace, peak_lr: losses.append(loss()))
    with FakeTensorMode():
        with torch.device("cuda"):
            pipe = SimpleNamespace(transformer=Flux2Transformer2DModel(**NARROW))
        latents, prompts = torch.zeros(8, 128, *pretrain.SIZE, device="cuda"), torch.zeros(8, device="cuda").long()
        tokens = torch.zeros(3, 4, NARROW["joint_attention_dim"], device="cuda")
        pretrain.train_denoiser(pipe, latents.half(), prompts, tokens, Steps(1), 2, 1e-3)
    assert [(loss.device.type, loss.shape) for loss in losses] == [("cuda", ())]


def test_the_family_loads_the_folder_and_normalises_its_latents(trained):
    folder, latents = trained
    assert latents.float().mean((0, 2, 3)).abs().max() < 0.01  # in each channel of the patches
    assert (latents.float().std((0, 2, 3)) - 1).abs().max() < 0.1  # batch_norm_eps makes nearly constant ones smaller
    model = load_model(folder)
    assert family_name(folder) == "flux2" and family_of(model).facts.name == "klein"
    statistics = model.vae.bn.running_mean, model.vae.bn.running_var
    raw = torch.stack([statistics[0], statistics[0] + statistics[1].sqrt()]).view(2, -1, 1, 1)
    assert model.normalise(raw)[0].abs().max() < 1e-4 and 0.9 < model.normalise(raw)[1].mean() <= 1
    assert patched(torch.zeros(1, 32, 16, 16)).shape[1:] == latents.shape[1:]


def test_every_word_is_a_token_and_the_short_length_holds_every_prompt(trained):
    tokenizer = load_model(trained[0]).pipe.tokenizer
    for text in all_captions():
        turn = [{"role": "user", "content": text}]
        prompt = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True, enable_thinking=False)
        assert len(tokenizer(prompt).input_ids) < pretrain.SHORT
        assert len(tokenizer(" " + text).input_ids) == len(text.split())


def test_the_weights_take_no_more_room_than_they_may():
    pipe = pretrain.build_pipeline("small", 0, torch.device("cpu"))
    assert sum(weight.numel() for part in parts(pipe).values() for weight in part.parameters()) * 2 <= 8 * 2**20


def test_the_stock_pipeline_samples(trained):
    pipe = DiffusionPipeline.from_pretrained(str(trained[0]))
    pipe.set_progress_bar_config(disable=True)
    pictures = sample_stock(pipe, all_captions()[:1], IMAGE_SIZE, seed=0, steps=1, guidance=1.0)
    assert pictures.shape == (1, 3, IMAGE_SIZE, IMAGE_SIZE) and pictures.isfinite().all()


def first(scenes: Scenes) -> Scenes:
    values = ((field.name, getattr(scenes, field.name)) for field in dataclasses.fields(scenes))
    return Scenes(**{name: None if value is None else value[:1] for name, value in values})


def test_a_slider_is_trained_measured_and_tabled(trained, monkeypatch):
    multipliers = (0.0, *SHAPES.attributes["size"].scales)
    monkeypatch.setattr("worlds.evaluate.dense_multipliers", lambda attribute: multipliers)
    monkeypatch.setattr("shapesworld.evaluate.EVALUATION_SEEDS", EVALUATION_SEEDS[:1])
    monkeypatch.setattr("shapesworld.evaluate.evaluation_scenes", lambda attribute: first(evaluation_scenes(attribute)))
    job = Job(
        "size", "shift3", 0, scenes=6, steps=1, pairs=1, lr=1e-3, method="noxattn", caption_dropout=0.0, captions="own",
        ends=True, algo="lora", rank=2, factor=None,
    )  # fmt: skip
    found = train_and_measure(Bench(SHAPES, trained[0], robustness=False, keep=None), job, "cpu")
    assert found["calibration"] >= 0 and len(found["mess"]) == len(multipliers)
    assert "| size | shift3 |" in format_table(SHAPES, [found])


def test_a_folder_of_another_pipeline_is_refused(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "OtherPipeline"}')
    with pytest.raises(InputError, match="is a OtherPipeline: choose one of"):
        load_model(tmp_path)
