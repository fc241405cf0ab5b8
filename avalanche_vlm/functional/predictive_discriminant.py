"""A discriminant whose class means have a Gaussian prior, around what the text of the classes predicts."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from avalanche_vlm._checks import check_number, wrong_value
from avalanche_vlm.functional.discriminant import FeatureSums
from avalanche_vlm.functional.exact_sums import Sketches

TEXT_RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0)
_LEAST_VARIANCE = 1e-6
_NO_SPREAD = 1e-12


class PredictedMeans(NamedTuple):
    """Means that are predicted for classes, from the text of each or from the other classes alone.

    Attributes:
        left_out: (K, D), the prediction for each class with data from all others.
        centre: (D,), the mean of the class means.
        text_centre: (D',), that of the text features; None without text.
        map: (D', D), from a text feature to a deviation from the centre; None without text.
    """

    left_out: Tensor
    centre: Tensor
    text_centre: Tensor | None
    map: Tensor | None

    def of(self, text: Tensor | None, count: int) -> Tensor:
        """Return the prediction (count, D) for classes without data, by their text (count, D')."""
        if text is None or self.map is None or self.text_centre is None:
            return self.centre.expand(count, -1)
        return self.centre + (text - self.text_centre) @ self.map


def predicted_means(means: Tensor, text: Tensor | None) -> PredictedMeans:
    r"""Regress class means on text features, and predict each mean without its own class.

    .. math::
        m_c = \bar\mu + (t_c - \bar t)\, A, \qquad
        A = T^T (T T^T + a I)^{-1} U, \qquad a = \alpha \, \mathrm{tr}(T T^T) / \min(K - 1, D')

    with the centred text T (K, D') and the centred means U (K, D). Left out,
    :math:`m_c^{loo} = \mu_c - (\mu_c - m_c) / (1 - h_c)` with the leverage h, which is exact at a fixed a.
    α is that of 0.03, 0.1, 0.3, 1 and 3 with the least sum of squares of what is left out. Without text, or
    where all classes have the same, :math:`m_c^{loo}` is the mean of the other classes.

    Args:
        means: float64 (K, D).
        text: float64 (K, D'), or None.
    """
    count, centre = len(means), means.mean(dim=0)
    if count == 1:
        return PredictedMeans(means.clone(), centre, None, None)
    plain = PredictedMeans((count * centre - means) / (count - 1), centre, None, None)
    if text is None:
        return plain
    text_centre = text.mean(dim=0)
    centred, deviations = text - text_centre, means - centre
    size = float((centred * centred).sum())
    if size <= _NO_SPREAD * count:
        return plain
    mean_value = size / min(count - 1, text.shape[1])
    if count <= text.shape[1]:
        values, vectors = torch.linalg.eigh(centred @ centred.T)
        values = values.clamp_min(0)
        basis, scale = vectors * values.sqrt(), values.sqrt()[:, None]
        coefficients = scale * (vectors.T @ deviations)
        back = centred.T @ (vectors / values.sqrt().clamp_min(1e-150))
    else:
        values, back = torch.linalg.eigh(centred.T @ centred)
        values = values.clamp_min(0)
        basis = centred @ back
        coefficients = basis.T @ deviations

    def left_out(ridge: float, *of: Tensor) -> tuple[Tensor, Tensor]:
        basis, coefficients, deviations = of
        inverse = 1 / (values.to(basis) + ridge * mean_value)
        leverage = (basis * basis) @ inverse + 1 / count
        residuals = deviations - basis @ (inverse[:, None] * coefficients)
        return residuals / (1 - leverage)[:, None], inverse

    # Which of five is enough to know in single precision.
    of = (basis, coefficients, deviations)
    short = [each.float() for each in of]
    ridge = min(TEXT_RIDGES, key=lambda each: float(left_out(each, *short)[0].square().sum()))
    residuals, inverse = left_out(ridge, *of)
    return PredictedMeans(means - residuals, centre, text_centre, back @ (inverse[:, None] * coefficients))


def shrunk_second_moment(moment: Tensor, samples: float) -> Tensor:
    r"""Return a second moment B (D, D) drawn towards (tr B / D) I by oracle-approximating shrinkage.

    .. math::
        \gamma = \min\Bigl(1, \frac{(1 - 2/D) \mathrm{tr} B^2 + (\mathrm{tr} B)^2}
            {(n + 1 - 2/D)(\mathrm{tr} B^2 - (\mathrm{tr} B)^2 / D)}\Bigr)

    Args:
        moment: B, symmetric, of n samples.
        samples: n.

    References:
        Chen, Wiesel, Eldar and Hero, Shrinkage Algorithms for MMSE Covariance Estimation, IEEE
        Transactions on Signal Processing 2010.
    """
    size = len(moment)
    trace, square = float(moment.trace()), float((moment * moment).sum())
    above = (1 - 2 / size) * square + trace**2
    below = (samples + 1 - 2 / size) * (square - trace**2 / size)
    share = 1.0 if below <= above else above / below
    return (1 - share) * moment + share * trace / size * torch.eye(size, dtype=moment.dtype).to(moment)


class PredictiveDiscriminant(NamedTuple):
    """What scores features; see `fit_predictive_discriminant`.

    Attributes:
        classes: int64 (K,), the classes that are scored.
        centre: (D,).
        projection: (D, D), to coordinates in which the spread inside classes is the identity.
        means: y (K, D), in these.
        precisions: 1 / v (K, D), in these.
        biases: (K,).
        is_linear: whether all classes have the same v.
        spreads: (K, h, D), directions in which a class spreads more, in these; None without a sketch.
        offsets: (K, h), the mean of the class along them; None without a sketch.
    """

    classes: Tensor
    centre: Tensor
    projection: Tensor
    means: Tensor
    precisions: Tensor
    biases: Tensor
    is_linear: bool
    spreads: Tensor | None = None
    offsets: Tensor | None = None

    def to(self, dtype: torch.dtype) -> PredictiveDiscriminant:
        """Return the same in another precision."""
        found = {name: each.to(dtype) for name, each in self._asdict().items() if isinstance(each, Tensor)}
        return self._replace(**{**found, "classes": self.classes})

    def projected(self, unit: Tensor) -> Tensor:
        """Return unit features (B, D) in the coordinates of the means."""
        return (unit - self.centre) @ self.projection

    def scores(self, unit: Tensor) -> Tensor:
        r"""Return :math:`g_c(x)` (B, K), up to what all classes of a row share."""
        z = self.projected(unit)
        scores = z @ (self.precisions * self.means).T + self.biases
        if not self.is_linear:
            scores = scores - 0.5 * (z * z) @ self.precisions.T
        if self.spreads is not None and self.offsets is not None:
            classes, size, _ = self.spreads.shape
            along = (z @ self.spreads.flatten(0, 1).T).reshape(len(z), classes, size) - self.offsets
            scores = scores + 0.5 * (along * along).sum(dim=2)
        return scores

    def with_spreads(self, of: FeatureSums, kept: Sketches, share: float) -> PredictiveDiscriminant:
        r"""Return the discriminant in which each class also spreads as its sketch says.

        .. math::
            \Sigma_c = (1 - \eta) \, \mathrm{diag}(v_c) + \eta \, \frac{B_c^T B_c}{h (n_c - 1)}

        with the sketch B (h, D) of the class, centred, in the coordinates of the means; by the Woodbury
        identity. Classes of a single row stay as they are.

        Args:
            of: the sums that this was fitted to.
            kept: the sketches of the same rows.
            share: η, above 0 and below 1.
        """
        rows = of.counts[self.classes].double()
        own = of.sums[self.classes] / rows.clamp_min(1)[:, None]
        signs = kept.signs[self.classes]
        centred = (kept.rows[self.classes] - signs[:, :, None] * own[:, None]) @ self.projection
        size, width = centred.shape[1:]
        several = (rows > 1).to(centred)
        spread = centred / (size * (rows - 1).clamp_min(1)).sqrt()[:, None, None] * several[:, None, None]
        precisions = self.precisions / (1 - share * several)[:, None]
        weighted = spread * precisions[:, None]
        inner = torch.eye(size).to(spread) / share + weighted @ spread.transpose(1, 2)
        factor = torch.linalg.cholesky(inner)
        spreads = torch.linalg.solve_triangular(factor, weighted, upper=False)
        wider = factor.diagonal(dim1=1, dim2=2).log().sum(dim=1) + 0.5 * size * math.log(share)
        wider = wider + 0.5 * width * math.log1p(-share) * several
        closer = 0.5 * (self.means * self.means * (precisions - self.precisions)).sum(dim=1)
        return self._replace(
            precisions=precisions,
            biases=self.biases - wider - closer,
            is_linear=False,
            spreads=spreads,
            offsets=torch.einsum("khd,kd->kh", spreads, self.means),
        )


def fit_predictive_discriminant(
    of: FeatureSums,
    text: Tensor | None = None,
    *,
    classes: Tensor | None = None,
    ridge: float = 1.0,
    by_counts: bool = False,
) -> PredictiveDiscriminant:
    r"""Fit Gaussians that share a covariance, to means that have a prior.

    .. math::
        g_c(x) = -\tfrac12 \sum_k \Bigl[ \frac{(z_k - y_{ck})^2}{v_{ck}} + \log v_{ck} \Bigr], \qquad
        y_{ck} = w \bar z_{ck} + (1 - w) p_{ck}, \qquad
        v_{ck} = 1 + \frac{\lambda_k}{1 + n_c \lambda_k}, \qquad w = \frac{n_c \lambda_k}{1 + n_c \lambda_k}

    in coordinates :math:`z = U^T L^{-1} x`. :math:`S = L L^T = (1 - g) W + g \, \mathrm{tr}(W)/D \, I` is the
    spread inside classes, with :math:`g = \rho / (1 + \rho)` and :math:`\rho = r D / (N - K)`. p is what the
    text of a class predicts for its mean, from the other classes (`predicted_means`), and λ how far means lie
    from that, in each direction: the eigenvalues of the second moment of :math:`L^{-1}(\mu_c - m_c^{loo})`,
    less what the means of finitely many rows add. Directions that a class's rows say little about count
    little; with many rows in every class this is linear discriminant analysis.

    Classes of few rows say little about λ: each counts :math:`n_c / (1 + n_c)`. Where no class has two
    different rows, S is half of the shrunk covariance of :math:`\mu_c - m_c^{loo}`, and λ = 1.

    Args:
        of: sums over at least one feature of unit length.
        text: (C, D'), of all classes; None to predict each mean by those of the other classes.
        classes: int64 (K',), which to score; None for those with features. One without features is
            scored by its prior.
        ridge: r, above 0.
        by_counts: whether classes have prior probabilities in proportion to their rows, or all the same.

    Raises:
        ValueError: no feature, or a ridge that is not positive.

    References:
        Ioffe, Probabilistic Linear Discriminant Analysis, ECCV 2006, for the prior of class means; Wang et
        al., A Hard-to-Beat Baseline for Training-free CLIP-based Adaptation, ICLR 2024, for the ridge. The
        prediction of means from text, and λ by leaving classes out, are ours.
    """
    check_number("ridge", ridge, above=0)
    known = of.counts.nonzero().flatten()
    if len(known) == 0:
        raise wrong_value("of", "sums over at least one feature", "none")
    rows = of.counts[known].double()
    means = of.sums[known] / rows[:, None]
    text = None if text is None else torch.nn.functional.normalize(text.to(means), dim=1)
    predicted = predicted_means(means, None if text is None else text[known])
    spread, few = _within(of, means, rows, predicted.left_out, ridge)
    factor = torch.linalg.cholesky(spread)
    identity = torch.eye(len(spread)).to(spread)
    projection = torch.linalg.solve_triangular(factor, identity, upper=False).T
    if few:
        variances = torch.ones(len(spread)).to(spread)
    else:
        away = (means - predicted.left_out) @ projection
        weights = rows / (1 + rows)
        moment = (away * weights[:, None]).T @ away / weights.sum()
        noise = float((weights / rows).sum() / weights.sum())
        independent = float(weights.sum() ** 2 / (weights * weights).sum())
        values, vectors = torch.linalg.eigh(shrunk_second_moment(moment, independent))
        variances = (values - noise).clamp_min(_LEAST_VARIANCE)
        projection = projection @ vectors
    scored = known if classes is None else classes
    return _posterior(of, text, known, predicted, projection, variances, scored, by_counts)


def _within(
    of: FeatureSums, means: Tensor, rows: Tensor, left_out: Tensor, ridge: float
) -> tuple[Tensor, bool]:
    """Return S, and whether it had to be taken from the spread of class means."""
    size, count = means.shape[1], len(means)
    total = float(rows.sum())
    freedom = total - count
    identity = torch.eye(size).to(means)
    scatter = of.second_moment - (means * rows[:, None]).T @ means
    variance = float(scatter.trace()) / size
    if freedom > 0 and variance >= _NO_SPREAD * total / size:
        share = ridge * size / freedom
        share = share / (1 + share)
        return ((1 - share) * scatter + share * variance * identity) / freedom, False
    away = means - left_out
    moment = away.T @ away / count
    if float(moment.trace()) < _NO_SPREAD:
        return identity / size, True
    return 0.5 * shrunk_second_moment(moment, count), True


def _posterior(
    of: FeatureSums,
    text: Tensor | None,
    known: Tensor,
    predicted: PredictedMeans,
    projection: Tensor,
    variances: Tensor,
    scored: Tensor,
    by_counts: bool,
) -> PredictiveDiscriminant:
    place = torch.full((len(of.counts),), -1, device=known.device)
    place[known] = torch.arange(len(known), device=known.device)
    at = place[scored]
    has_rows = at >= 0
    prior = predicted.of(None if text is None else text[scored], len(scored))
    prior = torch.where(has_rows[:, None], predicted.left_out[at], prior)
    rows = of.counts[scored].double()[:, None]
    own = of.sums[scored] / rows.clamp_min(1)
    own = torch.where(has_rows[:, None], own, prior)
    share = rows * variances / (1 + rows * variances)
    y = share * ((own - predicted.centre) @ projection)
    y = y + (1 - share) * ((prior - predicted.centre) @ projection)
    v = 1 + variances / (1 + rows * variances)
    biases = -0.5 * (y * y / v + v.log()).sum(dim=1)
    if by_counts:
        biases = biases + rows[:, 0].clamp_min(1).log()
    is_linear = bool((rows == rows[0]).all())
    return PredictiveDiscriminant(scored, predicted.centre, projection, y, 1 / v, biases, is_linear)
