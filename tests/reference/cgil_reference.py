"""CGIL from its equations, with nothing spared: what `strategies.CGIL` is compared and timed with.

Each class has a variational auto-encoder of its own, fitted after the one before it. Prompts always have
all the positions of the text tower. Those of all classes seen are encoded anew for every batch, in
evaluation too.
It shares with the package the frozen towers and the tokenizer, and nothing else.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import Adam, AdamW
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts


class ReferenceVAE(nn.Module):
    """One class: encoder D-512-512-2·256 with batch norm, decoder 256-512-512-D, and its normalisation."""

    def __init__(self, width, hidden=512, latent=256):
        super().__init__()
        self.latent = latent
        self.encoder = nn.Sequential(
            *(nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.LeakyReLU(0.2)),
            *(nn.Linear(hidden, hidden), nn.BatchNorm1d(hidden), nn.LeakyReLU(0.2)),
            nn.Linear(hidden, 2 * latent),
        )
        self.decoder = nn.Sequential(
            *(nn.Linear(latent, hidden), nn.LeakyReLU(0.2)),
            *(nn.Linear(hidden, hidden), nn.LeakyReLU(0.2)),
            nn.Linear(hidden, width),
        )

    def normalise(self, x):
        """Min-max scale and z-score, with what `fit` found."""
        return ((x - self.low) / self.span - self.mean) / self.deviation

    def loss(self, x, noise):
        """Return the loss of normalised rows x (B, D), with the noise (B, latent) of their codes."""
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        decoded = self.decoder(mean + noise * torch.exp(log_variance / 2))
        likelihood = 0.5 * ((x - decoded) ** 2).sum(dim=1) + x.shape[1] / 2 * math.log(2 * math.pi)
        divergence = 0.5 * (log_variance.exp() + mean**2 - 1 - log_variance).sum(dim=1)
        return (likelihood + divergence).mean()

    def fit(self, x, *, passes=500, batch_size=64, learning_rate=2e-4):
        """Train on the rows x (N, D) of the class."""
        self.low, self.span = x.amin(dim=0), (x.amax(dim=0) - x.amin(dim=0)).clamp(min=1e-6)
        scaled = (x - self.low) / self.span
        self.mean, self.deviation = scaled.mean(dim=0), scaled.std(dim=0, correction=0).clamp(min=1e-6)
        x = self.normalise(x)
        optimizer = Adam(self.parameters(), lr=learning_rate)
        steps = passes * math.ceil(len(x) / batch_size)
        schedule = CosineAnnealingWarmRestarts(optimizer, T_0=max(1, steps // 10), T_mult=2)
        for _ in range(passes):
            for rows in torch.randperm(len(x)).split(batch_size):
                optimizer.zero_grad()
                self.loss(x[rows], torch.randn(len(rows), self.latent)).backward()
                optimizer.step()
                schedule.step()
        return self

    @torch.no_grad()
    def sample(self, count):
        """Return drawn rows (count, D)."""
        decoded = self.decoder(torch.randn(count, self.latent))
        return (decoded * self.deviation + self.mean) * self.span + self.low


class ReferencePrompts(nn.Module):
    """Prompts ``[start] [V_c] [h_c] [name.] [end]`` and the cosine classifier that they make.

    Features of "a photo of a {name}", which the network turns into h, are encoded once: all that is
    encoded once.
    """

    def __init__(self, backbone, names):
        super().__init__()
        self.backbone = backbone
        tower = backbone.text_tower
        width, token_width = backbone.embed_dim, tower.width
        dtype = tower.positional_embedding.dtype
        self.tokens = backbone.tokenize([f"X X {name}." for name in names])
        with torch.no_grad():
            plain = backbone.tokenize([f"a photo of a {name}" for name in names])
            self.class_features = self.text_tower(tower.token_embedding(plain), plain)
        self.vectors = nn.Parameter(0.02 * torch.randn(len(names), 1, token_width, dtype=dtype))
        blocks = [
            (nn.Linear(width, outputs), nn.BatchNorm1d(outputs), nn.SELU())
            for outputs in (width, width, token_width)
        ]
        self.network = nn.Sequential(
            *(layer for block in blocks for layer in block), nn.Linear(token_width, token_width)
        ).to(dtype)
        self.network.eval()  # as in the authors' code: the batch norms are affine maps

    def text_tower(self, embeddings, tokens):
        """Run all positions through the text tower and read the feature at the end token."""
        tower = self.backbone.text_tower
        hidden = tower.transformer(embeddings + tower.positional_embedding, attn_mask=tower.attn_mask)
        ends = tower.ln_final(hidden)[torch.arange(len(tokens)), tokens.argmax(dim=1)]
        return ends @ tower.text_projection

    def keys(self, classes):
        """Return normalised class weights (K, D)."""
        tokens = self.tokens[classes]
        generated = self.network(self.class_features[classes])
        embeddings = self.backbone.text_tower.token_embedding(tokens)
        prompts = torch.cat(
            [embeddings[:, :1], self.vectors[classes], generated[:, None], embeddings[:, 3:]], dim=1
        )
        return F.normalize(self.text_tower(prompts, tokens), dim=1)

    def logits(self, x, classes):
        """Return the scaled cosines (B, K) of embeddings (B, D)."""
        return self.backbone.logit_scale * F.normalize(x, dim=1) @ self.keys(classes).T


class ReferenceCGIL:
    """The procedure: fit an auto-encoder to each new class, then train on draws of all classes seen.

    Args:
        backbone: an `OpenCLIPBackbone` whose text tower is CLIP's.
        names: of all classes, by id.
        learning_rate: of AdamW.
        epochs: of each experience.
        vae_passes: times that an auto-encoder sees each embedding.
        samples_per_class: draws of each class in an epoch.
        batch_size: draws in a step, and embeddings in a batch of evaluation.
    """

    def __init__(
        self,
        backbone,
        names,
        *,
        learning_rate=0.03,
        epochs=60,
        vae_passes=500,
        samples_per_class=256,
        batch_size=128,
    ):
        self.prompts = ReferencePrompts(backbone, names)
        self.learning_rate, self.epochs, self.vae_passes = learning_rate, epochs, vae_passes
        self.samples_per_class, self.batch_size = samples_per_class, batch_size
        self.generators = {}

    @property
    def seen(self):
        """Ids of the classes that have a generator, ascending."""
        return torch.tensor(sorted(self.generators))

    def train(self, x, y):
        """Train on an experience: embeddings x (N, D), un-normalised, and labels y (N,)."""
        self.fit_generators(x, y)
        self.align()

    def fit_generators(self, x, y):
        """Fit one auto-encoder after another."""
        for label in y.unique().tolist():
            own = x[y == label]
            self.generators[label] = ReferenceVAE(x.shape[1]).fit(own, passes=self.vae_passes)

    def draw(self):
        """Return what an epoch trains on: draws and their labels, class after class."""
        drawn = [generator.sample(self.samples_per_class) for generator in self.generators.values()]
        labels = torch.tensor(list(self.generators)).repeat_interleave(self.samples_per_class)
        return torch.cat(drawn), labels

    def align(self):
        """Train the prompts of all classes seen, with a fresh optimizer."""
        learned = [parameter for parameter in self.prompts.parameters() if parameter.requires_grad]
        optimizer = AdamW(learned, lr=self.learning_rate, weight_decay=0.0)
        for _ in range(self.epochs):
            x, y = self.draw()
            for rows in torch.randperm(len(x)).split(self.batch_size):
                self.step(optimizer, x[rows], y[rows])

    def step(self, optimizer, x, y):
        """Take one step on a batch."""
        loss = F.cross_entropy(self.prompts.logits(x, self.seen), torch.searchsorted(self.seen, y))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def predict(self, x):
        """Return the class ids (N,) of embeddings (N, D)."""
        best = [self.prompts.logits(part, self.seen).argmax(dim=1) for part in x.split(self.batch_size)]
        return self.seen[torch.cat(best)]
