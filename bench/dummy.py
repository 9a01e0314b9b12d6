"""A Llama of width 2,048 with random weights as a Hugging Face folder: only how fast it is means anything."""

import json
import os
import pathlib
import shutil

WIDTH, INNER, LAYERS, HEADS, KV, SIZE, VOCAB = 2048, 5632, 4, 32, 4, 64, 4096
TOKENIZER = pathlib.Path(__file__).resolve().parent.parent / "tests/golden/folder"
# Any sign, an exponent that makes weights of about 0.01.
UPPER = bytes(byte & 0x80 | 0x3C for byte in range(256))


def matrices():
    yield "model.embed_tokens.weight", VOCAB, WIDTH
    for layer in range(LAYERS):
        name = f"model.layers.{layer}."
        yield name + "self_attn.q_proj.weight", HEADS * SIZE, WIDTH
        yield name + "self_attn.k_proj.weight", KV * SIZE, WIDTH
        yield name + "self_attn.v_proj.weight", KV * SIZE, WIDTH
        yield name + "self_attn.o_proj.weight", WIDTH, HEADS * SIZE
        yield name + "mlp.gate_proj.weight", INNER, WIDTH
        yield name + "mlp.up_proj.weight", INNER, WIDTH
        yield name + "mlp.down_proj.weight", WIDTH, INNER


def norms():
    yield "model.norm.weight"
    for layer in range(LAYERS):
        yield f"model.layers.{layer}.input_layernorm.weight"
        yield f"model.layers.{layer}.post_attention_layernorm.weight"


def random(count):
    """BF16."""
    data = bytearray(os.urandom(2 * count))
    data[1::2] = data[1::2].translate(UPPER)
    return data


def write(folder):
    """The folder, made once."""
    done = folder / "generation_config.json"
    if done.exists():
        return folder
    folder.mkdir(exist_ok=True)
    header, place = {}, 0
    shapes = [(name, [rows, cols]) for name, rows, cols in matrices()] + [(name, [WIDTH]) for name in norms()]
    for name, shape in shapes:
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for _, shape in shapes:
            # Norms are one.
            out.write(random(shape[0] * shape[1]) if len(shape) > 1 else b"\x80\x3f" * shape[0])
    config = {"model_type": "llama", "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
              "num_attention_heads": HEADS, "num_key_value_heads": KV, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
              "rope_theta": 10000.0, "vocab_size": VOCAB, "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(TOKENIZER / name, folder / name)
    return folder
