"""Measures of change, compared with scikit-image's, and the learned measures."""

import numpy as np
import pytest
import torch
from skimage import data, filters, metrics
from sliders.models.diffusers_unet.tokenizer import build_tokenizer, clip_vocabulary
from sliders.report.learned_measures import ClipScore, Lpips
from sliders.report.measures import MEASURES, edge_difference, mean_difference, ssim
from sliders.system.errors import InputError


@pytest.fixture(scope="module")
def photos():
    """A photograph, and the same darker and noisy, each [3, 96, 128]."""
    photo = data.astronaut()[100:196, 150:278] / 255
    other = (photo * 0.7 + np.random.default_rng(0).normal(0, 0.05, photo.shape)).clip(0, 1)
    return tuple(torch.tensor(p, dtype=torch.float32).permute(2, 0, 1) for p in (photo, other))


def grey(picture):
    return (picture * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0).numpy()


def test_ssim_matches_scikit_image(photos):
    wanted, every = metrics.structural_similarity(
        *map(grey, photos), gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0, full=True
    )
    assert ssim(*photos) == pytest.approx(every[5:-5, 5:-5].mean(), abs=1e-5)
    assert ssim(*photos) == pytest.approx(wanted, abs=0.02)


def test_edges_match_sobel_of_scikit_image(photos):
    wanted = [np.hypot(filters.sobel_h(p), filters.sobel_v(p))[1:-1, 1:-1] for p in map(grey, photos)]
    assert edge_difference(*photos) == pytest.approx(np.abs(wanted[0] - wanted[1]).mean(), abs=1e-5)


def test_equal_pictures_have_not_changed(photos):
    for measure in MEASURES.values():
        assert measure(photos[0], photos[0]) == pytest.approx(0, abs=1e-6)
        assert measure(*photos) > 0
    assert mean_difference(torch.zeros(3, 16, 16), torch.ones(3, 16, 16)) == 1


def test_clip_score_is_a_cosine_of_a_clip_model(tmp_path, photos):
    """The CLIP model has random weights: this tests how it is used, not how well it scores."""
    from sliders.report.grids import to_picture
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    vocab, merges = clip_vocabulary(["robe", "old"])
    widths = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**widths, "vocab_size": len(vocab), "eos_token_id": len(vocab) - 1},
        vision_config={**widths, "image_size": 32, "patch_size": 16}, projection_dim=8,
    )  # fmt: skip
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(tmp_path)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    CLIPProcessor(images, build_tokenizer(vocab, merges, pad_token="!")).save_pretrained(tmp_path)
    score, picture = ClipScore(str(tmp_path), "cpu"), to_picture(photos[0])
    assert -100 <= score(picture, "old robe") <= 100
    assert score(picture, "old robe") != score(picture, "robe")


def test_a_folder_without_a_clip_model_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"^--clip: .* cannot be loaded as a CLIP model"):
        ClipScore(str(tmp_path), "cpu")


def test_lpips_without_its_package_is_refused():
    try:
        import lpips  # noqa: F401
    except ImportError:
        with pytest.raises(InputError, match=r"--lpips needs a package .*--extra lpips"):
            Lpips("cpu")
