"""Answer questions about pictures: python -m vqa.predict --ckpt FILE --image a.jpg --question "what is this?" """

from common.fields import Field
from common.predict_cli import predict

FIELDS = (Field("question", "what is asked about the picture"),)

if __name__ == "__main__":
    predict("vqa", FIELDS)
