"""Programs compiled for devices that are not here: do they fit, and what do they permit?"""
