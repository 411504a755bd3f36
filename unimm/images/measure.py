def measure(tokenizer, images):
    return {}
