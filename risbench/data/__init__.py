"""Annotations, images and text of a data set, and the loader that makes batches of them."""
