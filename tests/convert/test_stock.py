"""A trained run as a stock class: transformers alone, without our code, gives the run's logits, ids and image codes."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from convert.runs import FRESH, LORA, on_release, saved
from safetensors.torch import load_file

from unimm.cli import main as cli
from unimm.config.sampling import Choice, Sampling
from unimm.config.tokens import PretrainedText
from unimm.convert.releases import ConvertError
from unimm.generate.decode import decode
from unimm.generate.request import drawing
from unimm.sample import Text
from unimm.system import open_run

ALONE = """
import json, sys
sys.modules["unimm"] = None
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, adapter, asked = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
model, text = AutoModelForCausalLM.from_pretrained(folder).float().eval(), AutoTokenizer.from_pretrained(folder)
if adapter:
    from peft import PeftModel
    model = PeftModel.from_pretrained(model, adapter).eval()
ids = text(asked["prompt"], add_special_tokens=False).input_ids
with torch.no_grad():
    logits = model(torch.tensor([ids])).logits[0]
    drawn = list(ids)
    for _ in range(asked["codes"]):
        best = model(torch.tensor([drawn])).logits[0, -1, asked["first"]:asked["stop"]].argmax()
        drawn.append(asked["first"] + int(best))
chat = text.apply_chat_template(asked["chat"], add_generation_prompt=True, return_dict=False)
print(json.dumps({"class": type(model).__name__, "ids": ids, "chat": chat, "logits": logits.tolist(),
                  "drawn": drawn[len(ids):], "eos": [text.eos_token_id, model.generation_config.eos_token_id],
                  "said": text.decode(ids)}))
"""
PROMPT = "a red circle above a blue ring"
SAID = (("system", "be brief"), ("user", "what?"), ("assistant", "a ring"), ("user", "sure?"))


def alone(folder, adapter, asked, tmp_path) -> dict:
    """What transformers makes of a folder in a process that can't import unimm."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" or "tf517" in v} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", ALONE, str(folder), str(adapter or ""), json.dumps(asked)],
                          cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@torch.no_grad()
def ours(run) -> tuple[list[int], torch.Tensor, list[int], dict]:
    """(prompt's ids, logits at each, greedy codes' ids, what to ask of the other side)"""
    system = open_run(run)
    layout, vocab = system.layout, system.layout.vocab
    prompt = layout.prompt((Text(PROMPT),), then="image")
    ids = torch.tensor(prompt.ids[None].astype(np.int64))
    hidden = system.model.hidden(ids, torch.arange(ids.shape[1])[None], torch.ones_like(ids))
    greedy = Sampling(image=Choice(temperature=0.0), guidance=1.0)
    request = drawing((Text(PROMPT),), greedy, layout.config.sizes[0])
    decode(system.model, layout, [request])
    book = vocab.ranges["visual"]
    codes = [i for i in request.ids if book.start <= i < book.stop]
    asked = {"prompt": f"<s>{PROMPT}<boi>", "first": book.start, "stop": book.stop, "codes": len(codes),
             "chat": [{"role": role, "content": text if n else [{"type": "text", "text": text}]}
                      for n, (role, text) in enumerate(SAID)]}
    return prompt.ids.tolist(), system.model.head((slice(0, vocab.rows),))(hidden[0], None), codes, asked


@pytest.fixture(scope="module", params=["qwen3", "llama tied", "lora"])
def run(request, tmp_path_factory):
    folder, kind = tmp_path_factory.mktemp(request.param.replace(" ", "_")), request.param
    match kind:
        case "qwen3":
            recipe = FRESH
        case "llama tied":
            recipe = on_release(folder / "release", "llama tied")
        case "lora":
            recipe = on_release(folder / "release", "qwen2", LORA)
    return saved(recipe, folder / "run")


@pytest.mark.parametrize("adapters", ["merged", "kept"])
def test_the_exported_run_is_a_stock_model_with_the_same_logits_ids_and_codes(run, adapters, tmp_path):
    has_lora = open_run(run).recipe.stages["sft"].train.lora is not None
    if adapters == "kept" and not has_lora:
        pytest.skip("nothing to keep")
    out = tmp_path / "out"
    assert cli.run(["convert", str(run), str(out), "--adapters", adapters]) == 0
    ids, logits, codes, asked = ours(run)
    adapter = out / "adapter" if adapters == "kept" else None
    found = alone(out, adapter, asked, tmp_path)
    assert found["ids"] == ids and found["drawn"] == codes and len(set(codes)) > 1
    # Kept adapters add up in another order than merged ones.
    assert (torch.tensor(found["logits"])[:, :logits.shape[1]] - logits).abs().max() <= (1e-4 if adapter else 1e-5)
    assert PROMPT in found["said"] and found["eos"][0] == found["eos"][1] == open_run(run).layout.eos
    if not isinstance(open_run(run).recipe.text, PretrainedText):  # a release's own template stays as it is
        parts = tuple(Text(text, role=role) for role, text in SAID)
        assert found["chat"] == open_run(run).layout.prompt(parts).ids.tolist()


def test_an_export_comes_back_into_a_run_and_out_again_bit_for_bit(run, tmp_path):
    for source, out in (("", "out"), ("out", "again"), ("again", "out2")):
        cli.run(["convert", str(run if not source else tmp_path / source), str(tmp_path / out)])
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "out2"))
    assert one.keys() == two.keys() and all(torch.equal(t, two[name]) for name, t in one.items())
    a, b = ours(run), ours(tmp_path / "again")
    assert a[0] == b[0] and a[2] == b[2] and torch.allclose(a[1], b[1][:, :a[1].shape[1]], atol=1e-6)


def test_files_are_split_and_types_changed_as_asked(tmp_path):
    run = saved(FRESH, tmp_path / "run")
    cli.run(["convert", str(run), str(tmp_path / "whole")])
    cli.run(["convert", str(run), str(tmp_path / "split"), "--split", "40KB", "--dtype", "bfloat16"])
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    index = json.loads((tmp_path / "split" / "model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "split").glob("*.safetensors"))
    parts = {name: t for file in files for name, t in load_file(file).items()}
    assert len(files) > 2 and index["weight_map"].keys() == whole.keys() == parts.keys()
    assert index["metadata"]["total_size"] == sum(2 * t.numel() for t in whole.values())
    assert all(torch.equal(t.bfloat16(), parts[name]) for name, t in whole.items())
    assert all(file.stat().st_size < 42_000 or len(load_file(file)) == 1 for file in files)
    assert json.loads((tmp_path / "split" / "config.json").read_text())["dtype"] == "bfloat16"


def test_what_a_stock_class_can_not_hold_is_refused_with_the_reason(tmp_path):
    run = saved(replace(FRESH, image_in=replace(FRESH.image_in, places=16)), tmp_path / "places")
    with pytest.raises(ConvertError, match="learned places of image_in.places.*Qwen3ForCausalLM has no place for it"):
        cli.run(["convert", str(run), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.part").exists()
