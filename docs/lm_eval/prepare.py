"""The two tasks' data from a text: python docs/lm_eval/prepare.py held_out.txt  (writes held_out.jsonl and cloze.jsonl)"""
import json
import sys
from pathlib import Path

from llmbuilder.evaluation import make_cloze

text = Path(sys.argv[1]).read_text(encoding="utf-8")
Path("held_out.jsonl").write_text(json.dumps({"text": text}) + "\n", encoding="utf-8")
rows = [{"options": [i.before + o + i.after for o in i.options], "answer": i.answer} for i in make_cloze(text, 100)]
Path("cloze.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
print(f"held_out.jsonl: 1 document, cloze.jsonl: {len(rows)} questions")
