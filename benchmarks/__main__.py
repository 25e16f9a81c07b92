"""Measure ours against its peers: `python -m benchmarks [NAME ...] [--repeats 3] [--add] [--list]`.

Each side runs in a process of its own (benchmarks/sides.py), in turn, so that a slow minute of the machine hits both. What is
reported is the ratio of medians, with the lowest and the highest ratio among the repeats. Results go to benchmarks/results.json, from which
benchmarks/RESULTS.md is written; a part that was not run again keeps its earlier row and date. `--add` adds repeats to a row instead of
replacing it, for a machine that is free only minutes at a time. benchmarks/NOTES.md, written by hand, is put at the end.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
THREADS = os.environ.get("BENCHMARK_THREADS") or str(os.cpu_count() or 1)  # losses do not depend on it; times do


def processor() -> str:
    "The processor's name."
    try: lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError: return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def machine() -> str:
    "What was measured on, in one line."
    import importlib.metadata as metadata

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if hasattr(os, "sysconf") else 0
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in ("torch", "transformers"))
    return (f"{processor()}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}; "
            f"Python {platform.python_version()}, {versions}")


def peer_python() -> str:
    "A Python with llmbuilder 2.0.0 in an environment of its own, made on first use."
    folder = Path(os.environ.get("LLMBUILDER_PEER", HERE / ".peer"))
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        torch = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
        for package in (torch, "llmbuilder[tokenizer]==2.0.0"): subprocess.run([python, "-m", "pip", "install", "-q", package], check=True)
    return str(python)


class SideFailed(Exception):
    "A side that did not end well, with what it said; the rows of the others are measured all the same."


def run_side(side: str, **options) -> dict:
    "One measurement in a fresh process: what its last line of output says."
    env = {**os.environ, "OMP_NUM_THREADS": THREADS, "LLMBUILDER_UI": "text", "PYTHONPATH": str(ROOT)}
    python = sys.executable
    if side.startswith("peer2"):
        python, env["PYTHONPATH"] = peer_python(), ""
    done = subprocess.run([python, str(HERE / "sides.py"), side, json.dumps(options)], env=env, capture_output=True, text=True, cwd=HERE,
                          timeout=1800)
    if done.returncode: raise SideFailed(f"{side} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


# name: (what, our side, {peer: side}, key, "higher" or "lower" is better, demanded ratio per peer, unit)
ROWS = {
    "time_to_loss": ("seconds of training until whole-validation loss 1.88 (0.8 M parameters)", "learn_ours",
                     {"nanoGPT-shaped recipe": "learn_nanogpt"}, "seconds_to_target", "lower", {"nanoGPT-shaped recipe": 2.5}, "s"),
    "loss_same_tokens": ("whole-validation loss after 2,000 steps of 12 x 64 characters, 0.8 M parameters", "learn_full",
                         {"limit 1.62": None}, "final_loss", "lower", {"limit 1.62": 1.62}, "nats"),
    "small_run": ("training tokens/s on the guide's small settings (256/4/8, block 64, batch 1, save_every=1)", "small_ours",
                  {"llmbuilder 2.0.0": "peer2_small", "ours without step saves": "small_unsaved",
                   "its matrix products alone": "small_products"},
                  "tokens_per_second", "higher", {"llmbuilder 2.0.0": 4.0, "ours without step saves": 0.9}, "tokens/s"),
    "trainer": ("Trainer against a bare loop on the same model and batches", "trainer_ours", {"bare loop": "trainer_bare"},
                "tokens_per_second", "higher", {"bare loop": 0.95}, "tokens/s"),
    "gpt2_small": ("bare loop, GPT-2 shape, 0.8 M parameters", "gpt2_ours", {"transformers": "gpt2_transformers",
                   "transformers' Trainer": "gpt2_hf_trainer"}, "tokens_per_second", "higher", {"transformers": 1.2}, "tokens/s"),
    "gpt2_large": ("bare loop, GPT-2 shape, 10 M parameters", "gpt2_ours_10m", {"transformers": "gpt2_transformers_10m"},
                   "tokens_per_second", "higher", {"transformers": 1.0}, "tokens/s"),
    "peak_share": ("FLOP/s of a training step, 10 M parameters, batch 16 x 256, against the model's own matmuls", "flops_model",
                   {"matmuls of the same shapes": "flops_matmul"}, "flops", "higher", {"matmuls of the same shapes": 0.5}, "FLOP/s"),
    "generation": ("one prompt, 256 new tokens, 4 x 256, vocabulary 8000, context 512, top_p 0.9", "generate_ours",
                   {"transformers.generate": "generate_transformers", "minimal cached loop": "generate_minimal",
                    "a token's matrix products alone": "generate_products",
                    "the same as torch's linear": "generate_products_usual", "its weights copied once": "generate_copy"},
                   "tokens_per_second", "higher", {"transformers.generate": 2.5, "minimal cached loop": 0.85}, "tokens/s"),
    "batch": ("16 prompts of different lengths at once, against one after another", "batch_at_once",
              {"one after another": "batch_one_by_one"}, "tokens_per_second", "higher", {"one after another": 4.0}, "tokens/s"),
    "encoding": ("encoding 100 MB of text to a token file", "encode_ours", {"raw SentencePiece": "encode_raw"},
                 "bytes_per_second", "higher", {"raw SentencePiece": 0.9}, "bytes/s"),
    "import": ("import llmbuilder", "start_import", {"limit 0.15 s": None}, "seconds", "lower", {"limit 0.15 s": 0.15}, "s"),
    "help": ("llmbuilder --help", "start_help", {"limit 0.5 s": None}, "seconds", "lower", {"limit 0.5 s": 0.5}, "s"),
    "gpu_time_to_loss": ("CUDA: seconds until whole-validation loss 1.47 (6 layers, 6 heads, 384, context 256, batch 64, bf16, compiled)",
                         "gpu_learn_ours", {"nanoGPT-shaped recipe": "gpu_learn_nanogpt"}, "seconds_to_target", "lower",
                         {"nanoGPT-shaped recipe": 2.5}, "s"),
    "gpu_peak_share": ("CUDA: FLOP/s of a training step, 124 M parameters, batch 16 x 1024, bf16, compiled", "gpu_flops_model",
                       {"the data sheet": "gpu_flops_peak"}, "flops", "higher", {"the data sheet": 0.45}, "FLOP/s"),
}


def missing(name: str) -> str | None:
    "Why a row cannot be measured here, or None."
    import torch

    return "not measured: no GPU" if name.startswith("gpu_") and not torch.cuda.is_available() else None


def measure(name: str, repeats: int, before: dict | None = None) -> dict:
    "One row: our side and its peers in turn, `repeats` times, added to what was measured `before`."
    what, ours, peers, key, better, demanded, unit = ROWS[name]
    sides = [ours, *(s for s in peers.values() if s)]
    runs = {side: list((before or {}).get("details", {}).get(side, [])) for side in sides}
    if len({len(r) for r in runs.values()}) > 1: runs = {side: [] for side in sides}  # a side is new: nothing to add to
    done = len(runs[ours])
    for i in range(done, done + repeats):  # the number of a repeat is its seed
        for side in sides:
            runs[side].append(run_side(side, repeat=i))
            print(f"{name} {i + 1}/{done + repeats} {side}: {runs[side][-1]}", file=sys.stderr, flush=True)
    row = {"what": what, "unit": unit, "date": datetime.date.today().isoformat(), "repeats": len(runs[ours]),
           "ours": statistics.median(r[key] for r in runs[ours]), "details": runs, "ratios": {}}
    for peer, side in peers.items():
        if side is None:  # a limit, not a peer
            row["ratios"][peer] = {"value": row["ours"], "demanded": demanded[peer], "limit": True}
            continue
        pairs = [b[key] / a[key] if better == "lower" else a[key] / b[key] for a, b in zip(runs[ours], runs[side])]
        medians = [statistics.median(r[key] for r in runs[s]) for s in (ours, side)]
        ratio = medians[1] / medians[0] if better == "lower" else medians[0] / medians[1]
        row["ratios"][peer] = {"value": ratio, "low": min(pairs), "high": max(pairs), "peer": medians[1], "demanded": demanded.get(peer)}
    return row


def number(x: float) -> str:
    "Three significant digits, with thousands where it is large."
    return f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.3g}"


def extras(row: dict) -> list[str]:
    "What a side reports beside its speed: memory, losses."
    lines = []
    for side, runs in row["details"].items():
        for key in ("peak_mb", "final_loss", "tokens", "start_seconds", "steps_to_target", "parameters", "gigabytes_per_second"):
            values = [r[key] for r in runs if r.get(key) is not None]
            if values: lines.append(f"{side}: {key} {number(statistics.median(values))} ({number(min(values))} to {number(max(values))})")
    return lines


def write_table(results: dict):
    "RESULTS.md from results.json."
    out = ["# Measured", "", "Written by `python -m benchmarks`; every ratio is ours against the peer's, both measured in turn in one run, so that "
           "above 1 ours is ahead. In brackets the lowest and highest ratio among the repeats.", "",
           f"Machine: {machine()}; {THREADS} threads a side.", "",
           "| what | ours | against | theirs | ratio | asked for | repeats, date |", "|---|---|---|---|---|---|---|"]
    notes = []
    for name in (n for n in ROWS if n in results):
        row = results[name]
        if "missing" in row:
            out.append(f"| {row['what']} | {row['missing']} | {', '.join(ROWS[name][2])} | | | {row['demanded']:g} | {row['date']} |")
            continue
        for peer, r in row["ratios"].items():
            theirs = "" if r.get("limit") else f"{number(r['peer'])} {row['unit']}"
            ratio = "" if r.get("limit") else f"{r['value']:.2f} ({r['low']:.2f} to {r['high']:.2f})"
            asked = "" if r["demanded"] is None else f"at most {r['demanded']} {row['unit']}" if r.get("limit") else f"{r['demanded']:g}"
            out.append(f"| {row['what']} | {number(row['ours'])} {row['unit']} | {peer} | {theirs} | {ratio} | {asked} | "
                       f"{row['repeats']}, {row['date']} |")
        notes += [f"- {name}: {line}" for line in extras(row)]
    by_hand = (HERE / "NOTES.md").read_text(encoding="utf-8").rstrip()
    text = "\n".join([*out, "", "Beside the speeds (median, lowest to highest):", "", *notes, "", by_hand, ""])
    (HERE / "RESULTS.md").write_text(text, encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="rows to measure; all when left out")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each side")
    parser.add_argument("--add", action="store_true", help="add repeats to what a row has already")
    parser.add_argument("--list", action="store_true", help="show the rows and stop")
    args = parser.parse_args()
    if args.list: return print("\n".join(f"{name:<14}{row[0]}" for name, row in ROWS.items()))
    unknown = set(args.names) - set(ROWS)
    if unknown: parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(ROWS)}")
    store = HERE / "results.json"
    results = json.loads(store.read_text()) if store.exists() else {}
    write_table(results)
    failures = []
    for name in args.names or ROWS:
        if reason := missing(name):
            demanded = next(iter(ROWS[name][5].values()))
            results[name] = {"what": ROWS[name][0], "missing": reason, "demanded": demanded, "date": datetime.date.today().isoformat()}
        else:
            try: results[name] = measure(name, args.repeats, results.get(name) if args.add else None)
            except (SideFailed, subprocess.SubprocessError) as error: failures.append(f"{name}: {error}")
        store.write_text(json.dumps(results, indent=1) + "\n")
        write_table(results)
    if failures: raise SystemExit("\n\n".join(failures))


if __name__ == "__main__": main()
