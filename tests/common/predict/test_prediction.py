"""Slots of a sequence and ranks of answers."""

from __future__ import annotations

import torch

from common.predict.prediction import Slot, ranked, region_names, sequence_slots


def test_slots_number_words_by_their_pieces():
    slots = sequence_slots(["[CLS]", "play", "##ing", "dog", "[SEP]"], ["image", "1"])
    assert slots == [
        Slot("special", "[CLS]"),
        Slot("word", "play", 0),
        Slot("word", "##ing", 0),
        Slot("word", "dog", 1),
        Slot("special", "[SEP]"),
        Slot("image", "image", box=0),
        Slot("region", "1", box=1),
        Slot("end", "[END]"),
    ]


def test_ranked_keeps_the_order_of_ties():
    assert ranked(torch.tensor([0.1, 0.4, 0.4]), 2) == [(1, 0.4), (2, 0.4)]


def test_regions_have_numbers_and_the_whole_image_has_none():
    assert region_names(3, image_box=True) == ["image", "1", "2"]
    assert region_names(2, image_box=False) == ["1", "2"]
