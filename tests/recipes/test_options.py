"""Options that do not belong together, and those that follow from others: known before data are read."""

import pytest

from hf_balancemix.recipe import RECIPES
from hf_balancemix.recipe.command import read_command
from tests import tiny

CYCLE = "no --{} with --one_cycle, which is a schedule of its own"


def read(name, *words):
    return read_command(RECIPES[name], ["--use_cpu", "--output_dir=out", *words])


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (
            ["--method=balancemix", "--loss=ll_r"],
            ("`loss` bce, focal or asl", "found 'll_r'", "methods ll_r and ll_ct"),
        ),
        (["--methods", "balancemix", "balancemix_no_minority", "--loss=ll_ct"], ("found 'll_ct'",)),
        (["--method=balancemix", "--second_sampler=none"], ("--second_sampler minority with method", "found none")),
        (["--method=co_teaching", "--second_sampler=random"], ("--second_sampler batch with method", "found random")),
        (["--one_cycle", "--warmup_steps=10"], (CYCLE.format("warmup_steps"), "Leave one out")),
        (["--one_cycle", "--lr_scheduler_type=linear"], (CYCLE.format("lr_scheduler_type"),)),
        (["--one_cycle", "--lr_scheduler_kwargs={}"], (CYCLE.format("lr_scheduler_kwargs"),)),
    ],
)
def test_refused(words, parts):
    tiny.refused(ValueError, parts, read, "digits", *words)


def test_what_belongs_together():
    read("digits", "--method=balancemix", "--loss=asl")
    read("folder", "--one_cycle")  # the recipe's own schedule is none that was asked for
    read("digits", "--do_eval", "--method=balancemix", "--loss=ll_r")  # nothing is trained


@pytest.mark.parametrize("name", ["digits", "voc"])
def test_the_rate_of_large_losses_follows_the_epochs(name):
    """A recipe's own rate is made for its own epochs; for others it is left to the rule, 2 / epochs."""
    defaults = RECIPES[name].defaults
    own, epochs = defaults["large_loss_rate"], defaults["num_train_epochs"]
    words = [[], [f"--num_train_epochs={epochs}"], ["--num_train_epochs=3"], ["--max_steps=9"]]
    assert [read(name, "--method=ll_r", *more).args.large_loss_rate for more in words] == [own, own, None, None]
    given = read(name, "--method=ll_r", "--num_train_epochs=3", "--large_loss_rate=0.7")
    assert given.args.large_loss_rate == 0.7
