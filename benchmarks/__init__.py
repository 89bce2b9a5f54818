"""`opensiglip bench`: measurements of speed and memory against other libraries."""

# A file each, whose function `bench` is the command.
BENCHES = (
    "sigmoid",
    "lm-head",
    "decoder",
    "step",
    "input",
    "order",
    "ranks",
    "attention",
    "muon",
    "decoding",
    "embed",
    "features",
    "gpu",
    "memory",
    "plan",
    "search",
    "serve",
)
