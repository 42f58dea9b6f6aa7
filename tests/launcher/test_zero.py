"""The same curve at every ZeRO stage, for one rank and two: real runs of gin/smoke.gin, compared step by step."""

import itertools

import numpy as np
import pytest

pytestmark = pytest.mark.launcher

STEPS = 6
# With samples, which at ZeRO 3 gather weights from all ranks. tests/launcher/test_commands.py looks at the same runs.
SHORT = (
    "run.total_tokens = 6144", "logging.every = 1024", "sampling.every = 4096", "sampling.length = 8",
    "run.extra_losses = [@loss.attribution]", "loss.attribution.weight = 0.5",
)  # fmt: skip
CURVES = ("train/loss", "train/loss_lod0", "mc/tail_delta", "mc/lens_loss")

# In float32. Measured over these steps: at most 5e-7, whatever the stage and the number of ranks.
ADAMW_TOLERANCE = 1e-3
# Same setting, same seed, run twice: no difference. One rank against two, which sum in another order: 1.4e-6 at most in
# train/loss, 5e-7 in train/loss_lod0, 4e-8 in mc/tail_delta, at each of the four stages alike; between stages: none.
# Muon orthogonalises in bfloat16, where a rounding may fall the other way on another processor: two orders for that.
MUON_TOLERANCE = 1e-4

# (optimizer, ZeRO stage, ranks), each compared with ZeRO 0 on one rank. ZeRO 2 is below, with offload; on two ranks it
# is what test_resume.py interrupts.
FEW = [("adamw", 1, 2), ("adamw", 3, 2), ("muon", 3, 2)]
LAUNCHED = [("adamw", 0, 1), ("adamw", 3, 2)]
ALL = list(itertools.product(("adamw", "muon"), (0, 1, 2, 3), (1, 2)))


def run(launches, optimizer, stage, ranks, launcher):
    settings = (*SHORT, f"run.optimizer = @optimizer.{optimizer}", f"deepspeed.zero_stage = {stage}")
    result = launches.shared(*settings, ranks=ranks, launcher=launcher).succeeded()
    for name in CURVES:
        assert len(result.curve(name)) == STEPS
    return result


def difference(result, reference, name):
    pairs = zip(result.curve(name), reference.curve(name), strict=True)
    return max(abs(one - other) for one, other in pairs)


def assert_equal_curves(launches, optimizer, stage, ranks, launched):
    result = run(launches, optimizer, stage, ranks, launched(optimizer, stage, ranks))
    reference = run(launches, optimizer, 0, 1, launched(optimizer, 0, 1))
    tolerance = {"adamw": ADAMW_TOLERANCE, "muon": MUON_TOLERANCE}[optimizer]
    differences = {name: difference(result, reference, name) for name in CURVES}
    assert all(value <= tolerance for value in differences.values()), differences
    # It is the loss of a model that learns, not a constant.
    losses = result.curve("train/loss_lod0")
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize(("optimizer", "stage", "ranks"), FEW)
def test_a_covering_few_agree(launches, optimizer, stage, ranks):
    # Every process that the launcher adds costs seconds of imports; test_all_agree uses it throughout.
    assert_equal_curves(launches, optimizer, stage, ranks, lambda *setting: setting in LAUNCHED)


@pytest.mark.matrix
@pytest.mark.parametrize(("optimizer", "stage", "ranks"), ALL)
def test_all_agree(launches, optimizer, stage, ranks):
    assert_equal_curves(launches, optimizer, stage, ranks, lambda *setting: True)


def test_the_weights_of_every_module_are_seen_to_move_alike(launches):
    """At ZeRO 3 each rank looks at a sample of its own partition: another estimate of the same change."""
    whole, shared, parted = (
        run(launches, "adamw", *which, ("adamw", *which) in LAUNCHED) for which in ((0, 1), (1, 2), (3, 2))
    )
    names = [name for name in whole.metrics[1024] if name.startswith("train/update_ratio/")]
    assert {"gpt.token_embed", "gpt.blocks.1", "gistnet", "lensnet.layers.0"} <= {n.split("/")[2] for n in names}
    for name in names:
        reference = np.array(whole.curve(name))
        assert (reference > 1e-4).all()
        assert np.allclose(shared.curve(name), reference, rtol=1e-3)
        assert np.allclose(parted.curve(name), reference, rtol=0.2)


def test_the_report_says_what_was_chosen(launches):
    words = run(launches, "muon", 3, 2, False).words
    assert "ZeRO 3, fp32" in words
    assert "no clipping (it would act on Muon's orthogonalised update)" in words
    assert "Muon at learning rate 0.02" in words
    assert "AdamW at learning rate 0.003" in words
    assert "2 on cpu; micro-batches of 4 sequences, 1 a step" in words


@pytest.mark.parametrize(
    ("settings", "tolerance", "tolerance_lens"),
    [
        # At ZeRO 3, where every module is used more than once: what reentrant checkpointing asserts on.
        pytest.param(
            ("run.micro_batch = 1", "gpt.activation_checkpointing = True", "deepspeed.zero_stage = 3"),
            1e-3,
            1e-3,
            id="accumulation and checkpointing",
        ),
        pytest.param(("deepspeed.zero_stage = 2", "deepspeed.offload_optimizer = True"), 1e-3, 1e-3, id="offload"),
        # Eight bits of mantissa; measured: 1.2e-3. Without float32 master weights it would be 0.2, as with DeepSpeed's
        # ZeRO 0. LensNet's loss, 1.3e-2: of two contexts equally good but for rounding, either may be the better one.
        pytest.param(("deepspeed.zero_stage = 1", "deepspeed.precision = 'bf16'"), 1e-2, 5e-2, id="bf16"),
    ],
)
def test_what_should_not_matter_does_not(launches, settings, tolerance, tolerance_lens):
    reference, result = run(launches, "adamw", 0, 1, True), launches.run(*SHORT, *settings).succeeded()
    differences = {name: difference(result, reference, name) for name in CURVES}
    lens = differences.pop("mc/lens_loss")
    assert lens <= tolerance_lens, lens
    assert all(value <= tolerance for value in differences.values()), differences
    if "run.micro_batch = 1" in settings:
        assert result.curve("train/grad_accum_steps") == [8.0] * STEPS
        assert reference.curve("train/grad_accum_steps") == [2.0] * STEPS
    if "deepspeed.precision = 'bf16'" in settings:
        assert max(differences.values()) > 1e-5  # or it was float32 after all
