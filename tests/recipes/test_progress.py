"""The line that a refresh adds to the progress of a recipe."""

from types import SimpleNamespace

from hf_balancemix.recipe.progress import Progress, refresh_text

REFINED = {
    "clean": 0.8572,
    "relabelled": 0.0131,
    "ambiguous": 0.1297,
    "relabel_flips": 0.00384,
    "mean_posterior": 0.84881,
    "effective_sample_share": 0.9912,
    "refresh_seconds": 1.234,
    "sampling_max": 1.5,
}


def test_what_is_known_is_said():
    assert refresh_text(REFINED) == (
        "85.7% clean, 1.3% relabelled, 13.0% ambiguous, 0.38% flipped, mean posterior 0.849, effective sample 99.1%, "
        "refresh 1.2 s"
    )
    assert refresh_text({"effective_sample_share": 0.5, "refresh_seconds": 0.0}) == (
        "effective sample 50.0%, refresh 0.0 s"
    )
    assert refresh_text({"loss": 1.0}) == ""
    assert refresh_text({"selected_by_first": 0.5, "refresh_seconds": 1.0}) == ""  # of Co-teaching


def test_one_line_per_refresh_by_the_first_process(capsys):
    progress = Progress("a *run* <1>")
    for first in (True, False):
        state = SimpleNamespace(is_world_process_zero=first, epoch=7.0)
        for logs in ({"loss": 0.5}, REFINED, None):
            progress.on_log(None, state, None, logs=logs)
    printed = capsys.readouterr().err.strip().splitlines()
    assert printed == [f"a *run* <1>: epoch 7, {refresh_text(REFINED)}"]
