"""llmbuilder: build, train and understand a small language model on your own text."""

__version__ = "3.0.0"

import os
from importlib import import_module
from importlib.util import find_spec

# How often a waiting OpenMP thread looks before it sleeps, read when torch is loaded. libgomp's own 300,000 looks (3 ms) at the end
# of every operation make training many times slower as soon as another program needs a core: `benchmarks/neighbours.py`.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "30000")

# Every public name and the module that defines it. Names resolve on first use, so that `import llmbuilder`
# (and the command line's --help) never waits for torch.
_NAMES = {
    "config": "Config ModelConfig TrainingConfig TokenizerConfig DataConfig GenerationConfig "
    "LLMBuilderError ConfigError load_config presets",
    "tokenizer": "Tokenizer TokenizerError train_tokenizer",
    "data": "DataError DataReport TextDataset",
    "model": "ModelError Transformer build_model count_parameters",
    "device": "DeviceError pick_device seed_everything",
    "checkpoint": "CheckpointError find_checkpoint list_checkpoints load_checkpoint load_model verify_checkpoint",
    "training": "Callback RunControl Trainer TrainingError TrainingResults train_model",
    "advanced": "CostEstimate average_checkpoints estimate_cost find_lr find_micro_batch",
    "generation": "GenerationError SampleDuringTraining TextGenerator generate_text",
    "evaluation": "EvaluationError EvaluationReport evaluate_files evaluation_report",
    "runs": "Run RunError compare_runs list_runs load_run plot_run",
    "dashboard": "AttentionInspector SamplingPlayground TokenizerExplorer TrainingDashboard show_run watch",
    "finetune": "FinetuneError LoRA add_lora load_adapter merge_lora save_adapter",
    "export": "ExportError from_hf from_safetensors to_gguf to_hf to_safetensors",
    "pipeline": "Pipeline train",
}
_WHERE = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = sorted(_WHERE)


def __getattr__(name):
    if name in _WHERE:
        value = getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
        globals()[name] = value  # the next look-up is an ordinary one
        return value
    if not name.startswith("_") and find_spec(f"{__name__}.{name}"):  # lb.config, lb.data, ...
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
