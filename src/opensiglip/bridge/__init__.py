"""For other people's code: SigLIP 2's loss in their training loops, our models in their benchmarks."""
