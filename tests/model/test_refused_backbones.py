"""Any causal LM is taken by its folder where it can be trained on packed rows, else refused with the reason."""

import json

import pytest
import torch
import transformers as tf
from model.released import layout_of, theirs
from safetensors.torch import load_file, save_file

from unimm.config.check import ConfigError
from unimm.config.model import PretrainedBackbone, SharedTable
from unimm.errors import UserError
from unimm.model.backbone import build_backbone

VOCAB = layout_of("llama").vocab
SHAPE = dict(vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
             max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2)
GQA = SHAPE | {"num_key_value_heads": 2}
TAKEN = {
    "gpt_neox": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**SHAPE)),
    "olmo2": lambda: tf.Olmo2ForCausalLM(tf.Olmo2Config(**GQA)),
    "phi3": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**GQA)),
    "qwen3_moe": lambda: tf.Qwen3MoeForCausalLM(tf.Qwen3MoeConfig(
        **GQA, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)),
    "smollm3": lambda: tf.SmolLM3ForCausalLM(tf.SmolLM3Config(**GQA)),
}
REFUSED = {
    "encoder with a decoder": lambda: tf.T5ForConditionalGeneration(tf.T5Config(
        vocab_size=300, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4)),
    "attention sinks": lambda: tf.GptOssForCausalLM(tf.GptOssConfig(
        **GQA, head_dim=8, num_local_experts=2, num_experts_per_tok=1)),
    "from outside": lambda: tf.BloomForCausalLM(tf.BloomConfig(vocab_size=300, hidden_size=32, n_layer=1, n_head=4)),
    "its logits": lambda: tf.GraniteForCausalLM(tf.GraniteConfig(**GQA, logits_scaling=4.0)),
    "packed rows": lambda: tf.MambaForCausalLM(tf.MambaConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=1, state_size=4)),
    "no causal language model": lambda: tf.CLIPVisionModel(tf.CLIPVisionConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8)),
}


def build(path):
    return build_backbone(PretrainedBackbone(path=str(path)), VOCAB, SharedTable(), {})


@pytest.mark.parametrize("kind", TAKEN)
def test_other_families_are_tried_and_taken(kind, tmp_path):
    torch.manual_seed(0)
    model = TAKEN[kind]().eval()
    model.save_pretrained(tmp_path)
    ids = torch.arange(9)[None]
    expected = model(input_ids=ids).logits
    made = build(tmp_path)
    torch.testing.assert_close(made(input_ids=ids).logits[..., :VOCAB.text_size], expected[..., :VOCAB.text_size],
                               atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_trained_on_packed_rows_is_refused_with_its_reason(reason, tmp_path):
    torch.manual_seed(0)
    REFUSED[reason]().save_pretrained(tmp_path)
    with pytest.raises(ConfigError) as refused:
        build(tmp_path)
    assert reason in str(refused.value) and "\n" not in str(refused.value)


@pytest.fixture
def folder(tmp_path):
    theirs("llama").save_pretrained(tmp_path)
    return tmp_path


def refusal(folder):
    with pytest.raises(UserError) as refused:
        build(folder)
    assert "\n" not in str(refused.value) and str(folder) in str(refused.value)
    return str(refused.value)


def test_a_tensor_that_is_missing_or_of_another_shape_is_named(folder):
    file = folder / "model.safetensors"
    weights = load_file(file)
    save_file({name: t for name, t in weights.items() if name != "lm_head.weight"}, file, {"format": "pt"})
    assert "lm_head.weight" in refusal(folder)
    name = "model.layers.1.mlp.up_proj.weight"
    save_file(weights | {name: weights[name][:-1].contiguous()}, file, {"format": "pt"})
    assert name in refusal(folder) or "shape" in refusal(folder) or "size" in refusal(folder)
    file.write_bytes(file.read_bytes()[:-100])
    assert "download it again" in refusal(folder)
    file.unlink()
    assert "download it again" in refusal(folder)


def test_a_pickle_is_not_opened(folder):
    ran = folder / "ran"

    class Bad:
        def __reduce__(self):
            return open, (str(ran), "w")

    (folder / "model.safetensors").unlink()
    torch.save({"model.embed_tokens.weight": Bad()}, folder / "pytorch_model.bin")
    assert "safetensors" in refusal(folder)
    assert not ran.exists()


def test_code_that_lies_in_a_folder_is_not_run(folder):
    ran = folder / "ran"
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w')\n")
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "own", "auto_map": {
        "AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    assert "no model that transformers reads" in refusal(folder)
    assert not ran.exists()
    (folder / "config.json").unlink()
    assert "no model that transformers reads" in refusal(folder)
