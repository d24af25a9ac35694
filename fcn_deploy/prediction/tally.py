"""What became of the photos of a run, and how fast."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from fcn_deploy.prediction.work import Prediction


@dataclass
class Tally:
    """Counts predictions as they pass.

    Attributes:
        segmented: photos that the model saw.
        done_before: photos whose results were there already.
        failed: photos that could not be read.
        untrained: whether the model's weights are random.
        inference_s: time the runtime took, in seconds.
        seconds: from the start to the last prediction.
    """

    segmented: int = 0
    done_before: int = 0
    failed: int = 0
    untrained: bool = False
    inference_s: float = 0.0
    seconds: float = 0.0
    _start: float = field(default_factory=time.perf_counter)

    def counting(self, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        """Pass predictions on, and count them."""
        for prediction in predictions:
            self._count(prediction)
            yield prediction

    def _count(self, prediction: Prediction) -> None:
        self.seconds = time.perf_counter() - self._start
        self.untrained |= prediction.untrained
        if prediction.failure is not None:
            self.failed += 1
        elif prediction.done_before:
            self.done_before += 1
        else:
            self.segmented += 1
        self.inference_s += (prediction.inference_ms or 0.0) / 1e3

    @property
    def images_per_s(self) -> float:
        """Photos that the model saw, per second of the whole run; 0 before the first."""
        return self.segmented / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        parts = [f"{self.segmented} photos segmented, {self.images_per_s:.3g} a second"]
        parts += [f"{self.done_before} done before"] if self.done_before else []
        total = self.segmented + self.done_before + self.failed
        parts += [f"{self.failed} of {total} photos failed"] if self.failed else []
        return "; ".join(parts)
