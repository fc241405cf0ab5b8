"""SeGP-CL as a plain loop: copies of the whole model as teachers, one image and one class at a time.

Written from METHODS, for tests; nothing of the package is used but the model's two towers.
"""

import copy

import torch


def unit(features):
    return features / features.norm(dim=-1, keepdim=True)


def divergence(teacher, student):
    """KL(teacher ‖ student) of two vectors of logits."""
    p = teacher.softmax(dim=0)
    return (p * (teacher.log_softmax(dim=0) - student.log_softmax(dim=0))).sum()


class PlainSeGPCL:
    """Holds what the method needs in its plainest form.

    Args:
        model: a classifier whose towers train; what trains is ``model.parameters()``.
        optimizer: over the same parameters.
        names: of all classes.
        mean: of the images' preprocessing, one number a channel.
        std: likewise.
        seeds: images that are taken as seeds for each old class.
        neighbours: of each new class.
    """

    def __init__(self, model, optimizer, names, mean, std, *, seeds=5, neighbours=10):
        self.model, self.optimizer = model, optimizer
        self.tokens = model.backbone.tokenize([f"a photo of a {name}." for name in names])
        self.mean, self.std = (torch.tensor(each)[:, None, None] for each in (mean, std))
        self.seeds, self.neighbours = seeds, neighbours
        self.pretrained = copy.deepcopy(model).eval()
        self.prototypes, self.seen = {}, []

    def names(self, model):
        return unit(model.backbone.encode_text(self.tokens))

    def raw(self, model, images):
        return model.backbone.encode_image_raw(images)

    def image(self, model, images):
        return unit(model.backbone.project_image(self.raw(model, images)))

    def anchor(self, seed, c):
        """Move one image towards the text and the prototype of one class."""
        teacher, text = self.teacher, self.names(self.teacher)[c].detach()
        prototype = unit(self.prototypes[c])
        start = seed * self.std + self.mean
        delta = torch.zeros_like(seed)
        for _ in range(10):
            delta.requires_grad_(True)
            raw = self.raw(teacher, ((start + delta - self.mean) / self.std)[None])
            text_distance = 1 - unit(teacher.backbone.project_image(raw))[0] @ text
            visual_distance = 1 - unit(raw)[0] @ prototype
            (slope,) = torch.autograd.grad(text_distance + visual_distance, delta)
            delta = (delta.detach() - 0.0015 * slope.sign()).clamp(-4 / 255, 4 / 255)
            # Pixels that are no pixel values from the start may stay, and move inwards only.
            lowest, highest = start.clamp(max=0), start.clamp(min=1)
            delta = (start + delta).maximum(lowest).minimum(highest) - start
        return (start + delta - self.mean) / self.std

    def begin(self, images, classes):
        """Take a teacher, find neighbours and make anchors.

        Args:
            images: of the experience (N, 3, H, W).
            classes: its classes.
        """
        self.optimizer.state.clear()
        self.old, self.new = list(self.seen), sorted(classes)
        self.seen = sorted({*self.seen, *classes})
        self.teacher = copy.deepcopy(self.model).eval()
        with torch.no_grad():
            first = self.names(self.pretrained)
        self.near = {}
        for c in self.new:
            others = sorted((j for j in self.seen if j != c), key=lambda j: -float(first[c] @ first[j]))
            own = others[: self.neighbours]
            self.near[c] = own, torch.stack([first[c] @ first[j] for j in own])
        self.anchors, self.targets = [], []
        for c in self.old:
            with torch.no_grad():
                likeness = self.image(self.teacher, images) @ self.names(self.teacher)[c]
            for row in likeness.argsort(descending=True)[: self.seeds].tolist():
                self.anchors.append(self.anchor(images[row], c))
                self.targets.append(c)

    def step(self, x, y, rows):
        """Make one step.

        Args:
            x: training images.
            y: their labels.
            rows: which anchors are in the batch.

        Returns:
            The three parts of the loss.
        """
        scale = self.model.backbone.logit_scale.detach()
        self.optimizer.zero_grad()
        names = self.names(self.model)
        logits = scale * self.image(self.model, x) @ names.T
        task = torch.zeros(())
        for row, label in zip(logits, y.tolist(), strict=True):
            task = task - row[self.new].log_softmax(dim=0)[self.new.index(label)] / len(y)
        kept = torch.zeros(())
        for row in rows:
            student = scale * self.image(self.model, self.anchors[row][None])[0] @ names[self.old].T
            with torch.no_grad():
                said = self.image(self.teacher, self.anchors[row][None])[0]
                said = scale * said @ self.names(self.teacher)[self.old].T
            kept = kept + 20**2 * divergence(said / 20, student / 20) / len(rows)
        places = torch.zeros(())
        for c in self.new:
            own, before = self.near[c]
            now = torch.stack([names[c] @ names[j] for j in own])
            places = places + divergence(before / 0.05, now / 0.05) / len(self.new)
        (task + 5 * kept + 1 * places).backward()
        self.optimizer.step()
        return float(task.detach()), float(kept.detach()), float(places.detach())

    @torch.no_grad()
    def end(self, images, labels):
        """Move earlier prototypes and add those of the experience."""
        now = copy.deepcopy(self.model).eval()
        for c in self.old:
            prototype, cosines, drifts = self.prototypes[c], [], []
            for anchor, target in zip(self.anchors, self.targets, strict=True):
                if target != c:
                    continue
                before, after = (self.raw(each, anchor[None])[0] for each in (self.teacher, now))
                cosines.append(float(unit(before) @ unit(prototype)))
                drifts.append(after - before)
            weights = (torch.tensor(cosines) / 0.1).softmax(dim=0)
            eta = min(max(sum(cosines) / len(cosines), 0), 1)
            moved = sum(weight * drift for weight, drift in zip(weights, drifts, strict=True))
            self.prototypes[c] = prototype + eta * moved
        for c in self.new:
            own = [self.raw(now, image[None])[0] for image in images[labels == c]]
            self.prototypes[c] = sum(own) / len(own)
