"""Figures of a run: what follows from them."""

from fedpress.simulations.results.records import (
    MEASURED,
    LayerDensity,
    ModelInfo,
    Results,
    RoundResult,
    Totals,
)


def results(**changes: object) -> Results:
    """Results of a run of one round."""
    base = Results(
        scenario={"name": "digits"},
        seed=1,
        status="finished",
        rounds=[RoundResult(round=1, accuracy=0.5, loss=1.0, up_bytes=10, down_bytes=20, replies=2, refused=0)],
        totals=Totals(up_bytes=10, down_bytes=20, dense_up_bytes=1000, dense_down_bytes=1000),
        model=ModelInfo(parameters=250, sha256="00"),
        accuracy=0.5,
        seconds=1.5,
    )
    return base.model_copy(update=changes)


def test_ratios_compare_with_dense_messages() -> None:
    totals = Totals(up_bytes=10, down_bytes=0, dense_up_bytes=2500, dense_down_bytes=1000)
    assert totals.up_ratio == 250
    assert totals.down_ratio is None


def test_layer_density_is_a_fraction_of_the_tensor() -> None:
    assert LayerDensity(name="weight", size=200, sent=3).density == 0.015
    assert LayerDensity(name="empty", size=0, sent=0).density == 0


def rounds(*changes: dict[str, object]) -> list[RoundResult]:
    first = results().rounds[0]
    return [first.model_copy(update={"round": number, **change}) for number, change in enumerate(changes, 1)]


def test_bytes_of_both_directions_leave_the_students_out() -> None:
    totals = Totals(up_bytes=10, down_bytes=90, dense_up_bytes=1, dense_down_bytes=1, bundle_bytes=40)
    assert totals.both_bytes == 60


def test_rounds_after_which_the_mask_was_another() -> None:
    versions = [0, 1, 1, 2, 2, 3]
    found = results(rounds=rounds(*({"mask_version": version} for version in versions))).new_masks
    assert [result.round for result in found] == [2, 4, 6]
    sparse_from_the_start = results(rounds=rounds({"mask_version": 1}, {"mask_version": 1}))
    assert [result.round for result in sparse_from_the_start.new_masks] == [1]


def test_staleness_is_a_mean_over_replies_and_synchronous_rounds_have_none() -> None:
    buffered = results(
        rounds=rounds(
            {"replies": 1, "staleness": 4.0, "max_staleness": 4},
            {"replies": 3, "staleness": 0.0, "max_staleness": 0},
            {"replies": 9},  # nothing accepted has a staleness here
        )
    )
    assert (buffered.flushes, buffered.staleness) == (2, (1.0, 4))
    assert (results().flushes, results().staleness) == (0, (0.0, 0))


def test_split_and_name_are_those_of_the_scenario_or_the_defaults() -> None:
    chosen = results(scenario={"name": "mine", "evaluation": {"split": "validation"}})
    assert (chosen.name, chosen.split) == ("mine", "validation")
    assert (results(scenario={}).name, results(scenario={}).split) == ("run", "test")


def test_what_is_measured_is_left_out_of_a_comparison() -> None:
    slow, quick = results(seconds=9.0, phases={"merge": 3.0}), results(seconds=1.0, worker_phases={"training": 1.0})
    assert slow != quick and slow.model_dump(exclude=MEASURED) == quick.model_dump(exclude=MEASURED)
