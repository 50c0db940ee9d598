"""The model families, with all that is known of them without torch."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Pictures:
    """How pictures are sampled where nothing else is asked for."""

    steps: int
    guidance: float
    preview_guidance: float  # of previews, where the prompts do not say


@dataclass(frozen=True)
class Facts:
    """Constants of a model family, or of one of its versions."""

    title: str  # its name in messages
    a: str  # the same with an article
    example: str  # the hub id of its usual model
    ending: str  # of the names of its scripts and example files
    use: str  # which scripts, in the sentence that refuses such a model elsewhere
    name: str  # `--family` of convert_slider.py
    webui_version: str  # "sd version" in the sidecar
    webui_clip_skip: int  # what web UIs call Clip skip where `clip_skip` is none
    size_multiple: int  # px; the sides of training images are multiples of it
    picture_multiple: int  # px; the sides of sampled pictures are multiples of it
    latent_factor: int  # px per latent along each side
    latent_channels: int
    default_size: int  # px; side of a sampled picture, and of a training image where no prompts file is named
    guidance: float  # at which sliders are meant to be sampled where no prompts file is named
    in_names: str = ""  # what programs know its files by, which is part of each slider's name
    half: str = "float16"  # the precision in which a GPU samples where none is asked for
    pictures: Pictures = Pictures(steps=30, guidance=5.0, preview_guidance=1.0)
    distilled: Pictures | None = None  # of the family's step-distilled models, which are asked without guidance

    def pictures_of(self, distilled: bool) -> Pictures:
        return self.distilled if distilled and self.distilled else self.pictures

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """[c, h, w] of the latents of a picture of that many px."""
        return self.latent_channels, height // self.latent_factor, width // self.latent_factor


SDXL = Facts(
    title="SDXL",
    a="an SDXL",
    example="stabilityai/stable-diffusion-xl-base-1.0",
    ending="-xl",
    use="train_lora-scale-xl.py and sample_slider-xl.py",
    name="sdxl",
    webui_version="SDXL",
    webui_clip_skip=2,
    size_multiple=32,  # 8 for the VAE times 4 for the UNet's two downsamplings
    picture_multiple=8,  # the UNet's are rounded up
    latent_factor=8,
    latent_channels=4,
    default_size=1024,
    guidance=4,
)
SD1 = Facts(
    title="Stable Diffusion 1",
    a="a Stable Diffusion 1",
    example="stable-diffusion-v1-5/stable-diffusion-v1-5",
    ending="",
    use="train_lora-scale.py and sample_slider.py, without pretrained_model.v2 and --v2",
    name="sd1",
    webui_version="SD1",
    webui_clip_skip=1,
    size_multiple=64,  # 8 for the VAE times 8 for the UNet's three downsamplings
    picture_multiple=8,
    latent_factor=8,
    latent_channels=4,
    default_size=512,
    guidance=7,
)
SD2 = replace(
    SD1,
    title="Stable Diffusion 2",
    a="a Stable Diffusion 2",
    example="stabilityai/stable-diffusion-2-1",
    use="train_lora-scale.py with pretrained_model.v2: true, and sample_slider.py with --v2",
    name="sd2",
    webui_version="SD2",
    default_size=768,
)

KLEIN = Facts(
    title="FLUX.2 [klein] 4B",
    a="a FLUX.2 [klein] 4B",
    example="black-forest-labs/FLUX.2-klein-base-4B",
    ending="-flux2",
    use="train_lora-scale-flux2.py and sample_slider-flux2.py",
    name="klein",
    webui_version="Unknown",  # web UIs whose cards have this field know no FLUX.2
    webui_clip_skip=1,
    size_multiple=16,  # 8 for the VAE times 2 for the patches
    picture_multiple=16,
    latent_factor=16,
    latent_channels=128,
    default_size=1024,
    guidance=4,
    in_names="klein",
    half="bfloat16",  # float16 overflows
    pictures=Pictures(
        steps=28, guidance=4.0, preview_guidance=4.0
    ),  # its card says 50, which take nearly twice as long
    distilled=Pictures(steps=4, guidance=1.0, preview_guidance=1.0),
)
ZIMAGE = Facts(
    title="Z-Image",
    a="a Z-Image",
    example="Tongyi-MAI/Z-Image",
    ending="-zimage",
    use="train_lora-scale-zimage.py and sample_slider-zimage.py",
    name="zimage",
    webui_version="Unknown",  # web UIs whose cards have this field know no Z-Image
    webui_clip_skip=1,
    size_multiple=16,  # 8 for the VAE times 2 for the patches
    picture_multiple=16,
    latent_factor=8,
    latent_channels=16,
    default_size=1024,
    guidance=5,  # 4 as diffusers' pipeline counts it
    in_names="zimage",
    half="bfloat16",  # float16 overflows
    pictures=Pictures(steps=28, guidance=5.0, preview_guidance=5.0),
    distilled=Pictures(steps=8, guidance=1.0, preview_guidance=1.0),
)

DEFAULT_FAMILY = "sdxl"
FAMILIES = {  # the first version is the usual one; pretrained_model.v2 means the last
    "sdxl": (SDXL,),
    "sd": (SD1, SD2),
    "flux2": (KLEIN,),
    "zimage": (ZIMAGE,),
}
