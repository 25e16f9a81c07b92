"""One side of a comparison: `python sides.py NAME '{"repeat": 0}'` measures it and prints a line of JSON."""

import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
TEXT = HERE.parent / "nbs" / "tinyshakespeare.txt"
TARGET = 1.88  # nats per character over the whole last tenth of the text


def peak_mb() -> float:
    "The most resident memory this process has had."
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def best_of(function, seconds: float = 3.0, least: int = 3) -> float:
    "Seconds per call: the median of repeated calls after one to warm up."
    function()
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < least:
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


# ---- learning -------------------------------------------------------------------------------------------------------------------

def characters(context=64):
    "Training and validation windows of the text's characters."
    from llmbuilder.data import TextDataset
    from llmbuilder.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(TEXT, model_type="char")
    return TextDataset(TEXT, context, tokenizer=tokenizer).split(0.1)


def learn(config, target=TARGET):
    "Train, evaluating every 50 steps over the whole validation set; time is counted without the evaluations."
    from llmbuilder.device import seed_everything
    from llmbuilder.model import build_model
    from llmbuilder.training import Callback, Trainer

    class Clock(Callback):
        name, seconds, reached, steps = "clock", 0.0, None, None

        def on_start(self, trainer): self.last = time.perf_counter()
        def on_step(self, trainer, record):
            self.seconds, self.last = self.seconds + time.perf_counter() - self.last, time.perf_counter()

        def on_evaluate(self, trainer, record):
            if self.reached is None and record["val_loss"] <= target: self.reached, self.steps = self.seconds, record["step"]
            self.last = time.perf_counter()

    train, val = characters(config.model.max_seq_length)
    seed_everything(config.training.seed)
    config.vocab_size = train.tokenizer.vocab_size
    model, clock = build_model(config.model), Clock()
    with tempfile.TemporaryDirectory() as folder:
        results = Trainer(model, train, val, config, Path(folder) / "run", callbacks=[clock], progress=False).train()
    if results.status != "finished": raise SystemExit(f"the run ended after {results.steps} steps: {results.status}")
    return {"seconds_to_target": clock.reached if clock.reached is not None else float("inf"), "steps_to_target": clock.steps,
            "seconds": clock.seconds, "final_loss": results.final_val_loss, "parameters": config.model.num_parameters}


def learn_nanogpt(repeat=0, **_):
    from llmbuilder.config import Config, ModelConfig, TrainingConfig

    model = ModelConfig.gpt2(vocab_size=512, embedding_dim=128, num_layers=4, num_heads=4, max_seq_length=64)
    training = TrainingConfig(batch_size=12, num_epochs=9, max_steps=2000, learning_rate=1e-3, beta2=0.99, weight_decay=0.1, warmup_steps=100,
                              min_lr_ratio=0.1, eval_every=50, save_every=0, seed=1337 + repeat)
    run = learn(Config.from_dict({"model": model.to_dict(), "training": training.to_dict(), "tokenizer": {"vocab_size": 512}}))
    # A seed whose 2,000 steps end above the target counts with the time of them all: less than it would have needed.
    return {**run, "seconds_to_target": min(run["seconds_to_target"], run["seconds"])}


def shakespeare(repeat, **settings):
    "The preset, with a seed of this repeat's own."
    from llmbuilder.config import load_config

    config = load_config(preset="shakespeare", save_every=0, **settings)
    config.training.seed = 1337 + repeat
    return config


def learn_ours(repeat=0, **_):
    "The preset's recipe with its schedule cut to the steps that the target takes."
    return learn(shakespeare(repeat, max_steps=250, eval_every=50))


def learn_full(repeat=0, **_):
    "The preset as it is, evaluated at the end only: no time is asked of it."
    return learn(shakespeare(repeat, eval_every=0))


def gpu_config(repeat, model, **training):
    "nanoGPT's GPU recipe for the characters: sizes, batch, steps and dropout; the rest is the caller's."
    from llmbuilder.config import Config, ModelConfig, TrainingConfig

    sizes = dict(vocab_size=512, embedding_dim=384, num_layers=6, num_heads=6, max_seq_length=256, dropout=0.2)
    model = ModelConfig.gpt2(**sizes) if model == "gpt2" else ModelConfig(**sizes)
    training = TrainingConfig(batch_size=64, num_epochs=100, weight_decay=0.1, beta2=0.99, eval_every=250, save_every=0, seed=1337 + repeat,
                              device="cuda", mixed_precision="bf16", compile=True, **training)
    return Config.from_dict({"model": model.to_dict(), "training": training.to_dict(), "tokenizer": {"vocab_size": 512}})


def gpu_learn_nanogpt(repeat=0, **_):
    return learn(gpu_config(repeat, "gpt2", max_steps=5000, learning_rate=1e-3, warmup_steps=100, min_lr_ratio=0.1), 1.47)


def gpu_learn_ours(repeat=0, **_):
    return learn(gpu_config(repeat, "ours", max_steps=1000, optimizer="muon", learning_rate=3e-3, muon_learning_rate=0.02, warmup_steps=0), 1.47)


# ---- the guide's small run ------------------------------------------------------------------------------------------------------

def small_text(folder: Path) -> Path:
    "About 100,000 tokens of text, its lines wrapped at 78 columns as the peer needs."
    import textwrap

    lines = TEXT.read_text(encoding="utf-8")[:360_000].splitlines()
    path = folder / "data" / "text.txt"
    path.parent.mkdir()
    path.write_text("\n".join(w for line in lines for w in (textwrap.wrap(line, 78) or [""])) + "\n", encoding="utf-8")
    return path


SMALL = {"vocab_size": 4000, "block_size": 64,
         "training": {"batch_size": 1, "learning_rate": 6e-4, "num_epochs": 1, "max_grad_norm": 1.0, "save_every": 1, "log_every": 10},
         "model": {"embedding_dim": 256, "num_layers": 4, "num_heads": 8, "max_seq_length": 64, "dropout": 0.1}}


def small_ours(save_every=1, **_):
    started = time.perf_counter()
    import llmbuilder

    config = {**SMALL, "training": {**SMALL["training"], "save_every": save_every, "eval_every": 0}}  # at the end, as the peer
    with tempfile.TemporaryDirectory() as folder:
        path = small_text(Path(folder))
        before = time.perf_counter()
        results = llmbuilder.train(data_path=str(path), output_dir=str(Path(folder) / "out"), config=config).results
        preparing = time.perf_counter() - before - results.training_time
    return {"tokens_per_second": results.tokens / results.training_time, "peak_mb": peak_mb(), "tokens": results.tokens,
            "start_seconds": before - started + preparing, "final_loss": results.final_val_loss}


def small_unsaved(**_): return small_ours(save_every=0)


def small_products(**_):
    "The limit: the matrix products of the small run's step and nothing else, each by the faster of torch's two libraries."
    import torch
    import torch.nn.functional as F

    from llmbuilder.config import ModelConfig
    from llmbuilder.device import keep_freed_memory
    from llmbuilder.model import _by_onednn, build_model

    keep_freed_memory()  # as the Trainer has it
    tokens, model = SMALL["block_size"], build_model(ModelConfig(vocab_size=SMALL["vocab_size"], **SMALL["model"]))
    weights = [m.weight.detach() for m in model.modules() if isinstance(m, torch.nn.Linear)] + [model.embed.weight.detach()]
    pairs = [(w, torch.randn(tokens, w.shape[1]), torch.randn(tokens, len(w))) for w in weights]  # weight, input, gradient
    kinds = (lambda w, x, g: (F.linear, x, w)), (lambda w, x, g: (torch.mm, g, w)), (lambda w, x, g: (torch.mm, g.T, x))
    ways = (lambda product, *operands: product(*operands)), _by_onednn
    seconds = sum(min(best_of(lambda: [way(*kind(*pair)) for pair in pairs], 3.0) for way in ways) for kind in kinds)
    return {"tokens_per_second": tokens / seconds, "flops": 6 * tokens * sum(w.numel() for w in weights) / seconds}


def peer2_small(**_):
    "llmbuilder 2.0.0 on the same text, in its own environment."
    started = time.perf_counter()
    import llmbuilder.pipeline as pipeline
    import torch

    counted, marks, train = [0], {}, pipeline.Trainer.train

    def timed(self, *args, **options):
        forward = self.model.forward

        def counting(ids, *a, **k):
            if self.model.training: counted[0] += ids.numel()
            return forward(ids, *a, **k)

        self.model.forward = counting
        marks["start"] = time.perf_counter()
        try: return train(self, *args, **options)
        finally: marks["end"] = time.perf_counter()

    pipeline.Trainer.train = timed
    with tempfile.TemporaryDirectory() as folder:
        path = small_text(Path(folder))
        pipeline.train(data_path=str(path), output_dir=str(Path(folder) / "out"), config=SMALL)
    return {"tokens_per_second": counted[0] / (marks["end"] - marks["start"]), "peak_mb": peak_mb(), "tokens": counted[0],
            "start_seconds": marks["start"] - started, "threads": torch.get_num_threads()}


# ---- speed of a step ------------------------------------------------------------------------------------------------------------

def shape(large: bool):
    "Model settings and batch of the two sizes."
    if large: return dict(vocab_size=512, max_seq_length=256, embedding_dim=384, num_layers=6, num_heads=6), (16, 256)
    return dict(vocab_size=512, max_seq_length=64, embedding_dim=128, num_layers=4, num_heads=4), (12, 64)


def bare_loop(model, loss_of, batch, optimizer=None, seconds=8.0):
    "Tokens per second of forward, backward, clip and fused AdamW."
    import torch

    x, y = batch
    wait = torch.cuda.synchronize if x.is_cuda else lambda: None
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def step():
        loss = loss_of(model, x, y)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        wait()

    return {"tokens_per_second": x.numel() / best_of(step, seconds), "parameters": sum(p.numel() for p in model.parameters())}


def random_batch(size, vocab_size):
    import torch

    torch.manual_seed(0)
    ids = torch.randint(vocab_size, (size[0], size[1] + 1))
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def gpt2_ours(large=False, **_):
    from llmbuilder.config import ModelConfig
    from llmbuilder.model import build_model

    sizes, batch = shape(large)
    model = build_model(ModelConfig.gpt2(**sizes)).train()
    return bare_loop(model, lambda m, x, y: m(x, y), random_batch(batch, sizes["vocab_size"]))


def hf_gpt2(large):
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes, batch = shape(large)
    config = GPT2Config(vocab_size=sizes["vocab_size"], n_positions=sizes["max_seq_length"], n_embd=sizes["embedding_dim"],
                        n_layer=sizes["num_layers"], n_head=sizes["num_heads"], resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    config.use_cache = False
    return GPT2LMHeadModel(config).train(), random_batch(batch, sizes["vocab_size"])


def gpt2_transformers(large=False, **_):
    import torch.nn.functional as F

    model, batch = hf_gpt2(large)
    return bare_loop(model, lambda m, x, y: F.cross_entropy(m(x).logits.flatten(0, 1), y.flatten()), batch)


def gpt2_ours_10m(**_): return gpt2_ours(large=True)
def gpt2_transformers_10m(**_): return gpt2_transformers(large=True)


def gpt2_hf_trainer(**_):
    "transformers' own Trainer on the same model and batch."
    import torch
    from transformers import Trainer, TrainingArguments

    model, (x, y) = hf_gpt2(False)
    steps = 300
    data = [{"input_ids": x[i % len(x)], "labels": x[i % len(x)]} for i in range(steps * len(x))]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(folder, per_device_train_batch_size=len(x), max_steps=steps, report_to=[], save_strategy="no", learning_rate=1e-3,
                                      optim="adamw_torch_fused", use_cpu=not torch.cuda.is_available(), disable_tqdm=True, logging_steps=100)
        trainer = Trainer(model=model, args=arguments, train_dataset=data)
        seconds = trainer.train().metrics["train_runtime"]
    return {"tokens_per_second": steps * x.numel() / seconds}


def trainer_ours(steps=600, **_):
    "Our Trainer on the characters, without evaluations and saves in between."
    from llmbuilder.config import ModelConfig, TrainingConfig
    from llmbuilder.model import build_model
    from llmbuilder.training import Trainer

    train, _ = characters()
    model = build_model(ModelConfig(**{**shape(False)[0], "vocab_size": train.tokenizer.vocab_size}))
    config = TrainingConfig(batch_size=12, max_steps=steps, learning_rate=1e-3, eval_every=0, save_every=0, log_every=100)
    with tempfile.TemporaryDirectory() as folder:
        results = Trainer(model, train, None, config, Path(folder) / "run", progress=False).train()
    seconds = [r["seconds"] for r in results.history if r["event"] == "train"]
    return {"tokens_per_second": 12 * 64 * (steps - 100) / (seconds[-1] - seconds[0])}  # the first 100 steps warm up


def trainer_bare(steps=600, **_):
    "The same model on the same batches in a loop of six lines."
    import torch

    from llmbuilder.config import ModelConfig
    from llmbuilder.model import build_model

    train, _ = characters()
    model = build_model(ModelConfig(**{**shape(False)[0], "vocab_size": train.tokenizer.vocab_size})).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    for step, indices in enumerate(torch.randperm(len(train)).split(12)[:steps]):
        if step == 100: start = time.perf_counter()
        x, y = train.get_batch(indices)
        loss = model(x, y)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return {"tokens_per_second": 12 * 64 * (steps - 100) / (time.perf_counter() - start)}


# ---- share of the machine's peak ------------------------------------------------------------------------------------------------

def flops_model(**_):
    "FLOP/s of a training step of 10 M parameters: 6 x parameters x tokens, and attention."
    from llmbuilder.config import ModelConfig
    from llmbuilder.model import build_model, flops_per_token

    sizes, batch = shape(True)
    config = ModelConfig(**sizes)
    speed = bare_loop(build_model(config).train(), lambda m, x, y: m(x, y), random_batch(batch, sizes["vocab_size"]))
    return {"flops": speed["tokens_per_second"] * flops_per_token(config, batch[1]), "parameters": speed["parameters"]}


def flops_matmul(**_):
    "FLOP/s of the matrix products that this model consists of, alone, by the faster of torch's two libraries."
    import torch

    from llmbuilder.config import ModelConfig
    from llmbuilder.model import _by_onednn

    sizes, (B, T) = shape(True)
    config = ModelConfig(**sizes)
    d, f, tokens = config.embedding_dim, config.ffn_dim, B * T
    shapes = [(3 * d, d), (d, d), (2 * f, d), (d, f)]
    pairs = [(torch.randn(tokens, n), torch.randn(m, n)) for m, n in shapes]
    work = sum(2 * tokens * m * n for m, n in shapes)
    ways = (lambda x, w: x @ w.T), (lambda x, w: _by_onednn(torch.mm, x, w.T))
    return {"flops": work / min(best_of(lambda: [way(x, w) for x, w in pairs], 4.0) for way in ways)}


def gpu_flops_model(**_):
    "FLOP/s of a training step of GPT-2's smallest size on a GPU, in bf16 and compiled."
    import torch

    from llmbuilder.config import ModelConfig
    from llmbuilder.device import autocast, compile_model
    from llmbuilder.model import build_model, flops_per_token

    config = ModelConfig.gpt2(vocab_size=50304, max_seq_length=1024, embedding_dim=768, num_layers=12, num_heads=12)
    model = compile_model(build_model(config).cuda().train())
    batch = [t.cuda() for t in random_batch((16, 1024), config.vocab_size)]

    def loss_of(model, x, y):
        with autocast("cuda", "bf16"): return model(x, y)

    torch.set_float32_matmul_precision("high")
    speed = bare_loop(model, loss_of, batch)
    return {"flops": speed["tokens_per_second"] * flops_per_token(config, 1024), "parameters": speed["parameters"]}


def gpu_flops_peak(**_):
    "The 16-bit FLOP/s that the GPU's data sheet promises."
    from llmbuilder.device import peak_flops

    flops = peak_flops("cuda")
    if flops is None: raise SystemExit("this GPU is not in llmbuilder.device.PEAK_FLOPS: add its data sheet's number")
    return {"flops": flops}


# ---- generation -----------------------------------------------------------------------------------------------------------------

GENERATION = dict(vocab_size=8000, max_seq_length=512, embedding_dim=256, num_layers=4, num_heads=8)
NEW = 256


def generate_ours(**_):
    import torch

    from llmbuilder.config import GenerationConfig, ModelConfig
    from llmbuilder.generation import generate_ids
    from llmbuilder.model import build_model

    torch.manual_seed(0)
    model, config = build_model(ModelConfig(**GENERATION)).eval(), GenerationConfig(max_new_tokens=NEW, temperature=1.0, top_p=0.9, seed=0)
    prompt = [list(range(10, 26))]
    assert len(generate_ids(model, prompt, config, None)[0]) in (NEW, NEW + 16)
    return {"tokens_per_second": NEW / best_of(lambda: generate_ids(model, prompt, config, None), 6.0)}


def generate_transformers(**_):
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    g = GENERATION
    config = Qwen3Config(vocab_size=g["vocab_size"], hidden_size=g["embedding_dim"], intermediate_size=704, num_hidden_layers=g["num_layers"],
                         num_attention_heads=g["num_heads"], num_key_value_heads=g["num_heads"], head_dim=32, tie_word_embeddings=True,
                         max_position_embeddings=g["max_seq_length"], eos_token_id=None, pad_token_id=0)
    model, ids = Qwen3ForCausalLM(config).eval(), torch.arange(10, 26)[None]
    call = lambda: model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=True, top_p=0.9, top_k=0)
    return {"tokens_per_second": NEW / best_of(call, 6.0)}


def generate_minimal(**_):
    "The least code that samples with a cache: our model, torch's own sorting."
    import torch

    from llmbuilder.config import ModelConfig
    from llmbuilder.model import KVCache, build_model

    torch.manual_seed(0)
    model = build_model(ModelConfig(**GENERATION)).eval()

    @torch.inference_mode()
    def call():
        cache, ids = KVCache(model.config, 1, 16 + NEW, "cpu", torch.float32), torch.arange(10, 26)[None]
        for _ in range(NEW):
            values, order = model(ids, cache=cache, last_only=True)[:, -1].softmax(-1).sort(descending=True)
            values[(values.cumsum(-1) - values) > 0.9] = 0
            ids = order.gather(-1, torch.multinomial(values, 1))

    return {"tokens_per_second": NEW / best_of(call, 6.0)}


def generate_products(way=None, **_):
    "The limit: one token's matrix products and nothing else, every weight read once, as generation reads it."
    import torch
    from torch import nn

    from llmbuilder.config import ModelConfig
    from llmbuilder.model import build_model, linear

    model = build_model(ModelConfig(**GENERATION)).eval()
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Linear)] + [model.embed.weight]
    inputs = [torch.randn(1, w.shape[1]) for w in weights]

    @torch.inference_mode()
    def call():
        for x, w in zip(inputs, weights): (way or linear)(x, w)

    return {"tokens_per_second": 1 / best_of(call, 4.0, 100)}


def generate_products_usual(**_):
    "The same products as torch's linear layer computes them."
    from torch.nn.functional import linear

    return generate_products(linear)


def generate_copy(**_):
    "The machine's own limit: every weight of the model copied once for a token, and nothing computed."
    import torch

    from llmbuilder.config import ModelConfig
    from llmbuilder.model import build_model

    weights = [w.detach() for w in build_model(ModelConfig(**GENERATION)).parameters()]
    target = torch.empty(max(w.numel() for w in weights))
    seconds = best_of(lambda: [target[: w.numel()].view_as(w).copy_(w) for w in weights], 4.0, 100)
    return {"tokens_per_second": 1 / seconds, "gigabytes_per_second": sum(w.numel() * 4 for w in weights) / seconds / 1e9}


def batch_prompts(together: bool):
    import torch

    from llmbuilder.config import GenerationConfig, ModelConfig
    from llmbuilder.generation import generate_ids
    from llmbuilder.model import build_model

    torch.manual_seed(0)
    model, config = build_model(ModelConfig(**GENERATION)).eval(), GenerationConfig(max_new_tokens=64, temperature=1.0, top_p=0.9, seed=0)
    prompts = [torch.randint(10, 8000, (n,)).tolist() for n in range(4, 68, 4)]

    def call():
        if together: generate_ids(model, prompts, config, None)
        else:
            for p in prompts: generate_ids(model, [p], config, None)

    return {"tokens_per_second": 16 * 64 / best_of(call, 6.0)}


def batch_at_once(**_): return batch_prompts(True)
def batch_one_by_one(**_): return batch_prompts(False)


# ---- encoding, starting ---------------------------------------------------------------------------------------------------------

def large_text(folder: Path) -> tuple[Path, Path]:
    "100 MB of text, and a tokenizer for it."
    from llmbuilder.tokenizer import train_tokenizer

    text = TEXT.read_bytes()
    path = folder / "large.txt"
    with open(path, "wb") as file:
        for _ in range(100_000_000 // len(text) + 1): file.write(text)
    train_tokenizer(TEXT, vocab_size=4000).save(folder / "tokenizer")
    return path, folder / "tokenizer"


def encode_ours(**_):
    from llmbuilder.data import encode_documents
    from llmbuilder.tokenizer import Tokenizer

    with tempfile.TemporaryDirectory() as folder:
        path, where = large_text(Path(folder))
        tokenizer, before, start = Tokenizer.load(where), peak_mb(), time.perf_counter()
        encode_documents(stream(path), tokenizer, Path(folder) / "tokens.bin")
        return {"bytes_per_second": path.stat().st_size / (time.perf_counter() - start), "peak_mb": peak_mb(), "before_mb": before}


def stream(path: Path):
    "One document as a stream of pieces of text: what a text file is to llmbuilder.data."
    from llmbuilder.data import read_chunks

    yield read_chunks(path)


def encode_raw(**_):
    import numpy as np
    import sentencepiece

    with tempfile.TemporaryDirectory() as folder:
        path, where = large_text(Path(folder))
        processor, start = sentencepiece.SentencePieceProcessor(model_file=str(where / "tokenizer.model")), time.perf_counter()
        with open(path, encoding="utf-8", newline="") as file, open(Path(folder) / "raw.bin", "wb") as out:
            while lines := file.readlines(1 << 20):
                for ids in processor.encode(lines): out.write(np.asarray(ids, np.uint16).tobytes())
        return {"bytes_per_second": path.stat().st_size / (time.perf_counter() - start), "peak_mb": peak_mb()}


def start(*command) -> dict:
    "Seconds of a fresh process, the fastest of five, less those of an empty one."
    def run(arguments):
        began = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - began

    return {"seconds": min(run(command) for _ in range(5)), "empty": min(run(("-c", "pass")) for _ in range(5))}


def start_import(**_):
    times = start("-c", "import llmbuilder")
    return {"seconds": times["seconds"] - times["empty"], "whole": times["seconds"]}


def start_help(**_): return start("-m", "llmbuilder", "--help")


if __name__ == "__main__":
    logging.disable(logging.INFO)
    os.environ.setdefault("LLMBUILDER_CACHE", tempfile.mkdtemp())
    print(json.dumps(globals()[sys.argv[1]](**json.loads(sys.argv[2]))))
