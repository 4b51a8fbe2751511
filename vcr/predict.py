"""Choose an answer, or the reason for one, about an image.

python -m vcr.predict --ckpt FILE --image a.jpg --boxes-json "[[10, 20, 90, 200]]" --objects person \
    --question "What is [1] doing ?" --answers "[1] is eating ." "[1] is asleep ."
"""

from common.predict.cli import predict
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

if __name__ == "__main__":
    predict("vcr", FIELDS)
