"""Score your own model. Here the prediction for every expression is the whole image: put your model in its place.

It needs `pip install .` in a clone of risbench, and neither torch nor a GPU. `mini` is generated on first use. For
RefCOCO, write "refcoco" instead and set RISBENCH_DATA to the folder of its files.
"""

from pathlib import Path

import numpy as np
from PIL import Image

import risbench


def segment(image: Path, expression: str) -> np.ndarray:
    """Return the predicted mask of the referent, bool (height, width)."""
    with Image.open(image) as picture:
        return np.ones((picture.height, picture.width), dtype=bool)


expressions = risbench.expressions("mini", "val")
masks = ((expression.sent_id, segment(expression.image, expression.sent)) for expression in expressions)
metrics = risbench.score(masks, "mini", "val")

low, high = metrics["intervals"]["oIoU"]
print(f"{metrics['n']} expressions: oIoU {metrics['oIoU']:.2f} [{low:.2f}, {high:.2f}], mIoU {metrics['mIoU']:.2f}")
