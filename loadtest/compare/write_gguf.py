"""Write a model of random_model.py as GGUF, for llama.cpp: the same weights, in bf16.

    python loadtest/compare/write_gguf.py DIR FILE
"""

import json
import struct
import sys
from pathlib import Path

import gguf
import numpy as np

LAYER = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def name_in_gguf(name):
    name = name.removesuffix(".weight")
    if name in OUTER:
        return f"{OUTER[name]}.weight"
    _, _, layer, part = name.split(".", 3)
    return f"blk.{layer}.{LAYER[part]}.weight"


def tensors(path):
    """Names and tensors of a safetensors file of bf16, as raw u16."""
    data = np.memmap(path, np.uint8, "r")
    (length,) = struct.unpack("<Q", data[:8].tobytes())
    for name, about in json.loads(data[8:8 + length].tobytes()).items():
        start, end = about["data_offsets"]
        yield name, data[8 + length + start:8 + length + end].view(np.uint16).reshape(about["shape"])


def interleaved(rows, heads):
    """llama.cpp rotates neighbours where Hugging Face rotates halves: the rows of each head move accordingly."""
    return rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def main():
    folder, path = Path(sys.argv[1]), sys.argv[2]
    config = json.loads((folder / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    out = gguf.GGUFWriter(path, "llama")
    out.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    out.add_vocab_size(config["vocab_size"])
    out.add_context_length(config["max_position_embeddings"])
    out.add_embedding_length(config["hidden_size"])
    out.add_block_count(config["num_hidden_layers"])
    out.add_feed_forward_length(config["intermediate_size"])
    out.add_head_count(heads)
    out.add_head_count_kv(kv_heads)
    out.add_layer_norm_rms_eps(config["rms_norm_eps"])
    out.add_rope_freq_base(config["rope_theta"])
    out.add_rope_dimension_count(config["hidden_size"] // heads)

    words = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("gpt-2")
    out.add_token_list(sorted(words, key=words.get))
    out.add_token_types([gguf.TokenType.NORMAL] * len(words))
    out.add_token_merges(["! !"])  # none will not do
    out.add_bos_token_id(config["bos_token_id"])
    out.add_eos_token_id(config["eos_token_id"])

    for name, tensor in tensors(folder / "model.safetensors"):
        if tensor.ndim == 1:
            # Norms are f32 in GGUF; bf16 is the upper half of it.
            out.add_tensor(name_in_gguf(name), (tensor.astype(np.uint32) << 16).view(np.float32))
            continue
        if "q_proj" in name or "k_proj" in name:
            tensor = interleaved(tensor, heads if "q_proj" in name else kv_heads)
        raw = np.ascontiguousarray(tensor).view(np.uint8)
        out.add_tensor(name_in_gguf(name), raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


if __name__ == "__main__":
    main()
