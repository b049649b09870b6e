"""Writes the model as one GGUF file for llama.cpp: Q8_0 weights, the tokenizer, the chat template, the licence."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
from tiny_model.model import TinyLlama
from tiny_model.tokens import CONTROL, END_OF_TEXT, END_OF_TURN, PRE_TOKENIZER
from tokenizers import Tokenizer

_DESCRIPTION = (
    "A tiny chat model for trying the inference fabric out: it writes short English sentences, mostly about words."
    " Trained on WordNet 3.0, Copyright 2006 by Princeton University, and on dialogues written for it."
)
#: On the logits: a small model is less sure than it should be, and 0.7, a usual temperature, would make it babble.
_SHARPNESS = 1.25
_CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + (message['content'] or '') | trim + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def write(model: TinyLlama, tokenizer: Tokenizer, path: Path) -> None:
    shape = model.shape
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("model")
    writer.add_name("Tiny")
    writer.add_description(_DESCRIPTION)
    writer.add_license("Apache-2.0")
    writer.add_languages(["en"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_block_count(shape.layers)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_pooling_type(gguf.PoolingType.MEAN)  # of embeddings, unless the server says otherwise
    _add_tokenizer(writer, tokenizer)
    for name, weight in model.named_parameters():
        values = weight.detach().numpy()
        if values.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values * _SHARPNESS if name == "output_norm.weight" else values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    words = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZER)
    writer.add_token_list([word for word, _ in words])
    writer.add_token_types([gguf.TokenType.CONTROL if word in CONTROL else gguf.TokenType.NORMAL for word, _ in words])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(tokenizer.token_to_id(END_OF_TEXT))
    writer.add_eos_token_id(tokenizer.token_to_id(END_OF_TURN))
    writer.add_pad_token_id(tokenizer.token_to_id(END_OF_TEXT))
    writer.add_add_bos_token(False)
    writer.add_chat_template(_CHAT_TEMPLATE)
