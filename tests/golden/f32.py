"""Reference logits of the model's own weights with f32 activations, f32 keys and values, in numpy: f32.bin.

    python f32.py MODEL.gguf        (needs gguf and numpy)

The weights are those that gguf decodes the file to. Prompts and positions are those of logits.json, records those of
logits.bin (see logits.py).
"""
import json
import pathlib
import sys

import gguf
import numpy as np

TOP = 128
here = pathlib.Path(__file__).parent
reader = gguf.GGUFReader(sys.argv[1])
weights = {t.name: gguf.dequantize(t.data, t.tensor_type).astype(np.float32) for t in reader.tensors}
key = lambda name: reader.fields[f"llama.{name}"].contents()
layers, heads, kv_heads, width = (key(name) for name in ("block_count", "attention.head_count", "attention.head_count_kv", "embedding_length"))
epsilon, base, size = np.float32(key("attention.layer_norm_rms_epsilon")), key("rope.freq_base"), width // heads


def norm(x, weight):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * weight


def rotate(x):
    angle = np.arange(len(x), dtype=np.float64)[:, None] * base ** (-np.arange(0, size, 2) / size)
    cos, sin = np.cos(angle)[:, None].astype(np.float32), np.sin(angle)[:, None].astype(np.float32)
    y = np.empty_like(x)
    y[..., 0::2], y[..., 1::2] = x[..., 0::2] * cos - x[..., 1::2] * sin, x[..., 0::2] * sin + x[..., 1::2] * cos
    return y


def forward(tokens, positions):
    x, count = weights["token_embd.weight"][tokens], len(tokens)
    hidden = np.triu(np.full((count, count), -np.inf, np.float32), 1)
    for layer in range(layers):
        w = lambda name: weights[f"blk.{layer}.{name}.weight"]
        h = norm(x, w("attn_norm"))
        q, k = rotate((h @ w("attn_q").T).reshape(count, heads, size)), rotate((h @ w("attn_k").T).reshape(count, kv_heads, size))
        v, out = (h @ w("attn_v").T).reshape(count, kv_heads, size), np.empty((count, heads, size), np.float32)
        for head in range(heads):
            kv = head // (heads // kv_heads)
            scores = q[:, head] @ k[:, kv].T / np.float32(np.sqrt(size)) + hidden
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            out[:, head] = scores / scores.sum(-1, keepdims=True) @ v[:, kv]
        x = x + out.reshape(count, -1) @ w("attn_output").T
        h = norm(x, w("ffn_norm"))
        gate = h @ w("ffn_gate").T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w("ffn_up").T)) @ w("ffn_down").T
    return norm(x[positions], weights["output_norm.weight"]) @ weights.get("output.weight", weights["token_embd.weight"]).T


data = bytearray()
for prompt in json.loads((here / "logits.json").read_text()):
    for logits in forward(prompt["tokens"], prompt["positions"]).astype(np.float64):
        logprobs = logits - logits.max()
        logprobs -= np.log(np.exp(logprobs).sum())
        top = np.argsort(-logprobs, kind="stable")[:TOP]
        rest = max(0.0, 1.0 - np.exp(logprobs[top]).sum())
        data += np.float32(rest).astype("<f4").tobytes() + top.astype("<u2").tobytes() + logprobs[top].astype("<f2").tobytes()
    print(prompt["name"], len(prompt["tokens"]), flush=True)
(here / "f32.bin").write_bytes(bytes(data))
