"""The speech models' front end against the convolution written out."""

import numpy as np
import pytest
import torch

from sigma_fairseq.layers.front_end import ConvFrontEnd, subsampled_length
from sigma_fairseq.reparam import sigma_norms


def front_end(reparam: str = "none", **options: float) -> ConvFrontEnd:
    torch.manual_seed(0)
    return ConvFrontEnd(5, 4, options.get("dropout", 0.0), reparam, 0.1)


def written_out(module: ConvFrontEnd, features: np.ndarray) -> np.ndarray:
    """(frames, 5) → (⌈frames/3⌉, 4), a window at a time, in float64."""
    weight = module.conv.weight.detach().double().numpy()  # (8, 5, 7)
    bias = module.conv.bias.detach().double().numpy()
    padded = np.zeros((len(features) + 6, 5))
    padded[3:-3] = features * module.scale.item() + module.bias.item()
    windows = [padded[start : start + 7].T for start in range(0, len(features), 3)]
    y = np.stack([(weight * window).sum((1, 2)) + bias for window in windows])
    return y[:, :4] / (1 + np.exp(-y[:, 4:]))


@pytest.mark.parametrize("reparam", ["none", "sigma", "spectral_norm", "weight_norm"])
def test_against_the_convolution_written_out(reparam: str) -> None:
    module = front_end(reparam).eval()
    with torch.no_grad():
        module.scale.fill_(1.7)
        module.bias.fill_(-0.3)
    features = torch.randn(2, 20, 5)
    padding = torch.zeros(2, 20, dtype=torch.bool)
    padding[1, 13:] = True
    features[padding] = 0.0
    output, mask = module(features, padding)
    assert output.shape == (2, 7, 4)
    assert mask.logical_not().sum(1).tolist() == [7, 5]
    for row, frames in ((0, 20), (1, 13)):
        wanted = written_out(module, features[row, :frames].double().numpy())
        np.testing.assert_allclose(output[row, : len(wanted)].detach(), wanted, atol=1e-5)
    assert len(list(sigma_norms(module))) == (reparam == "sigma")


def test_length_is_that_of_the_convolution() -> None:
    module = front_end()
    for frames in range(1, 40):
        output, mask = module(torch.zeros(1, frames, 5), None)
        assert output.shape[1] == subsampled_length(frames)
        assert mask is None


def test_dropout_is_in_training_only() -> None:
    module = front_end(dropout=0.5)
    features = torch.randn(1, 300, 5)
    kept = module(features, None)[0]
    plain = module.eval()(features, None)[0]
    dropped = kept == 0
    assert 0.4 < dropped.float().mean() < 0.6
    torch.testing.assert_close(kept[~dropped], 2 * plain[~dropped])
