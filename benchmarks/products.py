"""Ways to multiply a few rows with a model's weights: `OMP_NUM_THREADS=2 python benchmarks/products.py`.

All matrices of the generation row's model in turn, so that they come from memory as they do in generation. Prints milliseconds for all of
them, the median of half a second of passes; every way gives the same numbers in another order.
"""

import torch
import torch.nn.functional as F
from sides import GENERATION, best_of
from torch import nn

from llmbuilder.config import ModelConfig
from llmbuilder.model import _by_onednn, build_model, linear


def halves(x, w):
    "The weights first, in two halves."
    return torch.bmm(w.view(2, len(w) // 2, -1), x.T.expand(2, -1, -1)).view(len(w), -1).T


def batches(x, w):
    "The rows in two batches, the weights first."
    return torch.bmm(w.expand(2, -1, -1), x.view(2, -1, x.shape[1]).transpose(1, 2))


WAYS = {
    "torch's linear": F.linear,
    "llmbuilder's linear": linear,
    "weights first": lambda x, w: (w @ x.T).T,
    "weights first, in halves": halves,
    "weights first, rows in two batches": lambda x, w: batches(x, w) if len(x) > 1 else halves(x, w),
    "by oneDNN": lambda x, w: _by_onednn(F.linear, x, w),
}


@torch.inference_mode()
def main():
    model = build_model(ModelConfig(**GENERATION)).eval()
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Linear)] + [model.embed.weight]
    numbers = sum(w.numel() for w in weights)
    print(f"{torch.get_num_threads()} threads, {numbers * 4 / 1e6:.0f} MB of weights")
    for rows in 1, 4, 16, 64, 768:
        inputs = [torch.randn(rows, w.shape[1]) for w in weights]
        for name, way in WAYS.items():
            seconds = best_of(lambda: [way(x, w) for x, w in zip(inputs, weights)], 0.5, 20)
            print(f"{rows:3} rows  {name:36} {1000 * seconds:6.2f} ms {2e-9 * rows * numbers / seconds:5.0f} GFLOP/s")


if __name__ == "__main__":
    main()
