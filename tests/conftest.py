"""Fixtures that several test modules share."""

import pandas as pd
import pytest
from cohorts import MADE_UP, made_up_table
from torch import Tensor

from healthgym_utils.preprocess import Preprocessor


@pytest.fixture
def made_up() -> pd.DataFrame:
    """Nine stays of 17 hours of the made-up cohort."""
    return made_up_table(MADE_UP, 9, 17, seed=0)


@pytest.fixture
def x(made_up: pd.DataFrame) -> Tensor:
    """Give the made-up cohort as networks see it."""
    return Preprocessor(MADE_UP).fit(made_up).transform(made_up)
