"""Fill in masked words: python -m pretrain.predict --ckpt FILE --image a.jpg --caption "a [MASK] on a table" """

from common.predict.cli import predict
from common.predict.fields import Field

FIELDS = (
    Field("caption", "a caption; every [MASK] in it is filled in"),
    Field("hide", "numbers of boxes, from 1, whose appearance the model does not see", "numbers", required=False),
)

if __name__ == "__main__":
    predict("pretrain", FIELDS)
