"""What a run will need, before it runs: memory, FLOP, time, bytes between ranks."""
