"""Frechet and kernel distance against closed forms, torchmetrics and plain loops; FID's network against golden features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mmpretrain.evaluate.distances import Moments, checked, frechet, kernel_distance, moments, read_features, write_features
from mmpretrain.evaluate.inception import Inception, resized


def normal(n: int, d: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)) * scale + shift


def exact(mean: list[float], covariance: list[list[float]]) -> Moments:
    return Moments(np.array(mean), np.array(covariance), 0)


def test_gaussians_of_one_dimension():
    """(m1 - m2)^2 + (s1 - s2)^2."""
    assert frechet(exact([1.0], [[4.0]]), exact([4.0], [[9.0]])) == pytest.approx(9 + 1)


def test_covariances_that_commute():
    """Diagonal ones: the sum over dimensions. Turned by the same rotation it stays."""
    first, second = np.diag([1.0, 4.0, 0.0]), np.diag([9.0, 0.25, 2.0])
    wanted = (1 - 3) ** 2 + (2 - 0.5) ** 2 + 2.0 + 14
    mean = np.array([1.0, 2.0, 3.0])
    assert frechet(Moments(mean, first, 0), Moments(np.zeros(3), second, 0)) == pytest.approx(wanted)
    turn = np.linalg.qr(normal(3, 3, 0))[0]
    turned = [Moments(turn @ m, turn @ c @ turn.T, 0) for m, c in ((mean, first), (np.zeros(3), second))]
    assert frechet(*turned) == pytest.approx(wanted)


def test_covariances_that_do_not_commute():
    """Of 2 x 2 matrices tr (C1 C2)^(1/2) = sqrt(tr C1 C2 + 2 sqrt(det C1 C2))."""
    first, second = np.array([[2.0, 0.6], [0.6, 1.0]]), np.array([[1.0, -0.7], [-0.7, 3.0]])
    shared = np.sqrt(np.trace(first @ second) + 2 * np.sqrt(np.linalg.det(first @ second)))
    found = frechet(Moments(np.zeros(2), first, 0), Moments(np.zeros(2), second, 0))
    assert found == pytest.approx(np.trace(first) + np.trace(second) - 2 * shared, rel=1e-12)


def test_torchmetrics_agrees():
    from torchmetrics.image.fid import _compute_fid
    from torchmetrics.image.kid import poly_mmd

    a, b = normal(300, 20, 1), normal(200, 20, 2, 1.4, 0.3)
    first, second = moments(a), moments(b)
    np.testing.assert_allclose(first.covariance_DD, np.cov(a, rowvar=False), atol=1e-12)
    theirs = _compute_fid(*(torch.from_numpy(x) for x in (first.mean_D, first.covariance_DD, second.mean_D, second.covariance_DD)))
    assert frechet(first, second) == pytest.approx(float(theirs), rel=1e-9)
    equal = torch.from_numpy(b[:150]), torch.from_numpy(a[:150])
    assert kernel_distance(*(x.numpy() for x in equal)) == pytest.approx(float(poly_mmd(*equal)), rel=1e-9)


def test_fewer_samples_than_values():
    """Covariances of rank 9 in 50 dimensions: 0 for a set and itself, symmetric, not negative."""
    a, b = moments(normal(10, 50, 3)), moments(normal(10, 50, 4))
    assert frechet(a, a) == pytest.approx(0, abs=1e-10)
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-10) and frechet(a, b) > 0


def test_kernel_distance_is_the_unbiased_sum():
    a, b = normal(7, 4, 5), normal(5, 4, 6, shift=1.0)
    k = lambda x, y: (x @ y / 4 + 1) ** 3
    own = np.mean([k(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j])
    other = np.mean([k(x, y) for i, x in enumerate(b) for j, y in enumerate(b) if i != j])
    assert kernel_distance(a, b) == pytest.approx(own + other - 2 * np.mean([[k(x, y) for y in b] for x in a]))
    same = [kernel_distance(normal(50, 4, s), normal(50, 4, 1000 + s)) for s in range(200)]
    assert min(same) < 0 < max(same) and abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(200)


def test_bad_features():
    with pytest.raises(ValueError, match="two rows or more"):
        checked(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="not finite"):
        moments(np.array([[1.0], [np.nan]]))
    with pytest.raises(ValueError, match="of 3 and of 2 values"):
        frechet(moments(normal(4, 3, 0)), moments(normal(4, 2, 0)))
    with pytest.raises(ValueError, match="of 3 and of 2 values"):
        kernel_distance(normal(4, 3, 0), normal(4, 2, 0))


def test_files_of_features(tmp_path: Path):
    found = normal(6, 3, 0)
    write_features(tmp_path / "a.npz", found, "scenes by stub")
    known, rows = read_features(tmp_path / "a.npz")
    np.testing.assert_allclose(rows, found, atol=1e-6)
    np.savez(tmp_path / "b.npz", mu=known.mean_D, sigma=known.covariance_DD)
    told, none = read_features(tmp_path / "b.npz")
    assert none is None and frechet(told, known) == pytest.approx(0, abs=1e-10)
    np.save(tmp_path / "c.npy", found)
    assert read_features(tmp_path / "c.npy")[0].count == 6
    np.savez(tmp_path / "d.npz", other=found)
    np.savez(tmp_path / "e.npz", mu=np.zeros(3), sigma=np.zeros((2, 2)))
    (tmp_path / "f.npz").write_bytes(b"PK nothing")
    (tmp_path / "g.npz").write_bytes(b"")
    np.savez(tmp_path / "i.npz", mu=np.full(3, np.nan), sigma=np.eye(3))  # a distance of nothing known is not 0
    np.savez(tmp_path / "j.npz", mu=np.float64(1), sigma=np.float64(1))
    np.savez_compressed(tmp_path / "k.npz", features=normal(50, 40, 0))
    packed = bytearray((tmp_path / "k.npz").read_bytes())
    packed[30 + packed[26] + packed[28]] = 7  # behind the header of the member: a kind of block that does not exist
    (tmp_path / "k.npz").write_bytes(packed)
    wrong = {"d": "neither features", "e": "do not go together", "f": "no file", "g": "no file", "h": "no such file", "i": "not finite"}
    for name, reason in {**wrong, "j": "do not go together", "k": "no file"}.items():
        with pytest.raises(ValueError, match=reason) as caught:
            read_features(tmp_path / f"{name}.npz")
        assert f"{name}.npz" in str(caught.value) and "\n" not in str(caught.value)


# ---------------------------------------------------------------- FID's network


def drawn() -> dict[str, torch.Tensor]:
    """The state dict of FID's Inception with weights drawn from a formula: no generator of torch, so that they never change."""
    from torchvision.models import inception_v3

    state = inception_v3(weights=None, aux_logits=False, init_weights=False, num_classes=1008).state_dict()
    made = {}
    for number, (name, value) in enumerate(state.items()):
        if not value.is_floating_point():
            made[name] = value
            continue
        wave = torch.sin(torch.arange(value.numel(), dtype=torch.float64) * 1.7 + number).view(value.shape).float()
        scale = (4 / max(1, value[0].numel())) ** 0.5 if value.ndim > 1 else 0.2
        made[name] = 1 + 0.5 * wave if name.endswith("running_var") else wave * scale + (value.ndim == 1 and name.endswith("bn.weight"))
    return made


GOLDEN = [
    26.19345, 0.0, 1.18299, 2.26364, 0.69154, 0.0, 2.66149, 1.0033, 0.0, 0.23081, 0.07696, 0.14053, 0.13295, 0.00833, 0.15065, 31.90462
]  # fmt: skip


def test_features_are_those_of_pytorch_fid():
    """Golden: pytorch-fid 0.3.0's blocks and torch-fidelity 0.4.0's resizing gave these on the same weights and picture."""
    net = Inception(drawn())
    y, x = torch.meshgrid(torch.arange(48), torch.arange(64), indexing="ij")
    picture = torch.stack(((3 * y + x) % 256, (y * y) % 256, (5 * x) % 256)).to(torch.uint8)
    found = net.features([picture])
    assert found.shape == (1, 2048)
    np.testing.assert_allclose(found[0, 7::128], GOLDEN, rtol=1e-3, atol=1e-4)


def test_resizing_is_that_of_tensorflow_1():
    line = torch.tensor([[[[0.0, 3.0, 6.0]]]])  # a row of three pixels to six: places 0, 0.5, 1, 1.5, 2, 2.5
    assert resized(line, 6)[0, 0, 0].tolist() == [0.0, 1.5, 3.0, 4.5, 6.0, 6.0]


def test_other_weights_are_refused(tmp_path: Path):
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth: these are not the weights of FID's Inception v3: .* is missing"):
        Inception.load(tmp_path / "w.pth")
    torch.save({"a": Path("x")}, tmp_path / "p.pth")
    with pytest.raises(ValueError, match=r"p\.pth: holds more than tensors"):
        Inception.load(tmp_path / "p.pth")
    (tmp_path / "j.pth").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"j\.pth: cannot be read as weights \(it is no whole file of torch\.save\)"):
        Inception.load(tmp_path / "j.pth")
    with pytest.raises(ValueError, match="there is no such file"):
        Inception.load(tmp_path / "n.pth")
