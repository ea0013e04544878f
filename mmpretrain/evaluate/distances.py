"""Distances between two sets of features: Frechet and kernel distance, in float64.

Frechet distance (Heusel et al., arXiv 1706.08500; of Gaussians: Dowson and Landau 1982): ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))``.
Kernel distance (Binkowski et al., arXiv 1801.01401): the unbiased estimate of the squared maximum mean discrepancy under
``k(x, y) = (x.y / d + 1)^3``. Both are those of FID and KID where the features are Inception's, and something else where they are not.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmpretrain.data.cache import write_atomic

_BLOCK = 2048  # rows of a block of kernel values


class Moments(NamedTuple):
    """Of a set of features."""

    mean_D: np.ndarray  # float64
    covariance_DD: np.ndarray  # float64, divided by n - 1
    count: int  # type: ignore[assignment]  # of a tuple's methods; 0: not known


def moments(features_ND: np.ndarray) -> Moments:
    """Mean and covariance.

    Raises:
        ValueError: fewer than two rows, or a value that is not finite.
    """
    features_ND = checked(features_ND)
    mean_D = features_ND.mean(0)
    centred_ND = features_ND - mean_D
    return Moments(mean_D, centred_ND.T @ centred_ND / (len(features_ND) - 1), len(features_ND))


def checked(features_ND: np.ndarray) -> np.ndarray:
    """The features as float64 (N, D).

    Raises:
        ValueError: not two or more rows of finite numbers.
    """
    found = np.asarray(features_ND, dtype=np.float64)
    if found.ndim != 2 or len(found) < 2 or not found.shape[1]:
        raise ValueError(f"features of shape {found.shape}: a distance needs two rows or more, (N, D)")
    if not np.isfinite(found).all():
        raise ValueError("features hold numbers that are not finite")
    return found


def frechet(first: Moments, second: Moments) -> float:
    """The squared Frechet distance of two Gaussians, at least 0.

    ``tr (C1 C2)^(1/2)`` is the sum of the singular values of ``A1^T A2`` with ``Ci = Ai Ai^T``: no square root of a matrix that is not
    symmetric, no complex numbers, and none of the noise of eigenvalues near 0 that ``sqrtm`` gives for fewer samples than values.

    Raises:
        ValueError: the features are not of one width.
    """
    if first.mean_D.shape != second.mean_D.shape:
        raise ValueError(f"features of {len(first.mean_D)} and of {len(second.mean_D)} values cannot be compared")
    difference_D = first.mean_D - second.mean_D
    shared = np.linalg.svd(_root(first.covariance_DD).T @ _root(second.covariance_DD), compute_uv=False).sum()
    traces = np.trace(first.covariance_DD) + np.trace(second.covariance_DD)
    return max(0.0, float(difference_D @ difference_D + traces - 2 * shared))


def _root(covariance_DD: np.ndarray) -> np.ndarray:
    """A with ``A A^T`` equal to a symmetric positive semi-definite matrix; eigenvalues below 0 are rounding."""
    values_D, vectors_DD = np.linalg.eigh((covariance_DD + covariance_DD.T) / 2)
    return vectors_DD * np.sqrt(np.clip(values_D, 0, None))


def kernel_distance(first_ND: np.ndarray, second_MD: np.ndarray) -> float:
    """The unbiased estimate over all pairs; about 0 for sets of one distribution, and then as often below as above.

    Raises:
        ValueError: the features are not of one width.
    """
    first_ND, second_MD = checked(first_ND), checked(second_MD)
    if first_ND.shape[1] != second_MD.shape[1]:
        raise ValueError(f"features of {first_ND.shape[1]} and of {second_MD.shape[1]} values cannot be compared")
    n, m = len(first_ND), len(second_MD)
    own = (_kernel_sum(first_ND, first_ND) - _diagonal(first_ND)) / (n * (n - 1))
    other = (_kernel_sum(second_MD, second_MD) - _diagonal(second_MD)) / (m * (m - 1))
    return float(own + other - 2 * _kernel_sum(first_ND, second_MD) / (n * m))


def _kernel_sum(first_ND: np.ndarray, second_MD: np.ndarray) -> float:
    parts = (first_ND[start : start + _BLOCK] @ second_MD.T for start in range(0, len(first_ND), _BLOCK))
    return sum(float(((part / first_ND.shape[1] + 1) ** 3).sum()) for part in parts)


def _diagonal(features_ND: np.ndarray) -> float:
    return float((((features_ND * features_ND).sum(1) / features_ND.shape[1] + 1) ** 3).sum())


def write_features(path: Path, features_ND: np.ndarray, source: str) -> None:
    """Write a file that :func:`read_features` reads; ``source`` says of what, by what."""
    buffer = io.BytesIO()
    np.savez(buffer, features=np.asarray(features_ND, dtype=np.float32), source=np.array(source))
    write_atomic(path, buffer.getvalue())


def read_features(path: Path) -> tuple[Moments, np.ndarray | None]:
    """Features of a set from a file: (moments, float64 (N, D) or None where the file holds moments alone).

    ``features`` (N, D) in an ``.npz``; the matrix of an ``.npy``; or ``mu`` and ``sigma``, as pytorch-fid writes them.

    Raises:
        ValueError: it cannot be read, or holds neither, naming the file.
    """
    try:
        arrays = _arrays(path)
        if "features" in arrays:
            features_ND = checked(arrays["features"])
            return moments(features_ND), features_ND
        if not {"mu", "sigma"} <= set(arrays):
            raise ValueError(f"it holds {', '.join(sorted(arrays)) or 'nothing'}, neither features nor mu and sigma")
        mean_D, covariance_DD = (np.asarray(arrays[name], dtype=np.float64) for name in ("mu", "sigma"))
        if mean_D.ndim != 1 or covariance_DD.shape != mean_D.shape * 2:
            raise ValueError(f"mu {mean_D.shape} and sigma {covariance_DD.shape} do not go together")
        if not (np.isfinite(mean_D).all() and np.isfinite(covariance_DD).all()):
            raise ValueError("mu and sigma hold numbers that are not finite")
        return Moments(mean_D, covariance_DD, 0), None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise ValueError(f"{path}: no file of features ({reason}); see docs/generate.md") from None


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file by their names; the one of an ``.npy`` is called ``features``."""
    found = np.load(path, allow_pickle=False)
    if isinstance(found, np.ndarray):
        return {"features": found}
    with found:
        return {name: found[name] for name in found.files}
