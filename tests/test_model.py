"The model computes what other people's implementations of the same shapes compute."
import dataclasses

import pytest
import torch

from llmbuilder.config import ModelConfig
from llmbuilder.model import KVCache, build_model

transformers = pytest.importorskip("transformers")

SIZES = dict(vocab_size=80, max_seq_length=32, embedding_dim=48, num_layers=3, num_heads=4)


def noisy(model):
    "Norm weights and biases away from 1 and 0, so that a forgotten one shows."
    torch.manual_seed(1)
    for p in model.parameters():
        if p.ndim == 1:
            p.data += 0.3 * torch.randn_like(p)
    return model.eval()


def llama_like_state(model):
    "Our weights under the names of Llama's and Qwen's implementations."
    c, state = model.config, {"model.embed_tokens.weight": model.embed.weight, "model.norm.weight": model.norm.weight}
    state["lm_head.weight"] = (model.embed if model.head is None else model.head).weight
    for i, block in enumerate(model.blocks):
        q, k, v = block.attn.qkv.weight.split(block.attn.qkv.parts)
        gate, up = block.mlp.gate_up.weight.split(block.mlp.gate_up.parts)
        names = {
            "input_layernorm": block.norm1.weight, "post_attention_layernorm": block.norm2.weight,
            "self_attn.q_proj": q, "self_attn.k_proj": k, "self_attn.v_proj": v,
            "self_attn.o_proj": block.attn.out.weight,
            "mlp.gate_proj": gate, "mlp.up_proj": up, "mlp.down_proj": block.mlp.down.weight,
        }
        if c.qk_norm:
            names |= {"self_attn.q_norm": block.attn.q_norm.weight, "self_attn.k_norm": block.attn.k_norm.weight}
        state |= {f"model.layers.{i}.{name}.weight": w for name, w in names.items()}
    return state


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["Qwen3", "Llama"])
def test_qwen_and_llama(kind, tied):
    c = ModelConfig(**SIZES, num_kv_heads=2, head_dim=16, qk_norm=kind == "Qwen3", tie_embeddings=tied, rope_theta=5e3)
    ours = noisy(build_model(c))
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=80, hidden_size=48, intermediate_size=c.ffn_dim, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=32, rms_norm_eps=c.norm_eps, attention_bias=False,
        rope_parameters={"rope_type": "default", "rope_theta": 5e3}, tie_word_embeddings=tied,
        bos_token_id=0, eos_token_id=0, pad_token_id=None,
    )  # fmt: skip
    theirs = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    theirs.load_state_dict(llama_like_state(ours))
    ids = torch.randint(80, (2, 32))
    torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-5, rtol=1e-4)


def test_gpt2():
    c = ModelConfig.gpt2(**SIZES)
    ours = noisy(build_model(c))
    config = transformers.GPT2Config(
        vocab_size=80, n_positions=32, n_embd=48, n_layer=3, n_head=4, bos_token_id=0, eos_token_id=0
    )
    theirs = transformers.GPT2LMHeadModel(config).eval()
    state = {"transformer.wte.weight": ours.embed.weight, "lm_head.weight": ours.embed.weight,
             "transformer.wpe.weight": ours.pos_embed.weight,
             "transformer.ln_f.weight": ours.norm.weight, "transformer.ln_f.bias": ours.norm.bias}
    parts = {"ln_1": "norm1", "attn.c_attn": "attn.qkv", "attn.c_proj": "attn.out", "ln_2": "norm2",
             "mlp.c_fc": "mlp.up", "mlp.c_proj": "mlp.down"}
    for i, block in enumerate(ours.blocks):
        for theirs_name, name in parts.items():
            part = block.get_submodule(name)
            weight = part.weight.T if part.weight.ndim == 2 else part.weight  # GPT-2 keeps its matrices transposed
            state |= {f"transformer.h.{i}.{theirs_name}.weight": weight, f"transformer.h.{i}.{theirs_name}.bias": part.bias}
    theirs.load_state_dict(state)
    ids = torch.randint(80, (2, 32))
    torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours(ids[:, :-1], ids[:, 1:]), theirs(ids, labels=ids).loss, atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_autocast_stays_near(precision):
    model = noisy(build_model(ModelConfig(**SIZES, num_kv_heads=2)))
    model.train()
    ids, grads = torch.randint(80, (4, 33)), []
    for enabled in False, True:
        model.zero_grad()
        with torch.autocast("cpu", precision, enabled=enabled):
            loss = model(ids[:, :-1], ids[:, 1:])
            if enabled:
                loss.backward()  # inside on purpose: the norm's own backward pass must not change precision
        if not enabled:
            loss.backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.nn.functional.cosine_similarity(*grads, dim=0) > 0.99


def test_cached_generation_in_autocast():
    model, ids = noisy(build_model(ModelConfig(**SIZES))), torch.randint(80, (2, 12))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        cache = KVCache(model.config, 2, 12, dtype=torch.bfloat16)
        pieces = [model(ids[:, :6], cache=cache)] + [model(ids[:, i : i + 1], cache=cache) for i in range(6, 12)]
        torch.testing.assert_close(torch.cat(pieces, 1), model(ids), atol=0.05, rtol=0.05)


def test_many_switches_cached():
    torch.manual_seed(0)
    for change in {"norm": "layernorm"}, {"bias": True}, {"mlp": "gelu"}, {"position": "learned"}, {"head_dim": 6}:
        c = dataclasses.replace(ModelConfig(**SIZES), **change)
        model, ids, cache = noisy(build_model(c)), torch.randint(80, (2, 12)), KVCache(c, 2, 20, pad=[0, 3])
        padded = ids.clone()
        padded[1] = torch.cat([torch.zeros(3, dtype=torch.long), ids[1, :9]])
        with torch.no_grad():
            logits = model(padded, cache=cache)
            torch.testing.assert_close(logits[0], model(ids)[0], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(logits[1, 3:], model(ids[1:, :9])[0], atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_compiled_is_the_same():
    from llmbuilder.device import _compile_problem, compile_model

    if _compile_problem("cpu"):
        pytest.skip("no compiler")
    model = noisy(build_model(ModelConfig(**SIZES | {"num_layers": 1})))
    model.train()
    ids, results = torch.randint(80, (2, 17)), []
    for compiled in False, True:
        compile_model(model, compiled)
        model.zero_grad()
        loss = model(ids[:, :-1], ids[:, 1:])
        loss.backward()
        results.append((loss.detach(), model.blocks[0].norm1.weight.grad.clone()))
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)
    assert not any("_orig_mod" in name for name in model.state_dict())
