"""Pretrain VL-BERT: python pretrain/train_end2end.py --cfg cfgs/pretrain/base_prec_4x16G_fp32.yaml"""

from common.cli import train

if __name__ == "__main__":
    train("pretrain")
