#!/usr/bin/env python3
"""transformers_check.py WEFT [FOLDER...]: the program and Hugging Face transformers read each other's folders.

Random Mambas and Mamba-2s that transformers saved, single and sharded, are given to `weft verify` with the logits, losses
and gradients of transformers; a checkpoint of `weft train` of each, and each FOLDER, is loaded by transformers, which must
find every tensor, and its logits go the same way. Tolerances are those of `weft verify`: 1e-4 on logits in fp32. Exit 77
without torch and transformers.
"""
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

from weft_verify import verify

try:
    import torch
    import transformers
    from safetensors.torch import save_file
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)


def add_reference(folder, model, vocabulary, gradients):
    torch.manual_seed(1)
    ids = torch.randint(0, vocabulary, (2, 37))
    output = model(input_ids=ids, labels=ids, use_cache=False)
    output.loss.backward()
    tensors = {"input_ids": ids, "labels": ids.clone(), "logits": output.logits.detach().float(), "loss": output.loss.detach().reshape(1)}
    if gradients:
        tensors |= {"grad." + name: p.grad.contiguous() for name, p in model.named_parameters()}
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "reference.safetensors")


def from_transformers(weft, work):
    sizes = dict(vocab_size=97, hidden_size=64, num_hidden_layers=3)
    # One group of heads: with more, transformers' gated norm takes them as one where mamba_ssm and weft norm each by itself.
    heads = dict(num_heads=8, head_dim=16, n_groups=1, chunk_size=16)
    mamba, mamba2 = (transformers.MambaForCausalLM, transformers.MambaConfig), (transformers.Mamba2ForCausalLM, transformers.Mamba2Config)
    for name, (kind, config), options, shards in (
        ("tied", mamba, dict(state_size=16, conv_kernel=4), "10GB"),
        ("tied, in shards", mamba, dict(state_size=16, conv_kernel=4), "40KB"),
        ("untied with biases, in shards", mamba, dict(state_size=8, conv_kernel=3, use_bias=True, tie_word_embeddings=False, time_step_rank=5), "40KB"),
        ("Mamba-2, tied", mamba2, dict(state_size=16, conv_kernel=4, tie_word_embeddings=True, **heads), "10GB"),
        ("Mamba-2, untied with biases and step limits, in shards", mamba2,
         dict(state_size=24, conv_kernel=3, use_bias=True, tie_word_embeddings=False, time_step_limit=(0.01, 0.5), **heads), "40KB"),
    ):
        torch.manual_seed(0)
        model = kind(config(**sizes, **options)).float()
        folder = work / name.replace(" ", "_")
        model.save_pretrained(folder, max_shard_size=shards)
        if (shards == "40KB") != (folder / "model.safetensors.index.json").exists():
            raise SystemExit(f"{folder} has not the form that was asked for")
        add_reference(folder, model, sizes["vocab_size"], gradients=True)
        yield verify(weft, folder, f"saved by transformers: {name}")


def to_transformers(weft, work, folder, title):
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, torch_dtype=torch.float32)  # "dtype" since 4.56
    problems = {key: value for key, value in info.items() if value}
    if problems:
        print(f"== {title}: transformers reports {problems}")
        return False
    copy = work / "copy"
    shutil.copytree(folder, copy)
    add_reference(copy, model, model.config.vocab_size, gradients=False)
    passed = verify(weft, copy, f"{title}, loaded by transformers")
    shutil.rmtree(copy)
    return passed


def trained_by_weft(weft, work, family):
    text = work / "text.txt"
    text.write_text("".join(f"line {i * 7 % 100} of the text\n" for i in range(400)))
    folder = work / ("trained_" + family)
    subprocess.run([weft, "train", "--model", family, "--device", "cpu", "--data", text, "--out", folder, "--steps", "5", "--batch", "2", "--length", "32",
                    "--width", "64", "--layers", "2", "--sample", "0"], check=True, capture_output=True)
    return folder / "latest"


def main():
    weft = os.path.abspath(sys.argv[1])
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as name:
        work = pathlib.Path(name)
        passed = list(from_transformers(weft, work))
        for family in ("mamba", "mamba2"):
            passed.append(to_transformers(weft, work, trained_by_weft(weft, work, family), f"{family} saved by weft train"))
        passed += [to_transformers(weft, work, pathlib.Path(f), f) for f in sys.argv[2:]]
    print(f"{sum(passed)} passed, {len(passed) - sum(passed)} failed")
    sys.exit(0 if all(passed) else 1)


main()
