"""The inputs of this task's predictor beside the image and its boxes. Imports no torch: `--help` shows them."""

from common.predict.fields import Field

FIELDS = (
    Field("objects", "category of each box, one of the 80 of COCO without spaces", "texts"),
    Field("question", "what is asked; [2] or [1,2] stand for boxes, numbered from 1"),
    Field("answers", "the choices, written like the question", "texts"),
    Field("rationales", "the choices for a model of QA2R: reasons for the answer", "texts", required=False),
    Field("answer", "which of several answers the rationales are for, from 1", "number", required=False),
    Field(
        "polygons", "outlines of each box, lists of [x, y]; without them a box is seen whole", "json", required=False
    ),
)
