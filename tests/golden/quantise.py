"""Blocks of every format as the PyPI package gguf makes and reads them: quantise.bin and quantise.json.

    python quantise.py        (needs gguf and numpy)

quantise.bin is cut by quantise.json, in bytes: the values as f32; then for each format the blocks that gguf makes of them
(none where it makes none), blocks that are noise under sensible factors, and what gguf decodes these to as f32.
"""
import json
import pathlib

import gguf
import numpy as np

here = pathlib.Path(__file__).parent
random = np.random.default_rng(6)
# Rows of several shapes: normal, with outliers, one-sided, tiny, nearly constant; zeros; ties between steps.
rows = [random.normal(size=256), random.standard_t(2, size=256), random.uniform(0, 3, size=256), random.normal(size=256) * 1e-6,
        5 + random.normal(size=256) * 1e-3, np.zeros(256), random.integers(-8, 8, size=256) / 2, random.normal(size=256) * 300]
values = np.array(rows, np.float32)
# Where the f16 factors of a noisy block lie, in bytes.
FACTORS = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2],
           "Q5_K": [0, 2], "Q6_K": [208]}
data, index = bytearray(values.tobytes()), {"values": values.nbytes, "formats": []}
for name in ["F32", "F16", "BF16", *FACTORS]:
    kind = gguf.GGMLQuantizationType[name]
    try:
        made = gguf.quantize(values, kind).tobytes()
    except NotImplementedError:
        made = b""
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    if name in FACTORS:
        noise = random.integers(0, 256, size=(512 // elements, size), dtype=np.uint8)
        for place in FACTORS[name]:
            noise[:, place:place + 2] = random.normal(size=(len(noise), 1)).astype(np.float16).view(np.uint8)
    else:
        noise = np.frombuffer(gguf.quantize(random.normal(size=512).astype(np.float32), kind).tobytes(), np.uint8)
    decoded = gguf.dequantize(noise.reshape(1, -1).view(np.float32 if name == "F32" else np.float16 if name == "F16" else np.uint8), kind)
    decoded = decoded.astype("<f4").tobytes()
    assert len(decoded) == 2048
    data += made + noise.tobytes() + decoded
    index["formats"].append({"name": name, "made": len(made), "noise": noise.nbytes})
(here / "quantise.bin").write_bytes(bytes(data))
(here / "quantise.json").write_text(json.dumps(index) + "\n")
