"""What the trainer learns, end to end: tinyshakespeare as characters, at the size of nanoGPT's smallest example."""

from pathlib import Path

import pytest

from llmbuilder.config import ModelConfig, TrainingConfig
from llmbuilder.data import TextDataset
from llmbuilder.device import seed_everything
from llmbuilder.model import build_model
from llmbuilder.tokenizer import train_tokenizer
from llmbuilder.training import Trainer

TEXT = Path(__file__).resolve().parent.parent / "nbs" / "tinyshakespeare.txt"


def learn(folder, steps):
    "AdamW, 4 layers, 4 heads, width 128, context 64, batch 12: validation loss over the whole last tenth, per character."
    tokenizer = train_tokenizer(TEXT, model_type="char")
    train_set, val_set = TextDataset(TEXT, 64, tokenizer=tokenizer).split(0.1)
    seed_everything(1)
    model = build_model(ModelConfig(vocab_size=tokenizer.vocab_size, embedding_dim=128, num_layers=4, num_heads=4, max_seq_length=64))
    config = TrainingConfig(batch_size=12, max_steps=steps, learning_rate=1e-3, beta2=0.99, weight_decay=0.1, eval_every=500, seed=1)
    return Trainer(model, train_set, val_set, config, folder, progress=False).train()


def test_it_learns(tmp_path):
    "A few steps are enough to be well below the loss of guessing."
    assert learn(tmp_path, 40).final_val_loss < 3.4


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_two_thousand_steps_of_adamw(tmp_path, capsys):
    results = learn(tmp_path, 2000)
    with capsys.disabled(): print(f"\n{results}")
    assert results.final_val_loss <= 1.88
