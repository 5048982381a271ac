"""Train, score and compare referring image segmentation methods on the RefCOCO family."""

__version__ = "0.1.0"
