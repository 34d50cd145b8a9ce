"""mAP@0.5 against cases computed by hand."""

from __future__ import annotations

import pytest
import torch

from sample_models.yolov3_boxes import Detections
from sample_models.yolov3_metric import average_precision, match, mean_average_precision


def boxes(*corners: tuple[float, float, float, float]) -> torch.Tensor:
    return torch.tensor(corners, dtype=torch.float32).reshape(-1, 4)


def found(of: torch.Tensor, scores: list[float], labels: list[int]) -> Detections:
    return Detections(of, torch.tensor(scores), torch.tensor(labels, dtype=torch.int64))


SQUARE, RIGHT_OF_IT, FAR = (0, 0, 10, 10), (5, 0, 15, 10), (50, 50, 60, 60)


def test_average_precision_matches_the_hand_computed_curve() -> None:
    # right, wrong, right, right, wrong of 4 boxes: precision 1, 1/2, 2/3, 3/4, 3/5 at recall 1/4, 1/4, 2/4, 3/4, 3/4.
    # Made non-increasing: 1, 3/4, 3/4, 3/4, 3/5. Area: 1/4 * 1 + 1/4 * 3/4 + 1/4 * 3/4 = 0.625.
    is_right = [True, False, True, True, False]

    assert average_precision([0.9, 0.8, 0.7, 0.6, 0.5], is_right, num_truth=4) == pytest.approx(0.625)


def test_average_precision_orders_by_score() -> None:
    assert average_precision([0.1, 0.9], [False, True], num_truth=1) == 1.0
    assert average_precision([0.9, 0.1], [False, True], num_truth=1) == 0.5


def test_average_precision_without_detections_is_0() -> None:
    assert average_precision([], [], num_truth=3) == 0.0


def test_match_second_detection_of_a_box_is_wrong() -> None:
    assert match(boxes(SQUARE, SQUARE), boxes(SQUARE)) == [True, False]


def test_match_takes_the_free_box_that_overlaps_most() -> None:
    # the first detection takes the square; the second, IoU 9/11 with the square, has only the far box left
    assert match(boxes(SQUARE, (0, 0, 9, 10)), boxes(SQUARE, FAR)) == [True, False]


@pytest.mark.parametrize(("width", "is_right"), [(5.0, True), (4.9, False)])
def test_match_needs_half_of_the_union(width: float, is_right: bool) -> None:
    assert match(boxes((0, 0, width, 10)), boxes(SQUARE)) == [is_right]


def test_match_without_true_boxes_is_wrong() -> None:
    assert match(boxes(SQUARE), boxes()) == [False]


def test_mean_average_precision_is_100_for_the_truth_itself() -> None:
    truth, labels = boxes(SQUARE, FAR), torch.tensor([3, 7])

    assert mean_average_precision([found(truth, [0.9, 0.2], [3, 7])], [truth], [labels]) == 100.0


def test_mean_average_precision_of_two_canvases_and_classes_by_hand() -> None:
    # Class 1: scores .9 right (canvas 0), .8 wrong (canvas 1, IoU 1/3), of 2 true boxes: area 1/2.
    # Class 2: the only detection has the wrong class 1 elsewhere (.3, wrong): area 0. Class 5 does not occur.
    first = found(boxes(SQUARE, FAR), [0.9, 0.3], [1, 1])
    second = found(boxes(SQUARE, SQUARE), [0.8, 0.99], [1, 5])

    value = mean_average_precision(
        [first, second], [boxes(SQUARE, FAR), boxes(RIGHT_OF_IT)], [torch.tensor([1, 2]), torch.tensor([1])]
    )

    assert value == pytest.approx(25.0)
