"""The inputs of this task's predictor beside the image and its boxes. Imports no torch: `--help` shows them."""

from common.predict.fields import Field

FIELDS = (
    Field("caption", "a caption; every [MASK] in it is filled in"),
    Field("hide", "numbers of boxes, from 1, whose appearance the model does not see", "numbers", required=False),
)
