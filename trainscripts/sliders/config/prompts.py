"""What may stand in a prompts YAML: sets of prompts, one of which is drawn for each step."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, PrivateAttr, field_validator, model_validator

from sliders.config.fields import Number, Section, Whole
from sliders.config.migration import NO_ERASE, refused

LEAST_RESOLUTION = 64  # px
PROMPTS = ("target", "positive", "unconditional", "neutral")  # keys
CAPTION = "{caption}"  # in a prompt: stands for the caption of each image
SPECIAL_TOKEN = re.compile(r"<\|(start|end)oftext\|>", re.IGNORECASE)  # of CLIP, in any letter case


def special_token(text: str) -> str | None:
    """The first of the text encoders' special tokens in a text. `<|endoftext|>` drops what follows it."""
    found = SPECIAL_TOKEN.search(text)
    return found and found[0]


def _no_special_token(prompt: str) -> str:
    if token := special_token(prompt):
        raise ValueError(
            f"{prompt!r} contains {token}, which the text encoder does not read as text but as the start or end of a prompt: "
            "remove it"
        )
    return prompt


Prompt = Annotated[str, AfterValidator(_no_special_token)]


class PromptSet(Section):
    """One entry of the prompts file.

    `positive` conditions the image of the higher scale, `neutral` that of the lower one; `{caption}` in them stands for
    the image's caption. `target` and `unconditional` are what these two fall back to. Training runs at guidance 1, where
    the unconditional half cancels exactly; `guidance_scale` is the guidance at which the slider is meant to be sampled.
    """

    target: Prompt
    positive: Prompt
    unconditional: Prompt = ""
    neutral: Prompt
    action: Annotated[Literal["enhance"], refused(NO_ERASE)] = "enhance"
    guidance_scale: Annotated[Number, Field(gt=0)] = 1.0
    resolution: Annotated[Whole, Field(ge=LEAST_RESOLUTION, le=4096)] = 512
    dynamic_resolution: bool = False
    batch_size: Annotated[Whole, Field(ge=1, le=256)] = 1  # pairs in one optimizer step: twice as many images
    dynamic_crops: bool = False
    _place: str = PrivateAttr("the prompts: ")  # where the user wrote it, for messages about values checked later

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, data: Any) -> Any:
        """A key left out or left empty: positive falls back to target, neutral to unconditional or to the caption that
        positive has, the rest to ""."""
        if not isinstance(data, dict):
            raise ValueError("is not a prompt set: write its keys on lines of their own, starting with `- target: …`")
        data = {key: value for key, value in data.items() if value is not None or key == "target"}
        if "target" in data:
            data["target"] = "" if data["target"] is None else data["target"]
            data.setdefault("positive", data["target"] if isinstance(data["target"], str) else "")
        # an image read without its caption would teach the slider its scene
        captioned = isinstance(data.get("positive"), str) and CAPTION in data["positive"]
        usual = data.get("unconditional") or (CAPTION if captioned else "")
        data.setdefault("neutral", usual if isinstance(usual, str) else "")
        return data

    @field_validator(*PROMPTS)
    @classmethod
    def _no_placeholder(cls, prompt: str) -> str:
        rest = prompt.replace(CAPTION, "")
        if "{" in rest or "}" in rest:
            raise ValueError(
                f"{prompt!r} still holds a {{placeholder}}: replace it, braces too, with your own words, or with {CAPTION} for the "
                "caption of each image"
            )
        return prompt

    @property
    def _templates(self) -> tuple[str, str]:
        """`neutral` and `positive`; where all prompts are empty, the caption alone."""
        if not any(getattr(self, key) for key in PROMPTS):
            return CAPTION, CAPTION
        return self.neutral, self.positive

    @property
    def needs_captions(self) -> bool:
        return CAPTION in self.neutral + self.positive

    @property
    def uses_captions(self) -> bool:
        return any(CAPTION in template for template in self._templates)

    @property
    def activation_text(self) -> str:
        """What web UIs put into the prompt with the slider."""
        return self.positive.replace(CAPTION, "").strip(" ,")

    @property
    def negative_text(self) -> str:
        """What they put into the negative prompt."""
        return self.unconditional

    def texts(self, caption: str) -> tuple[str, str]:
        """(neutral, positive) for an image with this caption; "" for an image without one."""
        return tuple(template.replace(CAPTION, caption) for template in self._templates)

    @property
    def place(self) -> str:
        """Start of a message about one of its keys: a file and a number, or a flag."""
        return self._place

    def at(self, place: str) -> Self:
        """The same set, known to come from `place`."""
        found = self.model_copy()
        found._place = place
        return found

    def with_attribute(self, attribute: str) -> Self:
        """The same set with `attribute` and a space before each of its prompts."""
        return self.model_copy(update={k: f"{attribute} {getattr(self, k)}" for k in PROMPTS})


class TextPromptSet(PromptSet):
    """One entry of the prompts file of a text slider, which has no images: the prompts are what it learns from.

    Under `target`, at multiplier s, it is to do what the model does under `neutral`, moved by s · `strength` · (what it
    does under `positive` − under `unconditional`).
    """

    action: Literal["enhance", "erase"] = "enhance"  # erase: multiplier 1 moves away from `positive`

    @field_validator(*PROMPTS)
    @classmethod
    def _no_placeholder(cls, prompt: str) -> str:
        if "{" in prompt or "}" in prompt:
            raise ValueError(
                f"{prompt!r} holds a {{placeholder}}, but there are no images whose captions could fill it: write your own words"
            )
        return prompt

    @model_validator(mode="after")
    def _leads_somewhere(self) -> Self:
        if self.positive == self.unconditional:
            raise ValueError(
                f"positive and unconditional are both {self.positive!r}, so there is nothing between them to learn: make them differ"
            )
        return self

    @property
    def strength(self) -> float:
        """η of the paper, negative to erase."""
        return self.guidance_scale if self.action == "enhance" else -self.guidance_scale

    @property
    def activation_text(self) -> str:
        """Nothing: the slider works under any prompt, and `positive` would add to what it does."""
        return ""

    @property
    def negative_text(self) -> str:
        return ""
