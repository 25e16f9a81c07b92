"""The forecast against the run: what `estimate_cost` says before, and what the trainer takes.

    python benchmarks/estimate.py [--steps 25]

Prints a table and writes benchmarks/results/estimate.json. The aim is 25 % for the time; parameters are exact, and a checkpoint's size and
the activations are within 15 % (the tests check that).
"""
import argparse
import json
import platform
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
RUNS = {  # name: (model, training)
    "small": ({}, {}),
    "wide": ({"embedding_dim": 256, "num_heads": 8}, {}),
    "deep, recomputed": ({"num_layers": 8, "gradient_checkpointing": True}, {}),
    "muon": ({"embedding_dim": 192}, {"optimizer": "muon"}),
    "accumulated": ({}, {"gradient_accumulation_steps": 4}),
    "long context": ({"max_seq_length": 256}, {"batch_size": 4}),
}


def one(name, model, training, steps, data, folder):
    "Forecast, run, compare."
    import torch

    from llmbuilder.advanced import estimate_cost
    from llmbuilder.config import Config
    from llmbuilder.data import TextDataset
    from llmbuilder.model import build_model
    from llmbuilder.training import Trainer

    config = Config.from_dict({
        "model": dict(vocab_size=256, max_seq_length=64, embedding_dim=128, num_layers=4, num_heads=4) | model,
        "training": dict(batch_size=16, max_steps=steps, num_epochs=1000, eval_every=steps // 2, save_every=0, log_every=0,
                         warmup_steps=0, device="cpu") | training})
    cost = estimate_cost(config, len(data))
    torch.manual_seed(0)
    part, exam = TextDataset.from_tokens(data, config.block_size).split(config.training.val_fraction)
    trainer = Trainer(build_model(config.model), part, exam, config, folder / name, progress=False)
    results = trainer.train()
    size = results.latest_checkpoint.stat().st_size
    return dict(name=name, parameters=cost.parameters, forecast_seconds=cost.seconds, seconds=results.training_time,
                time_error=cost.seconds / results.training_time - 1, checkpoint_error=cost.checkpoint_bytes / size - 1,
                steps=(cost.steps, results.steps), mfu=results.mfu)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=25)
    args = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    text = (ROOT / "nbs" / "tinyshakespeare.txt").read_bytes()[:200_000]
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (model, training) in RUNS.items():
            rows.append(row := one(name, model, training, args.steps, data, Path(folder)))
            print(f"{name:18} {row['parameters']:>10,} parameters   forecast {row['forecast_seconds']:6.1f} s   took {row['seconds']:6.1f} s "
                  f"({row['time_error']:+.0%})   checkpoint {row['checkpoint_error']:+.1%}   MFU {row['mfu']:.0%}", flush=True)
    report = dict(steps=args.steps, machine=platform.machine(), torch=torch.__version__, runs=rows)
    (ROOT / "benchmarks/results/estimate.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
