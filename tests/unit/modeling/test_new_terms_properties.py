"""What holds of the newer terms of a step whatever their numbers: who learns, what is read back, how a batch is cut."""

import pytest
import torch

from mcframe.modeling.model import MegaContextModel
from mcframe_plugins.variants import RandomCollapse
from tests.support.loss_config import LossConfig
from tests.support.modeling_builders import (
    TREE,
    VOCABULARY,
    Given,
    Step,
    assemble,
    build_step,
    equal_lengths,
    geometry_of,
    random_tokens,
    seeds_for,
)
from tests.support.real_step import LENGTH, Operations, no_reads, real_step
from tests.support.step_checks import check_everything_learns, random_mask

NOTHING = dict.fromkeys(("next_token", "variants", "delta_penalty", "lens"), 0.0)
ALL = LossConfig(distillation=1.0, contrast=2.0, reconstruction=0.5, condition="drop")


def full_step(settings: LossConfig = ALL, tree=TREE) -> Step:
    """Build real parts with every pass that losses can require."""
    return real_step(tree, settings, gist_bias=-1.0)


def reached(model: Step) -> set[str]:
    return {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.count_nonzero())}


# ---- who learns -----------------------------------------------------------------------------------
def test_everything_learns():
    model, tokens = full_step(), random_tokens(TREE, 4, 0)
    mask = random_mask(TREE, 4, 0)
    mask[-1] = True
    check_everything_learns(
        model, lambda i: model(tokens, seeds_for(4, 2) + 100 * i, LENGTH, mask, 1 + i % 2)[0], model.parameters(), 6
    )


def test_distillation_alone_trains_base_model_gistnet_and_bias():
    model = build_step(
        TREE,
        RandomCollapse(geometry_of(TREE)),
        settings=LossConfig(**NOTHING, distillation=1.0),
        lensnet="transformer",
        gist_bias=0.1,
    )
    model(random_tokens(TREE, 4, 0), seeds_for(4, 2), LENGTH)[0].backward()
    learned = reached(model)
    everything = {n for n, _ in model.named_parameters() if not n.startswith("model.lensnet.")}
    assert learned == everything


def test_reconstruction_alone_trains_base_model_and_gistnet():
    settings = LossConfig(**NOTHING, reconstruction=1.0)
    model = build_step(TREE, RandomCollapse(geometry_of(TREE)), settings=settings, lensnet="transformer", gist_bias=0.1)
    model(random_tokens(TREE, 4, 0), seeds_for(4, 2), LENGTH)[0].backward()
    learned = reached(model)
    assert "losses.reconstruction.begin_embed" in learned
    everything = {n for n, _ in model.named_parameters() if not n.startswith("model.lensnet.")}
    assert learned == everything
    # LOD1 alone is told from: what is of LOD2 gets nothing.
    assert model.gistnet.lod_embed.grad[0].any()
    assert not model.gistnet.lod_embed.grad[1].any()


def test_the_contrast_is_a_weight_and_no_way_for_a_gradient():
    """What dropping costs is measured without a graph: its forward passes leave no trace in the gradient."""
    gradients = []
    for contrast in (0.0, 1e-9):
        settings = LossConfig(**NOTHING, distillation=1.0, contrast=contrast)
        model = build_step(TREE, RandomCollapse(geometry_of(TREE)), settings=settings)
        model(random_tokens(TREE, 3, 0), seeds_for(3, 2), LENGTH)[0].backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*gradients)


def test_the_teacher_of_the_distillation_does_not_learn():
    """What the variant does not read gets no gradient: tokens inside collapsed blocks teach and do not learn."""
    focuses = [[[1, 0, 0, 0, 0, 0, 0, 0, 0]]]
    settings = LossConfig(**NOTHING, distillation=1.0)
    model = build_step(TREE, Given(focuses), settings=settings, gistnet=None)
    tokens = torch.arange(TREE.window + 1)[None] % VOCABULARY
    tokens[:, 3:] = 3 + tokens[:, 3:] % (VOCABULARY - 3)  # tokens 0 to 2 stand in the collapsed block alone
    model(tokens, seeds_for(1, 1), TREE.window - 2)[0].backward()
    gradient = model.gpt.token_embed.weight.grad
    assert not gradient[:3].any()
    assert gradient[3:].any(dim=1).all()


def test_a_part_that_is_not_trained_gets_no_gradient_and_passes_one_on():
    model = full_step()
    model.gpt.requires_grad_(False)
    before = {n: p.clone() for n, p in model.gpt.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(3):
        optimizer.zero_grad()
        model(random_tokens(TREE, 4, 0), seeds_for(4, 2) + step, LENGTH)[0].backward()
        optimizer.step()
    assert all(p.grad is None and torch.equal(p, before[n]) for n, p in model.gpt.named_parameters())


# ---- nothing is read back, nothing loops ----------------------------------------------------------
@pytest.mark.parametrize("gistless", [False, True])
def test_nothing_waits_for_the_device(gistless):
    model = full_step()
    if gistless:
        model = assemble(MegaContextModel(model.gpt, None, None, model.strategy, model.tree), ALL)
    tokens, seeds, mask = random_tokens(TREE, 3, 0), seeds_for(3, 2), random_mask(TREE, 3, 0)
    model(tokens, seeds, LENGTH, mask, 2)  # fills caches
    with no_reads() as operations:
        model(tokens, seeds, LENGTH, mask, 2)[0].backward()
    assert operations.counts.total() > 100


def test_the_number_of_operations_depends_on_no_size():
    def operations(sequences: int, window: int, length: int, rebuild: int):
        tree = TREE._replace(window=window)
        model = full_step(tree=tree)
        tokens, mask = random_tokens(tree, sequences, 0), random_mask(tree, sequences, 0)
        arguments = (tokens, seeds_for(sequences, 2), length, mask, rebuild)
        model(*arguments)
        with Operations() as counted:
            model(*arguments)[0].backward()
        return counted.counts

    small = operations(2, 29, 21, 2)
    assert operations(6, 29, 21, 2) == small
    assert operations(2, 56, 42, 4) == small


def test_a_step_runs_without_any_data():
    with torch.device("meta"):
        model = full_step()
        tokens = torch.zeros(2, TREE.window + 1, dtype=torch.long)
        mask = torch.ones(2, TREE.window, dtype=torch.bool)
        model(tokens, torch.zeros(2, 2, dtype=torch.long), LENGTH, mask, 2)[0].backward()


# ---- cutting a batch ------------------------------------------------------------------------------
@pytest.mark.parametrize("gistnet", ["transformer", None])
@pytest.mark.parametrize("cut", [1, 2, 3])
@pytest.mark.parametrize(
    "weights",
    [
        {"distillation": 1.0},
        {"distillation": 1.0, "contrast": 5.0},
        {"reconstruction": 1.0},
        {"lens": 1.0, "condition": "drop"},
        {"next_token": 1.0, "variants": 1.0, "delta_penalty": 1.0},
    ],
    ids=lambda weights: "-".join(weights),
)
def test_micro_batches_of_any_size_give_the_same_loss_and_gradient(weights, cut, gistnet):
    settings = LossConfig(**NOTHING | weights)
    tokens, seeds, mask = random_tokens(TREE, 6, 3), seeds_for(6, 2), random_mask(TREE, 6, 3)
    results = []
    for size in (6, cut):
        strategy = RandomCollapse(geometry_of(TREE))
        model = build_step(TREE, strategy, lensnet="transformer", gistnet=gistnet, settings=settings)
        parts = zip(tokens.split(size), seeds.split(size), mask.split(size), strict=True)
        loss = torch.stack([model(t, s, LENGTH, m, 2)[0] for t, s, m in parts]).mean()
        loss.backward()
        results.append((loss, [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]))
    (whole, gradients), (cut_up, others) = results
    torch.testing.assert_close(cut_up, whole, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(others, gradients, atol=1e-5, rtol=1e-4)


def test_a_sequence_is_rebuilt_alike_in_any_batch():
    focuses, length = equal_lengths(TREE, 4, 2, 0)
    settings = LossConfig(**NOTHING, reconstruction=1.0)
    tokens, seeds = random_tokens(TREE, 4, 0), seeds_for(4, 2)
    model = build_step(TREE, Given(focuses), settings=settings)
    whole = model(tokens, seeds, length, None, 2)[1].means["mc/reconstruction_loss"]
    order = torch.tensor([2, 0, 3, 1])
    model.model.strategy = Given([focuses[i] for i in order.tolist()])
    again = model(tokens[order], seeds[order], length, None, 2)[1].means["mc/reconstruction_loss"]
    torch.testing.assert_close(again, whole)
