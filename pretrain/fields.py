"""The caption and the hidden boxes that a user gives beside the image. Imports no torch, so that --help is fast."""

from common.predict.fields import Field

FIELDS = (
    Field("caption", "a caption; every [MASK] in it is filled in"),
    Field("hide", "numbers, from 1, of boxes whose features are hidden from the model", "numbers", required=False),
)
