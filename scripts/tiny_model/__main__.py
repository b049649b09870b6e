"""``scripts/train-tiny-model`` runs this in an environment of its own; see there."""

from __future__ import annotations

import argparse
from pathlib import Path

_STEPS = 2200


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/train-tiny-model", description="Trains the tiny model that comes with the fabric."
    )
    parser.add_argument("--steps", type=int, default=_STEPS, help="of 4,096 tokens each (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("fabric/models/tiny.gguf"), help="the file to write (default: %(default)s)"
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=Path(".fabric/tiny-model"),
        help="for WordNet and checkpoints (default: %(default)s)",
    )
    parser.add_argument(
        "--export-only", action="store_true", help="write the file from the last checkpoint, without training"
    )
    options = parser.parse_args()

    from tiny_model import gguf_file, training, wordnet  # after the options: --help works without PyTorch
    from tiny_model.lexicon import Lexicon

    options.work.mkdir(parents=True, exist_ok=True)
    if not options.export_only:
        dictionary = wordnet.load(options.work / "wordnet-base_3.0-37_all.deb")
        training.train(Lexicon(dictionary), options.steps, options.work)
    model, tokenizer = training.load(options.work)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    gguf_file.write(model, tokenizer, options.out)
    print(f"{options.out}: {options.out.stat().st_size:,} bytes")


main()
