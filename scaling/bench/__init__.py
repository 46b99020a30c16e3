"""How fast training is here, and how its cost grows."""
