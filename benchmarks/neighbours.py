"""What other programs on the same cores cost a training step: `OMP_NUM_THREADS=2 python benchmarks/neighbours.py [--looks N ...]`.

libgomp, torch's OpenMP, has a thread that waits for the others look 300,000 times (about 3 ms) before it goes to sleep. Where another program
holds a core, a thread of ours waits for its turn there while the others look in vain, at the end of every operation. `import llmbuilder` sets
GOMP_SPINCOUNT, unless it is set: see `llmbuilder/__init__.py`. For each number of looks, in turn and in fresh processes: milliseconds of a step
of the guide's small run, alone and beside one and two programs that never rest, and milliseconds of a generated token, alone.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time


def median(function, seconds: float) -> float:
    "Milliseconds of a call: the median over so many seconds."
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def child(seconds: float):
    "Measure in this process; print JSON."
    import llmbuilder  # noqa: F401, I001  before torch: it says how long threads look

    import torch
    from sides import GENERATION, SMALL

    from llmbuilder.config import ModelConfig
    from llmbuilder.device import keep_freed_memory
    from llmbuilder.model import KVCache, build_model

    keep_freed_memory()
    model, x = build_model(ModelConfig(vocab_size=SMALL["vocab_size"], **SMALL["model"])), torch.arange(1, 65)[None]
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step():
        model(x, x).backward()
        optimizer.step()
        optimizer.zero_grad()

    writer = build_model(ModelConfig(**GENERATION)).eval()
    cache = KVCache(writer.config, 1, writer.config.max_seq_length)

    @torch.inference_mode()
    def token():
        if cache.length == cache.max_length: cache.length = 0
        writer(x[:, :1], cache=cache)

    median(step, 1.0)
    found = {"step": median(step, seconds), "token": median(token, seconds)}
    for n in 1, 2:
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
        time.sleep(0.5)
        found[f"step beside {n} busy"] = median(step, seconds)
        for process in busy: process.kill()
        for process in busy: process.wait()
    print(json.dumps(found))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--looks", nargs="*", default=["300000", "30000", "10000"], help="values of GOMP_SPINCOUNT; 300000 is libgomp's own")
    parser.add_argument("--repeats", type=int, default=3, help="processes for each value")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child: sys.exit(child(options.seconds))
    runs = {looks: [] for looks in options.looks}
    for _ in range(options.repeats):
        for looks in runs:
            done = subprocess.run([sys.executable, __file__, "--child", "--seconds", str(options.seconds)], check=True, capture_output=True,
                                  text=True, env={**os.environ, "GOMP_SPINCOUNT": looks})
            runs[looks].append(json.loads(done.stdout))
    for looks, found in runs.items():
        print(f"{int(looks):,} looks, milliseconds: median (lowest to highest)")
        for key in found[0]:
            times = [r[key] for r in found]
            print(f"    {key:20} {statistics.median(times):7.1f} ({min(times):.1f} to {max(times):.1f})")
