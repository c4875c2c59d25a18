"""FeatureEmbedding does what its parts do, and refuses bad codes."""

import pytest
import torch
from cohorts import MADE_UP

from healthgym_utils.layers import LSTM, FeatureEmbedding, SoftEmbedding
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


def test_soft_embedding_of_hard_and_soft_blocks(made_up):
    x = Preprocessor(MADE_UP).fit(made_up).transform(made_up)
    embed = SoftEmbedding(MADE_UP)
    out = embed(x)
    assert out.shape == (9, 17, MADE_UP.embedding_width)
    reals = len(MADE_UP.reals)
    assert torch.equal(out[..., :reals], x[..., :reals])
    table = embed.tables["ward"].weight.T
    block = x[..., MADE_UP.spans["ward"]]
    rows = table[block.argmax(dim=-1)]
    torch.testing.assert_close(out[..., reals : reals + 4], rows)
    soft = torch.rand_like(block).softmax(dim=-1)
    x[..., MADE_UP.spans["ward"]] = soft
    torch.testing.assert_close(embed(x)[..., reals : reals + 4], soft @ table)


def test_lstm_paths_agree():
    torch.manual_seed(0)
    lstm = LSTM(5, 7)
    x = torch.randn(3, 11, 5)
    assert (lstm(x) - lstm(x, unrolled=True)).abs().max() < 1e-6


def test_lstm_is_the_textbook_recurrence():
    """Gates i, f, g, o in torch's order; one month after the other."""
    torch.manual_seed(0)
    lstm = LSTM(5, 7)
    w = lstm.fused
    x = torch.randn(3, 11, 5)
    h = c = torch.zeros(3, 7)
    for month in range(11):
        gates = x[:, month] @ w.weight_ih_l0.T + w.bias_ih_l0
        gates = gates + h @ w.weight_hh_l0.T + w.bias_hh_l0
        i, f, g, o = gates.split(7, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        torch.testing.assert_close(lstm(x)[:, month, :7], h)


@pytest.mark.parametrize("unrolled", [False, True])
def test_lstm_directions_see_past_and_future(unrolled):
    """The backward states are flipped back: month t has read t and later."""
    lstm = LSTM(4, 6)
    x = torch.randn(1, 9, 4)
    bumped = x.clone()
    bumped[0, 5] += 1
    moved = (lstm(x, unrolled) - lstm(bumped, unrolled)).abs()[0] > 1e-7
    ahead, back = moved[:, :6].any(dim=1), moved[:, 6:].any(dim=1)
    assert ahead.tolist() == [month >= 5 for month in range(9)]
    assert back.tolist() == [month <= 5 for month in range(9)]


@pytest.mark.parametrize("unrolled", [False, True])
def test_lstm_final_is_the_last_state_of_each_direction(unrolled):
    torch.manual_seed(0)
    lstm = LSTM(4, 6)
    x = torch.randn(3, 9, 4)
    states = lstm(x)
    expected = torch.cat([states[:, -1, :6], states[:, 0, 6:]], dim=-1)
    assert (lstm.final(x, unrolled) - expected).abs().max() < 1e-6


def test_lstm_gradients_agree_to_the_second_order():
    torch.manual_seed(0)
    lstm = LSTM(3, 4).double()
    x = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)

    def penalty(unrolled):
        (slope,) = torch.autograd.grad(
            lstm(x, unrolled).sum(), x, create_graph=True
        )
        return torch.autograd.grad(
            slope.square().sum(), list(lstm.parameters()), allow_unused=True
        )

    for fused, looped in zip(penalty(False), penalty(True), strict=True):
        torch.testing.assert_close(fused, looped)
