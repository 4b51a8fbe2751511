"""Train VL-BERT on VQA: python vqa/train_end2end.py --cfg cfgs/vqa/base_4x16G_fp32.yaml"""

from common.cli import train

if __name__ == "__main__":
    train("vqa")
