"""Re-estimation of running statistics."""

import math

import pytest
import torch
from torch import nn

from study.norms import SparseSwitchNorm2d, SwitchNorm2d, average_statistics
from tests.norms import formulas

both_kinds = pytest.mark.usefixtures("kernel_kind")


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batches():
    return [draw(4, 3, 2, 2, seed=seed) * (seed + 1) + seed for seed in range(5)]


@both_kinds
@pytest.mark.parametrize("build", [nn.BatchNorm2d, SwitchNorm2d, SparseSwitchNorm2d])
def test_statistics_are_the_plain_average_over_batches(build):
    layer = build(3, momentum=0.01).eval()
    layer.running_mean.fill_(math.nan)
    average_statistics(layer, batches())
    mean = torch.stack([x.mean((0, 2, 3)) for x in batches()]).mean(0)
    var = torch.stack([x.var((0, 2, 3)) for x in batches()]).mean(0)
    torch.testing.assert_close(layer.running_mean, mean)
    torch.testing.assert_close(layer.running_var, var)


@both_kinds
def test_statistics_over_chunks_are_averaged_over_chunks():
    layer = SwitchNorm2d(3, chunks=2)
    average_statistics(layer, batches())
    var = torch.stack([half.var((0, 2, 3)) for x in batches() for half in x.chunk(2)]).mean(0)
    torch.testing.assert_close(layer.running_var, var)


@both_kinds
@pytest.mark.parametrize("build", [nn.BatchNorm2d, SwitchNorm2d, lambda *a: SwitchNorm2d(*a, chunks=2)])
@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_total_statistics_are_those_of_all_values(build, mean):
    layer = build(3)
    layer.running_var.fill_(math.nan)
    inputs = [*(each + mean for each in batches()), draw(2, 3, 5, 5)[:0], draw(2, 3, 5, 5, seed=9) + mean]
    average_statistics(layer, inputs, variance="total")
    values = torch.cat([each.double().movedim(1, 0).flatten(1) for each in inputs], 1)
    torch.testing.assert_close(layer.running_mean.double(), values.mean(1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(layer.running_var.double(), values.var(1), rtol=1e-5 + 1e-8 * mean, atol=0)


def test_total_statistics_of_a_corrected_layer_are_accumulated_moments():
    layer = SwitchNorm2d(3, correction=1)
    average_statistics(layer, batches(), variance="total")
    moments = [(x.mean((0, 2, 3)), formulas.official_variances(x)["bn"][0]) for x in batches()]
    mean = sum(m for m, _ in moments) / 5
    torch.testing.assert_close(layer.running_mean, mean)
    torch.testing.assert_close(layer.running_var, sum(v + m**2 for m, v in moments) / 5 - mean**2)


def test_between_the_rules_is_the_variance_of_the_means_of_batches():
    """Batches of two images whose means differ as much as their pixels: half of the variance is between images."""
    images = [draw(2, 1, 8, 8, seed=seed) + draw(2, 1, 1, 1, seed=1000 + seed) for seed in range(400)]
    within, total = nn.BatchNorm2d(1), nn.BatchNorm2d(1)
    average_statistics(within, images)
    average_statistics(total, images, variance="total")
    assert (within.running_var / total.running_var).item() == pytest.approx(0.75, abs=0.03)
    assert within.running_mean.item() == pytest.approx(total.running_mean.item(), abs=1e-5)


def test_the_rule_must_be_one_of_two():
    with pytest.raises(ValueError, match="variance 'unbiased' is not allowed: 'within' or 'total'"):
        average_statistics(nn.BatchNorm2d(3), batches(), variance="unbiased")


def test_a_module_without_a_running_variance_is_not_a_norm():
    class Tracker(nn.Identity):
        momentum = 0.1
        running_mean = torch.zeros(3)

    average_statistics(Tracker(), [])


def test_a_layer_that_runs_twice_averages_over_both_runs():
    layer = SwitchNorm2d(3)
    model = nn.Sequential(layer, nn.Hardtanh(), layer)
    inputs = [*batches(), *(nn.Hardtanh()(layer(x)).detach() for x in batches())]
    average_statistics(model, batches())
    mean = torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0)
    torch.testing.assert_close(layer.running_mean, mean)


def test_modes_momenta_and_parameters_do_not_change():
    model = nn.Sequential(nn.BatchNorm2d(3, momentum=0.2), nn.Dropout(), SwitchNorm2d(3).eval())
    parameters = [parameter.clone() for parameter in model.parameters()]
    average_statistics(model, batches())
    assert [module.training for module in model] == [True, True, False]
    assert [model[0].momentum, model[2].momentum] == [0.2, 0.1]
    assert all(map(torch.equal, model.parameters(), parameters))


def test_momenta_and_hooks_are_restored_after_an_error():
    model = nn.Sequential(nn.BatchNorm2d(3, momentum=0.2))
    with pytest.raises(ValueError, match="expected 4D"):
        average_statistics(model, [torch.ones(2)])
    assert model[0].momentum == 0.2
    assert not model[0]._forward_pre_hooks


def test_dropout_is_off():
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(3))
    average_statistics(model, batches())
    mean = torch.stack([x.mean((0, 2, 3)) for x in batches()]).mean(0)
    torch.testing.assert_close(model[1].running_mean, mean)


def test_forward_unpacks_a_batch():
    layer = nn.BatchNorm2d(3)
    average_statistics(layer, [(x, "label") for x in batches()], lambda model, batch: model(batch[0]))
    assert layer.running_mean.abs().sum() > 0


def test_compiled_layers_are_included():
    torch.compiler.reset()
    layer = SwitchNorm2d(3, momentum=0.01)
    model = nn.Sequential(layer)
    model.compile(backend="eager", fullgraph=True)
    model(batches()[0])
    average_statistics(model, batches())
    mean = torch.stack([x.mean((0, 2, 3)) for x in batches()]).mean(0)
    torch.testing.assert_close(layer.running_mean, mean)


def test_no_batch_is_an_error():
    with pytest.raises(ValueError, match="batches is empty"):
        average_statistics(nn.BatchNorm2d(3), [])


def test_a_model_without_running_statistics_needs_no_batch():
    average_statistics(nn.GroupNorm(1, 3), [])


def test_inputs_may_have_a_name_and_statistics_that_do_not_move_stay():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
            self.second.track_running_stats = False

        def forward(self, x):
            return self.second(self.first(input=x))

    model = Named()
    average_statistics(model, [torch.ones(2, 3, 4, 4)])
    assert model.first.running_mean.tolist() == [1.0] * 3
    assert model.second.running_var.tolist() == [1.0] * 3
