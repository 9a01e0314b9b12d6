"""Reference logits of llama.cpp for prompts.json: logits.json (tokens and positions) and logits.bin.

    python logits.py MODEL.gguf        (needs llama-cpp-python and numpy)

logits.bin holds, for each position of each prompt in the order of logits.json, little-endian: the probability outside
the top 128 as f32, the ids of the top 128 as u16, their natural log-probabilities as f16.
"""
import json
import pathlib
import sys

import llama_cpp
import numpy as np

TOP, POSITIONS, LONGEST = 128, 32, 600
here = pathlib.Path(__file__).parent
model = llama_cpp.Llama(sys.argv[1], n_ctx=1024, n_batch=1024, n_threads=2, logits_all=True, verbose=False)
prompts = json.loads((here / "prompts.json").read_text())
# The long prompts are the others of their kind one after another, cut at LONGEST tokens and a little below.
kinds = {"long-report": (("story", "letter", "science", "list"), LONGEST), "long-code": (("python", "rust", "json", "sql", "shell"), 577)}

index, data = [], bytearray()
for prompt in prompts:
    text, longest = prompt.get("text"), LONGEST
    if text is None:
        names, longest = kinds[prompt["name"]]
        text = "\n\n".join(p["text"] for _ in range(prompt["repeat"]) for name in names for p in prompts if p["name"] == name)
    tokens = model.tokenize(text.encode(), add_bos=False, special=True)[:longest]
    assert 1 <= len(tokens) <= LONGEST
    model.reset()
    model.eval(tokens)
    positions = np.unique(np.linspace(0, len(tokens) - 1, min(POSITIONS, len(tokens))).round().astype(int))
    for position in positions:
        logits = model.scores[position].astype(np.float64)
        logprobs = logits - logits.max()
        logprobs -= np.log(np.exp(logprobs).sum())
        top = np.argsort(-logprobs, kind="stable")[:TOP]
        rest = max(0.0, 1.0 - np.exp(logprobs[top]).sum())
        data += np.float32(rest).astype("<f4").tobytes() + top.astype("<u2").tobytes() + logprobs[top].astype("<f2").tobytes()
    index.append({"name": prompt["name"], "tokens": tokens, "positions": positions.tolist()})
    print(prompt["name"], len(tokens), len(positions))

(here / "logits.json").write_text("[\n" + ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in index) + "\n]\n")
(here / "logits.bin").write_bytes(bytes(data))
