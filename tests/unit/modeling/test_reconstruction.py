"""The reconstruction loss: inputs of a predicted token, number of groups, stages of the curriculum."""

import pytest
import torch

from mcframe.hookspecs import ModelShape, StepView
from mcframe_plugins.loss.reconstruction import Reconstruction
from tests.support.loss_config import LossConfig
from tests.support.modeling_builders import TREE, VOCABULARY, geometry_of, random_tokens, step_of_fixed_variants


def reconstructed(step, tokens, blocks):
    model, loss = step.model, step.reconstruction
    loss.stages, loss.stage = (blocks,), 0
    passed = model.uncompressed_pass(tokens)
    table = model.node_table(passed.embeddings, passed.gist_inputs, passed.inputs)
    gpt, seeds = model.gpt, torch.tensor([[1], [2], [3]])
    return loss.reconstruct(StepView(model.tree, passed, table, None, seeds, gpt.nll, gpt.logits, gpt.hidden))


def test_a_token_is_predicted_from_the_gists_and_the_tokens_before_it():
    step, *_ = step_of_fixed_variants(3, settings=LossConfig(reconstruction=1.0, fraction=1.0), gistnet="mean")
    tokens = random_tokens(TREE, 3, 0)
    before = reconstructed(step, tokens, 2)
    assert before.shape == (3, 4, 6)
    step.gistnet.register_forward_hook(lambda _, __, gists: gists * 0 + 1)
    blind = reconstructed(step, tokens, 2)
    assert ((blind - before).abs() > 1e-6).float().mean() > 0.9
    # With constant gists the last token of a group is a target and no input.
    other = tokens.clone()
    other[:, 5:24:6] = (other[:, 5:24:6] + 1) % VOCABULARY
    moved = (reconstructed(step, other, 2) - blind).abs() > 1e-6
    assert moved[..., -1].all()
    assert not moved[..., :-1].any()


@pytest.mark.parametrize(
    ("fraction", "blocks", "groups"), [(1.0, 1, 9), (0.5, 1, 4), (0.5, 2, 2), (0.01, 4, 1), (1.0, 4, 2)]
)
def test_a_fraction_of_the_groups_is_reconstructed(fraction, blocks, groups):
    step, *_ = step_of_fixed_variants(3, settings=LossConfig(reconstruction=1.0, fraction=fraction))
    assert reconstructed(step, random_tokens(TREE, 3, 0), blocks).shape == (3, groups, 3 * blocks)


def test_stages_divide_training_equally():
    def blocks_of(stages, progress):
        loss = Reconstruction(ModelShape(16, geometry_of(TREE)), blocks=stages)
        loss.begin_step(progress)
        return loss.stages[loss.stage]

    assert [blocks_of((1, 2, 4), step / 8) for step in range(9)] == [1, 1, 1, 2, 2, 2, 4, 4, 4]
    assert blocks_of((3,), 1.0) == 3
