"""FeatureEmbedding does what its parts do, and refuses bad codes."""

import pytest
import torch
from cohorts import MADE_UP

from healthgym_utils.layers import FeatureEmbedding
from healthgym_utils.preprocess import Preprocessor
from healthgym_utils.schema import ART_FULL_SCHEMA, ART_SCHEMA
from healthgym_utils.sequences import to_sequences


@pytest.fixture
def codes(made_up):
    table = Preprocessor(MADE_UP).fit(made_up).codes(made_up)
    table = table.join(made_up[MADE_UP.ids])
    return to_sequences(table, MADE_UP.names, "stay", "hour").values


def test_width():
    assert FeatureEmbedding(ART_FULL_SCHEMA)(torch.zeros(2, 5, 10)).shape == (
        2,
        5,
        27,
    )
    assert FeatureEmbedding(ART_SCHEMA)(torch.zeros(7)).shape == (18,)


def test_every_feature_equals_its_own_module(codes):
    embed = FeatureEmbedding(MADE_UP)
    joined = embed(codes)
    start = 0
    for index, feature in enumerate(MADE_UP):
        part = embed.parts[feature.name]
        column = codes[..., index]
        if feature.is_real:
            alone = part.weight[:, 0] * column[..., None] + part.bias
        else:
            alone = part.weight[column.long()]
        stop = start + feature.embedding_size
        torch.testing.assert_close(joined[..., start:stop], alone)
        start = stop
    assert start == joined.shape[-1]


def test_gradients_reach_every_part(codes):
    embed = FeatureEmbedding(MADE_UP)
    embed(codes).square().sum().backward()
    for name, parameter in embed.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("code", [-1.0, 12.0, 3.5, float("nan")])
def test_bad_codes_are_refused(codes, code):
    codes[1, 2, 3] = code
    with pytest.raises(ValueError, match="ward: code .* is none of 0 to 11"):
        FeatureEmbedding(MADE_UP)(codes)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_reals_are_refused(codes, value):
    codes[1, 2, 0] = value
    with pytest.raises(ValueError, match="lactate: value .* is not finite"):
        FeatureEmbedding(MADE_UP)(codes)


def test_double_precision(codes):
    embed = FeatureEmbedding(MADE_UP).double()
    assert embed(codes).dtype == torch.float64


def test_wrong_number_of_features_is_refused():
    with pytest.raises(ValueError, match="expected 5 features .* got 4"):
        FeatureEmbedding(MADE_UP)(torch.zeros(2, 3, 4))
