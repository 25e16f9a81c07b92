"""What one torch operation in another thread costs a training step: `OMP_NUM_THREADS=2 python benchmarks/threads.py`.

libgomp, torch's OpenMP, has its helpers wait for the next piece of work awake, as long as there are no more threads in all its teams than
cores. A large operation in a second thread makes a second team, and from then on, until that thread ends, the helpers of both go to sleep
after every operation and have to be woken for the next. Prints the median of 60 steps of the guide's small run before, meanwhile and
afterwards; then in a thread of its own, before and after `release_helpers` has ended the first thread's.
"""

import statistics
import threading
import time

import torch
from sides import SMALL

from llmbuilder.config import ModelConfig
from llmbuilder.device import keep_freed_memory, release_helpers
from llmbuilder.model import build_model

model = build_model(ModelConfig(vocab_size=SMALL["vocab_size"], **SMALL["model"]))
optimizer, x, finished = torch.optim.AdamW(model.parameters(), fused=True), torch.arange(1, 65)[None], threading.Event()


def milliseconds(n: int = 60) -> float:
    seconds = []
    for _ in range(n):
        start = time.perf_counter()
        model(x, x, reduction="mean").backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds) * 1e3


def other():
    torch.ones(1_000_000).isfinite().all()  # one operation, and nothing more
    finished.wait()


def in_thread() -> float:
    found = []
    thread = threading.Thread(target=lambda: found.append(milliseconds()))
    thread.start()
    thread.join()
    return found[0]


if __name__ == "__main__":
    keep_freed_memory()
    milliseconds(20)
    before, thread = milliseconds(), threading.Thread(target=other)
    thread.start()
    time.sleep(0.5)
    meanwhile = milliseconds()
    finished.set()
    thread.join()
    print(f"{torch.get_num_threads()} threads: {before:.1f} ms a step, {meanwhile:.1f} while a second thread has used torch, "
          f"{milliseconds():.1f} when it has ended")
    moved = in_thread()
    release_helpers()
    print(f"in a thread of its own: {moved:.1f} ms a step, {in_thread():.1f} with the first thread's helpers released")
