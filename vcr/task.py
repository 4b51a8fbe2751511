"""Visual commonsense reasoning as a task: question to answer, or question and answer to rationale (paper §4.2.1)."""

from common.task import Task
from vcr.dataset import build_dataset
from vcr.made_up import MADE_UP
from vcr.module import build_model
from vcr.outputs import build_metrics, result_name, to_records, write_results
from vcr.predictor import VCRPredictor
from vcr.pretrained import adapt_pretrained

TASK = Task(
    name="vcr",
    modules={"": build_model, "ResNetVLBERT": build_model},
    build_dataset=build_dataset,
    build_metrics=build_metrics,
    main_metric=lambda cfg: "Acc",
    to_records=to_records,
    write_results=write_results,
    result_name=result_name,
    result_stem=lambda cfg, yaml_stem: cfg.MODEL_PREFIX or yaml_stem,
    adapt_pretrained=adapt_pretrained,
    predictor=VCRPredictor,
    made_up=MADE_UP,
    loss_scale_range=(128.0, None),
)
