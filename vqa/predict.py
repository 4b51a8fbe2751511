"""Answer questions about images: python -m vqa.predict --ckpt FILE --image a.jpg --question "what is this?" """

from common.predict.cli import predict
from common.predict.fields import Field

FIELDS = (Field("question", "what is asked about the image"),)

if __name__ == "__main__":
    predict("vqa", FIELDS)
