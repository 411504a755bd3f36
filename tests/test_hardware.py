from dataclasses import replace

import pytest

from unimm.hardware import HardwareError, Multiplied, gpu_named, gpus, peak_flops

# What torch.cuda.get_device_name says of each board.
DEVICES = {
    "NVIDIA H200": "h200",
    "NVIDIA H200 NVL": "h200-nvl",
    "NVIDIA H100 80GB HBM2e": "h100-pcie",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H800": "h100",
    "NVIDIA H100 PCIe": "h100-pcie",
    "NVIDIA H100 NVL": "h100-nvl",
    "NVIDIA A100-SXM4-80GB": "a100-80",
    "NVIDIA A100 80GB PCIe": "a100-80",
    "NVIDIA A800-SXM4-80GB": "a100-80",
    "NVIDIA A100-SXM4-40GB": "a100-40",
    "NVIDIA A100-PCIE-40GB": "a100-40",
    "NVIDIA B200": "b200",
    "NVIDIA L40S": "l40s",
    "NVIDIA L4": "l4",
    "NVIDIA GeForce RTX 4090": "4090",
    "NVIDIA GeForce RTX 3090": "3090",
}


@pytest.mark.parametrize("device, name", DEVICES.items())
def test_a_devices_name_finds_its_own_peak(device, name):
    assert peak_flops(device) == gpu_named(name).flops


@pytest.mark.parametrize("device", ["cpu", "", "NVIDIA L40", "NVIDIA GeForce RTX 4090 D", "NVIDIA GB200", "Tesla T4"])
def test_a_device_without_a_stated_peak_has_none_rather_than_a_neighbours(device):
    assert peak_flops(device) is None


def test_an_unknown_gpu_is_refused_with_those_that_are_known():
    with pytest.raises(HardwareError, match="h300.*h200, h100"):
        gpu_named("h300")
    assert {gpu.name for gpu in gpus()} >= set(DEVICES.values()) | {"cpu"}


def test_flops_of_a_token_are_those_of_the_matrix_products_one_by_one():
    """Every product of a small decoder counted by itself: forward once, backward twice, gradients only where due."""
    layers, heads, head, mlp, rows, t = 3, 4, 8, 50, 100, 16
    width = heads * head
    linears = layers * (4 * width * width + 3 * width * mlp)
    head_weights = rows * width
    per_row = 0
    for _ in range(layers):
        per_row += sum(2 * t * a * b for a, b in [(width, width)] * 4 + [(width, mlp)] * 3)
        per_row += heads * 2 * (2 * t * head * t)  # scores, then their product with the values
    per_row += 2 * t * width * rows
    model = Multiplied(body=linears, head=head_weights, layers=layers, width=width)
    assert model.flops(t) == 3 * per_row / t
    assert model.flops(t, recompute=True) == 4 * per_row / t
    assert model.flops(t) - replace(model, frozen_body=linears).flops(t) == 2 * linears
    assert model.flops(t) - model.flops(t, learned=0.25) == 6 * 0.75 * head_weights


@pytest.mark.parametrize("name, peak", {"h200": 1979, "h100": 1979, "h100-pcie": 1513, "h100-nvl": 1671,
                                        "b200": 4500, "l4": 242}.items())
def test_peaks_are_half_of_what_datasheets_print_with_sparsity(name, peak):
    assert gpu_named(name).flops == pytest.approx(peak * 1e12 / 2, rel=1e-3)
