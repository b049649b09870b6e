"""Makes a larger model of random weights out of the tiny one for vLLM's tests, in the environment of that vLLM:

    VLLM_CPU_HOME/bin/python larger_model.py TINY FOLDER

An answer should take the seconds that answers take: about 27 million parameters write some 1,500 tokens/s on two
cores, the tiny one ten times as many.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def main(tiny: Path, folder: Path) -> None:
    shutil.copytree(tiny, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    shape = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64}
    config = LlamaConfig.from_pretrained(tiny, **shape, **heads)
    torch.manual_seed(7)
    LlamaForCausalLM(config).to(torch.float32).save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
