"""The question that a user asks about an image. Imports no torch, so that --help is fast."""

from common.predict.fields import Field

FIELDS = (Field("question", "the question about the image"),)
