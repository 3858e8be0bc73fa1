"""The shares of pixels, labels and case mix, in worlds whose answer is known."""

import numpy as np
import pytest

from chexreason.evaluation import layers


def test_a_fall_of_one_layer_is_all_that_layer_s():
    cells = np.full((2, 2, 2), 0.8)
    cells[:, 1] = 0.5  # labels of the other hospital
    assert layers.shapley(cells) == pytest.approx([0, 0.3, 0])


def test_layers_that_add_up_have_their_own_effects():
    pixels, labels, cases = np.meshgrid([0, 1], [0, 1], [0, 1], indexing="ij")
    assert layers.shapley(0.9 - 0.1 * pixels - 0.2 * labels - 0.05 * cases) == pytest.approx([0.1, 0.2, 0.05])


def test_layers_that_act_only_together_share_equally():
    cells = np.ones((2, 2, 2))
    cells[1, 1, 1] = 0.4
    assert layers.shapley(cells) == pytest.approx([0.2, 0.2, 0.2])


def test_shares_add_up_to_the_fall_whatever_the_cells():
    cells = np.random.default_rng(0).random((50, 2, 2, 2))
    assert layers.shapley(cells).sum(axis=-1) == pytest.approx(cells[:, 0, 0, 0] - cells[:, 1, 1, 1])
