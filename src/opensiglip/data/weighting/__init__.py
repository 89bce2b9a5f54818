"""How often each example is read: the file of weights, and what writes one."""
