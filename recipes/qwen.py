"""Qwen2.5's chat and ids, as the systems that stand on it use them."""

from unimm.config.tokens import Chat

SIZE = 151665  # ids of its tokenizer: ILLUME+, scripts/prepare_llm_with_extended_vision_tokenizer.py, text_token_num
IDS = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645}  # tokenizer_config.json

PREFACE = "You are a helpful assistant."
CHAT = Chat(system=("<|im_start|>system\n", "<|im_end|>\n"), user=("<|im_start|>user\n", "<|im_end|>\n"),
            assistant=("<|im_start|>assistant\n", "<|im_end|>\n"), preface=PREFACE, draw_preface=PREFACE, eos=False,
            beside_image="\n")  # ILLUME+, illume/conversation.py, conv_qwen2; LLaVA's newline behind an image

# A whole chat up to an answer, around the words that stand in the place of a forgotten request.
ASKED = f"<|im_start|>system\n{PREFACE}<|im_end|>\n<|im_start|>user\n"
ANSWERED = "<|im_end|>\n<|im_start|>assistant\n"
