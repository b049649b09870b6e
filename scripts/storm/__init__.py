"""The chaos suite: a whole fabric under load while things break, and laws that must hold afterwards (docs/chaos.md)."""
