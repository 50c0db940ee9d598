"""Small text encoders and tokenizers like Qwen3's, made without the files of a trained one."""

from collections.abc import Iterable

from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPACE = "Ġ"  # as byte-level tokens spell it
TEXT_WIDTH = 32  # 2560 in Qwen3-4B
# Qwen3's template for a single turn: without thinking, the answer begins with an empty thought.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def build_text_encoder(layers: int, words: Iterable[str] = (), deviation: float = 0.02) -> Qwen3ForCausalLM:
    """With random weights of that standard deviation; Qwen3-4B has 36 layers. words: as in `build_tokenizer`."""
    vocabulary, _ = _vocabulary(words)
    config = Qwen3Config(
        vocab_size=len(vocabulary),
        hidden_size=TEXT_WIDTH,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=deviation,
        pad_token_id=vocabulary[PAD],
        eos_token_id=vocabulary[END],
    )
    return Qwen3ForCausalLM(config)


def build_tokenizer(words: Iterable[str] = ()) -> Qwen2Tokenizer:
    """A token for each byte, for each of `words` (ASCII letters) after a space, and the three special ones of the template."""
    vocabulary, merges = _vocabulary(words)
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=merges,
        unk_token=PAD,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[START],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _vocabulary(words: Iterable[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """{token: id} and merges. A word grows from its space by a letter at a time, so all its beginnings are tokens too."""
    merges = dict.fromkeys((SPACE + word[:end], word[end]) for word in words for end in range(len(word)))
    tokens = [*sorted(ByteLevel.alphabet()), *(first + second for first, second in merges), PAD, START, END]
    return {token: index for index, token in enumerate(tokens)}, list(merges)
