"""What the browser tests share."""
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

SETUP = f"""
from pathlib import Path
import torch
torch.set_num_threads(1)
from llmbuilder.config import ModelConfig, TrainingConfig
from llmbuilder.data import TextDataset
from llmbuilder.model import build_model
from llmbuilder.tokenizer import train_tokenizer
from llmbuilder.training import Callback, Trainer
from llmbuilder.dashboard import *

text = Path("text.txt")
text.write_text(Path({str(ROOT / "nbs" / "tinyshakespeare.txt")!r}).read_text(encoding="utf-8")[:60_000], encoding="utf-8")
tokenizer = train_tokenizer(text, vocab_size=400)
train_part, val_part = TextDataset(text, 32, tokenizer).split(0.1)

def make_trainer(folder, steps, width=32, layers=1, heads=2, **options):
    sizes = dict(embedding_dim=width, num_layers=layers, num_heads=heads)
    model = build_model(ModelConfig(vocab_size=400, max_seq_length=32, **sizes))
    settings = TrainingConfig(max_steps=steps, num_epochs=10_000, batch_size=4, learning_rate=3e-3, warmup_steps=20,
                              log_every=10, eval_every=100, device="cpu")
    return Trainer(model, train_part, val_part, settings, folder, **options)
"""


def until(found, message, timeout=60):
    "Wait until `found()` is true."
    end = time.time() + timeout
    while time.time() < end:
        if value := found():
            return value
        time.sleep(0.1)
    raise AssertionError(message)
