"""The expression that a user gives with an image. Imports no torch, so that --help is fast."""

from common.predict.fields import Field

FIELDS = (Field("expression", "the words that refer to one of the boxes"),)
