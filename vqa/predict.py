"""Prediction of answers: python -m vqa.predict --ckpt FILE --image a.jpg --question "what is this?" """

from common.predict.cli import predict_main
from vqa.fields import FIELDS

if __name__ == "__main__":
    predict_main("vqa", FIELDS)
