"""Hardware fit: what a model needs of memory, part by part, and what there is.

header = read_model(path)
engine = LlamaCpp(gguf_shape(header))
found = estimate(engine, Ask(context=8192, parallel=4), available_memory(), header.context_length)
found.fits, found.max_context, found.advice
"""

from fabric.fit.estimate import Estimate, estimate, longest, most_parallel
from fabric.fit.gguf import Header, read_model
from fabric.fit.gguf_shape import gguf_shape
from fabric.fit.hf_shape import hf_shape
from fabric.fit.llamacpp import LlamaCpp
from fabric.fit.memory import available_memory, gpu_memory
from fabric.fit.need import Ask, Need
from fabric.fit.shape import Shape, UnknownArchitecture
from fabric.fit.vllm import Vllm

__all__ = [
    "Ask",
    "Estimate",
    "Header",
    "LlamaCpp",
    "Need",
    "Shape",
    "UnknownArchitecture",
    "Vllm",
    "available_memory",
    "estimate",
    "gguf_shape",
    "gpu_memory",
    "hf_shape",
    "longest",
    "most_parallel",
    "read_model",
]
