"""Train VL-BERT on one half of VCR: python vcr/train_end2end.py --cfg cfgs/vcr/base_q2a_4x16G_fp32.yaml"""

from common.cli import train

if __name__ == "__main__":
    train("vcr")
