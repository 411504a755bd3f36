"""Every Llama-like family: transformers' own module without a cache, and the fast body over one."""

import weakref

import numpy as np
import pytest
import torch
from model.families import tiny
from model.released import KINDS, SHAPE, theirs
from ten_systems import TEN

from unimm.config.sampling import Sampling
from unimm.generate.decode import decode
from unimm.generate.request import Request, drawing
from unimm.model import fast
from unimm.model.attention import use_packed_attention
from unimm.model.cache import RowCache
from unimm.model.fast import FastBody, fast_body
from unimm.model.image_input import ImageInput
from unimm.model.unified import UnifiedModel
from unimm.published import published
from unimm.sample import Text

LENGTHS = (7, 16, 11)
"""Of the rows' prompts: longer than the tiny models' windows of 6."""

STEPS = 5


def llama(**more):
    import transformers as tf

    torch.manual_seed(0)
    made = tf.LlamaForCausalLM(tf.LlamaConfig(**SHAPE | {"vocab_size": 320} | more)).eval()
    with torch.no_grad():
        for p in made.parameters():
            p.normal_(0.0, 0.3)
    return made


def gemma():
    import transformers as tf

    torch.manual_seed(0)
    made = tf.GemmaForCausalLM(tf.GemmaConfig(**SHAPE | {"num_key_value_heads": 1}, vocab_size=320, head_dim=8)).eval()
    with torch.no_grad():
        for p in made.parameters():
            p.normal_(0.0, 0.3)
    return made


ROPES = {"linear": dict(factor=4.0),
         "yarn": dict(factor=8.0, original_max_position_embeddings=32),
         "llama3": dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)}
MADE = {**{f"{kind}, windows" if kind == "qwen2" else f"{kind}, 4 layers": lambda kind=kind: tiny(kind)
           for kind in ("qwen2", "gemma2", "gemma3", "mistral")},
        **{f"rope of {kind}": lambda kind=kind: llama(rope_parameters={
            "rope_type": kind, "rope_theta": 1e4, **ROPES[kind]}) for kind in ROPES},
        "gemma": gemma,
        "llama, biases, tied": lambda: llama(attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
        "llama, gelu": lambda: llama(hidden_act="gelu_pytorch_tanh")}


@pytest.fixture(scope="module", params=[*KINDS, *MADE])
def backbone(request, tmp_path_factory):
    if request.param in MADE:
        made = MADE[request.param]()
    else:
        folder = tmp_path_factory.mktemp("released")
        theirs(request.param).save_pretrained(folder)
        made, _ = published(str(folder))
    use_packed_attention(made)
    return made.double()  # float32's rounding differs from CPU to CPU, at times by more than what is allowed here


def own(backbone, embedded):
    """Each row's hidden states from the module itself: no cache, the attention that has all that a family asks for."""
    before = backbone.config._attn_implementation
    backbone.set_attn_implementation("eager")
    hidden = backbone.base_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
    backbone.set_attn_implementation(before)
    return hidden


def embedded_rows(backbone, rows: int, length: int):
    table = backbone.get_input_embeddings()
    return table(torch.randint(64, (rows, length), generator=torch.Generator().manual_seed(1)))


@torch.no_grad()
def compare(backbone, read, most: float, t: int = 1, first: int = 1) -> None:
    """Rows of three lengths, read in right-padded where something else once stood, then step by step."""
    embedded = embedded_rows(backbone, len(LENGTHS), max(LENGTHS) + STEPS * t)
    expected = own(backbone, embedded)
    memory, spread = RowCache(5, 40, embedded.device), float(expected.float().std())
    read(embedded[:, :9] * 0.5, np.zeros(3, int), memory, first)
    found = read(embedded[:, :max(LENGTHS)], np.zeros(3, int), memory, first)
    for row, length in enumerate(LENGTHS):
        assert (found[row, :length] - expected[row, :length]).abs().max() <= most * spread
    row = np.arange(len(LENGTHS))[:, None]
    for step in range(STEPS):
        start = np.array(LENGTHS) + step * t
        at = start[:, None] + np.arange(t)
        found = read(embedded[row, at], start, memory, first)
        assert (found - expected[row, at]).abs().max() <= most * spread


def test_hidden_states_equal_the_modules_at_the_prompt_and_step_by_step(backbone):
    made = fast_body(backbone)
    assert isinstance(made, FastBody), made
    compare(backbone, made, 2e-5)
    compare(backbone, made, 2e-5, t=3)


def test_so_do_steps_of_static_shape_as_a_gpu_captures_them(backbone):
    made = fast_body(backbone)

    def read(embedded, start, memory, first):
        n, t = embedded.shape[:2]
        if t > 3:
            return made(embedded, start, memory, first)
        held = made.caches[memory]
        return made.step(held, n, t, int(start.max()) + t)(made, held, embedded, start)

    compare(backbone, read, 2e-5, first=0)
    compare(backbone, read, 2e-5, t=3, first=0)


def test_nothing_is_held_twice_and_the_module_is_what_it_was(backbone):
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    embedded = embedded_rows(backbone, 2, 12)
    with torch.no_grad():
        hidden = own(backbone, embedded)
        made = fast_body(backbone)
        assert torch.equal(own(backbone, embedded), hidden)
    after = backbone.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    for layer, fused in zip(backbone.base_model.layers, made.layers, strict=True):
        for whole, parts in ((fused.qkv, (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)),
                             (fused.gate_up, (layer.mlp.gate_proj, layer.mlp.up_proj)),
                             (fused.out, [layer.self_attn.o_proj]), (fused.down, [layer.mlp.down_proj])):
            whole = whole[0]  # without its bias
            assert {p.weight.untyped_storage().data_ptr() for p in parts} == {whole.untyped_storage().data_ptr()}
            assert sum(p.weight.nbytes for p in parts) == whole.untyped_storage().nbytes()


@pytest.mark.parametrize("kind", ["qwen3", "gemma3", "chameleon"])
def test_bfloat16_agrees_within_its_rounding(kind):
    made = theirs(kind).bfloat16()
    if kind == "chameleon":
        del made.model.vqmodel
    use_packed_attention(made)
    read = fast_body(made)
    assert isinstance(read, FastBody), read
    compare(made, read, 0.15)


@pytest.mark.parametrize("part", ["qkv", "gate_up"])
def test_a_body_that_reads_other_weights_is_refused(part, monkeypatch):
    layer_of = fast.layer_of

    def broken(layer, config):
        made = layer_of(layer, config)
        weight, *rest = made._asdict()[part]
        return made._replace(**{part: (weight.roll(1, 0), *rest)})

    monkeypatch.setattr(fast, "layer_of", broken)
    assert "hidden states differ from its own by" in fast_body(llama())


def test_other_models_run_through_their_own_module_and_say_so():
    import transformers as tf

    gpt2 = tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2))
    assert fast_body(gpt2).startswith("gpt2 runs through its own module: the fast path knows llama, ")
    dynamic = llama(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    assert "its rotary embedding is dynamic" in fast_body(dynamic)
    more = llama()
    more.model.layers[1].self_attn.gate = torch.nn.Linear(4, 4)
    assert "its layers have self_attn.gate.bias, self_attn.gate.weight" in fast_body(more)
    mixed = llama()
    mixed.model.norm.bfloat16()
    assert "several precisions" in fast_body(mixed)


def test_what_is_kept_for_a_cache_ends_with_it():
    made = llama()
    use_packed_attention(made)
    read = fast_body(made)
    with torch.no_grad():
        memory = RowCache(2, 6, torch.device("cpu"))
        read(embedded_rows(made, 2, 6), np.zeros(2, int), memory)
        held = read.caches[memory]
        read.step(held, 2, 1, 6)(read, held, embedded_rows(made, 2, 1), np.full(2, 5))
        kept = weakref.ref(held.flat[0])
    del held, memory
    assert kept() is None and not read.caches


def test_large_matrices_give_two_to_four_rows_the_same():
    made = llama(hidden_size=512, intermediate_size=1024, num_hidden_layers=1, mlp_bias=True)
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(0.1)
    use_packed_attention(made)
    read = fast_body(made)
    assert read.layers[0].gate_up[2] and read.layers[0].down[2]
    compare(made, read, 2e-5)


def test_a_cache_that_grows_is_followed():
    made = llama()
    use_packed_attention(made)
    read = fast_body(made)
    embedded = embedded_rows(made, 2, 12)
    with torch.no_grad():
        expected, memory = own(made, embedded), RowCache(2, 6, embedded.device)
        read(embedded[:, :6], np.zeros(2, int), memory)
        memory.reserve(3, 20)
        found = read(embedded[:, 6:], np.full(2, 6), memory)
    assert (found - expected[:, 6:]).abs().max() <= 2e-5 * expected.std()


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_decoding_writes_the_same_ids_once_the_model_is_asked_to_hasten(family):
    layout = TEN["emu3"].build()
    rows = layout.vocab.rows
    made = llama(vocab_size=rows) if family == "llama" else tiny(family, vocab_size=rows)
    use_packed_attention(made)
    model = UnifiedModel(made, layout.vocab, ImageInput()).eval()
    how = Sampling(guidance=2.0, text_length=6)

    def written():
        sizes = layout.config.sizes
        asks = [drawing((Text("x" * n),), how, sizes[n % len(sizes)], n) for n in range(1, 4)]
        asks += [Request((Text("x" * n, role="user"),), how, n) for n in range(1, 3)]
        decode(model, layout, asks)
        return [ask.ids for ask in asks]

    own = written()
    assert model.hasten() is None and isinstance(model.fast, FastBody)
    assert written() == own


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gemma3", "chameleon, swin"])
def test_a_layer_is_one_graph_for_the_compiler_and_the_same_for_all_layers(kind):
    made, graphs = theirs(kind), []
    use_packed_attention(made)
    read = fast_body(made)

    def counted(graph, _):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    with torch.inference_mode():
        embedded, memory = embedded_rows(made, 2, 12), RowCache(2, 40, torch.device("cpu"))
        read(embedded[:, :11], np.zeros(2, int), memory)
        held = read.caches[memory]
        step = read.step(held, 2, 1, 12)
        found = step(read, held, embedded[:, 11:], np.full(2, 11))
        read.through = torch.compile(fast.through, fullgraph=True, backend=counted)
        assert torch.equal(found, step.run(read, held)) and len(graphs) == 1
