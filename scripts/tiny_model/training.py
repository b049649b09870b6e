"""The training loop. One thread and one seed, so that the same machine makes the same weights again."""

from __future__ import annotations

import time
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from tiny_model import tokens
from tiny_model.corpus import Corpus
from tiny_model.lexicon import Lexicon
from tiny_model.model import Shape, TinyLlama
from tokenizers import Tokenizer

_SEED = 20_24
#: Tokens per step; the rows are short first, and as long as the context in the last fifth, to learn to use all of it.
_STEP_TOKENS, _SHORT_ROW = 4096, 512
_LONG_ROWS_FROM = 0.8
#: Warm-up steps; then the full rate, and from this share of the steps on a straight line down to (almost) nothing.
_WARM_UP, _DECAY_FROM = 60, 0.4
_RATE = 8e-3
_TOKENIZER_DOCUMENTS = 60_000
_CHECKPOINT_EVERY = 200


def train(lexicon: Lexicon, steps: int, work: Path) -> None:
    """Leaves ``tokenizer.json`` and ``model.pt`` in ``work``; a checkpoint is there every few hundred steps."""
    torch.set_num_threads(1)
    torch.manual_seed(_SEED)
    shape = Shape()
    documents = islice(Corpus(lexicon, _SEED).documents(), _TOKENIZER_DOCUMENTS)
    tokenizer = tokens.train(("".join(piece for piece, _ in document) for document in documents), shape.vocabulary)
    tokenizer.save(str(work / "tokenizer.json"))
    model = TinyLlama(shape)
    print(f"{sum(weight.numel() for weight in model.parameters()):,} parameters", flush=True)
    matrices = [weight for weight in model.blk.parameters() if weight.dim() == 2]
    others = [weight for name, weight in model.named_parameters() if not any(weight is matrix for matrix in matrices)]
    optimizers = (
        torch.optim.Muon(matrices, lr=_RATE, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=_RATE, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    )
    corpus = Corpus(lexicon, _SEED + 1)
    began = time.monotonic()
    smooth = 0.0
    for step in range(steps):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = _RATE * _share_of_rate(step, steps)
        loss = _loss(model, tokenizer, corpus, shape.context if step >= _LONG_ROWS_FROM * steps else _SHORT_ROW)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        smooth = loss.item() if step == 0 else 0.95 * smooth + 0.05 * loss.item()
        if step % 20 == 0 or step == steps - 1:
            print(f"step {step:5}  loss {smooth:.3f}  {time.monotonic() - began:6.0f} s", flush=True)
        if step % _CHECKPOINT_EVERY == _CHECKPOINT_EVERY - 1 or step == steps - 1:
            torch.save(model.state_dict(), work / "model.pt")


def load(work: Path) -> tuple[TinyLlama, Tokenizer]:
    model = TinyLlama(Shape())
    model.load_state_dict(torch.load(work / "model.pt", weights_only=True))
    return model, Tokenizer.from_file(str(work / "tokenizer.json"))


def _share_of_rate(step: int, steps: int) -> float:
    left = (steps - step) / steps / (1 - _DECAY_FROM)
    return min(1.0, (step + 1) / _WARM_UP, max(0.02, left))


def _loss(model: TinyLlama, tokenizer: Tokenizer, corpus: Corpus, length: int) -> torch.Tensor:
    ids, learned = corpus.rows(tokenizer, _STEP_TOKENS // length, length)
    batch, mask = torch.from_numpy(ids), torch.from_numpy(learned)[:, 1:]
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(batch[:, :-1], mask)
    return F.cross_entropy(logits.float(), batch[:, 1:][mask])
