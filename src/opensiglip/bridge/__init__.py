"""For people who have a training loop of their own, or transformers' Trainer, and want SigLIP 2's loss in it."""
