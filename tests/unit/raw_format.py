"""The published raw format, written down a second time for the tests.

Nothing here comes from the package, so that a wrong code or name in one of
the two shows up as a difference.
"""

import pandas as pd

RAW_NAMES = {
    "VL": "VL",
    "CD4": "CD4",
    "Rel_CD4": "Rel CD4",
    "Gender": "Gender",
    "Ethnic": "Ethnic",
    "Base_Drug_Combo": "Base Drug Combo",
    "Comp_INI": "Comp. INI",
    "Comp_NNRTI": "Comp. NNRTI",
    "Extra_PI": "Extra PI",
    "Extra_pk_En": "Extra pk-En",
    "VL_M": "VL (M)",
    "CD4_M": "CD4 (M)",
    "Drug_M": "Drug (M)",
    "PatientID": "PatientID",
    "Timestep": "Timestep",
}

RAW_CODES = {
    "Gender": {"Male": 1.0, "Female": 2.0},
    "Ethnic": {"Asian": 1.0, "African": 2.0, "Caucasian": 3.0, "Other": 4.0},
    "Base_Drug_Combo": {
        "FTC + TDF": 0.0,
        "3TC + ABC": 1.0,
        "FTC + TAF": 2.0,
        "DRV + FTC + TDF": 3.0,
        "FTC + RTVB + TDF": 4.0,
        "Other": 5.0,
    },
    "Comp_INI": {"DTG": 0.0, "RAL": 1.0, "EVG": 2.0, "Not Applied": 3.0},
    "Comp_NNRTI": {"NVP": 0.0, "EFV": 1.0, "RPV": 2.0, "Not Applied": 3.0},
    "Extra_PI": {
        "DRV": 0.0,
        "RTVB": 1.0,
        "LPV": 2.0,
        "RTV": 3.0,
        "ATV": 4.0,
        "Not Applied": 5.0,
    },
    "Extra_pk_En": {"False": 0.0, "True": 1.0},
}


def to_raw(tidy: pd.DataFrame) -> pd.DataFrame:
    """Encode a tidy table as the published file has it: codes as floats."""
    raw = tidy[list(RAW_NAMES)].copy()
    for column, codes in RAW_CODES.items():
        raw[column] = raw[column].astype(str).map(codes).astype(float)
    for column in ("VL_M", "CD4_M", "Drug_M"):
        raw[column] = raw[column].astype(float)
    return raw.rename(columns=RAW_NAMES)
