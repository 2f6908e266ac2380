"""Write a Llama of random weights, to measure speed with.

    python loadtest/compare/random_model.py 1.1b DIR
    python loadtest/compare/random_model.py 135m DIR

The weights are bf16, drawn from a normal distribution with a fixed seed; what such a model says
means nothing, but every server computes the same amount for it. Needs numpy.
"""

import argparse
import json
import struct
from pathlib import Path

import numpy as np

# The shapes of TinyLlama 1.1B and SmolLM 135M.
SHAPES = {
    "1.1b": dict(hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32,
                 num_key_value_heads=4, vocab_size=32000, tie_word_embeddings=False),
    "135m": dict(hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
                 num_key_value_heads=3, vocab_size=49152, tie_word_embeddings=True),
}
SCALE = 0.02


def tensors(shape):
    """Names and shapes of all tensors, in order."""
    hidden, inner, vocab = shape["hidden_size"], shape["intermediate_size"], shape["vocab_size"]
    keys = hidden // shape["num_attention_heads"] * shape["num_key_value_heads"]
    yield "model.embed_tokens.weight", (vocab, hidden)
    for i in range(shape["num_hidden_layers"]):
        for name, size in {
            "input_layernorm": (hidden,), "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden), "self_attn.o_proj": (hidden, hidden),
            "post_attention_layernorm": (hidden,), "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }.items():
            yield f"model.layers.{i}.{name}.weight", size
    yield "model.norm.weight", (hidden,)
    if not shape["tie_word_embeddings"]:
        yield "lm_head.weight", (vocab, hidden)


def bf16(values):
    """The upper halves of float32 values: bf16, rounded towards zero."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def write_weights(shape, path):
    # A safetensors file: length of the header, the header as JSON, and the tensors.
    header, end = {}, 0
    for name, size in tensors(shape):
        start, end = end, end + 2 * int(np.prod(size))
        header[name] = dict(dtype="BF16", shape=size, data_offsets=[start, end])
    header = json.dumps(header).encode()
    header += b" " * (-len(header) % 8)
    random = np.random.default_rng(1)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for _, size in tensors(shape):
            if len(size) == 1:
                values = np.ones(size, np.float32)
            else:
                values = random.standard_normal(size, np.float32) * np.float32(SCALE)
            file.write(bf16(values).tobytes())


def write_tokenizer(vocab, path):
    """Every byte is a token; the other ids are words that no text has."""
    # The characters that stand for bytes in byte-level tokenizers.
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (chr(0x100 + i) for i in range(256))
    letters = [chr(byte) if byte in plain else next(others) for byte in range(256)]
    ids = {letter: i for i, letter in enumerate(letters)}
    ids |= {f"<{i}>": i for i in range(len(ids), vocab)}
    path.write_text(json.dumps(dict(
        version="1.0", truncation=None, padding=None, added_tokens=[], normalizer=None,
        pre_tokenizer=dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True),
        post_processor=None, decoder=dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True),
        model=dict(type="BPE", dropout=None, unk_token=None, continuing_subword_prefix=None, end_of_word_suffix=None,
                   fuse_unk=False, byte_fallback=False, ignore_merges=False, vocab=ids, merges=[]),
    )))


def main():
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("shape", choices=SHAPES)
    cli.add_argument("folder", type=Path)
    args = cli.parse_args()
    shape = SHAPES[args.shape]
    args.folder.mkdir(parents=True, exist_ok=True)
    write_weights(shape, args.folder / "model.safetensors")
    write_tokenizer(shape["vocab_size"], args.folder / "tokenizer.json")
    (args.folder / "config.json").write_text(json.dumps(dict(
        architectures=["LlamaForCausalLM"], model_type="llama", hidden_act="silu", max_position_embeddings=8192,
        rms_norm_eps=1e-5, rope_theta=10000.0, bos_token_id=1, eos_token_id=2, torch_dtype="bfloat16", **shape,
    ), indent=2) + "\n")
    (args.folder / "tokenizer_config.json").write_text(json.dumps(dict(
        tokenizer_class="PreTrainedTokenizerFast",
        chat_template="{% for message in messages %}{{ message.content }}{% endfor %}",
    )) + "\n")


if __name__ == "__main__":
    main()
