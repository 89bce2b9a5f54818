"""`opensiglip bench`: the measurements behind this project's claims on speed, each beside its peers."""

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
    "decoding",
    "embed",
    "features",
    "memory",
    "plan",
    "search",
    "serve",
)
