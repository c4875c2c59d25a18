"""Fixtures that several test modules share."""

import pandas as pd
import pytest
from cohorts import MADE_UP, made_up_table


@pytest.fixture
def made_up() -> pd.DataFrame:
    """Nine stays of 17 hours of the made-up cohort."""
    return made_up_table(MADE_UP, 9, 17, seed=0)
