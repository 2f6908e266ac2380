"""Train Realm's embedded model: corpus, tokenizer, weights, export, samples.

    python models/tiny/train.py                 make every file of this folder again
    python models/tiny/train.py --eval          score and sample the exported weights

The model is a Llama: the module names below are those of Hugging Face's
LlamaForCausalLM, so the state dict is written out as it stands.
"""

import argparse
import json
import math
import os
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn

import corpus

HERE = Path(__file__).resolve().parent
BOS, EOS, START, END = "<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>"
VOCAB, HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, HEAD = 2048, 256, 704, 6, 8, 4, 32
THETA, EPS, CONTEXT = 10000.0, 1e-5, 2048
ROW, LONG_ROW, STEP_TOKENS = 512, 2048, 8192
LONG_EVERY = 12  # one step in so many trains on rows of the whole context
USER_WEIGHT = 0.1  # loss weight of text the model reads but never has to write

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


# --- the model ---------------------------------------------------------------


def linear(i, o):
    return nn.Linear(i, o, bias=False)


def rope_tables(length):
    freq = THETA ** (-torch.arange(0, HEAD, 2).float() / HEAD)
    angle = torch.outer(torch.arange(length).float(), freq).repeat(1, 2)
    return angle.cos(), angle.sin()


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj = linear(HIDDEN, HEADS * HEAD)
        self.k_proj = linear(HIDDEN, KV_HEADS * HEAD)
        self.v_proj = linear(HIDDEN, KV_HEADS * HEAD)
        self.o_proj = linear(HEADS * HEAD, HIDDEN)

    def forward(self, x, cos, sin):
        b, t, _ = x.shape
        q, k, v = (p(x).view(b, t, -1, HEAD).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = (y.repeat_interleave(HEADS // KV_HEADS, 1) for y in (k, v))
        y = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(b, t, -1))


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_proj, self.up_proj = linear(HIDDEN, INNER), linear(HIDDEN, INNER)
        self.down_proj = linear(INNER, HIDDEN)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(HIDDEN, EPS)
        self.self_attn = Attention()
        self.post_attention_layernorm = nn.RMSNorm(HIDDEN, EPS)
        self.mlp = MLP()

    def forward(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCAB, HIDDEN)
        self.layers = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(HIDDEN, EPS)


class Llama(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = Decoder()
        for name, p in self.named_parameters():
            if p.ndim == 2:
                # Layers that write to the residual stream start smaller.
                narrow = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * LAYERS) if narrow else 0.02)
        for name, table in zip(("cos", "sin"), rope_tables(CONTEXT)):
            self.register_buffer(name, table, persistent=False)

    def forward(self, ids):
        t = ids.shape[1]
        x = self.model.embed_tokens(ids)
        for layer in self.model.layers:
            x = layer(x, self.cos[:t], self.sin[:t])
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight)  # tied
