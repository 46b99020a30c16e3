"""How one model is trained: data, objective, optimizer, step, checkpoint, loop."""
