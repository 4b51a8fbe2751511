"""The texts and categories that a user gives with an image. Imports no torch, so that --help is fast."""

from common.predict.fields import Field

FIELDS = (
    Field("objects", "category of each box, one of the 80 of COCO without spaces", "texts"),
    Field("question", "the question; [2] or [1,2] stand for boxes, numbered from 1"),
    Field("answers", "the choices, written like the question", "texts"),
    Field("rationales", "the choices for a model of QA2R: reasons for the answer", "texts", required=False),
    Field("answer", "the number, from 1, of the answer that the rationales explain", "number", required=False),
    Field(
        "polygons",
        "outlines of each box, lists of [x, y]; without them the mask is the whole box",
        "json",
        required=False,
    ),
)
