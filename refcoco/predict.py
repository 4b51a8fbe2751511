"""Find what an expression means: python -m refcoco.predict --ckpt FILE --image a.jpg --expression "the left one" """

from common.predict.cli import predict
from common.predict.fields import Field

FIELDS = (Field("expression", "words for one of the boxes"),)

if __name__ == "__main__":
    predict("refcoco", FIELDS)
