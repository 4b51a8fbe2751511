"""Find what an expression means: python -m refcoco.predict --ckpt FILE --image a.jpg --expression "the left one" """

from common.fields import Field
from common.predict_cli import predict

FIELDS = (Field("expression", "words for one of the boxes"),)

if __name__ == "__main__":
    predict("refcoco", FIELDS)
