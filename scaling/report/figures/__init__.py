"""Figures, sized and set for a paper."""
