"""The stand-in cohort: a mechanistic simulator of ART-for-HIV patients.

It writes tables of the published format without the published data, so that
everything runs with no network and effects are known. It was calibrated to
published summaries of the Health Gym v2.0 release (Kuo 2023, figshare
22827878); no row of that file was used. The release is itself synthetic:
no clinical conclusion can be drawn from either.

The stages, in order: demographics; regimen and viraemic state, month by
month; viral load; CD4 count; relative CD4; flags; a monotone calibration of
the three labs. Each stage draws from a random stream of its own, laid out
patient by patient, so that a patient depends on the seed and on their own
number only: the first 300 of 8,916 are the cohort of 300.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from importlib import resources
from numbers import Integral

import numpy as np
import pandas as pd
from scipy.special import betaincinv, gammaincinv, ndtri

from healthgym_utils.schema import ART_FLAGS, ART_FULL_SCHEMA

MONTHS = 60  # the published follow-up; shorter cohorts are its beginning
DRUGS = (
    "Base_Drug_Combo",
    "Comp_INI",
    "Comp_NNRTI",
    "Extra_PI",
    "Extra_pk_En",
)


@dataclass(frozen=True)
class SimulatorParameters:
    """What drives the simulated cohort; the true effects are among them.

    Tuples over a variable follow its classes in the schema's order. Rates
    are a month, lab values in log10 of their unit and before calibration.
    Each group says where its numbers come from: *published* are printed
    ones; *tuned* were searched by hand until the cohort reproduced published
    summaries, and mean nothing beyond that.

    See Also
    --------
    true_effects : the effects that a study may try to recover, as a table.
    """

    # Response: a viraemic patient becomes suppressed. Hazard ratios: published
    # Cox model of the time to VL <= 1000 in the released cohort. Two of the
    # base combinations were shrunk, for few patients: FTC + TAF (published
    # .2) and Other (3.98).
    response_hr_ini: tuple[float, ...] = (0.343, 0.447, 0.757, 1.0)
    response_hr_nnrti: tuple[float, ...] = (1.154, 1.167, 0.838, 1.0)
    response_hr_base: tuple[float, ...] = (1.0, 1.03, 0.35, 1.0, 1.6, 1.5)
    response_hr_ethnic: tuple[float, ...] = (1.0, 0.811, 1.0, 0.833)
    response_hr_gender: tuple[float, ...] = (1.0, 0.694)
    # Tuned to the share that starts above 1000 copies (.629), the mean of
    # Drug_M and the correlation of viral load with time. The hazard ramps up
    # with the months viraemic: max * (1 - exp(-(months / lag) ** power)).
    response_hazard_max: float = 0.165
    response_lag: float = 9.0
    response_power: float = 2.2
    response_frailty_sd: float = 0.5  # of log hazard, between patients
    rebound_hazard: float = 0.0012
    rebound_head_start: int = 7  # a rebound is as if viraemic this long
    # By ethnicity; Asian near zero, as the published Cox model had none.
    viraemic_at_start: tuple[float, ...] = (0.05, 0.31, 0.375, 0.79)

    # Switching: tuned to the share of patients with any change (.638) and
    # the changes before the first VL <= 1000 (.358 for each who starts above;
    # 7,620 intervals of 5,612 patients in the published Cox model).
    switch_hazard_viraemic: float = 0.014
    switch_hazard_suppressed: float = 0.0258
    switch_at_response: float = 0.10  # extra probability in that month
    switch_frailty_shape: float = 1.3  # gamma, mean 1, between patients
    # Log weight of a new regimen that shares this with the old one: tuned
    # to the within-patient drug correlations.
    keep_base: float = 1.4
    keep_class: float = 1.4
    keep_third: float = 0.5
    # Below 1, demographics weigh less on the regimen than the published
    # correlations alone imply; switching then restores the balance.
    demographic_weight: float = 0.84

    # Viral load: tuned to its histogram, Box-Cox parameters and correlations.
    # Its shape between 39 and 778 copies is interpolated.
    set_point_top: float = 4.93  # while viraemic: top - scale * gamma
    set_point_shape: float = 1.9
    set_point_scale: float = 0.30
    set_point_ethnic: tuple[float, ...] = (0.0, 0.0, -0.06, 0.10)
    approach_viraemic: float = 0.6  # share of the gap closed in a month
    approach_suppressed: tuple[float, float] = (2.2, 3.2)  # beta, per patient
    level: tuple[float, float] = (1.78, 0.50)  # while suppressed: mean, sd
    level_ethnic: tuple[float, ...] = (0.0, -0.12, 0.0, 0.10)
    level_drift: tuple[float, float] = (-0.0125, 0.009)  # a month: mean, sd
    wander_vl: tuple[float, float] = (0.955, 0.33)  # AR(1): memory, sd
    noise_viraemic: float = 0.18
    noise_suppressed: tuple[float, float] = (0.06, 0.7)  # median, sd of log
    blip_probability: float = 0.010
    blip_size: tuple[float, float] = (2.0, 0.35)  # gamma shape, scale

    # CD4: tuned to its histogram, Box-Cox parameters and correlations, and
    # to the share below 500 at month 0 (.441). Suppressed patients close
    # `recovery_rate` of the gap to their personal gain each month.
    recovery_rate: float = 0.034
    loss_rate: float = 0.002  # while viraemic
    gain: tuple[float, float, float] = (2.0, 0.20, -0.035)  # shape, scale, +
    baseline: tuple[float, float] = (2.62, 0.17)  # mean, sd
    baseline_ethnic: tuple[float, ...] = (-0.10, -0.09, -0.06, 0.05)
    baseline_female: float = -0.01
    set_point_effect: float = 0.17  # while viraemic, of set point - 4.35
    wander_cd4: tuple[float, float] = (0.9, 0.06)
    noise_cd4: float = 0.10
    # The released cohort starts with CD4 counts above those of the months
    # that follow, perhaps an artefact of the generator that made it. False
    # leaves the bump out; the calibration assumes it.
    month_0_bump: bool = True
    bump_height: float = 0.19  # shrinks by exp(-1) a month

    # Relative CD4: tuned to its histogram, Box-Cox parameters and
    # correlations.
    relative_mean: float = 1.475
    relative_baseline: float = 0.38  # slope on the CD4 baseline
    relative_recovery: float = 0.83  # slope on the CD4 recovered so far
    relative_sd: float = 0.155  # between patients
    relative_viraemic: float = -0.12  # on the smoothed viraemic state
    relative_slope_sd: float = 0.0012  # a month, between patients
    relative_ethnic: tuple[float, ...] = (0.02, 0.06, 0.03, -0.02)
    relative_female: float = 0.13
    relative_noise: tuple[float, float] = (0.045, 0.6)  # median, sd of log
    relative_noise_mix: tuple[float, float] = (0.35, 0.94)  # CD4's, own

    # Flags: tuned to the published means of VL_M (.131), CD4_M (.155) and
    # Drug_M (.777) and their correlations with time and drugs.
    # A month: height * exp(-month / fall) + floor.
    visit_rate: tuple[float, float, float] = (0.295, 22.5, 0.0335)
    visit_frailty_sd: float = 0.35
    visit_ethnic: tuple[float, ...] = (0.58, 1.22, 0.99, 1.13)
    visit_rtvb_base: float = 0.71  # more by FTC + RTVB + TDF, share of time
    visit_viraemic: float = 0.27  # more while viraemic
    visit_start: tuple[float, float] = (1.49, 0.62)  # suppressed, viraemic
    vl_with_cd4: tuple[float, float] = (0.58, 0.37)  # at month 0, gained by 60
    vl_without_cd4: float = 0.0262
    vl_by_ini: tuple[float, float] = (1.24, 0.48)  # factor without, with INI
    unrecorded_viraemic: float = 0.960
    # A probability: floor + height * exp(-month / fall).
    unrecorded_suppressed: tuple[float, float, float] = (0.023, 0.036, 15.0)


def true_effects(
    parameters: SimulatorParameters | None = None,
) -> pd.DataFrame:
    """List the effects built into the simulated cohort.

    They mimic associations of the released, itself synthetic, data: they
    serve to test methods, and no clinical conclusion may be drawn.

    Parameters
    ----------
    parameters : SimulatorParameters, optional
        The defaults if not given.

    Returns
    -------
    DataFrame
        One row an effect: ``effect``, ``feature`` and ``level`` (empty if it
        holds for everybody), ``value``, ``scale``. Hazard ratios act on the
        monthly probability that a viraemic patient becomes suppressed and
        multiply; the first line of a variable is not always its reference.
    """
    p = parameters or SimulatorParameters()
    ratios = {
        "Comp_INI": p.response_hr_ini,
        "Comp_NNRTI": p.response_hr_nnrti,
        "Base_Drug_Combo": p.response_hr_base,
        "Ethnic": p.response_hr_ethnic,
        "Gender": p.response_hr_gender,
    }
    rows = [
        ("response", feature, level, value, "hazard ratio")
        for feature, values in ratios.items()
        for level, value in zip(
            ART_FULL_SCHEMA[feature].classes, values, strict=True
        )
    ]
    rows += [
        ("response, at most", "", "", p.response_hazard_max, "a month"),
        ("rebound", "", "", p.rebound_hazard, "a month"),
        ("switch, viraemic", "", "", p.switch_hazard_viraemic, "a month"),
        ("switch, suppressed", "", "", p.switch_hazard_suppressed, "a month"),
        ("switch, at response", "", "", p.switch_at_response, "probability"),
        ("CD4 recovery", "", "", p.recovery_rate, "share of gap a month"),
        ("CD4 loss, viraemic", "", "", p.loss_rate, "log10 units a month"),
    ]
    columns = ["effect", "feature", "level", "value", "scale"]
    return pd.DataFrame(rows, columns=columns)


def simulate_art(
    n_patients: int = 8916,
    n_months: int = MONTHS,
    seed: int = 42,
    *,
    parameters: SimulatorParameters | None = None,
) -> pd.DataFrame:
    """Simulate a cohort of the published format.

    Parameters
    ----------
    n_patients : int
        Patients; the published cohort has 8,916. A smaller cohort is the
        beginning of a larger one of the same seed.
    n_months : int
        Months of follow-up, 1 to 60. A shorter one is the beginning of a
        longer one: 60 are always simulated.
    seed : int
        Zero or more. The same seed gives the same cohort on every machine.
    parameters : SimulatorParameters, optional
        To change the true effects; the calibrated ones if not given.

    Returns
    -------
    DataFrame
        One row a patient and month, sorted by both; the columns of the
        published table, labels as categoricals, flags as bool. Labs have
        six significant digits. ``attrs["source"]`` is ``"simulated"``.

    Raises
    ------
    ValueError
        If an argument is not an integer or out of its range.

    Examples
    --------
    >>> simulate_art(2).shape
    (120, 15)
    """
    _check("n_patients", n_patients, 1, None)
    _check("n_months", n_months, 1, MONTHS)
    _check("seed", seed, 0, None)
    parameters = parameters or SimulatorParameters()
    cohort = _Cohort(int(n_patients), int(seed), parameters)
    return _to_table(cohort, n_months)


def _check(name: str, value: int, low: int, high: int | None) -> None:
    allowed = f"{low} or more" if high is None else f"{low} to {high}"
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):
        raise ValueError(f"{name}: an integer, {allowed}; got {value!r}")


# --- Tables -----------------------------------------------------------------


@cache
def _read_table(name: str) -> dict[str, np.ndarray]:
    """Read the columns of a table: drugs and groups as codes, else floats."""
    path = resources.files("healthgym_utils") / "tables" / name
    header, *rows = csv.reader(path.read_text("utf-8").splitlines())
    columns = dict(zip(header, zip(*rows, strict=True), strict=True))
    # Python's float is exact, so that every machine has the same numbers.
    read = {column: float for column in header} | {"lab": str}
    for feature in ART_FULL_SCHEMA.categoricals:
        read[feature.name] = feature.classes.index
    return {
        column: np.array([read[column](cell) for cell in cells])
        for column, cells in columns.items()
    }


def _of_regimens(column: str) -> np.ndarray:
    """Take a column on the fifty drug combinations.

    ``share`` and the eight columns by gender and ethnicity are the percent
    of months on each: the maximum-entropy joint distribution behind the
    published one-hot correlations. ``offset``, ``era`` and ``viraemic`` (log
    weights: of a draw, per half follow-up, while viraemic) and the three
    ``_shift`` columns (log10 units) were tuned to correlations with time,
    Drug_M and the labs.
    """
    return _read_table("regimens.csv")[column]


# --- Random numbers ---------------------------------------------------------


class _Stream(IntEnum):
    """One independent stream a stage; renumbering them changes cohorts."""

    DEMOGRAPHICS = 1
    VIRAEMIA = 2
    REGIMENS = 3
    VIRAL_LOAD = 4
    CD4 = 5
    RELATIVE_CD4 = 6
    FLAGS = 7


def _gamma(u: np.ndarray, shape: float, scale: float) -> np.ndarray:
    return scale * gammaincinv(shape, u)


def _log_normal(u: np.ndarray, median: float, sd: float) -> np.ndarray:
    return median * np.exp(sd * ndtri(u))


def _wander(u: np.ndarray, start: np.ndarray, memory: float) -> np.ndarray:
    """Follow a stationary AR(1) with unit variance; shape (60, patients)."""
    steps = np.sqrt(1 - memory**2) * ndtri(u)
    state = ndtri(start)
    for month, step in enumerate(steps):
        state = memory * state + step
        steps[month] = state
    return steps


def _pick(weights: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Draw a column of each row of weights by inverting its sums."""
    cumulative = weights.cumsum(axis=1)
    return (cumulative < (u * cumulative[:, -1])[:, None]).sum(axis=1)


# --- Regimens ---------------------------------------------------------------


def _response_by_regimen(p: SimulatorParameters) -> np.ndarray:
    """Multiply the response hazard ratios of a regimen's drugs."""
    return (
        np.take(p.response_hr_base, _of_regimens("Base_Drug_Combo"))
        * np.take(p.response_hr_ini, _of_regimens("Comp_INI"))
        * np.take(p.response_hr_nnrti, _of_regimens("Comp_NNRTI"))
    )


def _kinship(p: SimulatorParameters) -> np.ndarray:
    """Weigh new regimens (columns) by what they share with the old one."""
    base, ini, nnrti, pi, _ = (_of_regimens(drug) for drug in DRUGS)
    # Not Applied is the last class: 3 and 5. Bases 3 and 4 contain a PI.
    pi_based = (pi != 5) | (base == 3) | (base == 4)
    drug_class = np.select([ini != 3, nnrti != 3, pi_based], [0, 1, 2], 3)
    third = np.stack([ini, nnrti, pi])
    weight = np.exp(
        p.keep_base * (base[:, None] == base)
        + p.keep_class * (drug_class[:, None] == drug_class)
        + p.keep_third * (third[:, :, None] == third[:, None]).all(axis=0)
    )
    np.fill_diagonal(weight, 0.0)  # a switch is a change
    return weight


@cache
def _draw_weights(p: SimulatorParameters) -> np.ndarray:
    """Weights of a new regimen; shape (60, 2, 8, 50).

    Axes: month, viraemic or not, gender and ethnicity, regimen. Era and
    viraemia tilt the weights, which are raked so that over the follow-up
    every group still has its shares; the offsets then make up for regimens
    being kept for different times.
    """
    share = _of_regimens("share")
    groups = [
        f"{gender}_{ethnic}".lower()
        for gender in ART_FULL_SCHEMA["Gender"].classes
        for ethnic in ART_FULL_SCHEMA["Ethnic"].classes
    ]
    target = np.stack([_of_regimens(group) for group in groups])
    target = share * (target / share) ** p.demographic_weight
    target /= target.sum(axis=1, keepdims=True)
    month = np.arange(MONTHS)
    era = (2 * month - (MONTHS - 1)) / (MONTHS - 1)  # -1 to 1
    tilt = np.exp(
        np.multiply.outer(era, _of_regimens("era"))[:, None]
        + np.multiply.outer([0, 1], _of_regimens("viraemic"))
    )
    # The share of viraemic months to average over, roughly as it comes out.
    start = np.tile(p.viraemic_at_start, 2)
    fall = np.exp(-(((month + 0.5) / 17) ** 1.25))
    ill = np.clip(np.multiply.outer(fall, start) + 0.03, 0, 0.97)
    time = np.stack([1 - ill, ill], axis=1)[..., None] / MONTHS
    weights = target
    for _ in range(25):
        shares = weights * tilt[:, :, None]
        shares /= shares.sum(axis=-1, keepdims=True)
        reached = np.maximum((shares * time).sum(axis=(0, 1)), 1e-300)
        weights = weights * target / reached
    return np.maximum(shares * np.exp(_of_regimens("offset")), 1e-12)


# --- Stages -----------------------------------------------------------------


class _Cohort:
    """The truth behind a table: every stage adds what later ones need.

    Arrays over months have shape (60, patients), months first for the loops
    in time; arrays over patients (patients,). Nothing is computed across
    patients.
    """

    def __init__(self, n: int, seed: int, p: SimulatorParameters) -> None:
        self.n, self.seed, self.p = n, seed, p
        self.month = np.arange(MONTHS)[:, None]
        self._draw_demographics()
        self._follow_treatment()
        self._follow_viral_load()
        self._follow_cd4()
        self._follow_relative_cd4()
        self._flag_measurements()

    def _uniforms(
        self, stream: _Stream, traits: int, monthly: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw a stage's uniforms, (traits, n) and (monthly, 60, n).

        Each patient owns one consecutive block of the stream, so that more
        patients change nothing for the first. Only uniforms are drawn, and
        inverted by cumulative distribution functions: NumPy may change how
        it makes normals.
        """
        key = np.random.SeedSequence(self.seed, spawn_key=(int(stream),))
        shape = (self.n, traits + monthly * MONTHS)
        u = np.random.default_rng(key).random(shape)
        # Zero, one draw in 2**53, has no normal quantile.
        u = np.maximum(u, 2.0**-53).T
        months = np.ascontiguousarray(u[traits:])
        return u[:traits], months.reshape(monthly, MONTHS, self.n)

    def _share_shift(self, column: str) -> np.ndarray:
        """Shift of a patient, each regimen by its share of the follow-up.

        Not a treatment effect: it also looks at months still to come.
        """
        return _of_regimens(column)[self.regimen].mean(axis=0)

    def _draw_demographics(self) -> None:
        """Draw gender and ethnicity jointly."""
        (u,), _ = self._uniforms(_Stream.DEMOGRAPHICS, 1, 0)
        cells = _read_table("demographics.csv")
        total = cells["share"].cumsum()
        cell = np.searchsorted(total, u * total[-1])
        self.gender, self.ethnic = cells["Gender"][cell], cells["Ethnic"][cell]

    def _follow_treatment(self) -> None:
        """Move patients between regimens and in and out of viraemia.

        The two go together: the regimen decides how fast a patient responds,
        and the viraemic state how likely, and to what, it is switched.
        """
        p = self.p
        (start, frail), (turn,) = self._uniforms(_Stream.VIRAEMIA, 2, 1)
        (restless,), (leave, pick) = self._uniforms(_Stream.REGIMENS, 1, 2)
        sd, shape = p.response_frailty_sd, p.switch_frailty_shape
        response = (
            _log_normal(frail, np.exp(-(sd**2) / 2), sd)  # mean 1
            * np.take(p.response_hr_ethnic, self.ethnic)
            * np.take(p.response_hr_gender, self.gender)
        )
        restless = _gamma(restless, shape, 1 / shape)
        by_regimen, kinship = _response_by_regimen(p), _kinship(p)
        weights = _draw_weights(p)
        group = self.gender * len(p.response_hr_ethnic) + self.ethnic

        self.viraemic = np.empty((MONTHS, self.n), dtype=bool)
        self.regimen = np.empty((MONTHS, self.n), dtype=np.int64)
        now = start < np.take(p.viraemic_at_start, self.ethnic)
        drugs = _pick(weights[0, now.astype(int), group], pick[0])
        self.viraemic[0], self.regimen[0] = now, drugs
        waited = now.astype(float)  # months viraemic so far
        for month in range(1, MONTHS):
            before = now
            ramp = 1 - np.exp(-((waited / p.response_lag) ** p.response_power))
            hazard = p.response_hazard_max * ramp * response
            hazard = hazard * by_regimen[drugs]
            turned = turn[month] < np.where(before, hazard, p.rebound_hazard)
            self.viraemic[month] = now = before ^ turned
            waited = np.where(now, waited + 1, 0)
            waited[turned & now] = p.rebound_head_start

            hazard = restless * np.where(
                before, p.switch_hazard_viraemic, p.switch_hazard_suppressed
            )
            extra = p.switch_at_response * (turned & before)
            hazard = hazard + extra * (1 - hazard)
            who = np.flatnonzero(leave[month] < hazard)
            choice = weights[month, now[who].astype(int), group[who]]
            drugs = drugs.copy()
            drugs[who] = _pick(choice * kinship[drugs[who]], pick[month, who])
            self.regimen[month] = drugs

    def _follow_viral_load(self) -> None:
        """Follow log10 VL to a set point, or down to a personal level."""
        p = self.p
        traits, monthly = self._uniforms(_Stream.VIRAL_LOAD, 6, 3)
        u_point, u_level, u_drift, u_speed, u_noise, u_wander = traits
        u_step, u_measure, u_blip = monthly
        fall = _gamma(u_point, p.set_point_shape, p.set_point_scale)
        ethnic = np.take(p.set_point_ethnic, self.ethnic)
        self.set_point = p.set_point_top - fall + ethnic
        level = p.level[0] + p.level[1] * ndtri(u_level)
        level += np.take(p.level_ethnic, self.ethnic)
        drift = p.level_drift[0] + p.level_drift[1] * ndtri(u_drift)
        memory, sd = p.wander_vl
        quiet = level + drift * self.month
        quiet += sd * _wander(u_step, u_wander, memory)
        shift = _of_regimens("vl_shift")[self.regimen]
        target = np.where(self.viraemic, self.set_point + shift, quiet)
        speed = betaincinv(*p.approach_suppressed, u_speed)
        speed = np.where(self.viraemic, p.approach_viraemic, speed)
        vl = target.copy()
        for month in range(1, MONTHS):
            gap = target[month] - vl[month - 1]
            vl[month] = vl[month - 1] + speed[month] * gap
        noise = _log_normal(u_noise, *p.noise_suppressed)
        noise = np.where(self.viraemic, p.noise_viraemic, noise)
        vl += noise * ndtri(u_measure)
        blip = ~self.viraemic & (u_blip < p.blip_probability)
        # Given that it is below the probability, the ratio is uniform again.
        vl[blip] += _gamma(u_blip[blip] / p.blip_probability, *p.blip_size)
        self.labs = {"VL": vl}

    def _follow_cd4(self) -> None:
        """Let log10 CD4 recover while suppressed and fall while viraemic."""
        p = self.p
        traits, monthly = self._uniforms(_Stream.CD4, 3, 2)
        u_base, u_gain, u_wander = traits
        u_step, u_measure = monthly
        self.baseline = p.baseline[0] + p.baseline[1] * ndtri(u_base)
        self.baseline += np.take(p.baseline_ethnic, self.ethnic)
        self.baseline += p.baseline_female * self.gender
        shape, scale, least = p.gain
        gain = _gamma(u_gain, shape, scale) + least
        self.recovered = np.zeros((MONTHS, self.n))
        for month in range(1, MONTHS):
            last, ill = self.recovered[month - 1], self.viraemic[month]
            up = p.recovery_rate * (gain - last)
            self.recovered[month] = last + np.where(ill, -p.loss_rate, up)
        memory, sd = p.wander_cd4
        self.recovered += sd * _wander(u_step, u_wander, memory)
        self.cd4_noise = ndtri(u_measure)
        depth = p.set_point_effect * np.clip(self.set_point - 4.35, -1.2, 0.7)
        cd4 = self.baseline + self._share_shift("cd4_shift") + self.recovered
        cd4 += depth * self.viraemic + p.noise_cd4 * self.cd4_noise
        if p.month_0_bump:
            cd4 += p.bump_height * np.exp(-self.month)
        self.labs["CD4"] = cd4

    def _follow_relative_cd4(self) -> None:
        """Tie log10 relative CD4 to baseline, recovery and viraemia."""
        p = self.p
        traits, (u_own,) = self._uniforms(_Stream.RELATIVE_CD4, 3, 1)
        u_level, u_slope, u_noise = traits
        smooth = self.viraemic.astype(float)
        for month in range(1, MONTHS):
            smooth[month] = (smooth[month] + smooth[month - 1]) / 2
        level = (
            p.relative_mean
            + p.relative_baseline * (self.baseline - p.baseline[0])
            + p.relative_sd * ndtri(u_level)
            + np.take(p.relative_ethnic, self.ethnic)
            + p.relative_female * self.gender
            + self._share_shift("rel_cd4_shift")
        )
        shared, alone = p.relative_noise_mix
        noise = shared * self.cd4_noise + alone * ndtri(u_own)
        self.labs["Rel_CD4"] = (
            level
            + p.relative_recovery * self.recovered
            + p.relative_viraemic * smooth
            + p.relative_slope_sd * ndtri(u_slope) * self.month
            + _log_normal(u_noise, *p.relative_noise) * noise
        )

    def _flag_measurements(self) -> None:
        """Say what was measured, and whether the drugs were recorded."""
        p = self.p
        (u_visit,), monthly = self._uniforms(_Stream.FLAGS, 1, 3)
        u_cd4, u_vl, u_drug = monthly
        rtvb = _of_regimens("Base_Drug_Combo") == 4  # FTC + RTVB + TDF
        rtvb = rtvb[self.regimen]
        sd = p.visit_frailty_sd
        personal = (
            _log_normal(u_visit, np.exp(-(sd**2) / 2), sd)
            * np.take(p.visit_ethnic, self.ethnic)
            * np.take(p.visit_start, self.viraemic[0].astype(int))
            * (1 + p.visit_rtvb_base * rtvb.mean(axis=0))
        )
        height, fall, floor = p.visit_rate
        rate = (height * np.exp(-self.month / fall) + floor) * personal
        rate = rate * (1 + p.visit_viraemic * self.viraemic)
        cd4 = u_cd4 < np.minimum(rate, 0.95)
        # VL is mostly measured with CD4, more so later and without an INI.
        with_ini = _of_regimens("Comp_INI") < 3  # the last is Not Applied
        factor = np.take(p.vl_by_ini, with_ini.astype(int))[self.regimen]
        start, gained = p.vl_with_cd4
        with_cd4 = start + gained * self.month / MONTHS
        with_cd4 = with_cd4 * (0.4 + 0.6 * factor)
        vl = u_vl < np.where(cd4, with_cd4, p.vl_without_cd4 * factor)
        floor, height, fall = p.unrecorded_suppressed
        unrecorded = floor + height * np.exp(-self.month / fall)
        unrecorded = np.where(self.viraemic, p.unrecorded_viraemic, unrecorded)
        flags = (vl, cd4, u_drug >= unrecorded)
        self.flags = dict(zip(ART_FLAGS, flags, strict=True))


# --- Table ------------------------------------------------------------------


def _calibrate(lab: str, latent: np.ndarray) -> np.ndarray:
    """Map simulated to published quantiles; in the lab's own unit.

    Linear in log10 between the knots, of which ``latent`` pools twenty
    cohorts (seeds 0 to 19) and ``log10_value`` interpolates the published
    quartiles and histogram; beyond the last knots, the published extremes.
    """
    table = _read_table("calibration.csv")
    rows = table["lab"] == lab
    log10 = np.interp(
        latent, table["latent"][rows], table["log10_value"][rows]
    )
    # Six significant digits hide the last bits, in which the logarithms and
    # powers of different machines differ.
    scale = (10.0 ** np.arange(7))[5 - np.floor(log10).astype(int)]
    return np.round(10.0**log10 * scale) / scale


def _to_table(cohort: _Cohort, n_months: int) -> pd.DataFrame:
    """Lay the first months of a cohort out as the tidy table."""

    def rows(values: np.ndarray) -> np.ndarray:
        shape = (MONTHS, cohort.n)
        return np.broadcast_to(values, shape)[:n_months].T.ravel()

    codes = {"Gender": cohort.gender, "Ethnic": cohort.ethnic}
    for drug in DRUGS:
        codes[drug] = _of_regimens(drug)[cohort.regimen]
    columns = {lab: rows(_calibrate(lab, z)) for lab, z in cohort.labs.items()}
    for name, values in codes.items():
        classes = list(ART_FULL_SCHEMA[name].classes)
        columns[name] = pd.Categorical.from_codes(rows(values), classes)
    columns |= {name: rows(values) for name, values in cohort.flags.items()}
    columns[ART_FULL_SCHEMA.patient] = rows(np.arange(cohort.n))
    columns[ART_FULL_SCHEMA.month] = rows(np.arange(MONTHS)[:, None])
    table = pd.DataFrame(columns)
    table.attrs["source"] = "simulated"
    return table
