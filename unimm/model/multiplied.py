"""What a language model multiplies, counted from its modules: for `unimm plan` and for the MFU that a run logs."""

from torch import nn

from unimm.hardware import Multiplied
from unimm.model.unified import UnifiedModel


def has_experts(backbone: nn.Module) -> bool:
    """Whether a token meets only some of the weights: a mixture of experts, in transformers' naming."""
    return any(".experts." in name for name, _ in backbone.named_parameters())


def multiplied(model: UnifiedModel) -> Multiplied | None:
    """Weights by what they are multiplied with, adapters among them; None for a mixture of experts.

    Call it after what trains is settled and before ZeRO-3 takes the weights apart. Attention is counted as full: a
    window or a chunk of some layers makes it less.
    """
    backbone = model.backbone
    if has_experts(backbone):
        return None
    inside = set(backbone.get_output_embeddings().modules())
    linear = [m for m in backbone.modules() if isinstance(m, nn.Linear)]
    head, body = ([m.weight for m in linear if (m in inside) == within] for within in (True, False))
    config = backbone.config.get_text_config()
    return Multiplied(
        body=sum(w.numel() for w in body), head=sum(w.numel() for w in head),
        frozen_body=sum(w.numel() for w in body if not w.requires_grad),
        frozen_head=sum(w.numel() for w in head if not w.requires_grad),
        layers=config.num_hidden_layers, width=config.num_attention_heads * _head_width(config))


def _head_width(config) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
