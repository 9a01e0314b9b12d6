"""A tiny random Llama as a Hugging Face folder, and its logits in numpy as transformers defines them: folder/.

    python folder.py        (needs numpy, safetensors and tokenizers)

Weights are BF16 in two files, rotary frequencies scaled as in Llama 3.1; logits.bin holds the logits of the tokens
1, 2, ..., 60 as f32, `[60, vocabulary]`.
"""
import json
import pathlib

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

folder = pathlib.Path(__file__).parent / "folder"
folder.mkdir(exist_ok=True)
VOCAB, WIDTH, INNER, LAYERS, HEADS, KV, SIZE, BASE = 272, 64, 96, 2, 4, 2, 16, 10000.0
ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
random = np.random.default_rng(6)


def bf16(*shape, scale=0.3, mean=0.0):
    """Values that BF16 holds exactly, as f32."""
    values = (mean + random.normal(size=shape) * scale).astype(np.float32)
    return (values.view(np.uint32) & 0xFFFF0000).view(np.float32)


W = {"model.embed_tokens.weight": bf16(VOCAB, WIDTH), "model.norm.weight": bf16(WIDTH, mean=1.0), "lm_head.weight": bf16(VOCAB, WIDTH)}
for layer in range(LAYERS):
    name = f"model.layers.{layer}."
    W[name + "input_layernorm.weight"], W[name + "post_attention_layernorm.weight"] = bf16(WIDTH, mean=1.0), bf16(WIDTH, mean=1.0)
    for part, rows, cols in [("self_attn.q_proj", HEADS * SIZE, WIDTH), ("self_attn.k_proj", KV * SIZE, WIDTH), ("self_attn.v_proj", KV * SIZE, WIDTH),
                             ("self_attn.o_proj", WIDTH, HEADS * SIZE), ("mlp.gate_proj", INNER, WIDTH), ("mlp.up_proj", INNER, WIDTH),
                             ("mlp.down_proj", WIDTH, INNER)]:
        W[f"{name}{part}.weight"] = bf16(rows, cols, scale=0.12)


def norm(x, weight):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight


def frequencies():
    found = []
    for frequency in BASE ** (-np.arange(0, SIZE, 2) / SIZE):
        wave = 2 * np.pi / frequency
        if wave > ROPE["original_max_position_embeddings"] / ROPE["low_freq_factor"]:
            frequency /= ROPE["factor"]
        elif wave >= ROPE["original_max_position_embeddings"] / ROPE["high_freq_factor"]:
            smooth = (ROPE["original_max_position_embeddings"] / wave - ROPE["low_freq_factor"]) / (ROPE["high_freq_factor"] - ROPE["low_freq_factor"])
            frequency = (1 - smooth) * frequency / ROPE["factor"] + smooth * frequency
        found.append(frequency)
    return np.array(found)


def rotate(x):
    angle = np.arange(len(x))[:, None] * frequencies()
    cos, sin = (np.concatenate([f(angle)] * 2, -1)[:, None] for f in (np.cos, np.sin))
    half = SIZE // 2
    return x * cos + np.concatenate([-x[..., half:], x[..., :half]], -1) * sin


def forward(tokens):
    w = {name: values.astype(np.float64) for name, values in W.items()}
    x, count = w["model.embed_tokens.weight"][tokens], len(tokens)
    hidden = np.triu(np.full((count, count), -np.inf), 1)
    for layer in range(LAYERS):
        p = lambda part: w[f"model.layers.{layer}.{part}.weight"]
        h = norm(x, p("input_layernorm"))
        q, k = rotate((h @ p("self_attn.q_proj").T).reshape(count, HEADS, SIZE)), rotate((h @ p("self_attn.k_proj").T).reshape(count, KV, SIZE))
        v, out = (h @ p("self_attn.v_proj").T).reshape(count, KV, SIZE), np.empty((count, HEADS, SIZE))
        for head in range(HEADS):
            scores = q[:, head] @ k[:, head // (HEADS // KV)].T / np.sqrt(SIZE) + hidden
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            out[:, head] = scores / scores.sum(-1, keepdims=True) @ v[:, head // (HEADS // KV)]
        x = x + out.reshape(count, -1) @ p("self_attn.o_proj").T
        h = norm(x, p("post_attention_layernorm"))
        gate = h @ p("mlp.gate_proj").T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ p("mlp.up_proj").T)) @ p("mlp.down_proj").T
    return norm(x, w["model.norm.weight"]) @ w["lm_head.weight"].T


def save(path, names):
    """BF16, which numpy does not have: written as U16, and the header says what it is."""
    save_file({name: (W[name].view(np.uint32) >> 16).astype(np.uint16) for name in names}, path)
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"U16"', b'"BF16"').replace(data[:8], (int.from_bytes(data[:8], "little") + len(names)).to_bytes(8, "little"), 1))


names = sorted(W)
save(folder / "model-00001-of-00002.safetensors", names[::2])
save(folder / "model-00002-of-00002.safetensors", names[1::2])
config = {"model_type": "llama", "hidden_act": "silu", "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
          "num_attention_heads": HEADS, "num_key_value_heads": KV, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": BASE,
          "rope_scaling": ROPE, "vocab_size": VOCAB, "tie_word_embeddings": False, "attention_bias": False}
(folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")

letters = sorted(pre_tokenizers.ByteLevel.alphabet())
merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o")]
vocab = {token: id for id, token in enumerate(letters + ["".join(pair) for pair in merges])}
tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
tokenizer.decoder = decoders.ByteLevel()
tokenizer.add_special_tokens([AddedToken(text, special=True) for text in ("<s>", "</s>", "<|end|>")])
tokenizer.add_tokens([AddedToken("\t\t", special=False)])
tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))])
tokenizer.save(str(folder / "tokenizer.json"))
template = "{% for message in messages %}<s>{{ message.content }}</s>{% endfor %}"
(folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": template}, indent=1) + "\n")
ends = [tokenizer.token_to_id(text) for text in ("</s>", "<|end|>")]
(folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}) + "\n")
texts = ["hello, hello 1234", "say hello\t\tagain: naïve 日本"]
(folder / "texts.json").write_text(json.dumps([{"text": text, "ids": tokenizer.encode(text).ids} for text in texts]) + "\n")
(folder / "logits.bin").write_bytes(forward(np.arange(1, 61)).astype("<f4").tobytes())
