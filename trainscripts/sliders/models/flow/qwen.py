"""Small text encoders and tokenizers like Qwen3's, made without the files of a trained one."""

from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
TEXT_WIDTH = 32  # 2560 in Qwen3-4B
# Qwen3's template for a single turn: without thinking, the answer begins with an empty thought.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def build_text_encoder(layers: int) -> Qwen3ForCausalLM:
    """With random weights; Qwen3-4B has 36 layers."""
    vocabulary = _vocabulary()
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
        pad_token_id=vocabulary[PAD],
        eos_token_id=vocabulary[END],
    )
    return Qwen3ForCausalLM(config)


def build_tokenizer() -> Qwen2Tokenizer:
    """A token for each byte, and the three special ones that the template needs."""
    tokenizer = Qwen2Tokenizer(
        vocab=_vocabulary(),
        merges=[],
        unk_token=PAD,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[START],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _vocabulary() -> dict[str, int]:
    return {token: index for index, token in enumerate([*sorted(ByteLevel.alphabet()), PAD, START, END])}
