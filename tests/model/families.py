"""Small random models of the families that attend through windows or soft caps."""

import torch

FAMILIES = ("gemma2", "gemma3", "mistral", "qwen2")


def tiny(family: str, **more):
    """A small random model of a family whose windows (6 keys) are shorter than its documents."""
    import transformers as tf

    shape = dict(vocab_size=64, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
                 intermediate_size=48, head_dim=8, max_position_embeddings=256, sliding_window=6, pad_token_id=0) | more
    torch.manual_seed(0)
    match family:
        case "gemma2":
            made = tf.Gemma2ForCausalLM(tf.Gemma2Config(**shape, query_pre_attn_scalar=8, attn_logit_softcapping=2.0,
                                                        final_logit_softcapping=3.0))
        case "gemma3":
            kinds = ["sliding_attention"] * 3 + ["full_attention"]
            made = tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**shape, query_pre_attn_scalar=8, layer_types=kinds))
        case "mistral":
            made = tf.MistralForCausalLM(tf.MistralConfig(**shape))
        case "qwen2":
            del shape["head_dim"]
            made = tf.Qwen2ForCausalLM(tf.Qwen2Config(**shape, use_sliding_window=True, max_window_layers=2))
    for name, parameter in made.named_parameters():
        if "norm" not in name:
            parameter.data.mul_(4.0)  # at the usual tiny spread every output looks alike
    return made.eval()
