"""The U-Net keeps its shapes, whatever the length, width and condition."""

import re

import pytest
import torch
from cohorts import MADE_UP

from healthgym_utils.schema import ART_SCHEMA
from healthgym_utils.unet import ResBlock1D, UNet1D, sinusoidal


def small_unet(schema=MADE_UP, **choices):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet1D(schema, **{"hidden": 16, "time_width": 8} | choices)


def trace(model, x, t):
    """Record what enters and leaves each part, in order."""
    seen = []

    def hook(name):
        def record(module, arguments, output):
            seen.append((name, tuple(arguments[0].shape), tuple(output.shape)))

        return record

    shown = re.compile(r"mix_in|mix_out|(downs|middle|ups|up_blocks)\.\d")
    hooks = [
        part.register_forward_hook(hook(name))
        for name, part in model.named_modules()
        if shown.fullmatch(name)
    ]
    model(x, t)
    for handle in hooks:
        handle.remove()
    return seen


def test_trace_of_the_published_shapes():
    """Batch 2, hidden 64, length 100: line by line."""
    model = small_unet(ART_SCHEMA, hidden=64)
    x = torch.randn(2, 100, 22)
    assert trace(model, x, torch.tensor([1, 2])) == [
        ("mix_in", (2, 100, 22), (2, 100, 64)),
        ("downs.0", (2, 64, 100), (2, 64, 50)),
        ("downs.1", (2, 64, 50), (2, 64, 25)),
        ("downs.2", (2, 64, 25), (2, 64, 12)),
        ("middle.0", (2, 64, 12), (2, 64, 12)),
        ("middle.1", (2, 64, 12), (2, 64, 12)),
        ("ups.0", (2, 64, 12), (2, 64, 24)),
        ("up_blocks.0", (2, 64, 25), (2, 64, 25)),  # padded by one
        ("ups.1", (2, 64, 25), (2, 64, 50)),
        ("up_blocks.1", (2, 64, 50), (2, 64, 50)),
        ("ups.2", (2, 64, 50), (2, 64, 100)),
        ("up_blocks.2", (2, 64, 100), (2, 64, 100)),
        ("mix_out", (2, 100, 64), (2, 100, 22)),
    ]


@pytest.mark.parametrize("schema", [MADE_UP, ART_SCHEMA])
def test_every_length_works(schema):
    model = small_unet(schema)
    with torch.no_grad():
        for months in range(8, 129):
            x = torch.randn(1, months, schema.width)
            assert model(x, torch.tensor([3])).shape == x.shape


def test_too_few_months_are_refused():
    with pytest.raises(ValueError, match="8 months or more are needed, got 7"):
        small_unet()(torch.zeros(1, 7, MADE_UP.width), torch.tensor([1]))
    shallow = small_unet(levels=1)
    assert shallow(torch.zeros(1, 2, MADE_UP.width), torch.tensor([1])).ndim


@pytest.mark.parametrize(
    "wrong", [{"hidden": 20}, {"hidden": 8}, {"time_width": 7}, {"levels": 0}]
)
def test_widths_that_do_not_fit_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name} is "):
        small_unet(**wrong)


def test_gradient_reaches_every_parameter():
    model = small_unet(condition=3)
    x = torch.randn(2, 17, MADE_UP.width)
    out = model(x, torch.tensor([1, 400]), torch.randn(2, 3))
    out.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_one_step_for_all_is_the_same_step_for_each():
    model = small_unet()
    x = torch.randn(3, 12, MADE_UP.width)
    each = model(x, torch.tensor([7, 7, 7]))
    torch.testing.assert_close(model(x, torch.tensor([7])), each)
    other = model(x, torch.tensor([7, 7, 300]))
    torch.testing.assert_close(other[:2], each[:2])
    assert (other[2] - each[2]).abs().max() > 1e-3


def test_condition_steers_and_has_to_fit():
    model = small_unet(condition=2)
    x, t = torch.randn(2, 9, MADE_UP.width), torch.tensor([5])
    here = model(x, t, torch.tensor([[1.0, -1.0]] * 2))
    there = model(x, t, torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
    torch.testing.assert_close(here[0], there[0])
    assert (here[1] - there[1]).abs().max() > 1e-3
    with pytest.raises(ValueError, match="conditioned on 2 columns, got 0"):
        model(x, t)
    with pytest.raises(ValueError, match="conditioned on 2 columns, got 3"):
        model(x, t, torch.zeros(2, 3))
    with pytest.raises(ValueError, match="conditioned on 0 columns, got 2"):
        small_unet()(x, t, torch.zeros(2, 2))


def test_skips_bring_the_input_past_the_bottom():
    """With nothing coming up, each month still knows its surroundings."""
    model = small_unet()
    for parameter in model.ups.parameters():
        parameter.data.zero_()
    x, t = torch.randn(1, 16, MADE_UP.width), torch.tensor([5])
    assert (model(x, t) - model(x + 1, t)).abs().max() > 1e-3


def test_film_scales_and_shifts_what_is_normalised():
    block = ResBlock1D(16, 4)
    x, embedding = torch.randn(2, 16, 11), torch.randn(2, 4)
    gamma, beta = block.film(embedding).chunk(2, dim=1)
    h = block.norm1(x) * (1 + gamma[:, :, None]) + beta[:, :, None]
    h = block.conv1(torch.nn.functional.silu(h))
    h = block.conv2(torch.nn.functional.silu(block.norm2(h)))
    torch.testing.assert_close(block(x, embedding), x + h)


def test_waves_are_those_of_the_formula():
    waves = sinusoidal(torch.tensor([0, 1, 500]), 8)
    assert waves.shape == (3, 8)
    rates = torch.tensor([10_000 ** (-k / 3) for k in range(4)])
    expected = torch.cat([torch.sin(500 * rates), torch.cos(500 * rates)])
    torch.testing.assert_close(waves[2], expected, atol=1e-4, rtol=0)
    assert waves[0].tolist() == [0] * 4 + [1] * 4


def test_double_precision():
    model = small_unet().double()
    x = torch.randn(1, 9, MADE_UP.width, dtype=torch.float64)
    assert model(x, torch.tensor([4])).dtype == torch.float64
