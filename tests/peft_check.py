#!/usr/bin/env python3
"""peft_check.py WEFT: the program and Hugging Face PEFT read each other's adapters.

An adapter that PEFT made of a random model is given to `weft verify` with its logits, gradients and merged logits; one that
`weft train --adapter` made is loaded by PEFT, which must find every tensor, and its merged logits go the same way. PEFT itself
passes by an adapter of dt_proj until it is merged, so merged logits are what both have to agree on. Exit 77 without torch,
transformers and peft.
"""
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import warnings

from weft_verify import verify

try:
    import peft
    import torch
    import transformers
    from safetensors.torch import load_file, save_file
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)


def mamba():
    torch.manual_seed(0)
    config = transformers.MambaConfig(vocab_size=97, hidden_size=64, num_hidden_layers=2, state_size=16, conv_kernel=4)
    return transformers.MambaForCausalLM(config).float().eval()


def llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=97, hidden_size=64, num_hidden_layers=2, intermediate_size=96,
                                      num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False)
    return transformers.LlamaForCausalLM(config).float().eval()


def logits_of(model, ids):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits.float().contiguous()


def from_peft(weft, work):
    lora = dict(r=4, lora_alpha=8, lora_dropout=0.0, bias="none")
    for name, make, config, honest in (  # honest: PEFT's unmerged model has the adapter in it
        ("lora of mamba", mamba, peft.LoraConfig(target_modules=["in_proj", "x_proj", "dt_proj"], **lora), False),
        ("lora of mamba's in_proj, by patterns", mamba,
         peft.LoraConfig(target_modules=["in_proj"], rank_pattern={"layers.1.mixer.in_proj": 2},
                         alpha_pattern={"layers.1.mixer.in_proj": 3}, use_rslora=True, **lora), True),
        ("ia3 of mamba", mamba, peft.IA3Config(target_modules=["in_proj", "out_proj"], feedforward_modules=["out_proj"]), True),
        ("lora of all layers of llama", llama, peft.LoraConfig(target_modules="all-linear", **lora), True),
        ("lora of llama's embedding and head", llama, peft.LoraConfig(target_modules=["embed_tokens", "lm_head"], **lora), True),
    ):
        folder = work / name.replace(" ", "_").replace("'", "")
        base = make()
        base.save_pretrained(folder)
        model = peft.get_peft_model(base, config)
        torch.manual_seed(1)
        for key, p in model.named_parameters():
            if "lora_" in key or "ia3_" in key:
                torch.nn.init.normal_(p, 1.0 if "ia3_" in key else 0.0, 0.2)
        model.save_pretrained(folder / "adapter")
        ids = torch.randint(0, 97, (2, 29))
        tensors = {"input_ids": ids}
        if honest:
            output = model(input_ids=ids, labels=ids, use_cache=False)
            output.loss.backward()
            tensors |= {"logits": output.logits.detach().float(), "loss": output.loss.detach().reshape(1)}
            tensors |= {"grad." + key: p.grad for key, p in model.named_parameters() if p.requires_grad}
        tensors["merged_logits"] = logits_of(model.merge_and_unload(), ids)
        save_file({key: t.contiguous() for key, t in tensors.items()}, folder / "reference.safetensors")
        yield verify(weft, folder, f"saved by PEFT: {name}")


def to_peft(weft, work):
    text = work / "text.txt"
    text.write_text("".join(f"line {i * 7 % 100} of the text\n" for i in range(400)))
    train = [weft, "train", "--device", "cpu", "--data", text, "--batch", "2", "--length", "32", "--sample", "0", "--steps", "5"]
    base = work / "base"
    subprocess.run([*train, "--out", base, "--width", "64", "--layers", "2"], check=True, capture_output=True)
    for name, options in (
        ("lora", ["--adapter", "lora", "--targets", "in_proj,x_proj,dt_proj:2", "--rank", "4", "--lr", "1e-2"]),
        ("ia3", ["--adapter", "ia3", "--targets", "in_proj,out_proj:in", "--lr", "1e-2"]),
    ):
        run, folder = work / f"run_{name}", work / f"by_weft_{name}"
        subprocess.run([*train, "--from", base, "--out", run, *options], check=True, capture_output=True)
        shutil.copytree(run / "latest", folder)
        model = transformers.MambaForCausalLM.from_pretrained(folder).float().eval()
        with warnings.catch_warnings(record=True) as said:  # of tensors that PEFT misses or does not know
            warnings.simplefilter("always")
            adapted = peft.PeftModel.from_pretrained(model, folder / "adapter")
        complaints = [str(w.message) for w in said if "adapter keys" in str(w.message)]
        ours = load_file(folder / "adapter" / "adapter_model.safetensors")
        theirs = peft.get_peft_model_state_dict(adapted)
        if complaints or set(ours) != set(theirs) or any(not torch.equal(ours[key], theirs[key]) for key in ours):
            print(f"== {name} saved by weft: PEFT has other tensors: {complaints} {sorted(set(ours) ^ set(theirs))}")
            yield False
            continue
        ids = torch.randint(0, 256, (2, 29))
        save_file({"input_ids": ids, "merged_logits": logits_of(adapted.merge_and_unload(), ids)}, folder / "reference.safetensors")
        yield verify(weft, folder, f"saved by weft train --adapter {name}, loaded by PEFT")


def main():
    weft = os.path.abspath(sys.argv[1])
    print(f"peft {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as name:
        work = pathlib.Path(name)
        passed = list(from_peft(weft, work)) + list(to_peft(weft, work))
    print(f"{sum(passed)} passed, {len(passed) - sum(passed)} failed")
    sys.exit(0 if all(passed) else 1)


main()
