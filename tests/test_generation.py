"""Generation: filters under property-based testing, the cache and the batch against the slow way, and every edge of case 38."""

import functools
import json
import logging
import math
import shlex

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import llmbuilder as lb
from llmbuilder.checkpoint import save_checkpoint
from llmbuilder.config import ConfigError, LLMBuilderError, ModelConfig, TrainingConfig
from llmbuilder.data import TextDataset
from llmbuilder.generation import (
    FILTER_ORDER,
    Decoding,
    Dice,
    GenerationError,
    SampleDuringTraining,
    Sampler,
    TextGenerator,
    TextStream,
    apply_repetition_penalty,
    apply_temperature,
    as_cli_call,
    as_python_call,
    descending,
    filter_logits,
    filter_stages,
    first_stop,
    generate_ids,
    generate_text,
    generation_config,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    largest,
    native_path,
    possible_stop,
    sample_next,
    score_text,
    with_seed,
)
from llmbuilder.model import build_model
from llmbuilder.tokenizer import train_tokenizer
from llmbuilder.training import Trainer

QUICK = settings(max_examples=60, deadline=None)
INF = math.inf
NUMBERS = st.floats(-30, 30, width=32)
TIED = st.integers(-4, 4).map(float)  # many equal logits
ROWS = st.lists(st.one_of(NUMBERS, TIED), min_size=1, max_size=90)
WORDS = "The harbour was quiet. Ünïcödé 🙂 日本語 and the boats lay close together on the grey water.\n" * 8


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([WORDS], vocab_size=320)


def small_model(window=16, vocab_size=340, **kw):
    "A random model with strong opinions; more ids than the tokenizer has."
    with torch.random.fork_rng():
        torch.manual_seed(window)
        return build_model(ModelConfig(vocab_size=vocab_size, max_seq_length=window, embedding_dim=32, num_layers=2,
                                       num_heads=2, init_std=0.3, **kw))


@pytest.fixture(scope="module")
def generator(tokenizer):
    return TextGenerator(small_model(), tokenizer)


@pytest.fixture
def notices(monkeypatch):
    "The notices given while the test runs."
    found = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())
    monkeypatch.setattr(logging.getLogger("llmbuilder"), "handlers", [handler])
    return found


def kept(logits):
    return set(torch.isfinite(logits).nonzero()[:, -1].tolist())


def in_order(row):
    "Ids from the likeliest to the least likely, equal ones lowest first."
    return sorted(range(len(row)), key=lambda i: (-row[i], i))


# ---- filters --------------------------------------------------------------------------------------------------------------------


@QUICK
@given(ROWS, st.integers(1, 100))
@example([1.0, 1.0, 1.0], 2)
def test_case_38_top_k_keeps_exactly_k_and_of_equal_ones_the_lowest_ids(row, k):
    logits = torch.tensor(row)
    out = keep_top_k(logits, k)
    assert kept(out) == set(in_order(logits.tolist())[:k])
    assert torch.equal(out[torch.isfinite(out)], logits[torch.isfinite(out)])
    if k >= len(row):
        assert torch.equal(out, logits)


@QUICK
@given(ROWS, st.floats(0, 1, exclude_min=True))
@example([0.0] * 10, 0.3)
@example([0.0] * 4, 1e-12)
def test_case_38_top_p_keeps_the_smallest_set_that_reaches_p(row, p):
    logits = torch.tensor(row)
    stays, order = kept(keep_top_p(logits, p)), in_order(logits.tolist())
    assert len(stays) >= 1 and stays == set(order[: len(stays)])
    if p == 1:
        assert len(stays) == len(row)
        return
    chances = logits.double().softmax(-1)[order]
    assert chances[: len(stays)].sum() >= p - 2e-6
    if len(stays) > 1:
        assert chances[: len(stays) - 1].sum() < p  # one fewer would not reach it


@QUICK
@given(ROWS, st.floats(0, 1))
def test_min_p_is_a_share_of_the_likeliest(row, p):
    logits = torch.tensor(row)
    chances, stays = logits.double().softmax(-1), kept(keep_min_p(logits, p))
    assert int(logits.argmax()) in stays
    for i, chance in enumerate(chances.tolist()):
        if abs(chance / chances.max() - p) > 1e-5:
            assert (i in stays) == (p == 0 or chance > p * chances.max())


SETTINGS = st.fixed_dictionaries(
    {
        "temperature": st.one_of(st.just(0.0), st.floats(0.01, 50), st.sampled_from([5e-324, 1e-300, 1e300])),
        "top_k": st.one_of(st.none(), st.integers(1, 100)),
        "top_p": st.one_of(st.none(), st.floats(1e-12, 1)),
        "min_p": st.one_of(st.none(), st.floats(0, 1)),
    }
)


@QUICK
@given(ROWS, SETTINGS)
def test_case_38_filtered_probabilities_sum_to_one_and_are_never_nan(row, kw):
    logits = torch.tensor(row)
    out = filter_logits(logits, **kw)
    chances = out.softmax(-1)
    assert math.isclose(chances.sum(), 1, rel_tol=1e-5) and not out.isnan().any()
    assert set(chances.nonzero()[:, 0].tolist()) <= kept(out)
    assert (~torch.isfinite(out) == (out == -INF)).all()
    if kw["temperature"] == 0:
        assert kept(out) == {int(logits.argmax())} == {in_order(logits.tolist())[0]}


@QUICK
@given(st.integers(0, 2**31), st.sampled_from([3, 65, 200, 600]), SETTINGS, st.booleans())
def test_the_fast_way_chooses_what_the_plain_filters_choose(seed, size, kw, rough):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, size, generator=g) * 10 ** (2 * torch.rand(3, 1, generator=g) - 1)
    logits = (logits * 4).round() / 4 if rough else logits
    if kw["temperature"] == 0 or not 0.01 < kw["temperature"] < 100:
        kw = {**kw, "temperature": 1.0}
    sampler, plain = Sampler(generation_config(kw)), filter_logits(logits, **kw).softmax(-1)
    for _ in range(8):
        u = torch.rand(logits.shape, generator=g)
        speeds = plain / torch.log1p(-u).neg().clamp(1e-30, 1e3)
        fast, best = sampler(logits, u), speeds.argmax(-1, keepdim=True)
        near = torch.isclose(speeds.gather(-1, fast), speeds.gather(-1, best), rtol=1e-5, atol=0)  # equal up to rounding
        limit = (logits - logits.amax(-1, keepdim=True)) / kw["temperature"] - math.log(kw["min_p"] or 1)
        on_the_limit = (limit.abs() < 1e-5).any(-1, keepdim=True)  # of min_p: a token there may fall on either side
        assert (near | on_the_limit).all()


@QUICK
@given(st.lists(TIED, min_size=2, max_size=40), st.integers(1, 40))
def test_largest_is_the_beginning_of_the_full_order(row, k):
    logits = torch.tensor([row])
    (values, ids), (all_values, all_ids) = largest(logits, min(k, len(row))), descending(logits)
    assert torch.equal(values, all_values[:, :k]) and torch.equal(ids, all_ids[:, :k])
    assert all_ids[0].tolist() == in_order(row)


@QUICK
@given(ROWS, st.floats(1e-300, 1e300, exclude_min=True), st.lists(st.integers(0, 89), max_size=8))
def test_repetition_penalty_lowers_seen_tokens_only_and_stays_finite(row, penalty, seen):
    logits, seen = torch.tensor(row), [i for i in seen if i < len(row)]
    out = apply_repetition_penalty(logits, seen, penalty)
    assert torch.isfinite(out).all()
    for i in range(len(row)):
        if i not in seen or penalty == 1:
            assert out[i] == logits[i]
        elif penalty > 1:
            assert out[i] <= logits[i]
        else:
            assert out[i] >= logits[i]


def test_filter_stages_names_every_filter_in_order():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    stages = filter_stages(logits, [0], dict(repetition_penalty=2.0, temperature=0.5, top_k=3, top_p=0.9, min_p=0.01))
    assert [name for name, _ in stages] == ["model", *FILTER_ORDER]
    assert all(math.isclose(p.sum(), 1, rel_tol=1e-6) for _, p in stages)
    assert torch.allclose(stages[0][1], logits.softmax(-1))
    assert torch.allclose(stages[1][1], torch.tensor([1.0, 1.0, 0.0, -1.0]).softmax(-1))
    assert (stages[3][1] > 0).tolist() == [True, True, True, False]
    same = filter_stages(logits, [], dict(temperature=1.0))
    assert all(torch.allclose(p, same[0][1]) for _, p in same)


# ---- choosing -------------------------------------------------------------------------------------------------------------------


def test_the_race_is_won_as_often_as_the_probabilities_say():
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])
    for kw in ({"temperature": 1.0}, {"temperature": 0.7, "top_k": 4}, {"temperature": 2.0, "top_p": 0.8}, {"min_p": 0.2, "temperature": 1.0}):
        ids = sample_next(logits.expand(20000, 6), kw, Dice([1], 20000 * 6)().view(20000, 6))
        found, wanted = torch.bincount(ids, minlength=6) / 20000, filter_logits(logits, **kw).softmax(-1)
        assert (found - wanted).abs().max() < 4 * math.sqrt(0.25 / 20000)
        assert not found[wanted == 0].any()


def test_greedy_takes_the_lowest_id_of_equal_ones():
    assert sample_next(torch.tensor([[1.0, 3.0, 3.0], [5.0, 5.0, 5.0]]), {"temperature": 0}).tolist() == [1, 0]
    assert apply_temperature(torch.tensor([1.0, 3.0, 3.0]), 0).tolist() == [-INF, 0, -INF]


@pytest.mark.parametrize("bad", [math.nan, INF])
@pytest.mark.parametrize("kw", [{"temperature": 0}, {}, {"top_p": 0.5}, {"top_k": 2}])
def test_case_38_a_model_whose_output_is_no_number_is_an_error(bad, kw):
    with pytest.raises(GenerationError, match="not a finite number"):
        sample_next(torch.tensor([[0.0, bad, 1.0, 2.0]]), {**kw, "seed": 1})
    with pytest.raises(GenerationError, match="not a finite number"):
        sample_next(torch.full((1, 4), -INF), {**kw, "seed": 1})


# ---- settings -------------------------------------------------------------------------------------------------------------------

WRONG = [("top_p", 0), ("top_p", 1.0001), ("top_p", -0.1), ("top_p", math.nan), ("temperature", -0.1), ("temperature", math.nan),
         ("temperature", INF), ("top_k", 0), ("top_k", -1), ("top_k", 1.5), ("min_p", -0.1), ("min_p", 1.1), ("min_p", math.nan),
         ("repetition_penalty", 0), ("repetition_penalty", -1), ("max_new_tokens", -1), ("max_new_tokens", 1.5),
         ("seed", -1), ("stop", ("",)), ("stop", 5), ("top_q", 1)]  # fmt: skip


@pytest.mark.parametrize("name,value", WRONG)
def test_case_38_a_wrong_setting_is_an_error_that_names_it(generator, name, value):
    for call in (generator.generate, generator.stream, generator.filter_stages):
        with pytest.raises(GenerationError, match=f"generation.{name}") as caught:
            call("The", **{name: value})
        assert isinstance(caught.value, ConfigError) and "\n" not in str(caught.value)


def test_case_38_the_edges_are_defined(generator):
    g = generator
    assert g.generate("The harbour", max_new_tokens=0) == "The harbour"
    assert list(g.stream("The harbour", max_new_tokens=0)) == []
    assert g.generate(["a", ""], max_new_tokens=0) == ["a", ""] and g.generate([]) == []
    assert g.generate("", seed=1, max_new_tokens=5)
    assert g.ids("") == [g.tokenizer.bos_id]
    assert g.generate("The", max_new_tokens=25, temperature=0) == g.generate("The", max_new_tokens=25, temperature=0)
    assert g.generate("The", max_new_tokens=25, top_k=10**6, seed=3) == g.generate("The", max_new_tokens=25, seed=3)
    assert g.generate("The", max_new_tokens=25, top_p=1.0, seed=3) == g.generate("The", max_new_tokens=25, seed=3)
    assert g.generate("The", max_new_tokens=25, top_k=1, seed=3) == g.generate("The", max_new_tokens=25, temperature=0)
    assert g.generate("The", max_new_tokens=25, top_p=1e-9, seed=3) == g.generate("The", max_new_tokens=25, temperature=0)
    assert g.generate("The", max_new_tokens=25, temperature=1e-300, seed=3) == g.generate("The", max_new_tokens=25, temperature=0)
    assert g.generate("The", max_new_tokens=25, temperature=1e300, seed=3).startswith("The")


def test_case_38_a_prompt_longer_than_the_context_keeps_its_end(generator, notices):
    prompt = "The harbour was quiet, and the boats lay close together. " * 3
    text = generator.generate(prompt, max_new_tokens=40, seed=1)
    assert text.startswith(prompt) and len(text) > len(prompt)
    n = len(generator.ids(prompt))
    assert f"the prompt has {n} tokens and the model reads 16: it sees only the last 16" in notices
    ids = generator.ids(prompt)
    assert generate_ids(generator.model, [ids], {"seed": 1}) == generate_ids(generator.model, [ids[-16:]], {"seed": 1})


@pytest.mark.parametrize("prompt", [5, None, b"x", [1, 2], ["a", None]])
def test_a_prompt_that_is_no_text_is_an_error(generator, prompt):
    with pytest.raises(GenerationError, match="prompt"):
        generator.generate(prompt)


def test_a_prompt_without_ids_is_an_error(generator):
    with pytest.raises(GenerationError, match="bos"):
        generate_ids(generator.model, [[5], []])


# ---- against the slow way -------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def slowly(g, ids, seed, config):
    "No cache, no batch, plain filters: the window as it is defined, then one choice."
    dice, ids, window, new = Dice([seed], g.model.config.vocab_size), list(ids), list(ids[-g.window :]), []
    g.model.eval()
    for _ in range(config.max_new_tokens):
        if len(window) > g.window:
            window = window[-max(1, g.window // 2) :]
        logits = g.model(torch.tensor([window]))[:, -1]
        logits = apply_repetition_penalty(logits, [ids], config.repetition_penalty)
        logits[:, g.banned] = -INF
        id = int(sample_next(logits, config, dice()))
        if id == g.tokenizer.eos_id:
            break
        for seen in (ids, window, new):
            seen.append(id)
    return new


KINDS = [dict(temperature=0), dict(temperature=1.0), dict(top_p=0.9), dict(top_k=5, top_p=0.8, repetition_penalty=1.3), dict(min_p=0.1)]


@pytest.mark.parametrize("kw", KINDS, ids=lambda kw: "-".join(kw))
@pytest.mark.parametrize("window", [1, 3, 16])
@pytest.mark.parametrize("position", ["rope", "learned"])
def test_cached_batches_equal_single_prompts_equal_no_cache_at_all(tokenizer, window, position, kw):
    g = TextGenerator(small_model(window, position=position, num_kv_heads=1), tokenizer)
    prompts = [[2], tokenizer.encode("The harbour"), tokenizer.encode(WORDS[:60]), tokenizer.encode("a b")]
    config = generation_config(kw, max_new_tokens=36, seed=11)
    together = generate_ids(g.model, prompts, config, g.tokenizer.eos_id, g.banned)
    for i, prompt in enumerate(prompts):
        alone = generate_ids(g.model, [prompt], config, g.tokenizer.eos_id, g.banned, [11 + i])[0]
        assert together[i] == alone == slowly(g, prompt, 11 + i, config)


def test_texts_of_a_batch_equal_texts_one_by_one_and_streams(generator):
    prompts = ["", "The harbour", "日本語", WORDS[:90], "a", "The"]
    for kw in (dict(max_new_tokens=30), dict(stop=("e", "at"), max_new_tokens=30), dict(temperature=0, max_new_tokens=7)):
        texts = generator.generate(prompts, seed=2**32 - 3, batch_size=4, **kw)  # the seeds of rows wrap around
        assert texts == generator.generate(prompts, seed=2**32 - 3, **kw)
        for i, (prompt, text) in enumerate(zip(prompts, texts)):
            seed = (2**32 - 3 + i) % 2**32
            assert text == generator.generate(prompt, seed=seed, **kw)
            assert text == prompt + "".join(generator.stream(prompt, seed=seed, **kw))


def test_equal_prompts_in_a_batch_are_continued_differently(generator):
    assert len(set(generator.generate(["The"] * 6, seed=1, temperature=1.0))) == 6


def test_a_longer_text_begins_with_the_shorter_one(generator):
    short, long = (generator.generate("The", seed=5, max_new_tokens=n, temperature=1.0, top_p=0.9) for n in (20, 60))
    assert long.startswith(short.rstrip("\ufffd"))


def test_seeds(generator):
    before = torch.get_rng_state()
    a, b = generator.generate("The", max_new_tokens=25, seed=1), generator.generate("The", max_new_tokens=25, seed=1)
    assert a == b != generator.generate("The", max_new_tokens=25, seed=2)
    assert len({generator.generate("The", max_new_tokens=25, temperature=1.5) for _ in range(4)}) > 1
    torch.manual_seed(0)
    c = generator.generate("The", max_new_tokens=25)
    torch.manual_seed(0)
    assert generator.generate("The", max_new_tokens=25) != c  # no seed: fresh every time, whatever the global state
    torch.set_rng_state(before)
    for call in (lambda: generator.generate(["a", "b"], temperature=1.0), lambda: list(generator.stream("a"))):
        call()
        assert torch.equal(torch.get_rng_state(), before)
    config = with_seed(top_p=0.5)
    assert generator.generate("The", config, max_new_tokens=25) == generator.generate("The", config, max_new_tokens=25) and with_seed(config) == config


def test_the_model_is_left_as_it_was(tokenizer):
    model = small_model(dropout=0.5)
    g = TextGenerator(model.train(), tokenizer)
    model.blocks[0].eval()
    modes = [m.training for m in model.modules()]
    assert g.generate("The", seed=1) == g.generate("The", seed=1)  # no dropout inside
    stream = g.stream("The", seed=1)
    next(stream)
    assert not model.training
    stream.close()
    g.next_tokens("The")
    assert [m.training for m in model.modules()] == modes
    with torch.no_grad():
        model.embed.weight[5] = math.nan
    with pytest.raises(GenerationError):
        g.generate("The")
    assert [m.training for m in model.modules()] == modes
    assert not any(p.is_inference() for p in model.parameters())


def test_special_and_unused_ids_are_never_chosen(generator):
    new = generate_ids(generator.model, [[5]] * 8, dict(temperature=50.0, max_new_tokens=200, seed=1), None, generator.banned)
    used = {i for row in new for i in row}
    assert not used & set(generator.banned) and max(used) < generator.tokenizer.vocab_size
    assert generator.banned[:3] == [0, 1, 2] and len(generator.banned) == 3 + 340 - generator.tokenizer.vocab_size
    assert 3 in used  # eos may be chosen: here it was not asked to end anything


def test_eos_ends_a_row_and_is_not_part_of_it(generator):
    rows = [[5], [6, 7], [8]]
    free = generate_ids(generator.model, rows, dict(temperature=1.0, max_new_tokens=30, seed=3), None, [0, 1, 2])
    eos = free[1][4]
    new = generate_ids(generator.model, rows, dict(temperature=1.0, max_new_tokens=30, seed=3), eos, [0, 1, 2])
    for with_end, without in zip(new, free):
        assert with_end == (without[: without.index(eos)] if eos in without else without)


def test_finished_rows_leave_the_batch(generator):
    decoding = Decoding(generator.model.eval(), [[5], [6] * 4, [7, 8]], generation_config(temperature=0, max_new_tokens=9), [1, 2, 3])
    decoding.step()
    decoding.finish([1])
    assert decoding.rows == [0, 2] and decoding.cache.batch_size == 2 and decoding.pads == [1, 0]
    assert [row for row, _ in decoding.step()] == [0, 2]
    decoding.finish([0, 2])
    assert decoding.rows == []
    generator.model.train()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_text_is_the_same(tokenizer):
    model = small_model(num_kv_heads=1)
    texts = [TextGenerator(model.to(d), tokenizer).generate(["", "The harbour"], seed=1, top_p=0.9, max_new_tokens=40) for d in ("cpu", "cuda")]
    assert texts[0] == texts[1]


# ---- text -----------------------------------------------------------------------------------------------------------------------

TEXTS = st.text(st.sampled_from("abcé🙂"), max_size=14)
STOPS = st.lists(st.text(st.sampled_from("abcé🙂"), min_size=1, max_size=4), max_size=3)


@QUICK
@given(TEXTS, STOPS, st.randoms(use_true_random=False))
@example("abcd", ["abcd", "c"], None)
def test_streams_stop_where_the_text_says_however_it_is_cut(text, stops, random):
    tokenizer = _bytes_tokenizer()
    ids = [tokenizer.index[b] for b in text.encode()]  # one id a byte: the finest cut there is
    stream, out = TextStream(tokenizer, tuple(stops)), ""
    for id in ids:
        piece = stream.push(id)
        out += piece
        assert "\ufffd" not in piece
        if stream.stopped:
            break
    out += stream.flush()
    at = first_stop(text, tuple(stops))
    assert stream.stopped == (at is not None)
    assert out == (text if at is None else text[:at])
    if random:  # the same text in larger pieces
        cuts = sorted(random.sample(range(len(text) + 1), random.randint(0, len(text))))
        stream, again = TextStream(tokenizer, tuple(stops)), ""
        for a, b in zip([0, *cuts], [*cuts, len(text)]):
            if not stream.stopped:
                again += stream._take(text[a:b])
        assert again + stream.flush() == out


class _Bytes:
    def __init__(self, tokenizer):
        self.stream_decoder = tokenizer.stream_decoder
        self.index = {tokenizer.token_bytes(i)[0]: i for i in range(4, 260) if len(tokenizer.token_bytes(i)) == 1}


@functools.cache
def _bytes_tokenizer():
    return _Bytes(train_tokenizer(["ab\n"], vocab_size=300))


def test_what_may_become_a_stop_string_is_held_back():
    assert possible_stop("so", ("stop",)) == 0 and possible_stop("los", ("stop",)) == 1 and possible_stop("sto", ("stop",)) == 3
    assert first_stop("abcd", ("abcd", "c")) == 2  # complete first, in whatever pieces it comes
    tokenizer = _bytes_tokenizer()
    stream = TextStream(tokenizer, ("bc",))
    assert [stream.push(tokenizer.index[b]) for b in b"abab"] == ["a", "", "ba", ""]
    assert stream.flush() == "b"
    stream = TextStream(tokenizer)
    assert [stream.push(tokenizer.index[b]) for b in "é".encode()[:1]] == [""] and stream.flush() == "\ufffd"


def test_generated_text_ends_before_the_stop_string(generator):
    free = generator.generate("The", seed=4, temperature=1.0, max_new_tokens=60)[3:]
    for stop in (free[5:7], free[10:13], free[2]):
        cut = generator.generate("The", seed=4, temperature=1.0, max_new_tokens=60, stop=stop)[3:]
        assert cut == free[: free.index(stop)]
    assert generator.generate("The", seed=4, temperature=1.0, max_new_tokens=60, stop="The") .startswith("The")


def test_prompts_come_back_byte_for_byte(generator):
    for prompt in ("日本", "🙂", "a\u2581b", " x ", "\r\n\t", "é\u0301", "</s><pad>"):
        assert generator.generate(prompt, seed=1, max_new_tokens=5).startswith(prompt)
    with pytest.raises(LLMBuilderError, match="surrogate"):
        generator.generate("\ud800")


# ---- looking ahead and back -----------------------------------------------------------------------------------------------------


def test_next_tokens_are_the_models_own_probabilities(generator):
    found = generator.next_tokens("The harbour", 5)
    chances = generator.next_logits("The harbour").softmax(-1)
    assert [t.rank for t in found] == [1, 2, 3, 4, 5]
    assert [t.id for t in found] == descending(chances)[1][:5].tolist()
    assert all(t.piece == generator.tokenizer.piece(t.id) and math.isclose(t.probability, chances[t.id], rel_tol=1e-6) for t in found)
    assert len(generator.next_tokens("The", 10**6)) == generator.tokenizer.vocab_size


@pytest.mark.parametrize("window", [1, 2, 3, 16, 64])
@pytest.mark.parametrize("bos", [False, True])
def test_scores_are_those_that_generation_saw(tokenizer, window, bos):
    g = TextGenerator(small_model(window), tokenizer)
    text = WORDS[:150]
    scores, ids = score_text(g.model, tokenizer, text, bos=bos), tokenizer.encode(text)
    assert [s.id for s in scores] == ids
    seen, reference = ([tokenizer.bos_id], []) if bos else ([], [])
    for id in ids:
        if len(seen) > window:
            seen = seen[-max(1, window // 2) :]
        with torch.no_grad():
            logits = g.model.eval()(torch.tensor([seen or [tokenizer.bos_id]]))[0, -1]
        logits[g.banned] = -INF
        reference.append((float(logits.softmax(-1)[id]), descending(logits)[1].tolist().index(id) + 1))
        seen.append(id)
    for score, (p, rank) in zip(scores, reference):
        assert math.isclose(score.probability, p, rel_tol=1e-3, abs_tol=1e-9) and abs(score.rank - rank) <= 1
    assert score_text(g.model, tokenizer, "") == []


# ---- files ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tokenizer):
    "A run of a few steps, with samples at every evaluation."
    folder = tmp_path_factory.mktemp("run") / "output"
    dataset = TextDataset.from_tokens(tokenizer.encode(WORDS * 2), 16, tokenizer=tokenizer)
    train, val = dataset.split(0.2)
    samples = SampleDuringTraining(["The", ""], max_new_tokens=8, show=False)
    config = TrainingConfig(batch_size=8, num_epochs=2, eval_every=5, log_every=5, save_every=0, seed=3)
    trainer = Trainer(small_model(), train, val, config, folder, callbacks=[samples], progress=False)
    return trainer.train(), samples, trainer


def test_generate_text_from_every_kind_of_path(trained, monkeypatch):
    results, _, trainer = trained
    run, kw = results.output_dir, dict(prompt="The harbour", max_new_tokens=12, seed=7, device="cpu")
    text = generate_text(results.best_checkpoint, **kw)
    assert text.startswith("The harbour")
    for path in (run, str(run), run / "checkpoints"):
        assert generate_text(path, run / "tokenizer", **kw) == text
    assert generate_text(model_path=str(results.best_checkpoint), tokenizer_path=str(run / "tokenizer"), **kw) == text
    assert lb.generate_text(run, **{**kw, "prompt": ["The harbour", "a"]})[0] == text
    monkeypatch.chdir(run.parent)
    assert generate_text(r".\output\checkpoints\best_checkpoint.pt", r".\output\tokenizer", **kw) == text
    assert native_path(r"no\such") == type(run)(r"no\such")


def test_case_38_and_15_errors_of_generate_text(trained, folder, tokenizer):
    results, _, trainer = trained
    best = results.best_checkpoint
    other = train_tokenizer([WORDS.upper()], vocab_size=310)
    other.save(folder / "other")
    with pytest.raises(LLMBuilderError) as caught:
        generate_text(best, folder / "other")
    assert tokenizer.fingerprint[:12] in str(caught.value) and other.fingerprint[:12] in str(caught.value)
    for wrong in (folder / "missing.pt", folder, folder / "other" / "tokenizer.model"):
        with pytest.raises(LLMBuilderError):
            generate_text(wrong)
    with pytest.raises(LLMBuilderError, match="tokenizer"):
        generate_text(best, folder / "nothing")
    with pytest.raises(GenerationError, match="top_p"):
        generate_text(folder / "missing.pt", top_p=2)  # settings are looked at first
    with pytest.raises(LLMBuilderError, match="ids"):
        TextGenerator(small_model(vocab_size=tokenizer.vocab_size - 1), tokenizer)
    state = torch.load(best, weights_only=True) | {"tokenizer": None}
    save_checkpoint(folder / "bare.pt", state)
    with pytest.raises(GenerationError, match="tokenizer_path"):
        generate_text(folder / "bare.pt")
    assert generate_text(folder / "bare.pt", results.output_dir / "tokenizer", "The", seed=1) == generate_text(best, prompt="The", seed=1)


def test_the_copied_call_gives_the_same_text(trained):
    import llmbuilder

    results, _, _ = trained
    for prompt, kw in (("It's a \"test\"\n\\", dict(top_p=0.9, stop=("\n\n", "'"), seed=5, max_new_tokens=9)), ("-x", dict(seed=1))):
        call = as_python_call(results.best_checkpoint, prompt, kw, results.output_dir / "tokenizer")
        assert eval(call, {"llmbuilder": llmbuilder}) == generate_text(results.best_checkpoint, prompt=prompt, **kw)
    assert as_python_call("m.pt", "a") == "llmbuilder.generate_text(model_path='m.pt', prompt='a')"
    line = as_cli_call("my model.pt", "It's\n", dict(top_p=0.9, max_new_tokens=5, stop=("a b", "c"), seed=3))
    assert shlex.split(line) == ["llmbuilder", "generate", "--model", "my model.pt", "--prompt", "It's\n", "--max-new-tokens", "5",
                                 "--top-p", "0.9", "--stop", "a b", "c", "--seed", "3"]  # fmt: skip
    assert "--prompt=-x" in shlex.split(as_cli_call("m", "-x"))


def test_the_copied_command_gives_the_same_text(trained, capsys):
    from llmbuilder.cli import main

    results, _, _ = trained
    for prompt, kw in (("It's \"so\"", dict(top_p=0.9, stop=("\n\n", "'"), seed=5, max_new_tokens=9)), ("-x", dict(seed=1, temperature=0.0))):
        line = as_cli_call(results.best_checkpoint, prompt, kw, results.output_dir / "tokenizer")
        assert main(shlex.split(line)[1:]) == 0
        assert capsys.readouterr().out == generate_text(results.best_checkpoint, prompt=prompt, **kw) + "\n"


# ---- while training -------------------------------------------------------------------------------------------------------------


def weights_of(callbacks, tokenizer, folder):
    dataset = TextDataset.from_tokens(tokenizer.encode(WORDS), 16, tokenizer=tokenizer)
    config = TrainingConfig(batch_size=4, num_epochs=1, eval_every=4, save_every=0, seed=3)
    trainer = Trainer(small_model(dropout=0.2), *dataset.split(0.2), config, folder, callbacks=callbacks, progress=False)
    trainer.train()
    return trainer.model.state_dict()


def test_samples_are_listed_logged_and_leave_the_run_as_it_was(trained, tokenizer, folder):
    results, samples, trainer = trained
    records = [r for r in map(json.loads, (results.output_dir / "metrics.jsonl").read_text().splitlines()) if r["event"] == "sample"]
    evaluations = [r for r in results.history if r["event"] == "eval"]
    assert len(samples.samples) == len(records) == 2 * len(evaluations) > 2
    assert [(r["step"], r["prompt"], r["text"]) for r in records] == [(s["step"], s["prompt"], s["text"]) for s in samples.samples]
    assert all(s["text"].startswith(s["prompt"]) for s in samples.samples)
    plain = weights_of([], tokenizer, folder / "plain")
    sampled = weights_of([SampleDuringTraining("The", show=False)], tokenizer, folder / "sampled")
    assert all(torch.equal(plain[name], sampled[name]) for name in plain)


def test_sample_callback_keeps_its_list_in_checkpoints(trained):
    results, samples, trainer = trained
    state = torch.load(results.latest_checkpoint, weights_only=True)["callbacks"]["samples"]
    again = SampleDuringTraining("The")
    again.load_state_dict(state)
    assert again.samples == samples.samples[: len(again.samples)] and again.samples and again.evaluations == state["evaluations"]
    with pytest.raises(GenerationError, match="every"):
        SampleDuringTraining("The", every=0)
    with pytest.raises(GenerationError, match="top_p"):
        SampleDuringTraining("The", top_p=3)


def test_a_sample_that_fails_does_not_end_the_run(trained, notices):
    _, _, trainer = trained
    broken = SampleDuringTraining("The", show=False)
    with torch.no_grad():
        saved = trainer.model.embed.weight.clone()
        trainer.model.embed.weight.fill_(math.nan)
    try:
        assert broken.sample(trainer) == [] and "no sample at step" in notices[-1]
    finally:
        with torch.no_grad():
            trainer.model.embed.weight.copy_(saved)
