"""From plain values and tensors back to a strategy's attributes; the opposite of `_encode`.

Nothing of the live objects is changed while decoding: what is to change is collected, and done by
`Decoder.apply` when all of it has been read.
"""

from __future__ import annotations

import contextlib
import copy
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_vlm._checks import wrong_value
from avalanche_vlm.checkpointing._allowed import class_name, known_functions
from avalanche_vlm.checkpointing._built import Built
from avalanche_vlm.checkpointing._graph import Encoded, Path, is_state, shown_path
from avalanche_vlm.checkpointing._kinds import KINDS
from avalanche_vlm.checkpointing._torch_kinds import TORCH_KINDS

_KINDS = {kind.name: kind for kind in (*KINDS, *TORCH_KINDS)}


class Decoder:
    """Decodes the nodes of one state.

    Args:
        nodes: what `Encoder` collected.
        built: what constructors made in this process.
        reference: name -> what the user has built again: ``(kind, ...)`` of the model or the data.
        model: the live model.
        tensors: parameters and buffers of the saved model, by name.
        experience: finds an experience of the benchmark.
        device: where tensors go that did not lie in the memory of the CPU.
    """

    def __init__(
        self,
        nodes: Sequence[Any],
        *,
        built: Built,
        reference: Callable[[Sequence[Any]], Any],
        model: nn.Module,
        tensors: Mapping[str, Tensor],
        experience: Callable[[str, int], Any],
        device: torch.device,
    ) -> None:
        self.model = model
        self.tensors = tensors
        self.device = device
        self.experience = experience
        self.storages: dict[Any, torch.UntypedStorage] = {}
        self._nodes = nodes
        self._built = built
        self._reference = reference
        self._made: dict[int, Any] = {}
        self._number = -1
        self._steps: list[Callable[[], Any]] = []
        self._states: list[tuple[Any, Any, str]] = []

    def decode(self, encoded: Encoded) -> Any:
        """Return the value that was encoded."""
        if isinstance(encoded, tuple):
            return tuple(self.decode(item) for item in encoded)
        if not isinstance(encoded, list):
            return encoded
        number = encoded[0]
        if number not in self._made:
            outer, self._number = self._number, number
            made = self._make(*self._nodes[number])
            self._number = outer
            self._made[number] = made
        return self._made[number]

    def put(self, made: Any) -> None:
        """Take note of an object before its content is read, which may name it."""
        self._made[self._number] = made

    def pairs(self, owner: Any, pairs: Sequence[Any]) -> dict[str, Any]:
        """Return attributes of an object, if these are such as the encoder writes.

        Raises:
            ValueError: they are not.
        """
        for name, _ in pairs:
            if not is_state(owner, name):
                raise wrong_value(
                    "path",
                    "a checkpoint as CheckpointPlugin writes it",
                    f"one that sets {name} of a {type(owner).__name__}",
                )
        return {name: self.decode(value) for name, value in pairs}

    def change(self, owner: Any, pairs: Sequence[Any], left: Sequence[str]) -> None:
        """Plan to set the attributes of a live object, and to delete those that the run had deleted.

        Args:
            owner: the object.
            pairs: its attributes, encoded.
            left: names of those that stay as they are.
        """
        values = self.pairs(owner, pairs)

        def apply() -> None:
            own = vars(owner)
            for name in [n for n in own if n not in values and n not in left and is_state(owner, n)]:
                del own[name]
            own.update(values)

        self._steps.append(apply)

    def fill(self, target: Tensor, source: Tensor, requires_grad: bool) -> None:
        """Plan to copy a tensor into a live one."""

        def apply() -> None:
            target.detach().copy_(source)
            if target.is_leaf and target.requires_grad != requires_grad:
                target.requires_grad_(requires_grad)

        self._steps.append(apply)

    def later(self, step: Callable[[], Any]) -> None:
        """Plan any other change of a live object."""
        self._steps.append(step)

    def load_states(self) -> None:
        """Let objects take their states that do it by ``load_state_dict``; to be called before `apply`.

        Raises:
            ValueError: a ``load_state_dict`` refuses its state; what was loaded before is put back.
        """
        done: list[tuple[Any, Any]] = []
        for owner, state, path in self._states:
            done.append((owner, copy.deepcopy(owner.state_dict())))
            try:
                owner.load_state_dict(state)
            except Exception as error:
                for earlier, before in reversed(done):
                    with contextlib.suppress(Exception):  # the one that refuses may refuse that too
                        earlier.load_state_dict(before)
                raise wrong_value(
                    f"strategy: {path}", "one that takes the saved state", f"{type(owner).__name__}: {error}"
                ) from error

    def apply(self) -> None:
        """Do what was planned."""
        with torch.no_grad():
            for step in self._steps:
                step()

    def kind(self, name: str) -> type:
        """Return the class of a full name.

        Raises:
            ValueError: instances of it may not be made.
        """
        found = self._built.kind(name)
        if found is None:
            raise wrong_value(
                "path",
                "a checkpoint with objects of known classes",
                f"one with a {name}",
                "If that class is yours, call allow_in_checkpoints with it before resuming.",
            )
        return found

    def _make(self, kind: str, home: Path | None, *content: Any) -> Any:
        # What a first callback had made before the run was known counts as built; it is made anew.
        live = None if home is None else self._built.objects.get(home)
        known = _KINDS.get(kind)
        if known is not None:
            if live is not None and not isinstance(live, known.types):
                raise self._other(home, f"a {kind}", live)
            return known.decode(self, live, *content)
        make = getattr(self, f"_make_{kind.replace(' ', '_')}", None)
        if make is None:
            raise wrong_value("path", "a checkpoint of this version", f"one with a {kind!r}")
        return make(live, home, *content)

    def _other(self, home: Path | None, expected: str, live: Any) -> ValueError:
        return wrong_value(
            "strategy",
            f"one with {expected} at {shown_path(home or ())}, as in the run",
            "nothing there" if live is None else f"a {class_name(type(live))}",
            "Build the strategy and its plugins as for the run.",
        )

    def _make_reference(self, live: Any, home: Any, *name: Any) -> Any:
        return self._reference(name)

    def _make_kept(self, live: Any, home: Any) -> Any:
        if home is None or live is None:
            raise self._other(home, "a function or path", live)
        if hasattr(live, "__dict__") and not callable(live) and not hasattr(live, "__fspath__"):
            raise wrong_value("path", "a checkpoint as CheckpointPlugin writes it", f"one that keeps {home}")
        return live

    def _make_function(self, live: Any, home: Any, name: str) -> Any:
        if name not in known_functions():
            raise wrong_value("path", "a checkpoint with known functions", name)
        return known_functions()[name]

    def _make_class(self, live: Any, home: Any, name: str) -> Any:
        return self.kind(name)

    # Containers are made empty first: what is in them may name them.

    def _make_list(self, live: Any, home: Any, items: Any) -> Any:
        made: list[Any] = []
        self.put(made)
        made.extend(map(self.decode, items))
        return made

    def _make_set(self, live: Any, home: Any, items: Any) -> Any:
        return set(map(self.decode, items))

    def _make_frozenset(self, live: Any, home: Any, items: Any) -> Any:
        return frozenset(map(self.decode, items))

    def _make_deque(self, live: Any, home: Any, items: Any, longest: int | None) -> Any:
        made: deque[Any] = deque(maxlen=longest)
        self.put(made)
        made.extend(map(self.decode, items))
        return made

    def _make_named_tuple(self, live: Any, home: Any, name: str, items: Any) -> Any:
        kind = self.kind(name)
        if not issubclass(kind, tuple):
            raise wrong_value("path", "a checkpoint with a named tuple there", f"one with a {name}")
        return tuple.__new__(kind, self.decode(items))

    def _fill(self, made: Any, pairs: Sequence[Any]) -> Any:
        self.put(made)
        for key, value in pairs:
            made[self.decode(key)] = self.decode(value)
        return made

    def _make_dict(self, live: Any, home: Any, pairs: Any) -> Any:
        return self._fill({}, pairs)

    def _make_OrderedDict(self, live: Any, home: Any, pairs: Any) -> Any:
        return self._fill(OrderedDict[Any, Any](), pairs)

    def _make_Counter(self, live: Any, home: Any, pairs: Any) -> Any:
        return self._fill(Counter[Any](), pairs)

    def _make_defaultdict(self, live: Any, home: Any, factory: Any, pairs: Any) -> Any:
        return self._fill(defaultdict(self.decode(factory)), pairs)

    # Objects: no constructor is called.

    def _make_object(self, live: Any, home: Any, name: str, pairs: Any, left: Any) -> Any:
        if live is not None:
            if class_name(type(live)) != name:
                raise self._other(home, f"a {name}", live)
            self.put(live)
            self.change(live, pairs, left)
            return live
        if home is not None and self._built.kind(name) is None:
            raise self._other(home, f"a {name}", live)
        kind: Any = self.kind(name)
        made = kind.__new__(kind)
        self.put(made)
        vars(made).update(self.pairs(made, pairs))
        return made

    def _make_stateful(self, live: Any, home: Any, name: str, state: Any) -> Any:
        if class_name(type(live)) != name:
            raise self._other(home, f"a {name}", live)
        self.put(live)
        self._states.append((live, self.decode(state), shown_path(home)))
        return live
