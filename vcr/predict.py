"""Prediction of answers, or of rationales for an answer, from a list of choices.

python -m vcr.predict --ckpt FILE --image a.jpg --boxes-json "[[10, 20, 90, 200]]" --objects person \
    --question "What is [1] doing ?" --answers "[1] is eating ." "[1] is asleep ."
"""

from common.predict.cli import predict_main
from vcr.fields import FIELDS

if __name__ == "__main__":
    predict_main("vcr", FIELDS)
