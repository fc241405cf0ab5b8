"""The names that the host gives to metric values, taken apart."""

from __future__ import annotations

import re
from typing import Any

_PHASE = re.compile(r"(train|eval)_phase")
_STREAM = re.compile(r"(.+)_stream")
_TASK = re.compile(r"Task(\d+)")
_EXPERIENCE = re.compile(r"Exp(\d+)")


def metric_name_parts(name: str) -> dict[str, Any]:
    """Return the columns ``metric``, ``stream`` and ``experience`` of a name of the host.

    What has no column stays part of the metric's name: a task other than 0, a phase other than the
    stream's own (training on the training stream, evaluation on others), and unknown parts. A name
    without a stream belongs to the training stream if it is of the training phase, else to
    ``"test"``.

    >>> metric_name_parts("Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp003")
    {'metric': 'Top1_Acc_Exp', 'stream': 'test', 'experience': 3}
    >>> metric_name_parts("Loss_Stream/eval_phase/train_stream/Task001")["metric"]
    'Loss_Stream/eval_phase/Task001'
    """
    metric, *others = name.split("/")
    phase: str | None = None
    stream: str | None = None
    experience: int | None = None
    rest: list[str] = []
    for part in others:
        if phase is None and (found := _PHASE.fullmatch(part)):
            phase = found[1]
        elif stream is None and (found := _STREAM.fullmatch(part)):
            stream = found[1]
        elif experience is None and (found := _EXPERIENCE.fullmatch(part)):
            experience = int(found[1])
        elif not (found := _TASK.fullmatch(part)) or int(found[1]) != 0:
            rest.append(part)
    stream = ("train" if phase == "train" else "test") if stream is None else stream
    if phase is not None and phase != ("train" if stream.startswith("train") else "eval"):
        rest.insert(0, f"{phase}_phase")
    return {"metric": "/".join([metric, *rest]), "stream": stream, "experience": experience}
