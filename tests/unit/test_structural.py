"""Effects are found where they are, and nowhere else."""

import numpy as np
import pandas as pd
import pytest
from cohorts import MADE_UP, by_hand, made_up_table
from sklearn.linear_model import PoissonRegressor

from healthgym_utils import structural
from healthgym_utils.schema import (
    ART_FULL_SCHEMA,
    ART_SCHEMA,
    TableError,
    suppressed,
)
from healthgym_utils.simulate import (
    SimulatorParameters,
    _Cohort,
    simulate_art,
    true_effects,
)
from healthgym_utils.structural import (
    ART_REFERENCES,
    KEYS,
    LAG,
    compare_effects,
    effects,
    person_months,
    structural_validity,
)
from healthgym_utils.trajectories import Panel

PATIENTS = 8916
WARDS = {"ventilated": "no"}


def stays(table):
    return table["lactate"] < 1


def ratio_of(found, level, column="hazard_ratio"):
    return found.set_index("level").loc[level, column]


@pytest.fixture(scope="module")
def large():
    """As many patients as the published cohort."""
    return Panel.of(
        simulate_art(PATIENTS, seed=2), ART_FULL_SCHEMA, suppressed
    )


@pytest.fixture(scope="module")
def found(large):
    return effects(large)


# --- Months at risk ---------------------------------------------------------


@pytest.mark.parametrize("lag", [1, LAG])
@pytest.mark.parametrize("run", [1, 2, 3])
def test_person_months_are_those_that_a_loop_finds(run, lag):
    cohort = simulate_art(30, 24, seed=5)
    rows = []
    for position, (_, one) in enumerate(cohort.groupby("PatientID")):
        low, drugs = (one["VL"] < 1000).to_numpy(), one["Base_Drug_Combo"]
        if low[0]:
            continue
        for month in range(1, 24 - run + 1):
            event = bool(low[month : month + run].all())
            if month >= lag:
                row = (position, month, event, drugs.iloc[month - lag])
                rows.append(row)
            if event:
                break
    table = person_months(
        cohort.sample(frac=1, random_state=0),
        features=["Base_Drug_Combo"],
        run=run,
        lag=lag,
    )
    assert list(table.itertuples(index=False, name=None)) == rows
    assert table["event"].any()


def test_drugs_are_looked_up_before_nine_in_ten_responses():
    """The lag is what the simulated cohort asks for, and no longer."""
    cohort = _Cohort(3000, 4, SimulatorParameters())
    ill = cohort.viraemic.T
    table = simulate_art(3000, seed=4)
    panel = Panel.of(table, ART_FULL_SCHEMA, suppressed)
    seen = structural.times_to(panel, ART_FULL_SCHEMA, None)
    use = ill[:, 0] & ~panel.outcome[:, 0] & seen.happened
    delay = seen.months[use] - (~ill[use]).argmax(axis=1)
    assert (delay <= LAG).mean() >= 0.9 > (delay <= LAG - 2).mean()


# --- Estimates --------------------------------------------------------------


def two_wards(sick, treated, sick_other, other):
    """Build a cohort of one month at risk: a 2 x 2 table, in two months."""
    well = [0, 1] * 2
    counts = [sick, treated - sick, sick_other, other - sick_other]
    later = np.repeat(well, counts)
    treated_first = np.repeat([1, 1, 0, 0], counts)
    lactate = np.stack([np.full(len(later), 2.0), np.where(later, 2, 0.5)], 1)
    return by_hand(
        lactate=lactate, ventilated=np.stack([treated_first] * 2, axis=1)
    )


def test_a_two_by_two_table_has_the_textbook_answer():
    """Risk ratio and the variance of its logarithm (Katz et al. 1978)."""
    table = two_wards(120, 400, 45, 300)
    found = effects(table, MADE_UP, WARDS, stays, run=1, lag=1)
    (row,) = found.itertuples()
    assert (row.level, row.reference) == ("yes", "no")
    assert (row.events, row.months) == (120, 400)
    assert row.hazard_ratio == pytest.approx((120 / 400) / (45 / 300), 1e-3)
    error = np.sqrt(1 / 120 - 1 / 400 + 1 / 45 - 1 / 300)
    width = np.log(row.high / row.low) / (2 * 1.959964)
    assert width == pytest.approx(error, rel=0.01)


def test_errors_are_those_of_leaving_patients_out_one_by_one():
    table = person_months(simulate_art(150, 36, seed=1), lag=1)
    x = np.stack(
        [table["Gender"] == "Female", table["Comp_INI"] == "DTG"], axis=1
    ).astype(float)
    x = np.column_stack([x, np.log(table["Timestep"])])
    event = table["event"].to_numpy()
    patient = table["PatientID"].to_numpy()

    def fit(keep):
        return PoissonRegressor(
            alpha=structural.RIDGE / keep.sum(),
            solver="newton-cholesky",
            tol=1e-9,
        ).fit(x[keep], event[keep])

    everybody = fit(np.full(len(x), True))
    left_out = np.stack([fit(patient != p).coef_ for p in set(patient)])
    n = len(left_out)
    spread = (left_out - everybody.coef_) ** 2
    error = np.sqrt((n - 1) / n * spread.sum(axis=0))
    one_step = structural._jackknife(x, event, everybody.predict(x), patient)
    assert one_step[:3] == pytest.approx(error, rel=0.05)


def test_built_in_ratios_are_found_where_patients_are_alike():
    """Without frailty what is left is the delay of viral load, and chance."""
    alike = SimulatorParameters(response_frailty_sd=0.0)
    found = effects(simulate_art(PATIENTS, seed=2, parameters=alike))
    table = compare_effects(found, found, true_effects(alike))
    common = table[table["real_events"] >= 100]
    assert len(common) == 11
    assert common["real_bias"].abs().mean() < 0.12
    assert common["real_bias"].abs().max() < 0.25
    assert common["real_covers"].mean() > 0.7


def test_frailty_draws_ratios_to_one_and_keeps_their_signs(found):
    table = compare_effects(found, found, true_effects())
    clear = table[
        (table["real_events"] >= 100) & (np.log(table["truth"]).abs() > 0.2)
    ]
    assert len(clear) == 6
    assert clear["real_sign_kept"].all()
    assert ratio_of(found, "DTG", "low") > 0.343


def test_an_effect_that_is_turned_round_is_found_turned_round(found):
    assert ratio_of(found, "DTG", "high") < 0.7
    ratios = (2.0, *SimulatorParameters().response_hr_ini[1:])
    flipped = SimulatorParameters(response_hr_ini=ratios)
    cohort = simulate_art(PATIENTS, seed=2, parameters=flipped)
    turned = effects(cohort)
    assert ratio_of(turned, "DTG", "low") > 1.1
    assert ratio_of(turned, "RAL", "high") < 0.7
    table = compare_effects(found, turned, true_effects())
    assert not table.loc[table["level"] == "DTG", "fake_sign_kept"].any()


def test_intervals_hold_what_they_say(large):
    """Samples of 300 against what they were drawn from."""
    target = effects(large)
    covers = []
    for part in np.split(np.arange(300 * 29), 29):
        sample = effects(large.take(part))
        table = compare_effects(sample, sample, target)
        covers.append(table["real_covers"].dropna())
    # Of some 300 intervals; those of one sample go together.
    assert 0.91 < pd.concat(covers).mean() < 0.99


def test_effects_vanish_with_the_drugs_and_groups_of_somebody_else(large):
    stranger = np.random.default_rng(0).permutation(PATIENTS)
    mixed = {
        name: array[stranger] if name in ART_REFERENCES else array
        for name, array in large.values.items()
    }
    found = effects(Panel(mixed, large.outcome))
    known = found.dropna()
    assert len(known) >= 11
    off = np.log(known["hazard_ratio"]).abs()
    assert off[known["events"] >= 100].max() < 0.25
    assert ((known["low"] < 1) & (known["high"] > 1)).mean() > 0.7


def test_shuffled_rows_leave_nothing_to_estimate():
    cohort = simulate_art(1000, seed=2)
    names = ART_FULL_SCHEMA.names
    rows = cohort[names].sample(frac=1, random_state=0)
    shuffled = cohort.assign(**rows.reset_index(drop=True))
    events = person_months(cohort)["event"].sum()
    assert person_months(shuffled)["event"].sum() < events / 20
    found, left = effects(cohort), effects(shuffled)
    assert left["hazard_ratio"].isna().all()
    summary = structural_validity(compare_effects(found, left, true_effects()))
    assert list(summary["estimated"]) == [11, 0]
    assert list(summary["signs_kept"]) == [7, 0]
    soon = effects(shuffled, lag=1).dropna()
    covers_one = (soon["low"] < 1) & (soon["high"] > 1)
    assert len(soon) >= 10 and covers_one.mean() > 0.8


def test_without_a_lag_drugs_of_patients_who_do_well_look_good(large):
    """NVP is given to suppressed patients only, and often as they respond."""
    assert ratio_of(effects(large, lag=1), "NVP") > 1.8
    assert 0.7 < ratio_of(effects(large), "NVP") < 1.6


def test_the_seven_variables_hide_what_goes_with_a_drug(large):
    """3TC + ABC is neutral, and given with an INI that is slow."""
    found = effects(large, ART_SCHEMA)
    assert list(found["feature"].unique()) == [
        "Base_Drug_Combo",
        "Ethnic",
        "Gender",
    ]
    assert ratio_of(found, "3TC + ABC", "high") < 0.85
    adjusted = effects(large)
    assert 0.9 < ratio_of(adjusted, "3TC + ABC") < 1.2


def test_another_reference_tells_the_same_story(large, found):
    other = effects(large, references=ART_REFERENCES | {"Comp_INI": "RAL"})
    there, back = (
        f[f["feature"] == "Comp_INI"].set_index("level")["hazard_ratio"]
        for f in (found, other)
    )
    assert back["DTG"] == pytest.approx(there["DTG"] / there["RAL"], rel=1e-3)
    assert back["Not Applied"] == pytest.approx(1 / there["RAL"], rel=1e-3)
    table = compare_effects(other, other, true_effects()).set_index("level")
    assert table.loc["DTG", "truth"] == pytest.approx(0.343 / 0.447)
    with pytest.raises(ValueError, match="list other effects"):
        compare_effects(found, other, true_effects())
    with pytest.raises(ValueError, match="truth lists other effects"):
        compare_effects(found, found, other)


def test_names_and_order_of_patients_do_not_matter():
    cohort = simulate_art(200, seed=3)
    other = cohort.assign(PatientID=900 - cohort["PatientID"])
    other = other.sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(effects(cohort), effects(other))


# --- Rare classes -----------------------------------------------------------


def test_rare_classes_have_no_estimate_but_their_events():
    cohort = simulate_art(300, seed=3)
    found = effects(cohort)
    few = found["events"] < structural.MIN_EVENTS
    assert few.any() and not few.all()
    missing = found[["hazard_ratio", "low", "high"]].isna()
    assert (missing.all(axis=1) == few).all()
    assert (missing.any(axis=1) == few).all()
    more = effects(cohort, min_events=20)["hazard_ratio"].dropna()
    assert 0 < len(more) < (~few).sum()
    assert (found.loc[more.index, "events"] >= 20).all()
    assert more.equals(found.loc[more.index, "hazard_ratio"])


def test_no_class_is_compared_with_an_empty_reference():
    cohort = simulate_art(300, seed=3)
    white = cohort["Ethnic"] == "Caucasian"
    found = effects(cohort[~white])
    of_ethnic = found[found["feature"] == "Ethnic"]
    assert of_ethnic["hazard_ratio"].isna().all()
    assert of_ethnic["events"].sum() > 50
    assert found["hazard_ratio"].notna().sum() > 5


# --- Comparison -------------------------------------------------------------


def made_up_effects(ratios, half_widths):
    ratio, half = np.array(ratios), np.array(half_widths)
    return pd.DataFrame(
        {
            "feature": "drug",
            "level": list("ABCD"),
            "reference": "none",
            "hazard_ratio": ratio,
            "low": ratio * np.exp(-half),
            "high": ratio * np.exp(half),
            "events": 9,
            "months": 99,
        }
    )


def test_a_comparison_by_hand():
    truth = pd.DataFrame(
        {
            "feature": "drug",
            "level": ["none", "A", "B", "C", "D"],
            "value": [0.5, 1.0, 0.25, 0.5, 1.0],
        }
    )
    real = made_up_effects([2.0, 0.5, 1.0, np.nan], [0.1] * 4)
    fake = made_up_effects([1.0, 2.0, 1.0, 3.0], [0.1, 0.1, 0.2, 0.1])
    table = compare_effects(real, fake, truth).set_index("level")
    assert list(table["truth"]) == [2, 0.5, 1, 2]
    assert list(table["has_sign"]) == [True, True, False, True]
    kept = table[["real_sign_kept", "fake_sign_kept"]].astype(float)
    assert list(kept["real_sign_kept"].fillna(9)) == [1, 1, 9, 9]
    assert list(kept["fake_sign_kept"].fillna(9)) == [0, 0, 9, 1]
    assert table.loc["B", "fake_bias"] == pytest.approx(np.log(4))
    assert table.loc["A", "shift"] == pytest.approx(-np.log(2))
    assert list(table["fake_covers"]) == [False, False, True, False]
    assert table.loc["C", "overlap"] == pytest.approx((1 + 0.5) / 2)
    assert table.loc["A", "overlap"] < 0 and np.isnan(table.loc["D", "shift"])
    summary = structural_validity(table.reset_index())
    assert list(summary["estimated"]) == [3, 4]
    assert list(summary["signs"]) == [3, 3]
    assert list(summary["signs_estimated"]) == [2, 3]
    assert list(summary["signs_kept"]) == [2, 1]
    assert list(summary["coverage"]) == pytest.approx([1, 0.25])
    bias = (np.log(2) + np.log(4) + 0 + np.log(1.5)) / 4
    assert list(summary["log_bias"]) == pytest.approx([0, bias])
    assert summary.loc["fake", "log_shift"] == pytest.approx(np.log(8) / 3)


def test_a_cohort_is_its_own_equal(found):
    table = compare_effects(found, found, found)
    assert (table["overlap"] == 1).all() and (table["shift"] == 0).all()
    assert len(table) == found["hazard_ratio"].notna().sum()
    # What the interval of the truth cannot tell from 1 has no sign.
    unclear = (found["low"] < 1) & (found["high"] > 1)
    assert table["has_sign"].sum() == (~unclear & found["low"].notna()).sum()
    summary = structural_validity(table).loc["fake"]
    assert summary["signs_kept"] == summary["signs"] < summary["effects"]
    assert summary["log_bias"] == 0 and summary["coverage"] == 1


def test_truth_has_to_know_every_effect(found):
    effect = true_effects()
    with pytest.raises(ValueError, match="lacks Gender Female"):
        compare_effects(found, found, effect[effect["level"] != "Female"])


# --- Refusals ---------------------------------------------------------------


def test_another_cohort_says_what_to_compare_and_when():
    table = made_up_table(MADE_UP, 200, 12, seed=0)
    wards = {"ward": "W00", "ventilated": "no"}
    found = effects(table, MADE_UP, wards, stays, lag=1)
    assert len(found) == 12 and found["hazard_ratio"].notna().any()
    with pytest.raises(ValueError, match="made up: name variables"):
        effects(table, MADE_UP, outcome=stays)
    with pytest.raises(TableError, match="VL.*the outcome asks for"):
        effects(table, MADE_UP, wards)
    with pytest.raises(ValueError, match="age: a real variable"):
        effects(table, MADE_UP, {"age": "old"}, stays)
    with pytest.raises(ValueError, match="reference 'maybe' is none of"):
        effects(table, MADE_UP, {"ventilated": "maybe"}, stays)
    with pytest.raises(ValueError, match="lag is 1 to 11 months, got 12"):
        effects(table, MADE_UP, wards, stays, lag=12)
    with pytest.raises(ValueError, match="lag is 1 to 11 months, got 0"):
        effects(table, MADE_UP, wards, stays, lag=0)


def test_a_cohort_without_viraemic_months_is_refused():
    cohort = simulate_art(20, 24)
    with pytest.raises(TableError, match="nobody is at risk: all 20 patient"):
        effects(cohort.assign(VL=np.log10(cohort["VL"] + 1)))
    with pytest.raises(TableError, match="0 events from month 6 on"):
        effects(cohort.assign(VL=5000.0))
    with pytest.raises(TableError, match="this column is missing"):
        effects(cohort[[*ART_SCHEMA.ids, *ART_SCHEMA.names]])
    with pytest.raises(ValueError, match="min_events is 1 or more, got 0"):
        effects(cohort, min_events=0)
    assert list(effects(cohort, ART_SCHEMA)[KEYS].columns) == KEYS
