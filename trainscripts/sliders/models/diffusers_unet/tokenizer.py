"""Small CLIP tokenizers, made without the files of a trained one."""

import unicodedata
from collections.abc import Iterable
from itertools import pairwise

from transformers import CLIPTokenizer

START, END, END_OF_WORD = "<|startoftext|>", "<|endoftext|>", "</w>"
CONTEXT_LENGTH = 77


def build_tokenizer(vocab: dict[str, int], merges: list[tuple[str, str]], pad_token: str) -> CLIPTokenizer:
    return CLIPTokenizer(
        vocab=vocab,
        merges=merges,
        bos_token=START,
        eos_token=END,
        unk_token=END,
        pad_token=pad_token,
        model_max_length=CONTEXT_LENGTH,
    )


def clip_vocabulary(words: Iterable[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Returns vocabulary {token: id} and merges of a byte-level CLIP tokenizer in which each of `words` is one token.

    Ids are in CLIP's order: 256 bytes, 256 bytes that end a word, merged tokens, start and end of text. Raises
    ValueError for a word with anything but letters.
    """
    symbols = byte_symbols()
    merges: list[tuple[str, str]] = []
    for word in words:
        text = unicodedata.normalize("NFC", word).lower()
        if not text.isalpha():
            raise ValueError(
                f"{word!r} cannot be one token, because CLIP splits words at everything but letters: use letters only."
            )
        pieces = [symbols[byte] for byte in text.encode("utf-8")]
        pieces[-1] += END_OF_WORD
        pieces = _merged(pieces, merges)
        # new merges rank last, so they do not change how earlier words are merged
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces = _merged(pieces, merges)
    ends = [symbol + END_OF_WORD for symbol in symbols.values()]
    tokens = [*symbols.values(), *ends, *("".join(pair) for pair in merges), START, END]
    # two merges can make the same token ("r"+"ed", "re"+"d"), and ids must have no gaps
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}, merges


def _merged(pieces: list[str], merges: list[tuple[str, str]]) -> list[str]:
    """Byte-pair encoding of one word: merges the pair of the lowest rank, everywhere, until no pair is left."""
    while pairs := set(pairwise(pieces)) & set(merges):
        first = min(pairs, key=merges.index)
        merged: list[str] = []
        position = 0
        while position < len(pieces):
            width = 2 if tuple(pieces[position : position + 2]) == first else 1
            merged.append("".join(pieces[position : position + width]))
            position += width
        pieces = merged
    return pieces


def byte_symbols() -> dict[int, str]:
    """{byte: the printable character that represents it in byte-level BPE}, beginning with "!", CLIP's id 0."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
