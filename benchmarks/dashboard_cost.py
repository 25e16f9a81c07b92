"""What the live panel costs: the same run with and without it, in a real kernel, alternating.

    python benchmarks/dashboard_cost.py [--steps 1500] [--pairs 3]

Prints a table and writes benchmarks/results/dashboard_cost.json. CPU seconds say what the panel adds to the process; wall seconds are what
a reader waits, and depend on what else the machine does. Sampling is off: it is work of the model, not of the panel.
"""
import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SETUP = """
import sys, time; sys.path.insert(0, {root!r})
import torch; torch.set_num_threads(1)
from llmbuilder.config import ModelConfig, TrainingConfig
from llmbuilder.dashboard import TrainingDashboard
from llmbuilder.data import TextDataset
from llmbuilder.model import build_model
from llmbuilder.tokenizer import train_tokenizer
from llmbuilder.training import Trainer
from IPython.display import display
tokenizer = train_tokenizer({text!r}, vocab_size=500)
data, exam = TextDataset({text!r}, 32, tokenizer).split(0.02)

def one(name, panel):
    torch.manual_seed(0)
    model = build_model(ModelConfig(vocab_size=500, max_seq_length=32, embedding_dim=64, num_layers=2, num_heads=2))
    settings = TrainingConfig(max_steps={steps}, num_epochs=10**6, batch_size=8, log_every=10, eval_every={steps} // 5,
                              save_every=0, device="cpu")
    trainer = Trainer(model, data, exam, settings, name, progress=False)
    view = TrainingDashboard(trainer, sample_tokens=0) if panel else None
    if view: display(view)
    wall, cpu = time.monotonic(), time.process_time()
    view.start() if view else trainer.start()
    results = trainer.wait()
    used = time.monotonic() - wall, time.process_time() - cpu
    if view: view.settle()
    return dict(panel=panel, wall=used[0], cpu=used[1], drawn=view.charts.calls if view else 0, draw_seconds=view.charts.cost if view else 0,
                loss=results.final_train_loss)
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--pairs", type=int, default=3)
    args = parser.parse_args()
    sys.modules["rfc3987_syntax"] = None  # jsonschema does without it; importing it costs 4 s
    import nbformat
    from nbclient import NotebookClient

    text = Path(tempfile.mkdtemp()) / "text.txt"
    text.write_text((ROOT / "nbs" / "tinyshakespeare.txt").read_text(encoding="utf-8")[:100_000], encoding="utf-8")
    cells = [SETUP.format(root=str(ROOT), text=str(text), steps=args.steps), "one('warm up', False); None"]
    for i in range(args.pairs):
        order = (False, True) if i % 2 == 0 else (True, False)
        cells += [f"import json; print('RESULT', json.dumps(one('run_{i}_{panel}', {panel})))" for panel in order]
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    os.environ["LLMBUILDER_UI"] = "widgets"
    NotebookClient(nb, timeout=3600, resources={"metadata": {"path": str(text.parent)}}).execute()
    lines = [line for c in nb.cells for o in c.outputs for line in o.get("text", "").splitlines() if line.startswith("RESULT")]
    runs = [json.loads(line.removeprefix("RESULT")) for line in lines]
    middle = {(panel, key): statistics.median(r[key] for r in runs if r["panel"] == panel) for panel in (False, True) for key in ("wall", "cpu")}
    assert len({r["loss"] for r in runs}) == 1, "the panel changed the run"
    summary = {"steps": args.steps, "pairs": args.pairs, "machine": platform.machine(), "cpus": os.cpu_count(), "runs": runs,
               "slowdown_cpu": middle[True, "cpu"] / middle[False, "cpu"] - 1,
               "slowdown_wall": middle[True, "wall"] / middle[False, "wall"] - 1}  # fmt: skip
    out = ROOT / "benchmarks" / "results" / "dashboard_cost.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(summary, indent=1) + "\n")
    for r in runs:
        print(f"{'with' if r['panel'] else 'without':<8} wall {r['wall']:6.1f} s  cpu {r['cpu']:6.1f} s  pictures {r['drawn']}")
    print(f"median slowdown: {summary['slowdown_cpu']:+.1%} CPU, {summary['slowdown_wall']:+.1%} wall")


main()
