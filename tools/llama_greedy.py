"""Does llama.cpp continue a text as we do?    python tools/llama_greedy.py CHECKPOINT [PROMPT ...]

Needs `llama-cpp-python`, which compiles llama.cpp when it is installed (a quarter of an hour on one core), so this is no part of the
tests. Exports the checkpoint as GGUF in each type, reads it with llama.cpp, and compares the ids of each prompt and the ids of a
greedy continuation. Exit code 1 where the ids of a prompt or the text in full precision differ.
"""
import sys
import tempfile
from itertools import islice, takewhile
from pathlib import Path

from llama_cpp import GGML_TYPE_F16, GGML_TYPE_F32, Llama, __version__

from llmbuilder.checkpoint import load_model
from llmbuilder.config import GenerationConfig
from llmbuilder.export import to_gguf
from llmbuilder.generation import generate_ids

NEW = 48
PROMPTS = ["ROMEO:\n", "First Citizen:\nBefore we proceed", "  two  spaces\tand a tab\n\n", "naïve 🙂 日本"]


def main(checkpoint, *prompts):
    model, tokenizer = load_model(checkpoint)[:2]
    greedy, wrong = GenerationConfig(temperature=0, max_new_tokens=NEW), 0
    print(f"llama-cpp-python {__version__}, {checkpoint}, {NEW} new tokens, greedy")
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("f32", "f16", "q8_0"):
            path = to_gguf(checkpoint, Path(folder) / f"{kind}.gguf", kind)
            cache = GGML_TYPE_F32 if kind == "f32" else GGML_TYPE_F16  # llama.cpp keeps keys and values in 16 bits unless told otherwise
            llama = Llama(str(path), n_ctx=model.config.max_seq_length, type_k=cache, type_v=cache, verbose=False)
            for prompt in prompts or PROMPTS:
                ids = tokenizer.encode(prompt)
                ours = generate_ids(model, [ids], greedy, tokenizer.eos_id)[0]
                new = takewhile(lambda i: i != tokenizer.eos_id, llama.generate(ids, temp=0.0, top_k=1, repeat_penalty=1.0))
                theirs = list(islice(new, NEW))
                same = next((n for n, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
                cut = llama.tokenize(prompt.encode(), add_bos=False, special=False) == ids
                print(f"{kind:<5}{prompt!r:<38} ids {'equal' if cut else 'DIFFER'}, {same} of {len(ours)} new tokens equal")
                wrong += not cut or kind == "f32" and same < len(ours)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) if len(sys.argv) > 1 else __doc__)
