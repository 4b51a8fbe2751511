"""What the detector finds in one image."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from common.regions.class_names import region_labels
from common.regions.regions import Regions


@dataclass
class Detections:
    """The R boxes of one image that are kept, on the CPU, float32.

    boxes: [R, 4] xyxy in pixels of the image as stored, the proposals. class_scores: [R, 1601], probabilities,
    background in column 0. attribute_scores: [R, 401], probabilities, "no attribute" in column 0.
    features: [R, 2048] ("pool5"). objectness: [R], of the proposal. confidence: [R], of the selection.
    refined_boxes: [R, 4], `boxes` regressed for the best object class and clipped to the image, for display.
    """

    boxes: Tensor
    class_scores: Tensor
    attribute_scores: Tensor
    features: Tensor
    objectness: Tensor
    confidence: Tensor
    refined_boxes: Tensor

    @property
    def labels(self) -> list[str]:
        """The best class and attribute of each box for display, such as "brown dog 0.87"."""
        return region_labels(
            Regions(self.boxes, class_scores=self.class_scores, attribute_scores=self.attribute_scores)
        )

    def __len__(self) -> int:
        return len(self.boxes)
