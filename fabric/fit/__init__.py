"""Hardware fit: what a model needs in memory, part by part, and what there is. Pure but for the reading of headers."""
