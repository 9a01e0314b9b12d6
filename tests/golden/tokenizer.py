"""Reference token ids: tokenizer.json, lines of [text, ids] or [text, llama.cpp's ids, Hugging Face's ids] where the two differ.

    python tokenizer.py MODEL.gguf     (needs llama-cpp-python, gguf and tokenizers)

Hugging Face's tokenizer is put together here from the model's metadata as SmolLM2's own tokenizer.json describes it
(digits one by one, then GPT-2's byte-level pattern), not by Penstock's converter.
"""
import json
import pathlib
import random
import sys

import gguf
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

here = pathlib.Path(__file__).parent
random.seed(20)


def strings():
    yield from (chr(byte) for byte in range(256))
    yield from (f"a{chr(byte)}b {chr(byte)}{chr(byte)}" for byte in [*range(1, 48), *range(58, 65), *range(127, 192)])
    # White space: runs, mixes, edges.
    yield from (" " * n for n in range(2, 20))
    yield from ("\n" * n for n in range(2, 8))
    yield from ("\t" * n for n in range(2, 6))
    yield from (" " * n + "word" for n in range(2, 9))
    yield from ("word" + " " * n for n in range(2, 6))
    yield from ("".join(random.choice(" \t\n\r x") for _ in range(random.randint(3, 12))) for _ in range(40))
    yield from (f"a{space}b{space}{space}c" for space in "\u00a0\u1680\u2003\u2009\u2028\u202f\u205f\u3000\u200b\ufeff")
    yield from ["a\r\nb\r\n\r\nc", "  \n  \n x", "end  ", " lead", "\n\n  two", "tab\tin", "a  b   c    d"]
    # Digits of all kinds.
    yield from ["0", "7", "10", "123", "1234567890", "3.14159", "1,000,000", "2024-11-24T21:58:32Z", "a1b22c333", "x² + y³ = ½",
                "٠١٢٣٤", "०१२३", "Ⅷ ⅷ", "①②③", "１２３", "1e-10", "0xDEADBEEF", "  42  ", "v1.2.3-rc4", "50% off"]
    # Languages.
    yield from ["你好，世界！", "今天天气很好。", "我有３个苹果和2个梨。", "中文 English 混合 text", "人工智能（AI）正在改变世界", "龘靐齉齾", "𠮷野家",
                "こんにちは世界", "カタカナとひらがな", "안녕하세요 세계", "Привет, мир!", "Γειά σου Κόσμε", "مرحبا بالعالم", "שלום עולם", "नमस्ते दुनिया",
                "สวัสดีชาวโลก", "Xin chào thế giới", "Zażółć gęślą jaźń", "Ångström naïve café", "e\u0301 o\u0308 n\u0303", "ﬁ ﬂ ﬃ", "ǅ ǈ", "İstanbul ıı",
                "ß ẞ", "Ünïcödé", "қазақ тілі", "ქართული", "አማርኛ", "தமிழ்", "မြန်မာ", "ខ្មែរ", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "𐍈𐌰𐌹", "ＦＵＬＬ ｗｉｄｔｈ"]
    # Emoji, joined and modified; code points at the edges.
    yield from ["😀", "😀😀😀", "a😀b", "👩‍💻", "👨‍👩‍👧‍👦", "👍🏽", "🇫🇷🇯🇵", "❤️‍🔥", "1️⃣2️⃣", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "☕️ time", "🫠🫡", "¯\\_(ツ)_/¯", "→ ⇒ ∀x ∈ ℝ",
                "\ufffd", "\ufffe", "\uffff", "\U0010ffff", "\ue000", "\U000f0000", "\u0300", "\u200d", "\ufe0f"]
    # English and its apostrophes.
    yield from ["Hello world", "hello", "HELLO", "HeLLo", "don't can't won't it's I'm you're we've they'll he'd", "DON'T IT'S I'M", "rock 'n' roll",
                "'quoted' \"double\"", "l'été d'hiver", "’s ’t ’re", "'", "''", "'s", " 's", "s's", "well-known state-of-the-art", "U.S.A.", "e.g., i.e.", "Mr. & Mrs.",
                "What?! No...", "…", "—", "(parens) [brackets] {braces}", "a/b\\c|d", "user@example.com", "https://example.com/a?b=c&d=%20#e", "#hashtag @mention",
                "$5.00 €6 £7 ¥8", "C++ C# F#", "snake_case camelCase PascalCase kebab-case", "supercalifragilisticexpialidocious", "aaaaaaaaaaaaaaaaaaaa", "!!!!!!!!", "=====", "----------", "_____", "~~~", "...", "\"\"\"", "'''", "```"]
    # Code.
    yield from ["def f(x):\n    return x + 1\n", "if (a && b || !c) { d++; }", "for i in range(10):\n\tprint(i)", "fn main() {\n    println!(\"{}\", 1);\n}",
                "#include <stdio.h>\nint main(void) { return 0; }", "SELECT * FROM t WHERE a='b';", "<div class=\"x\">text</div>", "{\"a\": [1, 2, {\"b\": null}]}",
                "x = y ** 2 // 3 % 4", "a->b::c<d>", "λ x. x", "let s = `${a}`;", "\\frac{1}{2}", "$E = mc^2$", "/* c */ // d", "0b1010 0o17 0xff", "@decorator", "a?.b ?? c", "\"\\n\\t\\\\\"", "^[a-z]+$"]
    # Special tokens, recognised wherever they stand, and what only looks like them.
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<reponame>", "<file_sep>", "<filename>", "<gh_stars>", "<issue_start>", "<issue_comment>",
                "<issue_closed>", "<jupyter_start>", "<jupyter_text>", "<jupyter_code>", "<jupyter_output>", "<jupyter_script>", "<empty_output>"]
    yield from specials
    yield from (f"a {token} b" for token in specials)
    yield from ["<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "<|im_start|><|im_end|>", "<|im_end|", "|im_end|>", "< |im_end|>", "<|IM_END|>", "<<|im_end|>>",
                "<|im_<|im_end|>end|>", "<file_sep", "<s></s>", "[INST] x [/INST]", "<unk><pad>", "x<|endoftext|>\n\n<|endoftext|>y"]
    # Random strings over all of this.
    alphabet = "abcXYZ 012 \n\t.,'\"<|>_-éß你好世界😀👩‍💻"
    yield from ("".join(random.choice(alphabet) for _ in range(random.randint(5, 40))) for _ in range(60))


def hugging_face(path):
    fields = gguf.GGUFReader(path).fields
    tokens, merges, types = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "merges", "token_type"))
    merges = [tuple(merge.split(" ")) for merge in merges]
    tokenizer = tokenizers.Tokenizer(models.BPE({token: id for id, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([token for token, type in zip(tokens, types) if type == gguf.TokenType.CONTROL])
    return tokenizer


def main():
    import llama_cpp

    model = llama_cpp.Llama(sys.argv[1], vocab_only=True, verbose=False)
    other = hugging_face(sys.argv[1])
    lines, differ = [], 0
    for text in dict.fromkeys(strings()):
        ids = model.tokenize(text.encode(), add_bos=False, special=True)
        theirs = other.encode(text, add_special_tokens=False).ids
        differ += ids != theirs
        if ids != theirs:
            print("differs:", ascii(text), ids, theirs)
        lines.append(json.dumps([text, ids] if ids == theirs else [text, ids, theirs], separators=(",", ":")))
    (here / "tokenizer.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")
    print(len(lines), "strings,", differ, "differ")


if __name__ == "__main__":
    main()
