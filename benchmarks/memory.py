"""What keeping freed memory brings: `OMP_NUM_THREADS=2 python benchmarks/memory.py`.

A step of the guide's small run (64 tokens, 4.2 M parameters), as glibc treats memory by itself and after `keep_freed_memory`, each in a
process of its own and in turn. Prints the median of 60 steps in milliseconds, the pages that the system had to bring, and the peak memory.
"""

import resource
import statistics
import subprocess
import sys
import time


def steps(keep: bool, n: int = 60):
    import torch
    from sides import SMALL

    from llmbuilder.config import ModelConfig
    from llmbuilder.device import keep_freed_memory
    from llmbuilder.model import build_model

    if keep and not keep_freed_memory(): raise SystemExit("this C library has no mallopt: nothing to compare")
    model = build_model(ModelConfig(vocab_size=SMALL["vocab_size"], **SMALL["model"]))
    optimizer, x = torch.optim.AdamW(model.parameters(), fused=True), torch.arange(1, 65)[None]
    seconds = []
    for i in range(20 + n):
        if i == 20: faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        start = time.perf_counter()
        model(x, x, reduction="mean").backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(f"{'kept' if keep else 'given back':<11} {statistics.median(seconds[20:]) * 1e3:6.1f} ms a step, "
          f"{(usage.ru_minflt - faults) / n:6.0f} pages a step, {usage.ru_maxrss / 1e3:.0f} MB at most")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        steps(sys.argv[1] == "kept")
    else:
        for _ in range(3):
            for how in "given", "kept": subprocess.run([sys.executable, __file__, how], check=True)
