"""Low-rank adapters on the linear layers of a model's blocks, by peft, in place; and their way back into plain weights.

An adapted layer `x.q_proj` holds `x.q_proj.base_layer.weight` and `x.q_proj.lora_A.default.weight`, `lora_B`.
peft takes seconds to import, hence late.
"""

import re

from torch import nn

from unimm.config.trains import Lora, chosen


def plain_name(name: str) -> str:
    """The name that a parameter, or what it adapts, has without adapters."""
    return re.sub(r"\.(base_layer|lora_[AB]\.default)(?=\.)", "", name)


def is_adapter(name: str) -> bool:
    return ".lora_" in name


def adapt(module: nn.Module, lora: Lora, where: str = "train.lora") -> None:
    """Add adapters to `module`, A drawn from torch's random state, B zero; what trained before still does.

    Raises ConfigError, naming the field `where`.targets, for a target that is no linear layer of a block.
    """
    from peft import LoraConfig, inject_adapter_in_model

    blocks = [f"{name}." for name, m in module.named_modules() if isinstance(m, nn.ModuleList)]
    linear = [name for name, m in module.named_modules() if isinstance(m, nn.Linear) and name.startswith(tuple(blocks))]
    words = {"all-linear": linear} | {own: [name for name in linear if name.endswith(f".{own}")]
                                      for own in dict.fromkeys(name.rpartition(".")[2] for name in linear)}
    kind = "linear layer inside this model's blocks (tables and heads train by train.parts)"
    targets = set().union(*chosen(lora.targets, linear, words, f"{where}.targets", kind))
    trained = [p for p in module.parameters() if p.requires_grad]
    inject_adapter_in_model(LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout,
                                       target_modules=sorted(targets)), module)
    for p in trained:  # which peft has frozen
        p.requires_grad_(True)


def merge(module: nn.Module) -> None:
    """Add every adapter to the weight that it adapts and leave plain layers, in place."""
    from peft.tuners.lora import LoraLayer

    for name, layer in list(module.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            module.set_submodule(name, layer.get_base_layer())
    del module.peft_config
