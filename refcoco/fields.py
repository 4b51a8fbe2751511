"""The inputs of this task's predictor beside the image and its boxes. Imports no torch: `--help` shows them."""

from common.predict.fields import Field

FIELDS = (Field("expression", "words for one of the boxes"),)
