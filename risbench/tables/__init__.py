"""Tables: the comparison, the papers' tables, published numbers beside measured ones."""
