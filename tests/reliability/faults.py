"""What the tests in this folder share: tiny runs, damage on purpose, and real processes that can be killed.

Run as a program it is the *nursery*: it imports torch once, and then forks a child for each call it is asked for, so that a
process that trains, saves or runs the command costs milliseconds to start. Each child is a process of its own, with its own
pid, files and signal handlers. `Nursery` is the client.
"""
import gc
import importlib
import json
import os
import pickle
import queue
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
MODEL = {"vocab_size": 64, "max_seq_length": 16, "embedding_dim": 32, "num_layers": 2, "num_heads": 2}


# ---------------------------------------------------------------------------------------------------------- tiny runs
def windows(n=500, block_size=16):
    "About n / block_size windows of ids with something to learn in them: most ids follow from the one before."
    import numpy as np

    from llmbuilder.data import TextDataset

    rng = np.random.default_rng(7)
    ids = [5]
    for _ in range(n - 1):
        ids.append(int(rng.integers(4, 64)) if rng.random() < 0.2 else (ids[-1] * 5 + 3) % 60 + 4)
    return TextDataset.from_tokens(ids, block_size)


def make_trainer(folder, callbacks=(), resume=None, overwrite=False, n=500, dropout=0.0, wrap=None, tokenizer=None, **training):
    "A trainer of a tiny model whose first weights are always the same. Every step is logged and may be saved."
    import torch

    from llmbuilder.config import ModelConfig, TrainingConfig
    from llmbuilder.model import build_model
    from llmbuilder.training import Trainer, hold_out

    settings = {"batch_size": 4, "num_epochs": 3, "learning_rate": 3e-3, "save_every": 1, "max_save_share": 1.0, "log_every": 1,
                "eval_every": 0, "max_checkpoints": 3, "device": "cpu", **training}
    torch.manual_seed(11)
    model = build_model(ModelConfig(**MODEL, dropout=dropout))
    train, valid = hold_out(windows(n), 0.15)
    return Trainer(wrap(model) if wrap else model, train, valid, TrainingConfig(**settings), folder, tokenizer=tokenizer,
                   callbacks=callbacks, resume=resume, overwrite=overwrite, progress=False)


def listener(**methods):
    "A callback with these methods: listener(on_step=lambda trainer, record: ...)."
    from llmbuilder.training import Callback

    return type("Listener", (Callback,), {"name": "listener", **{k: staticmethod(v) for k, v in methods.items()}})()


def at_step(step, act):
    "A callback that calls act(trainer) once, when this step's loss is known."
    return listener(on_step=lambda trainer, record: act(trainer) if record["step"] == step else None)


TIMES = ("seconds", "tokens_per_second", "mfu", "memory")


def log_of(folder, events=("train", "eval", "skip")):
    "The log of a run without what depends on the clock."
    from llmbuilder.checkpoint import read_metrics

    return [{k: v for k, v in r.items() if k not in TIMES} for r in read_metrics(folder) if r["event"] in events]


def state_of(folder, name="latest_checkpoint.pt"):
    "A checkpoint without what depends on the clock."
    from llmbuilder.checkpoint import load_checkpoint

    state = load_checkpoint(Path(folder) / "checkpoints" / name)
    counters = dict(state["counters"])
    counters.pop("seconds")
    counters["window"] = counters["window"][:2]
    callbacks = {k: v for k, v in state["callbacks"].items() if v}
    return {**state, "counters": counters, "callbacks": callbacks}


def differences(a, b, where=""):
    "Every place in which two states differ; tensors must be equal bit for bit."
    import torch

    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [where]
    if isinstance(a, dict) and isinstance(b, dict):
        keys = sorted({*a, *b}, key=str)
        return [d for k in keys for d in ([f"{where}.{k}"] if (k in a) != (k in b) else differences(a[k], b[k], f"{where}.{k}"))]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b)) for d in differences(x, y, f"{where}[{i}]")]
    return [] if type(a) is type(b) and a == b else [where]


def snapshot(folder):
    "Every file below a folder with its content, every folder and every link: what must not change."
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        kind = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else "folder"
        found[str(path.relative_to(folder))] = kind
    return found


# ----------------------------------------------------------------------------------------------------------- damage
def truncate(path, share):
    "Cut a file to a share of its length; -1 cuts its last byte."
    size = os.path.getsize(path)
    os.truncate(path, size - 1 if share == -1 else int(size * share))


def flip(path, offset):
    "Flip one bit of one byte, in place but under a new inode: other names of the file keep the good content."
    data = bytearray(Path(path).read_bytes())
    data[offset] ^= 0x10
    os.unlink(path)
    Path(path).write_bytes(data)


def tensor_offset(path):
    "Where in a checkpoint the largest tensor's bytes begin, plus some."
    import zipfile

    with zipfile.ZipFile(path) as archive:
        record = max((i for i in archive.infolist() if "/data/" in i.filename), key=lambda i: i.file_size)
        return record.header_offset + 64 + len(record.filename) + record.file_size // 2


def change(state, key, value):
    "A copy of a state with one nested entry replaced (or, with ..., removed)."
    *path, last = key.split("/")
    state = {**state}
    inner = state
    for name in path:
        inner[name] = {**inner[name]}
        inner = inner[name]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return state


def sabotage():
    "States that make no sense: {what: (the place, what is put there)}."
    import torch

    return {
        "layers": ("config/model/num_layers", 10**9),
        "negative": ("config/model/embedding_dim", -32),
        "heads": ("config/model/num_heads", 5),
        "wide": ("config/model/embedding_dim", 65536),
        "vocabulary": ("config/model/vocab_size", 1_000_000),
        "text for a number": ("config/model/num_layers", "2"),
        "unknown setting": ("config/model/num_layerz", 2),
        "no config": ("config", ...),
        "config is a list": ("config", [1, 2]),
        "missing tensor": ("model/norm.weight", ...),
        "extra tensor": ("model/other.weight", torch.zeros(3)),
        "extra text": ("model/other.weight", "x"),
        "wrong shape": ("model/norm.weight", torch.zeros(9)),
        "not a tensor": ("model/norm.weight", [0.0] * 32),
        "integers": ("model/norm.weight", torch.zeros(32, dtype=torch.int64)),
        "no storage": ("model/norm.weight", torch.zeros(32, device="meta")),
        "sparse": ("model/embed.weight", torch.zeros(64, 32).to_sparse()),
        "stretched": ("model/embed.weight", torch.zeros(1, 1).expand(64, 32)),
        "nan": ("model/norm.weight", torch.full((32,), float("nan"))),
        "model is a list": ("model", [torch.zeros(2)]),
        "no model": ("model", ...),
        "no counters": ("counters", ...),
        "step is text": ("counters/step", "12"),
        "step is negative": ("counters/step", -1),
        "loss is text": ("counters/val_loss", "<script>"),
        "average of another shape": ("ema", {"norm.weight": torch.zeros(3)}),
        "average is a number": ("ema", 3),
        "tokenizer is text": ("tokenizer", "abc"),
        "tokenizer of floats": ("tokenizer", {"model": torch.zeros(10), "fingerprint": "0"}),
        "tokenizer with another fingerprint": ("tokenizer", {"model": torch.zeros(10, dtype=torch.uint8), "fingerprint": "0" * 64}),
        "no format": ("format", ...),
        "another format": ("format", "somebody.else"),
        "version is text": ("format_version", "1"),
        "version is true": ("format_version", True),
        "version 0": ("format_version", 0),
    }


class Evil:
    "Unpickling this makes a file: code has run."

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return Path.touch, (Path(self.marker),)


def evil_pickles(folder, marker, state):
    "Files that run code when they are unpickled without care, in every disguise: {name: path}."
    import zipfile

    import torch

    folder = Path(folder)
    (folder / "plain.pt").write_bytes(pickle.dumps(Evil(marker)))
    torch.save(Evil(marker), folder / "zip.pt")
    torch.save({**state, "callbacks": {"x": Evil(marker)}}, folder / "inside.pt")
    torch.save({**state, "model": {**state["model"], "norm.weight": Evil(marker)}}, folder / "weight.pt")
    torch.save({**state, "x": Evil(marker)}, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(folder / "archive.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Evil(marker)))
        archive.writestr("archive/version", "3")
    return {p.stem: p for p in sorted(folder.glob("*.pt"))}


# --------------------------------------------------------------------------- what children do (named in Nursery.start)
def run(folder, options, pace=0.0):
    "Train a tiny model to the end, going on with whatever is in the folder. Exit codes as the command's."
    wait = listener(on_step=lambda trainer, record: time.sleep(pace))
    try:
        results = make_trainer(folder, [wait], **options).train()
    except KeyboardInterrupt:
        return 130
    print(results.status)
    return {"finished": 0, "interrupted": 130, "terminated": 143}.get(results.status, 1)


def run_paused(folder, options):
    "As `run`, paused at step 4."
    results = make_trainer(folder, [at_step(4, lambda trainer: trainer.pause())], **options).train()
    return {"finished": 0, "interrupted": 130, "terminated": 143}.get(results.status, 1)


def run_in_a_terminal_that_closes(folder, options, nohup=False):
    "The terminal goes away at step 4, under a progress bar: nothing can be printed from then on."
    from llmbuilder.training import ProgressBar

    os.environ["LLMBUILDER_UI"] = "bar"
    if nohup:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def close(trainer):
        os.close(2)
        os.kill(os.getpid(), signal.SIGHUP)

    trainer = make_trainer(folder, [at_step(4, close)], **options)
    trainer.callbacks.append(ProgressBar())
    return {"finished": 0, "terminated": 143}.get(trainer.train().status, 1)


def cli(*argv):
    from llmbuilder.cli import main

    return main(list(argv))


def signatures(folder):
    "As `snapshot`, by size, time and inode: quick, and it also notices a file that was written again."
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        info = path.lstat()
        found[str(path.relative_to(folder))] = (info.st_size, info.st_mtime_ns, info.st_ino, info.st_mode) if not path.is_dir() else "folder"
    return found


def changes(before, after):
    "The names that differ between two signatures of a folder."
    return sorted(name for name in {*before, *after} if before.get(name) != after.get(name))


def refuse_all(place, numbers):
    "Give one bad input after another to the command's entry point, in this process; print what is wrong with the answers."
    import contextlib
    import io

    from bad_inputs import bad_input

    from llmbuilder.cli import main

    place = Path(place)
    for number in numbers:
        kind, words = bad_input(place, number)
        before, screen, errors = signatures(place), io.StringIO(), io.StringIO()
        start, code, raised = time.monotonic(), None, None
        with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(errors):
            try:
                code = main(words)
            except BaseException as error:
                raised = repr(error)
        result = {"number": number, "kind": kind, "words": words, "code": code, "out": screen.getvalue()[-2000:],
                  "err": errors.getvalue()[-3000:], "raised": raised, "seconds": time.monotonic() - start,
                  "changed": changes(before, signatures(place))}
        print(json.dumps(result), flush=True)
    return 0


def filled_state(number, width=96):
    "A checkpoint's state in which every weight is `number`, and so is the step."
    import torch

    from llmbuilder.config import Config, ModelConfig, TokenizerConfig
    from llmbuilder.model import Transformer

    config = ModelConfig(vocab_size=512, max_seq_length=16, embedding_dim=width, num_layers=2, num_heads=2)
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in Transformer(config).state_dict().items()}
    weights = {k: torch.full(shape, float(number)) for k, shape in shapes.items()}
    return {"model": weights, "config": Config(config, tokenizer=TokenizerConfig(512)).to_dict(),
            "counters": {"step": number, "epoch": number // 3},
            "optimizer": {"name": "AdamW", "state": {k: {"exp_avg": v} for k, v in weights.items()}, "groups": []}}


def names_for(number):
    "What a run would call this save: a step file, and now and then the end of an epoch or a new best."
    names = [f"step_{number:08d}.pt"]
    if number % 3 == 0:
        names = ["best_checkpoint.pt", f"epoch_{number // 3:04d}.pt", *names]
    return names


def save_for_ever(folder, keep=2):
    "Save one state after another, as fast as the disk takes them."
    from llmbuilder.checkpoint import CheckpointWriter, find_checkpoint, verify_checkpoint

    checkpoints = Path(folder) / "checkpoints"
    number = verify_checkpoint(find_checkpoint(folder)).step
    writer = CheckpointWriter(checkpoints, keep, budget=1)
    (Path(folder) / "saving").touch()
    while True:
        number += 1
        writer.submit(filled_state(number), names_for(number))


def save_and_die(folder, number, keep, at):
    "One save, killed at the `at`-th thing it asks of the file system. Exit code 0: it was through before that."
    from llmbuilder.checkpoint import _write_all

    state, count = filled_state(number, 16), 0
    fsync = os.fsync

    def strike(*_):
        nonlocal count
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(event, args):
        if event in ("open", "os.rename", "os.link", "os.remove", "os.truncate") and str(folder) in str(args[0]):
            strike()

    def dying_fsync(fd):
        strike()
        fsync(fd)
        strike()

    os.fsync = dying_fsync
    sys.addaudithook(audit)
    _write_all(Path(folder) / "checkpoints", state, names_for(number), keep, queue.SimpleQueue())
    print(count)
    return 0


def verify_within(path, megabytes):
    "Try to load a checkpoint; print the error and how much more memory it took. Exit code 0: the file was accepted."
    import resource

    from llmbuilder.checkpoint import CheckpointError, load_checkpoint

    filled_state(1, 16)  # what the first model of a process costs is no part of it
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    code = 0
    try:
        load_checkpoint(path)
    except CheckpointError as error:
        print(error)
        code = 1
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{grown:.0f} MB more")
    return code if grown < megabytes else 3


def hold_lock(folder):
    "Take a run folder and keep it."
    from llmbuilder.checkpoint import RunFolder

    run = RunFolder(folder)
    run.acquire()
    (Path(folder) / "held").touch()
    time.sleep(60)


# ------------------------------------------------------------------------------------------------------ the nursery
class Child:
    "A process that was started to be waited for, or killed."

    def __init__(self, nursery, pid, out, err):
        self.nursery, self.pid, self._out, self._err, self.code = nursery, pid, Path(out), Path(err), None

    @property
    def running(self):
        if self.code is None:
            self.code = self.nursery.ask({"poll": self.pid})["code"]
        return self.code is None

    def send(self, signal_number):
        os.kill(self.pid, signal_number)

    def kill(self):
        "kill -9; returns whether the process was still running."
        self.send(signal.SIGKILL)
        self.wait()
        return self.code == -signal.SIGKILL

    def wait(self, timeout=60):
        "The exit code, negative for a signal."
        end = time.monotonic() + timeout
        while self.running:
            if time.monotonic() > end:
                self.send(signal.SIGKILL)
                raise TimeoutError(f"still running after {timeout} s: {self.out}{self.err}")
            time.sleep(0.002)
        return self.code

    @property
    def out(self):
        return self._out.read_text(encoding="utf-8", errors="replace")

    @property
    def err(self):
        return self._err.read_text(encoding="utf-8", errors="replace")


class Nursery:
    "Starts children: nursery.start('run', folder, options) calls the function above in a process of its own."

    def __init__(self, folder):
        self.folder, self.count, self.children = Path(folder), 0, []
        self.process = None

    def ask(self, message):
        if self.process is None:
            env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
            self.process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                            env=env)
        print(json.dumps(message), file=self.process.stdin, flush=True)
        ready, _, _ = select.select([self.process.stdout], [], [], 120)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            raise RuntimeError("the nursery does not answer")
        return json.loads(line)

    def start(self, function, *args, cwd=None, umask=None, env=None):
        self.count += 1
        out, err = (str(self.folder / f"{self.count}.{kind}") for kind in ("out", "err"))
        args = [str(a) if isinstance(a, Path) else a for a in args]
        pid = self.ask({"call": function, "args": args, "out": out, "err": err, "cwd": str(cwd or self.folder), "umask": umask,
                        "env": env or {}})["pid"]
        child = Child(self, pid, out, err)
        self.children.append(child)
        return child

    def call(self, function, *args, **options):
        "Start a child and wait for it."
        child = self.start(function, *args, **options)
        child.wait()
        return child

    def end_children(self):
        for child in self.children:
            if child.running:
                child.kill()
        self.children.clear()

    def close(self):
        if self.process is not None:
            self.end_children()
            self.process.stdin.close()
            self.process.wait(30)


def _become(job):
    "In the child: files, folder and signals of its own, then the call."
    code = 70
    try:
        for number, path in ((0, os.devnull), (1, job["out"]), (2, job["err"])):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(fd, number)
            os.close(fd)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where these tests run under nohup, and that is inherited
        os.chdir(job["cwd"])
        os.environ.update(job["env"])
        if job["umask"] is not None:
            os.umask(job["umask"])
        random.seed()
        code = globals()[job["call"]](*job["args"]) or 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _serve():
    "Read a job a line, fork for it, answer with the child's pid; or tell whether a child is through."
    for name in ("llmbuilder.training", "llmbuilder.cli", "llmbuilder.pipeline", "llmbuilder.generation"):
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:  # torch imports much of itself when it is first used: once is enough
        filled_state(1, 16)
        make_trainer(folder, max_steps=2).train()
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the terminal is for pytest
    for line in sys.stdin:
        job = json.loads(line)
        if "poll" in job:
            pid, status = os.waitpid(job["poll"], os.WNOHANG)
            answer = {"code": os.waitstatus_to_exitcode(status) if pid else None}
        else:
            sys.stdout.flush()
            pid = os.fork()
            if pid == 0:
                _become(job)
            answer = {"pid": pid}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
