"""A plan's counts are those of the engine, its costs those of a real pass, its work that of a session."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="pip install 'crma[finetune]'")
transformers = pytest.importorskip("transformers", reason="pip install 'crma[finetune]'")
pytest.importorskip("peft", reason="pip install 'crma[finetune]'")

from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from backends.finetune.engines.by_name import engine_factory
from backends.finetune.engines.torch.answer_head import answer_logits
from backends.finetune.engines.torch.model import round_frozen_linears
from backends.finetune.methods.conditions import KNOWN, parse_condition
from backends.finetune.models.folder import load_tokenizer
from backends.finetune.models.random_weights import build_random, random_model_folder
from backends.finetune.models.zoo import ZOO
from backends.finetune.plan.counts import count_parameters
from backends.finetune.plan.duration import Rates, epoch_seconds, run_seconds
from backends.finetune.plan.estimate import Machine, make_plan
from backends.finetune.plan.measure import extrapolate, measure, random_batch, spread
from backends.finetune.plan.memory import FOUR_BITS, weight_bytes
from backends.finetune.plan.skeleton import read_architecture
from backends.finetune.plan.trace import Setting, crma_cost, trace
from backends.finetune.plan.work import PhaseWork, answers_scored, largest, most_work, share_of_device, work_of
from backends.finetune.protocols.protocol import load_protocol
from backends.finetune.tasks.encoder import Encoder
from backends.finetune.tasks.encoding import LOGITS_TOGETHER, training_order
from backends.finetune.tasks.job import Job
from backends.finetune.tasks.task import Example, Task


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache of its own for these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CRMA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def protocol_of(**overrides):
    settings: dict[str, Any] = {"batch_size": 3, "max_tokens": 40, "train": 8, "holdout": 5, "precision": "float32"}
    return load_protocol("quickstart", **settings | overrides)


@pytest.mark.parametrize("name", ZOO)
def test_counts_are_those_of_the_engine(name):
    folder = random_model_folder(name, size="reduced")
    protocol = protocol_of(decision=1)
    counts = count_parameters(read_architecture(folder), protocol)
    make_engine, _ = engine_factory("torch-cpu")
    names = KNOWN if name == "phi-4-mini" else ("naive", "modular", "frozen-raised", "full")
    for condition in names:
        engine = make_engine(Job(folder, protocol, parse_condition(condition), 0))
        engine.begin_phase(0, 1)
        assert counts.trainable(condition, protocol.lora.rank) == engine.parameter_counts(), condition
    whole = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert counts.base == sum(parameter.numel() for parameter in whole.parameters())


def test_the_raised_rank_is_the_smallest_that_has_as_many_parameters():
    folder = random_model_folder("mistral-7b-v0.3", size="full")
    counts = count_parameters(read_architecture(folder), protocol_of())
    assert counts.base == 7_248_023_552
    assert counts.linear == 7_248_023_552 - 2 * 32768 * 4096 - 65 * 4096
    assert counts.crma == 32 * (16 + 1 + 16 * 4096)
    rank = counts.raised_rank(8)
    assert counts.lora_per_rank * (rank - 1) < counts.lora + counts.crma <= counts.lora_per_rank * rank


ANSWERS = (torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([3, 9, 0, 5, 6, 38]))


def kept_and_operations(model, ids, *, mixed=False):
    """Of a real pass, with the logits of six tokens."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = (storage, storage.nbytes())
        return tensor

    with FlopCounterMode(display=False) as forward, saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            loss = answer_logits(model, {"input_ids": ids, "use_cache": False}, *ANSWERS).sum()
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    total = sum(size for pointer, (_, size) in kept.items() if pointer not in own)
    return total, forward.get_total_flops() - backward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize("name", ["tinyllama-1.1b", "phi-4-mini", "gemma-2-9b"])
@pytest.mark.parametrize(
    ("precision", "checkpoint", "full"),
    [
        ("float32", False, False),
        ("bfloat16", False, False),
        ("mixed", False, False),
        ("float32", True, False),
        ("float32", False, True),
    ],
)
def test_a_trace_without_values_is_that_of_a_real_pass(name, precision, checkpoint, full):
    """Of six layers, from passes through two and four."""
    from peft import LoraConfig, get_peft_model

    folder, protocol = random_model_folder(name, size="reduced", layers=6), protocol_of()
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    model = build_random(folder, dtype, "cpu", attention="eager").requires_grad_(full)
    if checkpoint:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    if not full:
        model = get_peft_model(model, LoraConfig(r=protocol.lora.rank, target_modules="all-linear"))
    if checkpoint:
        model.enable_input_require_grads()
    if precision == "mixed":
        round_frozen_linears(model)
    ids = torch.randint(3, 900, (3, 40))
    kept, forward, backward = kept_and_operations(model, ids, mixed=precision == "mixed")
    setting = Setting(3, 40, 6, precision, None if full else protocol.lora, checkpoint, False)
    cost, layer = trace(read_architecture(folder), setting)
    assert (cost.forward, cost.backward) == (forward, backward)
    assert cost.kept == pytest.approx(kept, rel=0.01)
    assert 0 < 5 * layer.kept < cost.kept  # a first layer whose input needs no gradient keeps less


def test_fused_attention_keeps_no_scores():
    """They would grow with the square of the length; and its products are counted."""
    config = read_architecture(random_model_folder("saul-7b", size="reduced"))
    lora = protocol_of().lora
    kept, operations = {}, {}
    for fused in (False, True):
        for tokens in (128, 256, 512):
            cost, _ = trace(config, Setting(1, tokens, tokens, "float32", lora, False, fused))
            kept[fused, tokens], operations[fused, tokens] = cost.kept, cost.forward
    assert operations == {(fused, tokens): operations[True, tokens] for fused, tokens in operations}
    growth = {
        fused: (kept[fused, 512] - kept[fused, 256]) / (kept[fused, 256] - kept[fused, 128]) for fused in (False, True)
    }
    assert growth[True] == pytest.approx(2, abs=0.01)
    assert growth[False] > 2.3


def test_operations_are_near_the_usual_rule():
    """2 N a token forward, and through frozen weights 2 N backward; half as much again when blocks are recomputed."""
    folder = random_model_folder("mistral-7b-v0.3", size="full", layers=4)
    protocol = protocol_of()
    config = read_architecture(folder)
    counts = count_parameters(config, protocol)
    tokens = 2 * 64
    products = 2 * tokens * (counts.linear + config.vocab_size * config.hidden_size)
    plain, _ = trace(config, Setting(2, 64, 128, "bfloat16", protocol.lora, False, True))
    again, _ = trace(config, Setting(2, 64, 128, "bfloat16", protocol.lora, True, True))
    assert plain.forward == pytest.approx(products, rel=0.02)
    assert plain.backward == pytest.approx(products, rel=0.05)
    assert again.backward - plain.backward == pytest.approx(2 * tokens * counts.linear, rel=0.05)
    assert again.kept < 0.35 * plain.kept


@pytest.mark.parametrize("bfloat16", [False, True])
def test_the_crma_costs_what_it_keeps(bfloat16):
    """A little of its streams, and in bfloat16 the block's output, which nothing else keeps then."""
    section = protocol_of().crma
    one, two = (crma_cost(96, 4, tokens, section, bfloat16=bfloat16) for tokens in (1000, 2000))
    stream = 4 * 1000 * 96 * 2 * bfloat16
    assert stream + 4 * 1000 * 16 * 4 * 0.9 < two.kept - one.kept < stream + 4 * 1000 * 16 * 4 * 4
    assert two.forward - one.forward >= 4 * 1000 * 2 * 2 * 16 * 96
    assert two.backward > two.forward


def test_work_is_that_of_a_session():
    protocol = protocol_of(train=11, accumulation=2)
    folder = random_model_folder("saul-7b", size="reduced")
    tokenizer = load_tokenizer(folder)
    examples = tuple(Example("say", " word" * (index + 2)) for index in range(16))
    task = Task("a", examples[:11], examples[11:])
    encoder = Encoder(tokenizer, protocol)
    (work,) = work_of(encoder, [task], 7)
    encoded = encoder.encode(task.train, "a")
    order = training_order([len(example.ids) for example in encoded], 3, 1, seed=7, phase=0)
    batches = [encoder.batch([[encoded[index]] for index in indices]) for indices in order]
    assert [(*batch.input_ids.shape, batch.answer_tokens) for batch in batches] == list(work.batches)
    assert work.tokens == sum(batch.tokens for batch in batches)
    assert work.padded_tokens == sum(batch.input_ids.size for batch in batches) > work.tokens
    assert work.steps(1, 2) == 2
    assert work.steps(3, 5) == 3  # of 12 batches
    packed, *_ = work_of(Encoder(tokenizer, protocol_of(train=11, packing=True)), [task], 7)
    assert packed.tokens == work.tokens
    assert sum(rows for rows, _, _ in packed.batches) < 11 == sum(rows for rows, _, _ in work.batches)
    assert max(longest for _, longest, _ in packed.batches) <= 40


def test_without_texts_every_example_is_as_long_as_may_be():
    protocol = protocol_of(train=8, holdout=5)
    work = most_work(protocol)
    assert [phase.task for phase in work] == protocol.tasks
    assert work[0].batches == ((3, 40, 117), (3, 40, 117), (2, 40, 78))
    assert (work[0].steps(1, 1), work[0].tokens, work[0].holdout_tokens) == (3, 320, 200)
    assert work[0].holdout == ((5, 40, 195),)  # measured together
    assert largest(work) == (3, 40, 117)  # of what is trained
    assert answers_scored(work, 3, 100) == 195
    assert answers_scored(work, 3, LOGITS_TOGETHER // 100) == 3 * 39  # a large vocabulary: as many rows as a step has
    assert answers_scored(work, 3, LOGITS_TOGETHER // (4 * 39)) == 4 * 39
    assert share_of_device((3, 40, 117), 2) == (2, 40, 78)


def test_time_adds_up_phases_and_evaluations():
    work = [PhaseWork(name, ((2, 10, 5),), ((1, 10, 5),), 18) for name in "abc"]
    protocol = protocol_of(epochs=4, batch_size=2)
    rates, frozen = Rates(0.5, 0.1), parse_condition("frozen")
    assert epoch_seconds(work[0], rates, frozen, protocol) == 20 * 0.5
    assert run_seconds(work, rates, frozen, protocol) == pytest.approx(3 * 4 * 10 + 3 * 10 * 0.1)
    seen = parse_condition("modular@data-0.01")  # one pass forward over the training texts of each task more
    more = run_seconds(work, rates, seen, protocol) - run_seconds(work, rates, parse_condition("modular"), protocol)
    assert more == pytest.approx(sum(phase.padded_tokens for phase in work) * 0.1)
    replayed = epoch_seconds(work[0], rates, parse_condition("replay"), protocol)
    assert replayed == 10 * (1 + protocol.replay.batch_size / 2)
    of_run = run_seconds(work, rates, parse_condition("replay"), protocol)  # nothing to replay in the first phase
    assert of_run == pytest.approx(4 * (10 + 2 * replayed) + 6)
    assert extrapolate(Rates(1, 0.5), Rates(2, 0.75), (2, 4), 32) == Rates(16, 4.25)


def test_memory_follows_the_machine_and_the_protocol():
    folder = random_model_folder("mistral-7b-v0.3", size="full")
    protocol = protocol_of(conditions=["frozen", "modular", "full"], precision="bfloat16", max_tokens=512)
    work = most_work(protocol)
    one = protocol.model_copy(update={"conditions": ["frozen"]})  # each further one is traced anew
    alone = make_plan(folder, protocol, work, Machine("cuda"))
    shared = make_plan(folder, one, work, Machine("cuda", devices=3, shard=True, peak=1e15))
    every = make_plan(folder, one, work, Machine("cuda", every_logit=True)).conditions["frozen"].memory
    frozen, modular, full = (alone.conditions[name] for name in ("frozen", "modular", "full"))
    assert frozen.memory["weights"] == 2 * alone.counts.base
    assert frozen.memory["optimizer"] == 8 * alone.counts.lora
    assert every["logits"] == 16 * 32768 * 3 * 512 > frozen.memory["logits"] == 16 * 32768 * 3 * 511
    assert modular.peak > frozen.peak > modular.other_memory  # the other is with gradient checkpointing
    assert full.memory["weights"] == 0
    assert full.memory["trainables"] + full.memory["optimizer"] == 12 * alone.counts.base
    assert shared.batch == (1, 512, 511)
    sharded = shared.conditions["frozen"]
    assert sharded.memory["weights"] == pytest.approx(frozen.memory["weights"] / 3)
    assert sharded.memory["activations"] == pytest.approx(frozen.memory["activations"] / 3, rel=0.05)
    more = protocol.model_copy(update={"conditions": ["replay", "ewc", "o-lora", "naive"]})
    baselines = make_plan(folder, more, work, Machine("cuda")).conditions
    rows, replay = 3 + protocol.replay.batch_size, baselines["replay"].memory
    assert replay["activations"] == pytest.approx(rows / 3 * frozen.memory["activations"], rel=0.05)
    assert replay["logits"] == pytest.approx(rows / 3 * frozen.memory["logits"])
    for name, bytes_each in (("ewc", 8), ("o-lora", 4 * 4), ("naive", 0)):
        assert baselines[name].memory["method"] == bytes_each * alone.counts.lora
    assert frozen.run is None
    assert sharded.run is not None
    assert sharded.run[0] < sharded.run[1]
    four_bits = protocol.model_copy(update={"quantization": "4bit"})
    weights = weight_bytes(alone.counts, four_bits, full=False, shard=False)
    assert weights == pytest.approx(FOUR_BITS * alone.counts.linear + 2 * (alone.counts.base - alone.counts.linear))
    assert 3.5e9 < weights < 4.5e9
    in_mixed = {"precision": "mixed", "conditions": ["frozen", "full"]}
    mixed = make_plan(folder, protocol.model_copy(update=in_mixed), work, Machine("cuda"))
    part = mixed.conditions["frozen"].memory
    head = 32768 * 4096
    assert mixed.counts.head == head
    assert part["weights"] == 4 * alone.counts.base - 2 * (alone.counts.linear + head)
    assert mixed.conditions["frozen"].peak == pytest.approx(4 * alone.counts.base)  # as it is loaded
    assert mixed.conditions["full"].memory["more, while loaded"] == 0
    both = four_bits.model_copy(update=in_mixed | {"conditions": ["frozen"]})
    assert make_plan(folder, both, work, Machine("cuda")).conditions["frozen"].memory["more, while loaded"] == 0
    small = protocol.model_copy(update={"batch_size": 1, "max_tokens": 64, "conditions": ["frozen"], "holdout": 99})
    shallow = random_model_folder("mistral-7b-v0.3", size="full", layers=4)
    memory = make_plan(shallow, small, most_work(small), Machine("cuda")).conditions["frozen"].memory
    scored = 10 * 32768 * 32 * 63  # of 2,048 tokens, which take more than a step with its 64
    assert memory["logits"] + memory["activations"] == scored > 16 * 32768 * 63 + memory["activations"]


def test_steps_are_measured_through_the_engine():
    folder = random_model_folder("tinyllama-1.1b", size="reduced")
    protocol = protocol_of(accumulation=2)
    make_engine, _ = engine_factory("torch-cpu")
    work = most_work(protocol)
    rates = measure(Job(folder, protocol, parse_condition("modular"), 0), work, make_engine)
    assert 0 < rates.evaluate < 0.1
    assert 0 < rates.train < 0.1
    plan = make_plan(folder, protocol, work, Machine(), {"modular": rates})
    modular, naive = plan.conditions["modular"], plan.conditions["naive"]
    assert modular.epoch == (rates.train * 320,) * 2
    assert naive.epoch is None


def test_batches_to_measure_have_the_shapes_that_are_asked_for():
    assert spread([(1, n, n) for n in range(8)]) == [(1, 2, 2), (1, 4, 4), (1, 6, 6)]
    assert spread([(1, 5, 5)]) == [(1, 5, 5)] * 3
    batch = random_batch((3, 20, 12))
    assert batch.input_ids.shape == (3, 20)
    assert batch.answer_tokens == 12
    assert batch.tokens == 60


def test_a_shared_plan_of_unequal_phases_takes_the_longest_for_its_epoch():
    folder, protocol = random_model_folder("saul-7b", size="reduced"), protocol_of(conditions=["frozen"])
    short, *rest = most_work(protocol)
    long = replace(short, batches=short.batches * 3)
    plan = make_plan(folder, protocol, [short, long, *rest[:1]], Machine(), {"frozen": Rates(1, 0)})
    assert plan.conditions["frozen"].epoch == (960.0, 960.0)
    run = plan.conditions["frozen"].run
    assert run is not None
    assert math.isclose(run[0], 320 + 960 + 320)
    assert json.dumps(plan.conditions["frozen"].memory)
