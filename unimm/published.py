"""Published transformers models: which part of a folder is the language model, which reads or writes images.

    folder or hub id --published--> a causal LM, and the released class around it
                     --vision----->            a vision encoder

Nothing is executed that lies in a folder: safetensors only, and no code but transformers' own.
"""

from pathlib import Path
from textwrap import shorten

import torch
from torch import nn

from unimm.config.check import ConfigError
from unimm.config.model import FreshVision, VisionEncoder
from unimm.errors import UserError

HEAVY = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx", ".npz", ".py")
LANGUAGE = {"emu3": "text_model", "janus": "language_model", "gemma3": "language_model"}
"""The language model's place in composite models."""
COMPLETE = ("chameleon", "emu3", "janus")
"""Unified models, all of whose rows are trained."""


class WeightsError(UserError):
    """A published model that can't be read; the message names the folder and the remedy."""


def small_files(folder: Path) -> list[Path]:
    """Everything of a published folder but weights and code: configurations, tokenizer, templates, licence."""
    return sorted(p for p in folder.iterdir() if p.is_file() and p.suffix not in HEAVY
                  and not p.name.endswith(".index.json") and not p.name.startswith("."))


def published(path: str, weights: bool = True) -> tuple[nn.Module, nn.Module]:
    """The causal LM of a folder or hub id in float32, and the whole that it is of; without `weights` shapes alone, the
    tensors as memory was.

    Of composite models the language part is taken: of Chameleon all but its image tokenizer, of Emu3, Janus and
    Gemma 3 the text model and its head. Dropout in attention, which Emu3 asks for and packed rows don't have, is 0.

    Raises ConfigError for what is no decoder-only causal LM, WeightsError for what can't be read whole.
    """
    import transformers as tf

    config = _config(path)
    if getattr(config, "is_encoder_decoder", False):
        raise ConfigError(f"{path} is {config.model_type}, an encoder with a decoder; take a decoder-only model")
    for part in {id(c): c for c in (config, config.get_text_config())}.values():
        if getattr(part, "attention_dropout", None):
            part.attention_dropout = 0.0
    kind = config.model_type
    if kind == "chameleon" or kind in LANGUAGE:
        whole = backbone = _model(tf.AutoModelForImageTextToText, path, config, weights)
        if kind == "chameleon":
            del whole.model.vqmodel
        else:
            part = whole.model.get_submodule(LANGUAGE[kind])
            part.config.tie_word_embeddings = whole.lm_head.weight is part.get_input_embeddings().weight
            with torch.device("meta"):  # Emu3 has no automatic class
                backbone = (tf.Emu3ForCausalLM(part.config) if kind == "emu3"
                            else tf.AutoModelForCausalLM.from_config(part.config))
            backbone.model, backbone.lm_head = part, whole.lm_head
    elif type(config) not in tf.AutoModelForCausalLM._model_mapping:
        raise ConfigError(f"{path}: transformers has no causal language model of {kind}; take a decoder-only model")
    elif config.get_text_config() is not config:
        raise ConfigError(f"{path} is {kind}, whose language model can't be told from its other parts; take the "
                          "text-only model that it was made from")
    else:
        whole = backbone = _model(tf.AutoModelForCausalLM, path, config, weights)
    return backbone, whole


def vision(encoder: VisionEncoder, image: int | None = None, weights: bool = True):
    """A JanusVisionModel: SigLIP without its pooling head. Raises ConfigError where it sees images of another size than
    `image`, where that is said; a fresh one has to be told."""
    import transformers as tf

    if isinstance(encoder, FreshVision):
        return tf.JanusVisionModel(tf.JanusVisionConfig(
            hidden_size=encoder.width, num_hidden_layers=encoder.layers, num_attention_heads=encoder.heads,
            image_size=image, patch_size=encoder.patch, num_image_tokens=(image // encoder.patch) ** 2))
    path, config = encoder.path, _config(encoder.path)
    match config.model_type:
        case "janus":
            made = _model(tf.JanusForConditionalGeneration, path, config, weights).model.vision_model
        case "janus_vision_model":
            made = _model(tf.JanusVisionModel, path, config, weights)
        case "siglip" | "siglip_vision_model":
            c = getattr(config, "vision_config", config)
            same = ("hidden_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size", "hidden_act",
                    "layer_norm_eps")
            config = tf.JanusVisionConfig(**{name: getattr(c, name) for name in same},
                                          mlp_ratio=c.intermediate_size / c.hidden_size,
                                          num_image_tokens=(c.image_size // c.patch_size) ** 2)
            # One of its layers has another name.
            made = _model(tf.JanusVisionModel, path, config, weights,
                          {r"^vision_model\.": "", r"\.out_proj\.": ".projection_layer."})
        case other:
            raise ConfigError(f"{path} is {other}; image_in.encoder is a SigLIP or the encoder of a released Janus")
    if image and made.config.image_size != image:
        raise ConfigError(f"image_in.image is {image}, but the encoder of {path} sees {made.config.image_size}; state "
                          "that")
    return made


def _config(path: str):
    """The configuration of a folder or hub id. Raises WeightsError, one line."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path}: no model that transformers reads: {shorten(str(error), 200)}; give a local "
                           "folder with config.json and .safetensors, or a hub id where one is reachable") from None


def _model(kind, path: str, config, weights: bool, names: dict[str, str] | None = None):
    """The model of a folder in eval mode; `names` are patterns in names of stored tensors and what takes their place.

    Raises WeightsError unless all of its weights are there, in its shapes.
    """
    from safetensors import SafetensorError
    from transformers.initialization import no_init_weights

    if not weights:
        with no_init_weights():
            made = (kind.from_config(config, dtype=torch.float32) if hasattr(kind, "from_config")
                    else kind._from_config(config, dtype=torch.float32))
        made.tie_weights()  # which is part of the initialisation that is left out
        return made.eval()
    try:
        # Not in the bf16 that most are published in: small updates of bf16 weights are lost in rounding.
        made, found = kind.from_pretrained(path, config=config, dtype=torch.float32, trust_remote_code=False,
                                           use_safetensors=True, output_loading_info=True, key_mapping=names)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise WeightsError(f"{path}: its weights can't be read: {shorten(str(error), 200)}; download it "
                           "again, as .safetensors") from None
    wrong = sorted(found["missing_keys"]) + sorted(str(each[0]) for each in found["mismatched_keys"])
    if wrong:
        raise WeightsError(f"{path}: {len(wrong)} of its tensors are missing or of another shape, the first "
                           f"{wrong[0]}; download it again, with all of its shards")
    return made.eval()
